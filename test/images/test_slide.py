import csv
import io
import random
import re
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import cv2
import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from midog.errors import UserError
from midog.images import level
from midog.images.slide import ArraySlide, at_spacing, reflected
from resources.data.fields import read_fields

SLIDES = ROOT.parent / "shared" / "data" / "slides"
pytestmark = pytest.mark.usefixtures("no_command_line")  # tests here look at stderr

DPCM = 40_000  # 0.25 um/px
TAGS = {"resolution": (DPCM, DPCM), "resolutionunit": "CENTIMETER", "metadata": None}
JPEG = {"compression": "jpeg", "photometric": "rgb", "tile": (64, 64)}


@pytest.fixture(scope="module")
def picture():
    """Smooth colours with fine detail, uint8 (211, 307, 3)."""
    y, x = np.mgrid[:211, :307]
    waves = [np.sin(x / 19 + y / 31), np.cos(x / 23 - y / 17), np.sin(x * y / 4000)]
    noise = np.random.default_rng(0).normal(0, 4, (211, 307, 1))
    return (128 + 90 * np.stack(waves, axis=-1) + noise).round().astype(np.uint8)


def whole(slide):
    return slide.read(0, 0, *slide.size)


def on_white(rgb, alpha):
    """As Pillow lays pixels over a white page."""
    page = Image.new("RGBA", alpha.shape[::-1], "white")
    return np.asarray(Image.alpha_composite(page, Image.fromarray(np.dstack([rgb, alpha]))).convert("RGB"))


def write_mha(path, pixels, spacing=(0.00025, 0.00025), origin=(0, 0), **options):
    image = sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path), **options)


# --- pixels -------------------------------------------------------------------

TIFF = {
    "strips": {"rowsperstrip": 16},
    "lzw": {"compression": "lzw", "rowsperstrip": 7, "predictor": True},
    "deflate_tiles": {"compression": "zlib", "tile": (48, 80)},
    "zstd_big": {"compression": "zstd", "tile": (64, 64), "bigtiff": True},
    "big_endian": {"compression": "lzw", "tile": (64, 64), "byteorder": ">"},
    "plain_tiles": {"tile": (64, 64)},
    "one_piece": {},
    "jpeg2000": {"compression": "jpeg2000", "tile": (64, 64)},
    "one_strip": {"compression": "zlib", "rowsperstrip": 4000},
}


@pytest.mark.parametrize("kind", [*TIFF, "planar", "planar_tiles", "mha", "mha_compressed", "png"])
def test_every_lossless_format_gives_its_pixels(tmp_path, picture, kind, opened):
    path = tmp_path / f"a.{kind[:3] if kind.startswith(('mha', 'png')) else 'tif'}"
    if kind.startswith("mha"):
        write_mha(path, picture, useCompression=kind == "mha_compressed")
    elif kind == "png":
        Image.fromarray(picture).save(path, dpi=(101_600, 101_600))
    elif kind.startswith("planar"):
        tile = {"tile": (64, 64), "compression": "zlib"} if kind == "planar_tiles" else {}
        tifffile.imwrite(path, np.moveaxis(picture, -1, 0), photometric="rgb", planarconfig="separate", **tile, **TAGS)
    else:
        tifffile.imwrite(path, picture, photometric="rgb", **TIFF[kind], **TAGS)
    slide, warnings = opened(path)
    with slide:
        assert slide.size == (307, 211)
        assert slide.um_per_px == pytest.approx((0.25, 0.25), rel=1e-4)
        np.testing.assert_array_equal(whole(slide), picture)
        for x, y, width, height in ((1, 3, 5, 7), (63, 47, 66, 82), (306, 210, 1, 1), (200, 0, 107, 9)):
            got = slide.read(x, y, width, height)
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, picture[y : y + height, x : x + width])
        for outside in ((-1, 0, 5, 5), (303, 0, 5, 5), (0, 207, 5, 5), (0, 0, 0, 5)):
            with pytest.raises(ValueError, match="not inside"):
                slide.read(*outside)
    assert warnings == []


