"""One protocol for every image: its size, its spacing, its origin, and `read` for a window of it.

`open_slide` chooses the reader by suffix. tifffile (with imagecodecs) reads
TIFF, because it gives every compression and layout segment by segment, so that
only the segments under a window are decoded; OpenSlide reads the scanners' own
formats; SimpleITK reads `.mha`; Pillow reads `.png` and `.jpg`, whole. Each is
imported when a file needs it. tifffile decodes a 512 px window of a tiled JPEG
faster than OpenSlide does, and reads strips, 16 bits and JPEG 2000, which
OpenSlide refuses in plain TIFF.
"""

import re
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from midog.errors import UserError

PLAUSIBLE_UM_PER_PX = (0.05, 5.0)  # outside, a resolution tag is about printing, or wrong
ROWS_IN_CACHE = 512  # px: the height of windows that are read side by side
NEAR_ENOUGH = 0.10  # of the spacing, without resampling
MARGIN = 4  # px around a resampled window, so that neighbouring windows meet without a seam
OPENSLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")
TIFF_SUFFIXES = (".tif", ".tiff", ".btf")
PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*TIFF_SUFFIXES, ".mha", *PLAIN_SUFFIXES, *OPENSLIDE_SUFFIXES)
UM_IN = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3}


def open_slide(path, warn, um_per_px=None, default_um_per_px=0.25):
    """Open an image for reading by windows.

    Args:
        path: of one of `SUFFIXES`.
        warn: called with one line where something is assumed or converted.
        um_per_px: the spacing, if the file's own is not to be used.
        default_um_per_px: assumed where neither tells.

    Returns:
        A context manager with `size` (width, height) px, `um_per_px` (x, y), `origin_mm` (x, y),
        `read(x, y, width, height)` -> uint8 (height, width, 3) RGB of a window inside the image,
        `points_mm(points)` and `close()`.

    Raises:
        UserError: the file is missing, empty, of another kind, or broken (the last also from `read`).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".dcm":
        raise UserError(f"{path}: DICOM and folders are not read; convert it to a tiled TIFF")
    try:
        empty = path.stat().st_size == 0
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if empty:
        raise UserError(f"{path}: the file is empty; copy it again")
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: suffix {suffix or 'none'} is unknown; known: {', '.join(SUFFIXES)}")
    if suffix in OPENSLIDE_SUFFIXES:
        kind = OpenSlideImage
    elif suffix in TIFF_SUFFIXES:
        kind = TiffImage
    else:
        kind = MhaImage if suffix == ".mha" else PlainImage
    try:
        slide = kind(path, warn)
        slide.um_per_px = _spacing(slide.um_per_px, um_per_px, default_um_per_px, path, warn)
    except UserError:
        raise
    except Exception as error:  # the decoders' own errors, of a dozen types
        raise _broken(path, error) from None
    return slide


def at_spacing(slide, um_per_px):
    """The slide itself if it is within 10 % of a spacing, else a view of it that resamples while reading."""
    if all(abs(each / um_per_px - 1) <= NEAR_ENOUGH for each in slide.um_per_px):
        return slide
    return Resampled(slide, um_per_px)


def _spacing(found, given, default, path, warn):
    if given:
        if not PLAUSIBLE_UM_PER_PX[0] <= given <= PLAUSIBLE_UM_PER_PX[1]:
            low, high = PLAUSIBLE_UM_PER_PX
            raise UserError(f"{path}: --mpp {given:g} is not a slide's spacing; give um per pixel, {low} to {high}")
        return float(given), float(given)
    low, high = PLAUSIBLE_UM_PER_PX
    if found is not None and all(low <= each <= high for each in found):
        return float(found[0]), float(found[1])
    said = "no resolution" if found is None else "an impossible {:.4g} x {:.4g} um/px".format(*found)
    warn(f"{path.name}: {said} in the file; {default:g} um/px assumed, give --mpp if it is another")
    return default, default


def _broken(path, error):
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return UserError(f"{path}: cannot be decoded ({reason}); copy or export it again")


class Image:
    """What every reader shares; `um_per_px` is None until the file or the user tells."""

    um_per_px = None
    origin_mm = (0.0, 0.0)

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Give the file back."""

    def read(self, x, y, width, height):
        """uint8 (height, width, 3) RGB of a window inside the image."""
        if not (0 <= x and 0 <= y and x + width <= self.size[0] and y + height <= self.size[1]):
            raise ValueError(f"window {x, y, width, height} reaches beyond {self.size}")
        try:
            return self._read(int(x), int(y), int(width), int(height))
        except UserError:
            raise
        except Exception as error:
            raise _broken(self.path, error) from None

    def points_mm(self, points):
        """Pixels (N, 2), a pixel's centre at integers -> mm (N, 2), as SimpleITK's physical points."""
        return np.asarray(points, float).reshape(-1, 2) * np.array(self.um_per_px) / 1000 + np.array(self.origin_mm)


