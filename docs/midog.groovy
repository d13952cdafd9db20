/*
 * Mitotic figures of the open image, or of what is selected in it. QuPath 0.5 and 0.6; docs/QUPATH.md explains it.
 * Open it in Automate, Script editor; set the four lines below once; then Run.
 */

// What starts midog: its Python. On Windows: ["C:/Users/Ann Lee/midog/.venv/Scripts/python.exe", "-m", "midog"]
def command = ["/home/ann/midog/.venv/bin/python", "-m", "midog"]
// The folder of the repository. On Windows: "C:/Users/Ann Lee/midog"
def folder = "/home/ann/midog"
// More options of `midog predict`: ["--atypical", "--system", "rtmdet_tiny"] for one
def options = []
// Where results and reports are kept; null: the folder "midog" of the project, or else of your home
def results = null

import java.awt.geom.AffineTransform
import qupath.lib.common.GeneralTools
import qupath.lib.images.servers.ImageServerBuilder
import qupath.lib.images.writers.ome.OMEPyramidWriter
import qupath.lib.io.PathIO
import qupath.lib.objects.PathObjectTools
import qupath.lib.regions.RegionRequest
import qupath.lib.roi.RectangleROI
import qupath.lib.scripting.QP

def MARK = "midog"  // the measurement of what this script imported

def imageData = QP.getCurrentImageData()
if (imageData == null) {
    println "midog: no image is open; open one and run again"
    return
}
def server = imageData.getServer()
def calibration = server.getPixelCalibration()
if (!calibration.hasPixelSizeMicrons()) {
    println "midog: the image has no pixel size; set it in the Image tab (double click Pixel width) and run again"
    return
}

// What is run: the bounds of the selection, or the file.
def roi = QP.getSelectedROI()
def region = null
if (roi != null) {
    if (!roi.isArea()) {
        println "midog: the selection has no area; select a rectangle, or nothing for the whole image"
        return
    }
    region = RegionRequest.createInstance(server.getPath(), 1.0d, roi)
        .intersect2D(0, 0, server.getWidth(), server.getHeight())
    if (region.getWidth() < 1 || region.getHeight() < 1) {
        println "midog: the selection lies outside the image; move it and run again"
        return
    }
}
def isInside = { object ->
    roi == null || roi.contains(object.getROI().getCentroidX(), object.getROI().getCentroidY())
}

// What an earlier run left there; a figure whose class is another now was corrected.
def earlier = (QP.getDetectionObjects() + QP.getAnnotationObjects()).findAll {
    it.getMeasurementList().containsKey(MARK) && isInside(it)
}
def importedClass = { object ->
    def atypical = object.getMeasurementList().get("P(atypical)")
    object.isAnnotation() ? "hotspot" : Double.isNaN(atypical) ? "mitotic figure" :
        atypical >= 0.5 ? "atypical mitotic figure" : "normal mitotic figure"
}
def corrected = earlier.findAll { String.valueOf(it.getPathClass()) != importedClass(it) }
if (corrected) {
    println "midog: ${corrected.size()} figures of an earlier run have another class now; export them (File, Export " +
        "objects as GeoJSON), delete them and run again"
    return
}

def image = null
def base = results ? new File(results) :
    QP.getProject() ? new File(QP.buildFilePath(QP.PROJECT_BASE_DIR, "midog")) :
    new File(System.getProperty("user.home"), "midog")
base.mkdirs()
if (region == null) {
    def builder = server.getBuilder()
    def uris = server.getURIs()
    image = uris.size() == 1 ? GeneralTools.toPath(uris.iterator().next())?.toFile() : null
    def isFile = builder instanceof ImageServerBuilder.DefaultImageServerBuilder
    def arguments = isFile ? (builder.getArgs() ?: []).toList() : null
    def series = arguments?.indexOf("--series")
    def asItIs = arguments != null && !arguments.contains("--no-crop") &&
        (series < 0 || arguments[series + 1] == "0")
    if (image == null || !image.exists() || !asItIs) {
        println "midog: this image is no file as it is (a server's, one of several in a file, rotated, cropped); select " +
            "a rectangle, which is exported"
        return
    }
} else {
    def name = server.getMetadata().getName().replaceAll(/[^\p{L}\p{N}._-]+/, "_")
    def place = "${region.getX()}_${region.getY()}_${region.getWidth()}x${region.getHeight()}"
    image = new File(new File(base, "regions"), "${name}_${place}.ome.tif")
    image.getParentFile().mkdirs()
    println "midog: exporting ${region.getWidth()} x ${region.getHeight()} px"
    new OMEPyramidWriter.Builder(server).region(region).downsamples(1.0d).losslessCompression().tileSize(512)
        .build().writeSeries(image.getAbsolutePath())
}

def spacing = String.format(Locale.ROOT, "%.5f", calibration.getAveragedPixelSizeMicrons())
def call = command + ["predict", image.getAbsolutePath(), "--out", base.getAbsolutePath(), "--track", "1",
    "--mpp", spacing, "--report"] + options
println "midog: " + call.join(" ")
def start = new ProcessBuilder(call.collect { it.toString() }).directory(new File(folder)).redirectErrorStream(true)
start.environment().put("PYTHONUTF8", "1")
def process
try {
    process = start.start()
} catch (IOException error) {
    println "midog: cannot be started (${error.getMessage()}); mend the lines `command` and `folder` of the script"
    return
}
process.getInputStream().eachLine("UTF-8") { println it }
if (process.waitFor() != 0) {
    println "midog: ended with an error, which the lines above name; nothing was imported"
    return
}
def out = new File(base, image.getName())
def file = new File(out, "figures.geojson")
if (!file.exists()) {
    println "midog: ${file} was not written; the lines above say why"
    return
}

// Into the image's own px, each with its mark; a hotspot is of the rectangle that was run.
def shift = AffineTransform.getTranslateInstance(region == null ? 0 : region.getX(), region == null ? 0 : region.getY())
def found = PathIO.readObjects(file).collect { PathObjectTools.transformObject(it, shift, true) }.findAll {
    it.isAnnotation() ? roi == null || roi instanceof RectangleROI : isInside(it)
}
found.each { it.getMeasurementList().put(MARK, 1.0d) }
imageData.getHierarchy().removeObjects(earlier, true)
imageData.getHierarchy().addObjects(found)
println "midog: ${found.count { it.isDetection() }} mitotic figures, ${earlier.size()} objects of earlier runs removed; " +
    "report: ${new File(out, 'report.html')}"