def test_jpeg_colours(tmp_path, picture, opened):
    smooth = np.asarray(Image.fromarray(picture).resize((39, 27)).resize((307, 211)))
    tifffile.imwrite(tmp_path / "ycbcr.tif", smooth, **JPEG, **TAGS)
    tifffile.imwrite(tmp_path / "rgb.tif", smooth, **JPEG, compressionargs={"outcolorspace": "rgb"}, **TAGS)
    Image.fromarray(smooth).save(tmp_path / "strips.tif", compression="jpeg", quality=95, dpi=(101_600, 101_600))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    for name in ("ycbcr.tif", "rgb.tif", "strips.tif", "a.jpg"):
        with opened(tmp_path / name)[0] as slide:
            assert np.abs(whole(slide).astype(int) - smooth).mean() < 3, name


def test_other_kinds_of_pixels_become_rgb_with_one_warning(tmp_path, picture, opened):
    grey = picture[..., 0]
    rgba = np.dstack([picture, grey])
    palette = Image.fromarray(picture).quantize(64)
    tiles = {"tile": (64, 64), "compression": "zlib", **TAGS}
    tifffile.imwrite(tmp_path / "grey.tif", grey, **tiles)
    tifffile.imwrite(tmp_path / "inverted.tif", 255 - grey, photometric="miniswhite", **tiles)
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], **tiles)
    tifffile.imwrite(tmp_path / "deep.tif", picture.astype(np.uint16) * 257, photometric="rgb", **tiles)
    palette.save(tmp_path / "palette.tif", compression="tiff_lzw", dpi=(101_600, 101_600))
    for name, image in {"grey.png": grey, "rgba.png": rgba, "deep.png": grey.astype(np.uint16) * 257}.items():
        Image.fromarray(image).save(tmp_path / name, dpi=(101_600, 101_600))
    palette.save(tmp_path / "palette.png", dpi=(101_600, 101_600))
    write_mha(tmp_path / "grey.mha", grey)
    write_mha(tmp_path / "deep.mha", picture.astype(np.uint16) * 257)
    for path in sorted(tmp_path.iterdir()):
        kind = path.stem if path.name != "deep.png" else "grey"
        seen = {"rgba": on_white(picture, grey), "deep": picture, "palette": np.asarray(palette.convert("RGB"))}
        wanted = seen.get(kind, np.repeat(grey[..., None], 3, axis=2))
        slide, warnings = opened(path)
        np.testing.assert_array_equal(whole(slide), wanted, err_msg=path.name)
        assert len(warnings) == 1, path.name
        assert path.name in warnings[0]
        slide.close()