class TiffImage(Image):
    """Any TIFF: tiles or strips, pyramids (the finest level), BigTIFF, OME, planes apart."""

    def __init__(self, path, warn):
        import tifffile

        super().__init__(path)
        self.file = tifffile.TiffFile(path)
        self.page = self.file.series[0].levels[0].keyframe
        page = self.page
        self.planes = page.planarconfig == 2 and page.samplesperpixel > 1
        if page.dtype is None or page.dtype.kind not in "ub" or page.dtype.itemsize > 2 or page.imagedepth > 1:
            raise UserError(f"{path}: pixels of type {page.dtype}; 8- or 16-bit RGB or grey expected")
        if page.dtype == np.uint16 and page.photometric.name != "PALETTE":
            warn(f"{path.name}: 16-bit pixels, scaled to 8 bit")
        if page.samplesperpixel not in (1, 3, 4) or page.photometric.name in ("SEPARATED", "CIELAB"):
            raise UserError(
                f"{path}: {page.samplesperpixel} samples of {page.photometric.name} a pixel; RGB or grey expected"
            )
        self.size = page.imagewidth, page.imagelength
        self.segment = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
        self.across = -(-page.imagewidth // self.segment[0])
        self.down = -(-page.imagelength // self.segment[1])
        self.cached = self.across * (-(-ROWS_IN_CACHE // self.segment[1]) + 1)
        self.segments, self.lock = OrderedDict(), threading.Lock()
        self.um_per_px = self._resolution()

    def close(self):
        self.file.close()

    def _resolution(self):
        if self.file.is_ome:
            sizes = dict(re.findall(r'PhysicalSize([XY](?:Unit)?)="([^"]*)"', self.file.ome_metadata or ""))
            if {"X", "Y"} <= set(sizes):
                return tuple(float(sizes[axis]) * UM_IN.get(sizes.get(f"{axis}Unit", "µm"), 0.0) for axis in "XY")
        said = re.search(r"\bMPP\s*=\s*([\d.]+)", self.page.description or "")
        if said:
            return float(said[1]), float(said[1])
        tags = self.page.tags
        unit = {2: 25400.0, 3: 10000.0}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None
        values = [tags[name].value for name in ("XResolution", "YResolution")]
        if not all(over and under for over, under in values):
            return None
        return tuple(unit * under / over for over, under in values)

    def _read(self, x, y, width, height):
        window = np.empty((height, width, 3), np.uint8)
        wide, high = self.segment
        for row in range(y // high, (y + height - 1) // high + 1):
            for column in range(x // wide, (x + width - 1) // wide + 1):
                pixels = self._segment(row * self.across + column)
                left, top = column * wide, row * high
                x0, x1 = max(x, left), min(x + width, left + pixels.shape[1])
                y0, y1 = max(y, top), min(y + height, top + pixels.shape[0])
                window[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
        return window

    def _segment(self, number):
        """One decoded tile or strip, from the cache of the last rows if it is there."""
        with self.lock:
            if number in self.segments:
                self.segments.move_to_end(number)
                return self.segments[number]
            if self.planes:
                count = self.across * self.down
                parts = [self._decode(number + plane * count) for plane in range(self.page.samplesperpixel)]
                pixels = np.concatenate(parts[:3], 2)
            else:
                pixels = self._decode(number)
            pixels = self._to_rgb(pixels)
            self.segments[number] = pixels
            if len(self.segments) > self.cached:
                self.segments.popitem(last=False)
            return pixels

    def _decode(self, number):
        page = self.page
        count = page.databytecounts[number]
        row, column = divmod(number % (self.across * self.down), self.across)
        shape = (
            min(self.segment[1], self.size[1] - row * self.segment[1]),
            min(self.segment[0], self.size[0] - column * self.segment[0]),
        )
        if count == 0:  # a tile that was left out holds nothing
            return np.full((*shape, 1 if self.planes else page.samplesperpixel), np.iinfo(page.dtype).max, page.dtype)
        self.file.filehandle.seek(page.dataoffsets[number])
        data = self.file.filehandle.read(count)
        if len(data) != count:
            raise UserError(f"{self.path}: the file is cut short; copy it again")
        # tifffile wants the table of quantisers that JPEG tiles share.
        decoded = page.decode(data, number, jpegtables=page.jpegtables)[0]
        if decoded is None:
            raise UserError(f"{self.path}: tile {number} holds no pixels; export it again")
        return decoded[0, : shape[0], : shape[1]]

    def _to_rgb(self, pixels):
        kind = self.page.photometric.name
        if kind == "PALETTE":
            table = (self.page.colormap >> 8).astype(np.uint8).T
            return table[pixels[..., 0]]
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        elif pixels.dtype == bool:
            pixels = pixels * np.uint8(255)
        if kind == "MINISWHITE":
            pixels = 255 - pixels
        return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., :3])


class OpenSlideImage(Image):
    """A scanner's own format."""

    def __init__(self, path, warn):
        import openslide

        super().__init__(path)
        self.slide = openslide.OpenSlide(path)
        self.size = self.slide.dimensions
        said = [self.slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        self.um_per_px = tuple(map(float, said)) if all(said) else None

    def close(self):
        self.slide.close()

    def _read(self, x, y, width, height):
        pixels = np.asarray(self.slide.read_region((x, y), 0, (width, height)))
        seen = pixels[..., 3:].astype(np.uint16)  # what was not scanned is transparent: show it as glass
        if (seen == 255).all():
            return np.ascontiguousarray(pixels[..., :3])
        return ((pixels[..., :3] * seen + 255 * (255 - seen)) // 255).astype(np.uint8)


class MhaImage(Image):
    """MetaImage of one plane; the spacing is in mm. Uncompressed files are read by windows, others whole."""

    def __init__(self, path, warn):
        import SimpleITK as sitk

        super().__init__(path)
        with path.open("rb") as file:
            header = file.read(4096)
        if b"ObjectType" not in header:
            raise UserError(f"{path}: not a MetaImage; export it again")
        self.reader = sitk.ImageFileReader()
        self.reader.SetFileName(str(path))
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        self.reader.ReadImageInformation()
        size = self.reader.GetSize()
        if len(size) > 2 and any(side > 1 for side in size[2:]):
            raise UserError(f"{path}: {size[2]} planes; a region is one plane")
        if self.reader.GetNumberOfComponents() not in (1, 3, 4) or self.reader.GetPixelID() not in (
            sitk.sitkUInt8,
            sitk.sitkVectorUInt8,
        ):
            raise UserError(f"{path}: pixels of type {self.reader.GetPixelIDTypeAsString()}; 8-bit RGB expected")
        identity = np.eye(len(size)).ravel()
        if not np.allclose(self.reader.GetDirection(), identity):
            raise UserError(f"{path}: the image is turned in space; export it without a direction matrix")
        self.size = size[:2]
        self.um_per_px = tuple(1000 * each for each in self.reader.GetSpacing()[:2])
        self.origin_mm = self.reader.GetOrigin()[:2]
        self.whole = None
        if re.search(rb"CompressedData\s*=\s*True", header):
            self.whole = self._pixels(self.reader.Execute())

    def _read(self, x, y, width, height):
        if self.whole is not None:
            return self.whole[y : y + height, x : x + width]
        rest = len(self.reader.GetSize()) - 2
        self.reader.SetExtractIndex((x, y) + (0,) * rest)
        self.reader.SetExtractSize((width, height) + (1,) * rest)
        return self._pixels(self.reader.Execute())

    @staticmethod
    def _pixels(image):
        import SimpleITK as sitk

        pixels = sitk.GetArrayFromImage(image)
        channels = image.GetNumberOfComponentsPerPixel()
        pixels = pixels.reshape(image.GetSize()[1], image.GetSize()[0], channels)
        return np.repeat(pixels, 3, 2) if channels == 1 else np.ascontiguousarray(pixels[..., :3])


class PlainImage(Image):
    """A `.png` or `.jpg`, decoded whole."""

    def __init__(self, path, warn):
        import warnings

        from PIL import Image as PillowImage

        super().__init__(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
            try:
                with PillowImage.open(path) as image:
                    dpi = image.info.get("dpi")
                    self.pixels = np.asarray(image.convert("RGB"))
            except PillowImage.DecompressionBombError:
                raise UserError(f"{path}: too large to be decoded whole; convert it to a tiled TIFF") from None
        self.size = self.pixels.shape[1], self.pixels.shape[0]
        self.um_per_px = tuple(25400.0 / float(each) for each in dpi) if dpi and all(dpi) else None

    def _read(self, x, y, width, height):
        return self.pixels[y : y + height, x : x + width]


class Resampled(Image):
    """A slide seen at another spacing, resampled window by window (triangle filter, antialiased when it shrinks)."""

    def __init__(self, slide, um_per_px):
        super().__init__(slide.path)
        self.slide = slide
        self.size = tuple(
            max(1, round(pixels * each / um_per_px)) for pixels, each in zip(slide.size, slide.um_per_px, strict=True)
        )
        # What the rounding of the size makes of it, so that the last pixel ends where the slide ends.
        self.step = np.array(slide.size) / np.array(self.size)
        self.um_per_px = tuple(np.array(slide.um_per_px) * self.step)

    def close(self):
        self.slide.close()

    def points_mm(self, points):
        points = np.asarray(points, float).reshape(-1, 2)
        return self.slide.points_mm((points + 0.5) * self.step - 0.5)

    def _read(self, x, y, width, height):
        from PIL import Image as PillowImage

        low = np.maximum([x - MARGIN, y - MARGIN], 0)
        high = np.minimum([x + width + MARGIN, y + height + MARGIN], self.size)
        start, stop = low * self.step, high * self.step
        first = np.floor(start).astype(int)
        last = np.minimum(np.ceil(stop).astype(int), self.slide.size)
        source = PillowImage.fromarray(self.slide.read(*first, *(last - first)))
        area = (*(start - first), *np.minimum(stop - first, last - first))
        pixels = np.asarray(source.resize(tuple(high - low), PillowImage.Resampling.BILINEAR, box=area))
        return np.ascontiguousarray(pixels[y - low[1] :, x - low[0] :][:height, :width])
