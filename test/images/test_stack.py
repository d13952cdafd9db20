import json
import struct
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from midog.errors import UserError
from midog.images.level import over_white
from midog.images.slide import open_slide
from midog.images.stack import Crops, Stack
from midog.images.track import track_of_image
from resources.data.synthetic import write_tiff


@pytest.fixture
def read(caplog):
    """Reads a stack, or a list of crops; with its pages comes a list of what was logged."""

    def read(path):
        caplog.clear()
        pages = np.stack(list(Crops(path) if isinstance(path, list) else Stack(path)))
        return pages, [record.getMessage() for record in caplog.records if record.name.startswith("midog.")]

    return read


def test_tiff_and_mha_give_the_same_pages_in_order(tmp_path, pages, read):
    write_tiff(tmp_path / "a.tif", pages)
    image = sitk.GetImageFromArray(pages, isVector=True)
    image.SetSpacing((0.00025, 0.00025, 1))
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    sitk.WriteImage(image, str(tmp_path / "z.mha"), useCompression=True)
    for name in ("a.tif", "a.mha", "z.mha"):
        got, warnings = read(tmp_path / name)
        np.testing.assert_array_equal(got, pages)
        assert warnings == []
        assert Stack(tmp_path / name).um_per_px == pytest.approx((0.25, 0.25), rel=1e-4)


def test_pieces_of_a_long_mha_are_joined(tmp_path, monkeypatch, pages, read):
    monkeypatch.setattr("midog.images.metaimage.CHUNK_BYTES", 1000)
    sitk.WriteImage(sitk.GetImageFromArray(pages, isVector=True), str(tmp_path / "a.mha"), useCompression=True)
    np.testing.assert_array_equal(read(tmp_path / "a.mha")[0], pages)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16", "YCbCr", "LAB"])
def test_every_colour_mode_becomes_rgb(tmp_path, pages, mode, read):
    rgb = Image.fromarray(pages[0])
    image = Image.fromarray((np.asarray(rgb.convert("L")).astype(np.uint16)) * 257) if mode == "I;16" else rgb
    if mode != "I;16":
        image = image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "a.tif")
    got, _ = read(tmp_path / "a.tif")
    assert got.shape == (1, 128, 128, 3)
    assert got.dtype == np.uint8
    wanted = rgb.convert("L") if mode == "I;16" else image
    np.testing.assert_array_equal(got[0], np.asarray(wanted.convert("RGB")))