def test_pyramid_and_overview(tmp_path, picture, opened):
    path = tmp_path / "a.ome.tif"
    half = np.asarray(Image.fromarray(picture).reduce(2))
    with tifffile.TiffWriter(path) as file:
        micrometres = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.0004, "PhysicalSizeYUnit": "mm"}
        file.write(picture, subifds=1, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", **micrometres})
        file.write(half, subfiletype=1, photometric="rgb", tile=(64, 64))
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        file.write(picture, photometric="rgb", tile=(64, 64), compression="jpeg2000", **TAGS)
        file.write(half, subfiletype=1, photometric="rgb", tile=(64, 64), compression="jpeg2000", metadata=None)
        file.write(half[:50], photometric="rgb", metadata=None)  # a label
    tifffile.imwrite(tmp_path / "flat.tif", picture, photometric="rgb", **TAGS)
    views = {}
    for name, levels in (("a.ome.tif", 2), ("pages.tif", 2), ("flat.tif", 1)):
        slide, warnings = opened(tmp_path / name)
        with slide:
            assert len(slide._image.levels) == levels
            np.testing.assert_array_equal(whole(slide), picture)
            views[name] = slide.overview(100)
            assert views[name].shape == (69, 100, 3)
            np.testing.assert_array_equal(slide.overview(1000), picture)
        assert warnings == []
    for name in views:
        assert np.abs(views[name].astype(int) - views["flat.tif"]).mean() < 4
    with opened(path)[0] as slide:
        assert slide.um_per_px == pytest.approx((0.5, 0.4))


def test_a_turned_jpeg_is_read_as_training_reads_it(tmp_path, picture, opened):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = Image.fromarray(picture[:80, :40])
    image.save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif, dpi=(50_800, 25_400))
    (tmp_path / "labels.csv").write_text("image,um_per_px\na.jpg,0.25\n")
    (field,) = read_fields([tmp_path])
    with opened(tmp_path / "a.jpg")[0] as slide:
        assert slide.size == field.size == (80, 40)
        assert slide.um_per_px == pytest.approx((1.0, 0.5))
        np.testing.assert_array_equal(whole(slide), whole(field))
        assert np.abs(whole(slide).astype(int) - np.rot90(picture[:80, :40], -1)).mean() < 3
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data.replace(b"Exif\0\0MM\0*", b"Exif\0\0no\0*"))
    with opened(tmp_path / "a.jpg")[0] as slide:
        assert slide.size == (40, 80)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_turn_is_pillow_s(tmp_path, picture, opened, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image, opened(tmp_path / "a.png")[0] as slide:
        np.testing.assert_array_equal(whole(slide), np.asarray(ImageOps.exif_transpose(image)))


def test_pixels_in_memory(tmp_path, picture, opened):
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", tile=(64, 64), compression="zlib", **TAGS)
    memory = ArraySlide(picture)
    with opened(tmp_path / "a.tif")[0] as slide:
        assert (memory.size, memory.um_per_px, memory.origin_mm) == (slide.size, slide.um_per_px, slide.origin_mm)
        np.testing.assert_array_equal(whole(memory), whole(slide))
        np.testing.assert_array_equal(memory.overview(100), slide.overview(100))
    with pytest.raises(ValueError, match="not inside"):
        memory.read(300, 0, 10, 10)
    with pytest.raises(ValueError, match="uint8"):
        ArraySlide(picture[..., 0])


@pytest.mark.parametrize("place", [(3, 5, 40, 20), (-7, -9, 30, 40), (290, 200, 30, 40), (-5, 50, 400, 9)])
def test_any_place_is_read_with_white_around(picture, place):
    x, y, width, height = place
    wide = np.pad(picture, ((400, 400), (400, 400), (0, 0)), constant_values=255)
    got = ArraySlide(picture).read_padded(*place)
    np.testing.assert_array_equal(got, wide[y + 400 : y + 400 + height, x + 400 : x + 400 + width])
    assert (ArraySlide(picture).read_padded(400, -50, 6, 4, fill=7) == np.full((4, 6, 3), 7)).all()


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    place=st.tuples(st.integers(-40, 40), st.integers(-40, 40), st.integers(1, 40), st.integers(1, 40)),
)
def test_any_place_is_read_mirrored_as_numpy_and_opencv_mirror_it(size, place):
    (height, width), (x, y, wide, high) = size, place
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    got = ArraySlide(pixels).read_reflected(*place)
    assert (got.shape, got.dtype) == ((high, wide, 3), np.uint8)
    for mirrored in (
        np.pad(pixels, ((80, 80), (80, 80), (0, 0)), mode="reflect"),
        cv2.copyMakeBorder(pixels, 80, 80, 80, 80, cv2.BORDER_REFLECT_101),
    ):
        np.testing.assert_array_equal(got, mirrored[y + 80 : y + 80 + high, x + 80 : x + 80 + wide])


@given(st.lists(st.integers(-10_000, 10_000)), st.integers(1, 3000))
def test_a_mirrored_axis_is_opencv_s(index, side):
    expected = [cv2.borderInterpolate(each, side, cv2.BORDER_REFLECT_101) for each in index]
    assert reflected(np.array(index, np.int64), side).tolist() == expected


def test_no_more_than_a_mirrored_place_needs_is_read(picture):
    """Beyond the lower right corner, from a slide that tells what it reads."""
    read = []

    class Telling(ArraySlide):
        def _read(self, *place):
            read.append(place)
            return super()._read(*place)

    Telling(picture).read_reflected(297, 206, 30, 15)
    assert read == [(286, 200, 21, 11)]


