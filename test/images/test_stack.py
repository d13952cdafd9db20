import struct
import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from midog.errors import UserError
from midog.images.slide import open_slide
from midog.images.stack import Stack
from resources.data.synthetic import write_tiff


@pytest.fixture
def read(caplog):
    """Reads a stack; with its pages comes a list of what was logged."""

    def read(path):
        caplog.clear()
        pages = np.stack(list(Stack(path)))
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
    for um_per_px in (0.04, 0.06, 4.9, 5.1, 25_400 / 72):
        Image.fromarray(pages[0]).save(tmp_path / "a.tif", dpi=(25_400 / um_per_px,) * 2)
        with open_slide(tmp_path / "a.tif", default_um_per_px=1) as slide:
            known = slide.um_per_px != (1, 1)
        assert (Stack(tmp_path / "a.tif").um_per_px is not None) == known == (0.05 <= um_per_px <= 5)


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