def test_16_bit_rgb(tmp_path, pages, read):
    image = sitk.GetImageFromArray(pages.astype(np.uint16) * 257, isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    got, warnings = read(tmp_path / "a.mha")
    np.testing.assert_array_equal(got, pages)
    assert len(warnings) == 1


def test_another_size_keeps_the_field_of_view(tmp_path, pages, read):
    page = Image.fromarray(pages[0])
    large = page.resize((256, 256), Image.Resampling.BICUBIC)
    large.save(tmp_path / "fine.tif", dpi=(25400 / 0.125,) * 2)  # the same 32 um, twice as fine
    large.save(tmp_path / "unknown.tif")
    large.save(tmp_path / "wide.tif", dpi=(25400 / 0.25,) * 2)  # 64 um: only the middle is the crop's field
    page.crop((32, 32, 96, 96)).save(tmp_path / "narrow.tif", dpi=(25400 / 0.25,) * 2)
    for name in ("fine.tif", "unknown.tif"):
        got, warnings = read(tmp_path / name)
        assert np.abs(got[0].astype(int) - pages[0]).mean() < 4
        assert len(warnings) == 1
    np.testing.assert_array_equal(read(tmp_path / "wide.tif")[0][0], np.asarray(large)[64:192, 64:192])
    np.testing.assert_array_equal(read(tmp_path / "narrow.tif")[0][0, 32:96, 32:96], pages[0, 32:96, 32:96])


def test_what_resolution_is_plausible_is_as_for_slides(tmp_path, pages):
    for um_per_px in (0.09, 0.11, 1.09, 1.11, 25_400 / 72):
        Image.fromarray(pages[0]).save(tmp_path / "a.tif", dpi=(25_400 / um_per_px,) * 2)
        with open_slide(tmp_path / "a.tif") as slide:
            known = slide.resolution.source == "read"
        assert (Stack(tmp_path / "a.tif").um_per_px is not None) == known == (0.1 <= um_per_px <= 1.1)


def test_a_crop_of_the_usual_size_is_taken_as_it_is_and_that_is_said(tmp_path, pages, read):
    for um_per_px, said in ((0.25, 0), (0.23, 0), (0.5, 1)):
        Image.fromarray(pages[0]).save(tmp_path / "a.tif", dpi=(25_400 / um_per_px,) * 2)
        got, warnings = read(tmp_path / "a.tif")
        np.testing.assert_array_equal(got[0], pages[0])
        assert len(warnings) == said


# --- what is a page -----------------------------------------------------------------


def test_previews_between_pages_are_no_crops(tmp_path, pages, read):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, page in enumerate(pages):
            small = np.ascontiguousarray(page[::4, ::4])
            if number == 0:
                file.write(small, photometric="rgb", description="Thumbnail", metadata=None)
            file.write(page, photometric="rgb", compression="lzw", metadata=None)
            file.write(small, photometric="rgb", subfiletype=1, metadata=None)
    got, warnings = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(got, pages)
    assert len(warnings) == 1
    assert "left out" in warnings[0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[0], pages)  # flagged one and all: there is nothing else


BEHIND_ONE = {
    "imagej": lambda pages: {"description": f"ImageJ=1.53t\nimages={len(pages)}\nframes={len(pages)}\n"},
    "imagej of planes": lambda pages: {"description": f"ImageJ=1.53t\nimages={3 * len(pages)}\nchannels=3\nslices=5\n"},
    "tifffile": lambda pages: {"description": json.dumps({"shape": list(pages.shape), "truncated": True})},
}


@pytest.mark.parametrize("kind", BEHIND_ONE)
@pytest.mark.parametrize("byteorder", "<>")
def test_pages_behind_a_single_one_are_all_read(tmp_path, pages, read, kind, byteorder):
    path, planes = tmp_path / "a.tif", "planes" in kind
    stored = np.moveaxis(pages, -1, 1).reshape(-1, 128, 128) if planes else pages
    stored = stored.astype(np.uint16) * 257
    form = {"photometric": "minisblack" if planes else "rgb", "metadata": None, "byteorder": byteorder}
    tifffile.imwrite(path, stored[0], **form, **BEHIND_ONE[kind](pages))
    with path.open("ab") as file:
        file.write(stored[1:].astype(f"{byteorder}u2").tobytes())
    np.testing.assert_array_equal(read(path)[0], pages)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"a\.tif: .* pages that its description names are there.*;"):
        read(path)
    tifffile.imwrite(path, stored[0], compression="lzw", **form, **BEHIND_ONE[kind](pages))
    with pytest.raises(UserError, match=r"a\.tif: .* pages that its description names can be found.*;"):
        read(path)


def test_fewer_pages_than_the_description_names_are_refused(tmp_path, pages, read):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, page in enumerate(pages[:3]):
            file.write(
                page, photometric="rgb", description="ImageJ=1.53t\nimages=5\n" if number == 0 else None, metadata=None
            )
    with pytest.raises(UserError, match="3 of 5 pages"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["ome", "imagej"])
def test_grey_pages_that_are_declared_colours_make_crops(tmp_path, pages, read, kind):
    planes = np.moveaxis(pages, -1, 1)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack", **{kind: True}, metadata={"axes": "ZCYX"})
    got, warnings = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(got, pages)
    assert len(warnings) == 1


def channels_first(folder, kind, pages):
    """Writes pages whose colours come before their rows; the file."""
    planes = np.ascontiguousarray(np.moveaxis(pages, -1, 1))
    path = folder / ("a.mha" if "mha" in kind else "a.tif")
    if kind == "mha":
        sitk.WriteImage(sitk.GetImageFromArray(planes), str(path))
    elif kind == "mha of one":
        sitk.WriteImage(sitk.GetImageFromArray(planes[0]), str(path))
    elif kind == "mha with columns as channels":
        path.write_bytes(b"NDims = 3\nDimSize = 128 3 5\nElementType = MET_UCHAR\nElementNumberOfChannels = 128\n"
                         b"ElementDataFile = LOCAL\n" + planes.tobytes())  # fmt: skip
    elif kind == "rows as planes":
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="contig", metadata=None)
    elif kind == "three high":
        tifffile.imwrite(path, planes.reshape(-1, 3, 128 * 128)[..., :128], photometric="minisblack", metadata=None)
    elif kind == "one above the other":
        tifffile.imwrite(path, planes.reshape(-1, 3 * 128, 128), photometric="minisblack", metadata=None)
    else:
        axes = {"axes": "ICYX"} if kind == "shape and axes" else {}
        stored = planes[0] if kind == "shape of one" else planes
        tifffile.imwrite(path, stored, photometric="minisblack", metadata=axes, truncate=kind == "shape behind one")
    return path