def test_files_can_share_a_cache(tmp_path, picture, opened):
    """Of half of one file's pixels: each gets its own, and what is kept stays below the limit."""
    cache = level.Cache(picture.nbytes // 2)
    slides = []
    for number in range(3):
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, picture + np.uint8(number), photometric="rgb", compression="lzw", tile=(64, 64), **TAGS)
        slides.append(opened(path, cache=cache)[0])
    for x in (0, 100, 200, 0):
        for number, slide in enumerate(slides):
            np.testing.assert_array_equal(slide.read(x, 9, 90, 80), picture[9:89, x : x + 90] + np.uint8(number))
            assert sum(each.nbytes for each in cache._kept.values()) <= cache.limit


def test_ome_tiff_of_three_grey_pages(tmp_path, picture, opened):
    planes = np.moveaxis(picture, -1, 0)
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX"})
    with opened(tmp_path / "a.ome.tif", um_per_px=0.25)[0] as slide:
        np.testing.assert_array_equal(whole(slide), picture)


def test_one_thread_may_read_ahead(tmp_path, picture, opened):
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", compression="lzw", tile=(16, 16), **TAGS)
    with opened(tmp_path / "a.tif")[0] as slide, ThreadPoolExecutor(2) as pool:
        places = [(x, y) for y in range(0, 170, 20) for x in range(0, 260, 20)]
        for (x, y), got in zip(places, pool.map(lambda place: slide.read(*place, 40, 40), places), strict=True):
            np.testing.assert_array_equal(got, picture[y : y + 40, x : x + 40])


# --- spacing and physical points ----------------------------------------------


@pytest.mark.parametrize(
    ("tags", "wanted", "warnings"),
    [
        ({"resolution": (101_600, 50_800), "resolutionunit": "INCH"}, (0.25, 0.5), 0),
        ({"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, (0.25, 0.5), 0),
        ({"resolution": (40_000, 40_000), "resolutionunit": "NONE"}, (0.3, 0.3), 1),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, (0.3, 0.3), 1),
        ({"resolution": (4_000_000, 4_000_000), "resolutionunit": "CENTIMETER"}, (0.3, 0.3), 1),
        ({"resolution": (0, 0), "resolutionunit": "INCH"}, (0.3, 0.3), 1),
        ({"description": "Aperio |AppMag = 20|MPP = 0.4990|x"}, (0.499, 0.499), 0),
        ({}, (0.3, 0.3), 1),
    ],
)
def test_spacing_of_a_tiff(tmp_path, picture, tags, wanted, warnings, opened):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture, photometric="rgb", metadata=None, **tags)
    slide, got = opened(path, default_um_per_px=0.3)
    assert slide.um_per_px == pytest.approx(wanted, rel=1e-5)
    assert len(got) == warnings
    assert all("a.tif" in line and "--mpp" in line for line in got)
    slide, got = opened(path, um_per_px=0.4)
    assert (slide.um_per_px, got) == ((0.4, 0.4), [])
    with pytest.raises(UserError, match="--mpp 250 "):
        opened(path, um_per_px=250)


def test_points_are_where_simpleitk_has_them(tmp_path, picture, opened):
    write_mha(tmp_path / "a.mha", picture, spacing=(0.0003, 0.0005), origin=(1.25, -3.5))
    tifffile.imwrite(
        tmp_path / "a.tif", picture, photometric="rgb", resolution=(102_351, 101_949), resolutionunit="INCH"
    )
    points = [(0, 0), (10.5, 20.25), (306, 210)]
    for name in ("a.mha", "a.tif"):
        image = sitk.ReadImage(str(tmp_path / name))
        wanted = [image.TransformContinuousIndexToPhysicalPoint(point) for point in points]
        with opened(tmp_path / name)[0] as slide:
            got = slide.points_mm(points)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert slide.points_mm([]).shape == (0, 2)


# --- resampling ---------------------------------------------------------------


def spots(path, um_per_px, width=400, height=300):
    """Dark round spots on white at known places, um/px x and y apart; the places in px."""
    y, x = np.mgrid[:height, :width]
    places = np.array([(60.0, 50.0), (201.5, 140.25), (350.0, 260.0)])
    sides = [1 / step for step in um_per_px]
    dark = sum(np.exp(-(((x - px) / sides[0]) ** 2 + ((y - py) / sides[1]) ** 2)) for px, py in places)
    pixels = np.repeat((250 - 240 * dark).round().astype(np.uint8)[..., None], 3, axis=2)
    resolution = [10_000 / step for step in um_per_px]
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), resolution=resolution, resolutionunit="CENTIMETER")
    return places


