"""Public situations in which files are read wrongly without a word, one line each, with the right answer.

A line makes the file of a situation, small, and says what comes out: the answer, or the error's line.
"""

import json
import logging
import sqlite3

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from test_resolution import PHILIPS, PHILIPS_SPACING, ome_of
from writers import ASCII, RATIONAL, SHORT, write_dicom, write_tiff

from midog.errors import UserError
from midog.evaluation.cases import find_results, read_cases, read_ground_truth
from midog.images.slide import open_slide
from midog.images.stack import Stack
from midog.images.track import track_of_image
from midog.job import read_job
from midog.predict import expand
from resources.data.slide_runner import read_slide_runner

CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
TILES = {"tile": (64, 64), "photometric": "rgb"}
SLUG = "histopathology-region-of-interest-cropout"


def waves(width, height, phase=0.0):
    y, x = np.mgrid[:height, :width]
    return (128 + 90 * np.stack([np.sin(x / 19 + y / 31 + phase), np.cos(x / 23), np.sin(y / 40)], -1)).astype(np.uint8)


PICTURE = waves(160, 128)


class Case:
    """A folder, and what its files are read as."""

    def __init__(self, folder, caplog):
        self.folder = folder
        self._caplog = caplog

    def path(self, name):
        return self.folder / name

    @property
    def said(self):
        """What was logged."""
        return [record.getMessage() for record in self._caplog.records if record.name.startswith("midog.")]

    def shows(self, path, wanted=PICTURE, um_per_px=0.25, said=(), off=0.0, **options):
        """A file that `predict` reads has these pixels, but for `off` on average, and a warning for each of `said`."""
        self._caplog.clear()
        with open_slide(path, refuse_implausible=True, **options) as slide:
            assert slide.size == wanted.shape[1::-1]
            assert slide.um_per_px == pytest.approx((um_per_px, um_per_px), rel=1e-3)
            assert np.abs(slide.read(0, 0, *slide.size).astype(int) - wanted).mean() <= off
        assert len(self.said) == len(said), self.said
        for line, words in zip(self.said, said, strict=True):
            assert words in line

    def refuses(self, read, *words):
        """`read` ends with one line that has all of `words`."""
        with pytest.raises(UserError) as error:
            read()
        assert "\n" not in str(error.value)
        for word in words:
            assert word in str(error.value)


@pytest.fixture
def case(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("midog"), "handlers", [])
    return Case(tmp_path, caplog)


def given(path):
    """um/px where --mpp says .4."""
    with open_slide(path, um_per_px=0.4, refuse_implausible=True) as slide:
        assert slide.read(0, 0, 9, 9).shape == (9, 9, 3)
        return slide.um_per_px[1]


def tags(description="", unit=1, x=(1, 1)):
    return {
        270: (ASCII, description.encode() + b"\0"),
        282: (RATIONAL, x),
        283: (RATIONAL, x),
        296: (SHORT, [unit]),
    }


# --- resolution ------------------------------------------------------------------------


def r01_imagej_um_half(case):
    path = write_tiff(case.path("a.tif"), PICTURE, tags("ImageJ=1.11a\nimages=1\nhyperstack=true\nunit=um\n", x=(2, 1)))
    case.shows(path, um_per_px=0.5)


def r11_ome_bad_number(case):
    path = write_tiff(case.path("a.ome.tif"), PICTURE, tags(ome_of("0,25")))
    case.shows(path)
    path = write_tiff(case.path("b.ome.tif"), PICTURE, tags(ome_of("a quarter")))
    case.shows(path, said=["--mpp"])
    assert given(path) == 0.4


def r15_trident_px_per_mm_half(case):
    path = write_tiff(case.path("a.tif"), PICTURE, tags(unit=3, x=(200_000, 1)))
    case.refuses(lambda: open_slide(path, refuse_implausible=True), "a.tif", "0.05 um/px", "--mpp")
    assert given(path) == 0.4


def r23_ome_entity_half(case):
    case.shows(write_tiff(case.path("a.ome.tif"), PICTURE, tags(ome_of("0.5", "&#181;m"))), um_per_px=0.5)


# --- levels ----------------------------------------------------------------------------