CHANNELS_FIRST = ["shape", "shape and axes", "shape of one", "shape behind one", "rows as planes", "three high"]
CHANNELS_FIRST += ["one above the other", "mha", "mha of one", "mha with columns as channels"]


@pytest.mark.parametrize("kind", CHANNELS_FIRST)
def test_colours_before_rows_are_refused_with_the_remedy(tmp_path, pages, read, kind):
    path = channels_first(tmp_path, kind, pages)
    with pytest.raises(UserError, match=r"write them last, as \(N, H, W, 3\).*;") as error:
        read(path)
    assert str(path) in str(error.value)


# --- pixels ---------------------------------------------------------------------------


def test_a_bigtiff_of_other_byte_order(tmp_path, pages, read):
    for depth in (1, 257):
        stored = pages if depth == 1 else pages.astype(np.uint16) * depth
        for options in ({}, {"compression": "lzw", "predictor": True}, {"compression": "zstd", "tile": (64, 64)}):
            tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", bigtiff=True, byteorder=">", **options)
            got, warnings = read(tmp_path / "a.tif")
            np.testing.assert_array_equal(got, pages)
            assert len(warnings) == (depth > 1)
            assert track_of_image(tmp_path / "a.tif") == 2


def test_depth_is_that_of_all_pages(tmp_path, pages, read):
    """A dark page in 12 of 16 bits stays dark."""
    shares = np.array([16, 1, 16, 16, 16])[:, None, None, None]
    stored = (pages.astype(np.uint16) * shares).astype(np.uint16)
    wanted = np.round(stored * (255 / 4095)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", compression="zlib")
    for name, options in (("a.mha", {}), ("b.mha", {"useCompression": True})):
        sitk.WriteImage(sitk.GetImageFromArray(stored, isVector=True), str(tmp_path / name), **options)
    for name in ("a.tif", "a.mha", "b.mha"):
        got, warnings = read(tmp_path / name)
        np.testing.assert_array_equal(got, wanted)
        assert warnings == [f"{name}: 12-bit in 16 (no value is above 4095) RGB, read as 8-bit RGB"]


def test_a_fourth_channel(tmp_path, pages, read):
    """TIFF says whether it is opacity; MetaImage does not."""
    alpha = np.full((5, 128, 128, 1), 128, np.uint8)
    alpha[0] = 255
    stored = np.concatenate([pages, alpha], axis=3)
    on_white = np.stack([over_white(page, opacity[..., 0]) for page, opacity in zip(pages, alpha, strict=True)])
    np.testing.assert_array_equal(on_white[0], pages[0])
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(tmp_path / "b.tif", stored, photometric="rgb", extrasamples=["unspecified"])
    sitk.WriteImage(sitk.GetImageFromArray(stored, isVector=True), str(tmp_path / "c.mha"))
    for name, wanted, said in (("a.tif", on_white, "white"), ("b.tif", pages, "without"), ("c.mha", pages, "without")):
        got, warnings = read(tmp_path / name)
        np.testing.assert_array_equal(got, wanted)
        assert len(warnings) == 1
        assert said in warnings[0]


# --- a crop a file --------------------------------------------------------------------


def test_crops_of_their_own_files(tmp_path, pages, read):
    large = Image.fromarray(pages[3]).resize((256, 256), Image.Resampling.BICUBIC)
    Image.fromarray(pages[0]).save(tmp_path / "b.png")
    Image.fromarray(pages[1]).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    tifffile.imwrite(tmp_path / "c.tif", pages[2], photometric="rgb", compression="zlib")
    large.save(tmp_path / "d.png", dpi=(25_400 / 0.125,) * 2)
    large.save(tmp_path / "e.png")
    (tmp_path / "f.png").write_bytes((tmp_path / "e.png").read_bytes())
    names = ["b.png", "a.jpg", "c.tif", "d.png", "e.png", "f.png"]
    with Crops([tmp_path / name for name in names]) as crops:
        assert (crops.path, crops.names, crops.um_per_px) == (tmp_path, names, None)
    got, warnings = read([tmp_path / name for name in names])
    assert (got.shape, got.dtype) == ((6, 128, 128, 3), np.uint8)
    np.testing.assert_array_equal(got[[0, 2]], pages[[0, 2]])
    assert np.abs(got[1].astype(int) - pages[1]).mean() < 2
    for place in (3, 4, 5):
        assert np.abs(got[place].astype(int) - pages[3]).mean() < 4
    assert [line.partition(":")[0] for line in warnings] == ["d.png", "e.png"]
    assert Crops([tmp_path / "b.png"]).path == tmp_path / "b.png"


def test_a_crop_that_cannot_be_read_is_one_line_that_names_it(tmp_path, pages, read):
    Image.fromarray(pages[0]).save(tmp_path / "a.png")
    Image.new("RGB", (5000, 8)).save(tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    (tmp_path / "text.tif").write_text("no image at all\n")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("large.png", "cut.png", "text.tif", "empty.jpg", "missing.png"):
        with pytest.raises(UserError) as error:
            read([tmp_path / "a.png", tmp_path / name])
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)
        assert ";" in str(error.value)


# --- bad files ------------------------------------------------------------------------


def write_many_pages(path, pages, side=128):
    """An uncompressed TIFF whose pages all point to the same pixels, so that thousands of them are a small file."""
    data = bytes(range(256)) * (side * side * 3 // 256)
    bits, pixels = 8, 16
    tags = ((256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2))
    tags += ((273, 4, 1, pixels), (277, 3, 1, 3), (278, 4, 1, side), (279, 4, 1, len(data)))
    first = pixels + len(data)
    length = 2 + 12 * len(tags) + 4
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI4H", b"II", 42, first, 8, 8, 8, 0) + data)
        for page in range(pages):
            following = first + (page + 1) * length if page + 1 < pages else 0
            file.write(struct.pack("<H", len(tags)))
            file.write(b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", following))


def test_4000_pages_in_bounded_memory(tmp_path):
    write_many_pages(tmp_path / "a.tif", 4_000)
    tracemalloc.start()
    count = sum(1 for _ in Stack(tmp_path / "a.tif"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000
    assert peak < 5e6  # the stack itself is 200 MB


def damaged(tmp_path, kind, pages):
    path = tmp_path / f"{kind}.tif"
    write_tiff(path, pages)
    whole = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "chain":  # the second page's place is beyond the file
        first = struct.unpack("<I", whole[4:8])[0]
        following = first + 2 + 12 * struct.unpack("<H", whole[first : first + 2])[0]
        path.write_bytes(whole[:following] + struct.pack("<I", 10 * len(whole)) + whole[following + 4 :])
    elif kind == "header":
        path.write_bytes(whole[:12])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no image at all\n")
    elif kind == "zero":
        write_many_pages(path, 1)
        path.write_bytes(
            path.read_bytes().replace(struct.pack("<HHII", 256, 4, 1, 128), struct.pack("<HHII", 256, 4, 1, 0))
        )
    elif kind == "huge":
        Image.new("L", (5000, 10)).save(path)
    elif kind == "float":
        Image.new("F", (128, 128)).save(path)
    elif kind == "mha":
        path = tmp_path / "broken.mha"
        sitk.WriteImage(sitk.GetImageFromArray(pages, isVector=True), str(path))
        path.write_bytes(path.read_bytes()[:50_000])
    elif kind == "spacing.mha":
        path = tmp_path / "spacing.mha"
        sitk.WriteImage(sitk.GetImageFromArray(pages, isVector=True), str(path))
        path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1"))
    elif kind == "text.mha":
        path = tmp_path / "text.mha"
        path.write_text("no image at all\n")
    elif kind == "missing":
        path.unlink()
    return path


KINDS = [
    "truncated",
    "chain",
    "header",
    "empty",
    "text",
    "zero",
    "huge",
    "float",
    "mha",
    "spacing.mha",
    "text.mha",
    "missing",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, pages, kind, capfd, read):
    path = damaged(tmp_path, kind, pages)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # and says what to do
    assert capfd.readouterr().err == ""  # and no library writes beside it
