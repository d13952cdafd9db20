import logging
import random
from itertools import product

import cv2
import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from writers import write_dicom

from midog.images.slide import open_slide
from midog.images.stack import Stack

SIDE, CROP = 256, 128
CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}  # .25 um/px
DPI = (101_600, 101_600)


def waves():
    """Smooth colours, which a lossy codec keeps: uint8 (256, 256, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return (128 + 90 * np.stack([np.sin(x / 19 + y / 31), np.cos(x / 23 - y / 17), np.sin((x + y) / 40)], -1)).astype(
        np.uint8
    )


PICTURE = waves()
QUARTERS = [PICTURE[y : y + CROP, x : x + CROP] for y in (0, CROP) for x in (0, CROP)]
PALETTE = np.asarray(Image.fromarray(PICTURE).quantize(256))
COLOURS = np.array(Image.fromarray(PICTURE).quantize(256).getpalette(), np.uint16).reshape(256, 3)


@pytest.fixture
def check(caplog, monkeypatch):
    """Reads a file as a slide, and as a stack where it is one, and compares; the lines that were logged."""
    monkeypatch.setattr(logging.getLogger("midog"), "handlers", [])

    def logged():
        return [record.getMessage() for record in caplog.records if record.name.startswith("midog.")]

    def compare(got, wanted, lossless):
        assert (got.shape, got.dtype) == (wanted.shape, np.uint8)
        assert np.abs(got.astype(int) - wanted).mean() <= (0 if lossless else 3)

    def check(path, lossless=True, wanted=PICTURE, warnings=0):
        with open_slide(path, refuse_implausible=True) as slide:
            assert slide.um_per_px == pytest.approx((0.25, 0.25), rel=1e-4)
            assert slide.resolution.source == "read"
            compare(slide.read(0, 0, *slide.size), wanted, lossless)
            compare(slide.read(60, 70, 90, 80), wanted[70:150, 60:150], lossless)
            small = np.asarray(Image.fromarray(wanted).reduce(2))
            assert np.abs(slide.overview(CROP).astype(int) - small).mean() <= 4
        assert len(logged()) == warnings, logged()
        caplog.clear()

    def check_stack(path, lossless=True, wanted=QUARTERS, warnings=0):
        with Stack(path) as stack:
            assert stack.um_per_px == pytest.approx((0.25, 0.25), rel=1e-4)
            pages = list(stack)
        assert len(pages) == len(wanted)
        for page, quarter in zip(pages, wanted, strict=True):
            compare(page, quarter, lossless)
        assert len(logged()) == warnings, logged()

    check.stack = check_stack
    return check


# --- TIFF, by tifffile: everything with everything ---------------------------------

LOSSLESS = {"none": None, "lzw": "lzw", "deflate": "zlib", "zstd": "zstd", "packbits": "packbits"}
PICTURES = {"jpeg": "jpeg", "jpeg2000": "jpeg2000", "webp": "webp", "jpegxl": "jpegxl"}  # that know colours and depths
ARGUMENTS = {"webp": {"lossless": True, "method": 0}, "jpegxl": {"lossless": True, "effort": 1}, "jpeg": {"level": 95}}


def exists(codec, planar, bits, colour):
    """Whether the combination does."""
    if colour == "palette":
        return codec in LOSSLESS and bits == 8 and planar == "contig"
    if colour == "ycbcr":
        return codec in (*LOSSLESS, "jpeg") and bits == 8 and planar == "contig"
    if codec == "jpeg":
        return bits == 8 and (colour == "rgb" or planar == "separate")
    if codec == "webp":
        return bits == 8 and planar == "contig"
    return True


AXES = LOSSLESS | PICTURES, ("strips", "tiles"), ("contig", "separate"), (8, 16), ("rgb", "rgba", "palette", "ycbcr")
TIFFS = [kind for kind in product(*AXES) if exists(kind[0], *kind[2:])]
CHANCE = random.Random(0)  # how a file is built has little to do with its pixels: any one is enough for each
FILES = list(product("<>", ("classic", "big"), ("flat", "subifds")))
TIFFS = [(*kind, *CHANCE.choice(FILES)) for kind in TIFFS]


def options_of(codec, layout, planar, bits, colour):
    options = {"compression": (LOSSLESS | PICTURES)[codec], "compressionargs": ARGUMENTS.get(codec), "metadata": None}
    options |= {"tile": (64, 64)} if layout == "tiles" else {"rowsperstrip": 48}
    if codec == "jpeg" and planar == "separate":
        options["compressionargs"] = {"level": 95, "colorspace": "grayscale", "outcolorspace": "grayscale"}
    elif codec == "jpeg" and colour == "rgb":
        options["compressionargs"] = {"level": 95, "outcolorspace": "rgb"}
    if colour == "palette":
        return options | {"photometric": "palette", "colormap": (COLOURS * 257).T}
    if colour == "rgba":
        options["extrasamples"] = ["unassalpha"]
    if colour == "ycbcr" and codec == "jpeg":
        return options | {"photometric": "rgb", "subsampling": (2, 2)}
    if colour == "ycbcr":
        return options | {"photometric": "ycbcr", "subsampling": (1, 1)}
    return options | {"photometric": "rgb", "planarconfig": planar}


def encoded(picture, codec, planar, bits, colour):
    """What is handed to tifffile for uint8 (H, W, 3), or for an index of colours (H, W)."""
    if colour == "palette":
        return picture
    if colour == "ycbcr" and codec != "jpeg":
        return np.asarray(Image.fromarray(picture).convert("YCbCr"))
    if colour == "rgba":
        picture = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    if bits == 16:
        picture = picture.astype(np.uint16) * 257
    return np.moveaxis(picture, -1, 0) if planar == "separate" else picture


@pytest.mark.parametrize("kind", TIFFS, ids=["-".join(map(str, kind)) for kind in TIFFS])
def test_tiff(tmp_path, check, kind):
    codec, layout, planar, bits, colour, order, big, levels = kind
    options = options_of(codec, layout, planar, bits, colour)
    form = {"byteorder": order if codec != "jpegxl" else "<", "bigtiff": big == "big"}  # its encoder takes no other
    lossless = codec != "jpeg" and colour != "ycbcr"
    warnings = 0 if (bits, colour) in ((8, "rgb"), (8, "ycbcr")) else 1
    as_written = encoded(PALETTE if colour == "palette" else PICTURE, codec, planar, bits, colour)
    with tifffile.TiffWriter(tmp_path / "a.tif", **form) as file:
        file.write(as_written, subifds=1 if levels == "subifds" else None, **options, **CM)
        if levels == "subifds":
            rows = as_written[:, ::2, ::2] if planar == "separate" else as_written[::2, ::2]
            file.write(np.ascontiguousarray(rows), subfiletype=1, **options)
    wanted = COLOURS.astype(np.uint8)[PALETTE] if colour == "palette" else PICTURE
    check(tmp_path / "a.tif", lossless, wanted, warnings)
    if levels == "flat":
        quarters = [wanted[y : y + CROP, x : x + CROP] for y in (0, CROP) for x in (0, CROP)]
        with tifffile.TiffWriter(tmp_path / "stack.tif", **form) as file:
            for y, x in product((0, CROP), repeat=2):
                source = PALETTE if colour == "palette" else PICTURE
                crop = encoded(source[y : y + CROP, x : x + CROP], codec, planar, bits, colour)
                file.write(np.ascontiguousarray(crop), **options, **CM)
        check.stack(tmp_path / "stack.tif", lossless, quarters, warnings)


# --- other writers of TIFF ---------------------------------------------------------


def write_ome(path, pixels, **options):
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm"}
    axes = "YXS" if pixels.ndim == 3 else "TYXS"
    tifffile.imwrite(path, pixels, photometric="rgb", metadata={"axes": axes, **sizes}, **options)


def write_imagej(path, pixels, **options):
    axes = "YXS" if pixels.ndim == 3 else "TYXS"
    tifffile.imwrite(path, pixels, imagej=True, resolution=(4, 4), metadata={"unit": "um", "axes": axes}, **options)


def write_simpleitk(path, pixels, **options):
    image = sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3)
    if pixels.ndim == 4:
        image = sitk.JoinSeries([sitk.GetImageFromArray(page, isVector=True) for page in pixels])
    image.SetSpacing((0.00025,) * 2 + (1.0,) * (pixels.ndim - 3))
    sitk.WriteImage(image, str(path), **options)


def write_pillow(path, pixels, **options):
    pages = [Image.fromarray(page) for page in (pixels if pixels.ndim == 4 else [pixels])]
    pages[0].save(path, save_all=True, append_images=pages[1:], dpi=DPI, **options)


def write_cv2(path, pixels, **_):
    number = [cv2.IMWRITE_TIFF_RESUNIT, 3, cv2.IMWRITE_TIFF_XDPI, 40_000, cv2.IMWRITE_TIFF_YDPI, 40_000]
    cv2.imwrite(str(path), pixels[..., ::-1], number)


WRITERS = {f"{name}.{suffix}": (write, {}, True, 0) for name, write, suffix in (
    ("plain", write_ome, "ome.tif"), ("imagej", write_imagej, "tif"), ("simpleitk", write_simpleitk, "tif"),
    ("plain", write_simpleitk, "mha"), ("pillow", write_pillow, "tiff"), ("cv2", write_cv2, "tif"),
)}  # fmt: skip
WRITERS |= {
    "tiles.ome.tif": (write_ome, {"tile": (64, 64), "compression": "zlib"}, True, 0),
    "jpeg.ome.tif": (write_ome, {"tile": (64, 64), "compression": "jpeg"}, False, 0),
    "compressed.mha": (write_simpleitk, {"useCompression": True}, True, 0),
    "compressed.tif": (write_simpleitk, {"useCompression": True}, True, 0),
    **{f"pillow_{codec}.tif": (write_pillow, {"compression": codec}, codec != "jpeg", 0)
       for codec in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "jpeg")},
}  # fmt: skip
DEEP = {name: WRITERS[name] for name in ("plain.ome.tif", "imagej.tif", "simpleitk.tif", "plain.mha", "compressed.mha")}


@pytest.mark.parametrize("name", WRITERS)
def test_other_writers(tmp_path, check, name):
    write, options, lossless, warnings = WRITERS[name]
    write(tmp_path / name, PICTURE, **options)
    check(tmp_path / name, lossless, warnings=warnings)
    if write is not write_cv2:
        write(tmp_path / f"stack_{name}", np.stack(QUARTERS), **options)
        check.stack(tmp_path / f"stack_{name}", lossless, warnings=warnings)


@pytest.mark.parametrize("name", DEEP)
def test_other_writers_of_16_bits(tmp_path, check, name):
    write, options, _, _ = DEEP[name]
    deep = PICTURE.astype(np.uint16) * 257
    write(tmp_path / name, deep, **options)
    check(tmp_path / name, warnings=1)
    write(tmp_path / f"stack_{name}", np.stack(QUARTERS).astype(np.uint16) * 257, **options)
    check.stack(tmp_path / f"stack_{name}", warnings=1)


# --- PNG and JPEG ------------------------------------------------------------------

ALPHA = np.dstack([PICTURE, np.full((SIDE, SIDE), 255, np.uint8)])
GREY = PICTURE[..., 0]


@pytest.mark.parametrize("kind", ["rgb", "rgba", "palette", "grey", "grey_16", "rgb_16"])
def test_png(tmp_path, check, kind):
    path, wanted = tmp_path / "a.png", PICTURE
    if kind == "rgb_16":
        path.write_bytes(with_density(imagecodecs.png_encode(PICTURE.astype(np.uint16) * 257)))
    elif kind.startswith("grey"):
        wanted = np.repeat(GREY[..., None], 3, 2)
        Image.fromarray(GREY if kind == "grey" else GREY.astype(np.uint16) * 257).save(path, dpi=DPI)
    else:
        image = {"rgb": Image.fromarray(PICTURE), "rgba": Image.fromarray(ALPHA)}.get(kind)
        image = image or Image.fromarray(PICTURE).quantize(256)
        wanted = np.asarray(image.convert("RGB"))
        image.save(path, dpi=DPI)
    check(path, wanted=wanted, warnings=int(kind != "rgb"))


def with_density(png):
    """A PNG with a pHYs chunk of 4,000,000 px a metre after its header."""
    import struct
    import zlib

    chunk = b"pHYs" + struct.pack(">IIB", 4_000_000, 4_000_000, 1)
    return png[:33] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 100, "keep_rgb": True}])
def test_jpeg(tmp_path, check, kind):
    exif = Image.Exif()
    exif[0x0128], exif[0x011A], exif[0x011B] = 2, *DPI
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg", exif=exif, **{"quality": 95, **kind})
    check(tmp_path / "a.jpg", lossless=False)


# --- DICOM ---------------------------------------------------------------------------


def as_jpeg(frame):
    return imagecodecs.jpeg8_encode(frame, level=95, colorspace="rgb", outcolorspace="ycbcr")


def as_rgb_jpeg(frame):
    return imagecodecs.jpeg8_encode(frame, level=95, colorspace="rgb", outcolorspace="rgb")


def as_jpeg_2000(frame):
    return imagecodecs.jpeg2k_encode(frame, level=0, codecformat="j2k", mct=True)


JPEG, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
DICOM = {
    "plain": {},
    "planar": {"planar": 1},
    "jpeg": {"encode": as_jpeg, "syntax": JPEG, "photometric": "YBR_FULL_422"},
    "jpeg_rgb": {"encode": as_rgb_jpeg, "syntax": JPEG, "photometric": "RGB"},
    "jpeg2000": {"encode": as_jpeg_2000, "syntax": JPEG_2000, "photometric": "YBR_RCT"},
}


@pytest.mark.parametrize("spacing", ["shared", "frames"])
@pytest.mark.parametrize("order", ["rows", "rows sparse", "columns sparse"])
@pytest.mark.parametrize("kind", DICOM)
def test_dicom(tmp_path, check, kind, order, spacing):
    write_dicom(tmp_path / "a.dcm", PICTURE, order=order, spacing_in=spacing, **DICOM[kind])
    check(tmp_path / "a.dcm", lossless="jpeg" not in kind or kind == "jpeg2000")