def m03_macro_first(case):
    with tifffile.TiffWriter(case.path("a.tif")) as file:
        file.write(waves(60, 180), photometric="rgb", description="Label_Image", metadata=None)
        for number, pixels in enumerate((PICTURE, PICTURE[::2, ::2].copy())):
            note = f"level={number} mag={40 >> number} quality=95"
            file.write(pixels, compression="zlib", description=note, metadata=None, **TILES)
    case.shows(case.path("a.tif"), said=["objective 40x"])


def m07_philips_half(case):
    sequence = "".join(PHILIPS_SPACING.format('"0.0005" "0.0005"') for _ in range(2))
    padded = np.pad(PICTURE, ((0, 64), (0, 32), (0, 0)), constant_values=255)
    note = {"description": PHILIPS.format(sequence), "software": "Philips DP v1.0", "metadata": None}
    tifffile.imwrite(case.path("a.tiff"), padded, compression="jpeg", compressionargs={"level": 95}, **TILES, **note)
    case.shows(case.path("a.tiff"), padded, um_per_px=0.5, off=3)


def m13_direction_noise(case):
    image = sitk.GetImageFromArray(PICTURE, isVector=True)
    image.SetSpacing((0.00025, 0.00025))
    sitk.WriteImage(image, str(case.path("a.mha")))
    good = case.path("a.mha").read_bytes()
    for matrix in (b"1 1e-17 -1e-17 1", b"1 -1.0000000000000001e-17 0 0.99999999999999989"):
        case.path("a.mha").write_bytes(good.replace(b"TransformMatrix = 1 0 0 1", b"TransformMatrix = " + matrix))
        case.shows(case.path("a.mha"))
    case.path("a.mha").write_bytes(good.replace(b"TransformMatrix = 1 0 0 1", b"TransformMatrix = 0 1 -1 0"))
    case.refuses(lambda: open_slide(case.path("a.mha")), "a.mha", "turned")