@pytest.mark.parametrize("um_per_px", [(0.5, 0.5), (0.1, 0.1), (0.5, 0.3), (0.2, 0.6)])
def test_a_place_keeps_its_millimetres_when_resampled(tmp_path, um_per_px, opened):
    places = spots(tmp_path / "a.tif", um_per_px)
    source, _ = opened(tmp_path / "a.tif")
    with at_spacing(source, 0.25) as slide:
        assert slide.um_per_px == (0.25, 0.25)
        assert slide.size == tuple(round(side * step / 0.25) for side, step in zip((400, 300), um_per_px, strict=True))
        darkness = 250.0 - whole(slide)[..., 0]
        y, x = np.mgrid[: slide.size[1], : slide.size[0]]
        for place, wanted in zip(places, source.points_mm(places), strict=True):
            centre = place * um_per_px / 0.25
            near = darkness * (np.hypot(x - centre[0], y - centre[1]) < 3.5 / 0.25)
            found = [(x * near).sum() / near.sum(), (y * near).sum() / near.sum()]
            error_px = (slide.points_mm([found])[0] - wanted) * 1000 / um_per_px
            assert np.abs(error_px).max() < 0.05
        np.testing.assert_allclose(
            slide.points_mm([(-0.5, -0.5)]), source.points_mm([(-0.5, -0.5)]), atol=1e-9
        )  # the same corner
        assert slide.overview(100).shape == source.overview(100).shape


@pytest.mark.parametrize("um_per_px", [(0.5, 0.41), (0.1, 0.17)])
def test_neighbouring_reads_join(tmp_path, picture, um_per_px, opened):
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", resolution=[10_000 / s for s in um_per_px],
                     resolutionunit="CENTIMETER")  # fmt: skip
    with at_spacing(opened(tmp_path / "a.tif")[0], 0.25) as slide:
        full = whole(slide).astype(int)
        width, height = slide.size
        for y in range(0, height, 37):
            for x in range(0, width, 53):
                part = slide.read(x, y, min(53, width - x), min(37, height - y))
                assert np.abs(part - full[y : y + 37, x : x + 53]).max() <= 1


def test_shrinking_is_antialiased(tmp_path, opened):
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    write_mha(tmp_path / "a.mha", stripes, spacing=(0.0001, 0.0001))
    with at_spacing(opened(tmp_path / "a.mha")[0], 0.25) as slide:
        inner = whole(slide)[5:-5, 5:-5]
        assert 118 < inner.min() <= inner.max() < 137


def test_a_near_spacing_passes_through(tmp_path, picture, opened):
    for um_per_px, same in ((0.2273, True), (0.274, True), (0.276, False), (0.224, False)):
        write_mha(tmp_path / "a.mha", picture, spacing=(um_per_px / 1000, 0.00025))
        slide, _ = opened(tmp_path / "a.mha")
        assert (at_spacing(slide, 0.25) is slide) == same


# --- memory -------------------------------------------------------------------


@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 16}])
def test_reading_in_rows_decodes_each_segment_once(tmp_path, layout, opened):
    width, height, tile = 1024, 1024, 128
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="lzw", **layout, **TAGS)
    slide, _ = opened(tmp_path / "a.tif", cache=level.Cache(256 * width * 3))
    grid = slide._image.levels[0]
    decode, decoded = grid._decode, []
    grid._decode = lambda index: decoded.append(index) or decode(index)
    starts = [*range(0, width - tile, 102), width - tile]
    for y in starts:
        for x in starts:
            np.testing.assert_array_equal(slide.read(x, y, tile, tile), pixels[y : y + tile, x : x + tile])
    assert len(decoded) == len(set(decoded)) == grid.columns * grid.rows


def write_wide(path, side, tile=512):
    """A tiled JPEG TIFF of `side` px with one level below it, whose tiles are one and the same few bytes."""
    grey = np.full((tile, tile, 3), 200, np.uint8)
    encoded = imagecodecs.jpeg8_encode(grey, level=80, colorspace="rgb", outcolorspace="ycbcr")
    data = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    levels = [side, side // 8]
    for number, extent in enumerate(levels):
        count = (-(-extent // tile)) ** 2
        entries = 14
        after = len(data) + 2 + 12 * entries + 4
        bits, resolution = after, after + 6
        offsets, counts = after + 14, after + 14 + 4 * count
        pixels = counts + 4 * count
        following = pixels + len(encoded) if number + 1 < len(levels) else 0
        tags = [(254, 4, 1, number), (256, 4, 1, extent), (257, 4, 1, extent), (258, 3, 3, bits), (259, 3, 1, 7),
                (262, 3, 1, 6), (277, 3, 1, 3), (282, 5, 1, resolution), (283, 5, 1, resolution), (296, 3, 1, 3),
                (322, 3, 1, tile), (323, 3, 1, tile), (324, 4, count, offsets), (325, 4, count, counts)]  # fmt: skip
        data += struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        data += struct.pack("<I", following) + struct.pack("<3H2I", 8, 8, 8, DPCM, 1)
        data += struct.pack("<I", pixels) * count + struct.pack("<I", len(encoded)) * count + encoded
    path.write_bytes(data)


def test_a_slide_of_60000_px_in_bounded_memory(tmp_path, opened):
    write_wide(tmp_path / "a.tif", 60_000)
    tracemalloc.start()
    slide, warnings = opened(tmp_path / "a.tif", cache=level.Cache(16 << 20))
    assert slide.size == (60_000, 60_000)
    for x in range(0, 60_000 - 640, 6_000):
        assert np.abs(slide.read(x, 59_000, 640, 640).astype(int) - 200).max() < 3
    assert slide.overview(1000).shape == (1000, 1000, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6  # the slide is 10.8 GB
    assert warnings == []


def test_what_cannot_be_read_in_pieces_is_refused_when_large(tmp_path, picture, monkeypatch, opened):
    monkeypatch.setattr(level, "WHOLE_BYTES", 100_000)
    Image.fromarray(picture).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="rgb", compression="zlib", rowsperstrip=211)
    write_mha(tmp_path / "a.mha", picture, useCompression=True)
    for name in ("a.png", "a.tif", "a.mha"):
        with pytest.raises(UserError, match="tiles"):
            opened(tmp_path / name)


# --- bad files ----------------------------------------------------------------


def damaged(folder, kind, picture):
    path = folder / "a.tif"
    tifffile.imwrite(path, picture, photometric="rgb", compression="zlib", tile=(64, 64), **TAGS)
    good = path.read_bytes()
    if kind == "missing":
        return folder / "none.tif"
    if kind == "unknown":
        return path.rename(folder / "a.xyz")
    if kind == "no_suffix":
        return path.rename(folder / "a")
    if kind == "folder":
        return folder
    if kind == "a_tile":
        with tifffile.TiffFile(path) as tif:
            start = tif.pages[0].dataoffsets[5]
        path.write_bytes(good[:start] + b"\xff" * 200 + good[start + 200 :])
    elif kind == "float":
        tifffile.imwrite(path, picture.astype(np.float32), photometric="rgb", **TAGS)
    elif kind == "cmyk":
        Image.fromarray(picture).convert("CMYK").save(path)
    elif kind == "short_plain":
        tifffile.imwrite(path, picture, photometric="rgb", **TAGS)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind.startswith(("empty", "text")):
        path = folder / ("a" + kind[kind.index(".") :])
        path.write_text("no image at all\n" if kind.startswith("text") else "")
    elif kind == "mrxs":
        path = folder / "a.mrxs"
        path.write_bytes(good)
    elif kind == "picture":
        path = folder / "a.png"
        Image.fromarray(picture).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind.startswith("mha"):
        path = folder / "a.mha"
        write_mha(path, picture, useCompression=kind == "mha_compressed")
        data = path.read_bytes()
        replaced = {"mha_zero": (rb"307 211", b"0 211"), "mha_type": (rb"MET_UCHAR", b"MET_FLOAT")}
        replaced |= {f"mha_{key}": (rf"({key} = \S+).*".encode(), rb"\1") for key in ("ElementSpacing", "Offset")}
        changed = re.sub(*replaced[kind], data, count=1) if kind in replaced else data[:-5000]
        assert changed != data
        path.write_bytes(changed)
    return path


KINDS = ["missing", "unknown", "no_suffix", "folder", "a_tile", "float", "cmyk", "short_plain", "mrxs", "picture"]
KINDS += [
    "mha",
    "mha_compressed",
    "mha_zero",
    "mha_type",
    "mha_spacing",
    "mha_offset",
    "empty.tif",
    "empty.mha",
    "empty.svs",
    "empty.png",
]
KINDS += ["text.tif", "text.mha", "text.png", "text.svs", "text.ndpi", "text.vms", "text.dcm"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, picture, kind, capfd, opened):
    path = damaged(tmp_path, kind, picture)
    with pytest.raises(UserError) as error:
        whole(opened(path)[0])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # and says what to do
    assert capfd.readouterr().err == ""  # and no library writes beside it


def survives(opened, path, data):
    """Whether damaged data can be read; if not, the error is a `UserError`."""
    path.write_bytes(data)
    try:
        with opened(path)[0] as slide:
            slide.read(0, 0, min(300, slide.size[0]), min(200, slide.size[1]))
    except UserError:
        return False
    return True


@pytest.mark.parametrize("kind", ["jpeg.tif", "lzw.tif", "jp2.tif", "a.png", "a.jpg", "a.mha", "slide.svs"])
def test_truncated_and_flipped_bytes_never_leak(tmp_path, picture, kind, capfd, opened):
    stream = io.BytesIO()
    if kind == "slide.svs":
        note = "Aperio Image Library v1\r\n307x211 (64x64) JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990"
        tifffile.imwrite(stream, picture, **JPEG, description=note, metadata=None)
    elif kind.endswith(".tif"):
        tile = {} if kind == "lzw.tif" else {"tile": (64, 64)}
        compression = {"jp2": "jpeg2000"}.get(kind[:-4], kind[:-4])
        tifffile.imwrite(stream, picture, photometric="rgb", compression=compression, **tile, **TAGS)
    elif kind == "a.mha":
        write_mha(tmp_path / kind, picture, useCompression=True)
        stream.write((tmp_path / kind).read_bytes())
    else:
        Image.fromarray(picture).save(stream, "PNG" if kind == "a.png" else "JPEG")
    good = stream.getvalue()
    assert survives(opened, tmp_path / kind, good)
    for share in (0.001, 0.01, 0.1, 0.3, 0.7, 0.95):
        assert not survives(opened, tmp_path / kind, good[: int(len(good) * share) + 1])
    chance = random.Random(0)
    for _ in range(60):
        data = bytearray(good)
        for _ in range(3):
            data[chance.randrange(min(len(data), chance.choice((400, 10**9))))] = chance.randrange(256)
        survives(opened, tmp_path / kind, bytes(data))
    assert capfd.readouterr().err == ""


# --- real slides --------------------------------------------------------------


def test_real_slides(opened):
    if not SLIDES.is_dir():
        pytest.skip("the real slides are not here")
    with open(SLIDES / "slides.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    views = []
    for row in rows:
        slide, warnings = opened(SLIDES / row["file"])
        with slide:
            assert slide.size == (int(row["width"]), int(row["height"]))
            odd = row["file"].endswith(".jpeg.tiff") or not row["um_per_px"]  # a tag 100 times wrong, or none
            assert len(warnings) == odd
            assert slide.um_per_px == pytest.approx((0.25,) * 2 if odd else (float(row["um_per_px"]),) * 2)
            views.append(slide.read(1100, 1300, 512, 512).astype(int))
            assert max(slide.overview(200).shape) == 200
    small = [view for row, view in zip(rows, views, strict=True) if row["file"].startswith("CMU")]
    for view in small[1:]:
        assert np.abs(view - small[0]).mean() < 10  # the same tissue, one of them compressed again