def m14_large_corrupt_level_1(case, suffix=".tif"):
    big = waves(1024, 1024)
    path = case.path(f"a{suffix}")
    note = {"description": "Aperio Image Library v11\r\n1024x1024|AppMag = 40|MPP = 0.25", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        for number, pixels in enumerate((big, big[::2, ::2].copy())):
            more = {"subfiletype": number} if suffix == ".tif" else {}
            file.write(pixels, tile=(256, 256), compression="jpeg", **note, **CM, **more)
    with tifffile.TiffFile(path) as tif:
        start, length = tif.pages[1].dataoffsets[0], tif.pages[1].databytecounts[0]
    data = path.read_bytes()
    path.write_bytes(data[:start] + b"\xff" * length + data[start + length :])
    case.shows(path, big, off=3)
    with open_slide(path) as slide:
        view = slide.overview(400)
        assert np.abs(slide.read(100, 100, 300, 200).astype(int) - big[100:300, 100:400]).mean() < 3
    assert np.abs(view.astype(int) - np.asarray(Image.fromarray(big).resize((400, 400)))).mean() < 4
    (warning,) = case.said
    assert path.name in warning


def m14_the_same_by_openslide(case):
    m14_large_corrupt_level_1(case, ".svs")


# --- colours ---------------------------------------------------------------------------


def s07_j2k_33003(case):
    padded = np.pad(PICTURE, ((0, 0), (0, 32), (0, 0)), mode="edge")
    as_ycbcr = np.asarray(Image.fromarray(padded).convert("YCbCr"))
    form = {"level": 0, "mct": False, "codecformat": "j2k"}
    places = [(y, x) for y in (0, 64) for x in (0, 64, 128)]
    tiles = [imagecodecs.jpeg2k_encode(as_ycbcr[y : y + 64, x : x + 64].copy(), **form) for y, x in places]
    note = "Aperio Image Library v11\r\n160x128 (64x64) J2K/YUV16 Q=70|AppMag = 40|MPP = 0.2500"
    for name in ("a.tif", "a.svs"):
        case.shows(write_tiff(case.path(name), PICTURE, tags(note) | {259: (SHORT, [33003])}, tiles=tiles), off=2)


def a08_rgb_12bit_in_16(case):
    deep = (PICTURE * (4095 / 255)).astype(np.uint16)
    case.path("a.png").write_bytes(imagecodecs.png_encode(deep))
    case.shows(case.path("a.png"), said=["12-bit", "no resolution"], off=1)
    tifffile.imwrite(case.path("a.tif"), deep, **CM)
    case.shows(case.path("a.tif"), said=["12-bit"], off=1)


# --- DICOM -----------------------------------------------------------------------------


def jpeg(frame):
    return imagecodecs.jpeg8_encode(frame, level=95, colorspace="rgb", outcolorspace="ycbcr")


JPEG = {"encode": jpeg, "syntax": "1.2.840.10008.1.2.4.50", "photometric": "YBR_FULL_422"}


def d02_rgb_label_ycbcr_jpeg(case):
    case.shows(write_dicom(case.path("a.dcm"), PICTURE, **JPEG | {"photometric": "RGB"}), off=3)


def d05_sparse_column_order(case):
    case.shows(write_dicom(case.path("a.dcm"), PICTURE, order="columns sparse", **JPEG), off=3)


def d08_two_slides_in_a_folder(case):
    (case.path("slides")).mkdir()
    pictures = [PICTURE, waves(100, 90, phase=2.0)]
    for number, pixels in enumerate(pictures):
        write_dicom(case.path(f"slides/{number}.dcm"), pixels, series=f"1.2.{number}", **JPEG)
    found = expand(case.path("slides"), case.path("out"))
    assert len({each.name for each in found}) == 2
    for each, pixels in zip(found, pictures, strict=True):
        case.shows(each.path, pixels, off=3)
    case.refuses(lambda: open_slide(case.path("slides")), "slides")


def d14_spacing_per_frame(case):
    path = write_dicom(case.path("a.dcm"), PICTURE, spacing_in="frames", spacing_mm=0.0005, order="rows sparse", **JPEG)
    case.shows(path, um_per_px=0.5, off=3)


def d15_no_spacing(case):
    path = write_dicom(case.path("a.dcm"), PICTURE, spacing_in="nowhere", **JPEG)
    case.shows(path, said=["--mpp"], off=3)
    assert given(path) == 0.4


# --- stacks ----------------------------------------------------------------------------


def t20_bigtiff_big_endian(case):
    pages = np.stack([waves(128, 128, phase=number) for number in range(16)])
    tifffile.imwrite(case.path("a.tif"), pages, photometric="rgb", bigtiff=True, byteorder=">")
    np.testing.assert_array_equal(np.stack(list(Stack(case.path("a.tif")))), pages)
    assert track_of_image(case.path("a.tif")) == 2


def t30_crop(case):
    (case.path("crops")).mkdir()
    for number in range(3):
        Image.fromarray(waves(128, 128, phase=number)).save(case.path(f"crops/{number}.png"))
    (found,) = expand(case.path("crops"), case.path("out"))
    assert (found.path, found.crops) == (case.path("crops"), 3)
    assert track_of_image(case.path("crops/0.png")) == 2


# --- jobs, predictions, truths -----------------------------------------------------------


def write_job(folder, *keys, files=("a.tif",)):
    """A job whose socket stands under these keys, with these files in the image's folder."""
    images = folder / "images/roi"
    images.mkdir(parents=True)
    for name in files:
        (images / name).write_bytes(b"\0\5\26\7" if name.startswith(".") else b"II*\0")
    socket = {"slug": SLUG, "relative_path": "images/roi"}
    (folder / "inputs.json").write_text(
        json.dumps([{"pk": 1, "image": {"name": "case 17.tiff"}} | dict.fromkeys(keys, socket)])
    )


def j05_socket_key(case):
    for number, keys in enumerate((["socket"], ["interface"], ["interface", "socket"])):
        write_job(case.path(str(number)), *keys)
        job = read_job(case.path(str(number)))
        assert (job.socket.track, job.image_name, job.image_path.name) == (1, "case 17.tiff", "a.tif")


def j07_apple_double(case):
    write_job(case.folder, "interface", files=("a.tif", "._a.tif", ".DS_Store"))
    assert read_job(case.folder).image_path.name == "a.tif"
    Image.fromarray(waves(300, 300)).save(case.path("images/roi/b.png"))
    case.path("images/roi/._b.png").write_bytes(b"\0\5\26\7")
    assert [each.path.name for each in expand(case.path("images"), case.path("out"))] == ["a.tif", "b.png"]


POINT = {"name": "mitotic figure", "point": [0.0242, 0.0885, 0], "probability": 0.9}
RESULT = {"type": "Multiple points", "points": [POINT], "version": {"major": 1, "minor": 0}}
TRUTH = {"annotations": [[0.0242, 0.0885, 0]], "tumor domain": 0, "roi type": "hotspot"}


def evaluate_socket_only(case):
    socket = {"slug": SLUG, "relative_path": "images/roi"}
    output = {"slug": "mitotic-figures", "relative_path": "mitotic-figures.json"}
    jobs = [{"pk": "x", "inputs": [{"image": {"name": "1.tiff"}, "socket": socket}], "outputs": [{"socket": output}]}]
    case.path("predictions.json").write_text(json.dumps(jobs))
    case.path("x/output").mkdir(parents=True)
    case.path("x/output/mitotic-figures.json").write_text(json.dumps(RESULT))
    assert find_results(case.folder, 1, ["1.tiff"]).found == [("1.tiff", case.path("x/output/mitotic-figures.json"))]
    (read,), problems = read_cases(1, {"1.tiff": TRUTH}, case.folder)
    assert (read.image, problems) == ("1.tiff", [])


def truth_pixels(case):
    for place in ([97, 354, 0], [9.5, 12, 0]):
        case.path("truth.json").write_text(json.dumps({"1.tiff": TRUTH | {"annotations": [place]}}))
        case.refuses(lambda: read_ground_truth(case.path("truth.json"), 1), "truth.json", "px", "mm")


def q14_tupac_directories(case):
    with sqlite3.connect(case.path("a.sqlite")) as file:
        file.executescript("""
            CREATE TABLE Slides (uid INTEGER PRIMARY KEY, filename TEXT, width INTEGER, height INTEGER, directory TEXT);
            CREATE TABLE Classes (uid INTEGER PRIMARY KEY, name TEXT);
            CREATE TABLE Annotations (uid INTEGER PRIMARY KEY, slide INTEGER, type INTEGER, agreedClass INTEGER);
            CREATE TABLE Annotations_coordinates (uid INTEGER PRIMARY KEY, coordinateX INTEGER, coordinateY INTEGER,
                                                  slide INTEGER, annoId INTEGER, orderIdx INTEGER);
            INSERT INTO Classes VALUES (1, 'Mitotic figure');
            INSERT INTO Slides VALUES (1, '01.tif', 9, 9, '01'), (2, '01.tif', 9, 9, '02'), (3, '02.tif', 9, 9, '02');
            INSERT INTO Annotations VALUES (1, 1, 1, 1), (2, 2, 1, 1);
            INSERT INTO Annotations_coordinates VALUES (1, 3, 4, 1, 1, 1), (2, 5, 6, 2, 2, 1);
        """)
    images, figures = read_slide_runner(case.path("a.sqlite"))
    assert list(images.image) == ["01/01.tif", "02/01.tif", "02/02.tif"]
    assert list(figures.image) == ["01/01.tif", "02/01.tif"]


CASES = [r01_imagej_um_half, r11_ome_bad_number, r15_trident_px_per_mm_half, r23_ome_entity_half, m03_macro_first]
CASES += [m07_philips_half, m13_direction_noise, m14_large_corrupt_level_1, m14_the_same_by_openslide, s07_j2k_33003]
CASES += [a08_rgb_12bit_in_16, d02_rgb_label_ycbcr_jpeg, d05_sparse_column_order, d08_two_slides_in_a_folder]
CASES += [d14_spacing_per_frame, d15_no_spacing, t20_bigtiff_big_endian, t30_crop, j05_socket_key, j07_apple_double]
CASES += [evaluate_socket_only, truth_pixels, q14_tupac_directories]


@pytest.mark.parametrize("situation", CASES, ids=[situation.__name__ for situation in CASES])
def test_a_situation_has_its_right_answer(case, situation):
    situation(case)
