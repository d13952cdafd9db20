import csv
from collections import defaultdict

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from midog.images.slide import ArraySlide, Slide, at_spacing
from midog.images.tiles import AUDIT, fitted, grid, has_tissue, read_tile, tiles_with_tissue

DATA = ROOT.parent / "shared" / "data"


@given(st.integers(1, 400), st.integers(1, 400), st.tuples(*[st.integers(16, 64)] * 2), st.floats(0, 0.9))
def test_grid(width, height, tile, overlap):
    places = grid(width, height, tile, overlap)
    columns, rows = np.unique(places[:, 0]), np.unique(places[:, 1])
    assert places.dtype.kind == "i"
    assert places.tolist() == [[left, top] for top in rows for left in columns]
    for starts, length, side in ((columns, width, tile[0]), (rows, height, tile[1])):
        steps = np.diff(starts)
        assert starts[0] == 0
        assert starts[-1] == max(length - side, 0)
        assert np.all(side - steps >= side * overlap)
        assert np.ptp(steps) <= 1 if len(steps) else length <= side
        if len(steps) > 1:  # one tile fewer, as evenly spread as pixels allow, would overlap too little
            assert side - -(-(length - side) // (len(steps) - 1)) < side * overlap


def test_grid_by_hand():
    assert grid(1330, 512).tolist() == [[0, 0], [409, 0], [818, 0]]
    assert grid(1331, 600).tolist() == [[0, 0], [273, 0], [546, 0], [819, 0], [0, 88], [273, 88], [546, 88], [819, 88]]
    assert grid(100, 512).tolist() == [[0, 0]]
    assert len(grid(7215, 5412)) == 18 * 13


@given(st.integers(1, 3000), st.integers(1, 20).map(lambda times: 32 * times), st.floats(0, 0.9))
def test_no_side_covers_an_axis_with_fewer_pixels_than_the_fitted_one(length, side, overlap):
    def cost(each):
        return len(grid(length, 1, (each, 1), overlap)) * each

    found, height = fitted((length, 1), (side, 32), overlap)
    whole = (length + 31) // 32 * 32
    assert height == 32
    assert found % 32 == 0
    assert found <= whole
    assert min(side, whole) <= found <= 1.25 * side
    for other in range(min(side, whole), min(int(1.25 * side), whole) + 1, 32):
        assert cost(found) < cost(other) or (cost(found) == cost(other) and found <= other)


def test_fitted_by_hand():
    assert fitted((3607, 2706), (448, 448), 0.0625) == (480, 480)  # 8 x 6 tiles instead of 9 x 7
    assert fitted((500, 448), (448, 448), 0.0625) == (512, 448)
    assert fitted((100, 20), (448, 448), 0.0625) == (128, 32)


def test_tiles_are_mirrored_beyond_the_image():
    slide = ArraySlide(np.arange(30 * 40 * 3, dtype=np.uint16).astype(np.uint8).reshape(30, 40, 3))
    assert np.array_equal(read_tile(slide, 3, 5, (16, 12)), slide.pixels[5:17, 3:19])
    tile = read_tile(slide, 32, 20, (16, 14))
    assert tile.shape == (14, 16, 3)
    assert tile.dtype == np.uint8
    assert np.array_equal(tile[:10, :8], slide.pixels[20:, 32:])
    assert np.array_equal(tile[:10, 8:], slide.pixels[20:, 38:30:-1])
    assert np.array_equal(tile[10:, :8], slide.pixels[28:24:-1, 32:])


def test_what_is_no_tissue():
    generator = np.random.default_rng(0)
    assert not has_tissue(np.full((512, 512, 3), 255, np.uint8))
    assert not has_tissue(np.full((512, 512, 3), (180, 90, 170), np.uint8))
    for level in (240, 200):
        noise = generator.integers(level - 5, level + 6, (512, 512, 3), np.uint8)
        assert not has_tissue(noise)
        shaded = noise - np.linspace(0, 3, 512).astype(np.uint8)[:, None]
        assert not has_tissue(shaded)


@pytest.fixture(scope="module")
def drawn():
    """Glass with noise, three pieces of tissue, and a lone cell: uint8 (1024, 1282, 3)."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:1024, :1282]
    pixels = generator.integers(238, 247, (1024, 1282, 3), np.uint8)
    for left, top, radius in ((200, 300, 140), (1000, 200, 100), (900, 800, 180)):
        inside = np.hypot(x - left, y - top) < radius
        nuclei = 50 * (np.sin(x[inside] / 9) * np.sin(y[inside] / 7) > 0.3)
        pixels[inside] = generator.integers(140, 190, (3, inside.sum()), np.uint8).T - nuclei[:, None].astype(np.uint8)
    pixels[np.hypot(x - 300, y - 800) < 12] = 120
    return pixels


def write_pyramid(path, pixels, shrinks, change=lambda level: None):
    """A TIFF in JPEG tiles with levels of means, all but the first of which `change` may draw on."""
    with tifffile.TiffWriter(path) as file:
        for shrink in shrinks:
            level = np.array(Image.fromarray(pixels).reduce(shrink))
            if shrink > 1:
                change(level)
            density = 40_000 / shrink
            file.write(level, photometric="rgb", tile=(64, 64), compression="jpeg", compressionargs={"level": 75},
                       resolution=(density, density), resolutionunit="CENTIMETER", subfiletype=int(shrink > 1),
                       metadata=None)  # fmt: skip


class Counting(Slide):
    """A slide that counts what is read of its level 0."""

    def __init__(self, source):
        super().__init__(source.size, source.um_per_px)
        self.source, self.reads = source, 0
        self.of_level = source.of_level

    def _read(self, *place):
        self.reads += 1
        return self.source.read(*place)


def places_with_tissue(slide, tile, overlap=0.0):
    """By level 0 alone, and by `tiles_with_tissue`; how many tiles there are, and how many that read."""
    places, counting = grid(*slide.size, tile, overlap), Counting(slide)
    wanted = [(x, y) for x, y in places.tolist() if has_tissue(read_tile(slide, x, y, tile))]
    found = list(tiles_with_tissue(counting, places, tile))
    for place, pixels in found:
        np.testing.assert_array_equal(pixels, read_tile(slide, *place, tile))
    return wanted, [place for place, _ in found], len(places), counting.reads


@pytest.mark.parametrize(
    ("um_per_px", "shrinks"),
    [(0.25, (1, 4, 16)), (0.5, (1, 2, 4, 8, 16)), (0.5, (1, 4)), (0.5, (1, 2))],
)
def test_glass_of_a_pyramid_is_not_read_and_no_tissue_is_lost(tmp_path, opened, drawn, um_per_px, shrinks):
    write_pyramid(tmp_path / "a.tif", drawn, shrinks)
    with at_spacing(opened(tmp_path / "a.tif")[0], um_per_px) as slide:
        wanted, found, count, reads = places_with_tissue(slide, (48, 64))
    assert sorted(found) == sorted(wanted)
    assert len(wanted) > count / 6
    glass = count - len(wanted)
    if um_per_px == 0.5 and shrinks == (1, 2):  # a level that is no coarser than what is looked at
        assert reads == count
    else:
        assert glass / AUDIT <= reads - len(wanted) < 0.75 * glass  # among them what lies beside tissue


@pytest.mark.parametrize("shrinks", [(1,), (1, 16)])
def test_without_a_level_that_shows_enough_every_tile_is_read_once(tmp_path, opened, drawn, shrinks):
    write_pyramid(tmp_path / "a.tif", drawn, shrinks)
    with opened(tmp_path / "a.tif")[0] as slide:
        wanted, found, count, reads = places_with_tissue(slide, (128, 128))
    assert found == wanted
    assert reads == count


def blank(level):
    level[:] = 255


def partly_blank(level):
    level[len(level) * 3 // 4 :] = 255  # through a piece of tissue


def other(level):
    level[:] = level[::-1].copy()


@pytest.mark.parametrize("change", [blank, partly_blank, other])
def test_a_wrong_lower_level_loses_no_tissue(tmp_path, opened, drawn, change, caplog):
    write_pyramid(tmp_path / "a.tif", drawn, (1, 4), change)
    with at_spacing(opened(tmp_path / "a.tif")[0], 0.5) as slide:
        wanted, found, *_ = places_with_tissue(slide, (64, 64))
    assert len(found) == len(set(found))
    assert sorted(found) == sorted(wanted)
    assert sum("shows glass" in record.getMessage() for record in caplog.records) == 1


def test_a_damaged_lower_level_loses_no_tissue(tmp_path, opened, drawn, caplog):
    write_pyramid(tmp_path / "a.tif", drawn, (1, 4))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start, length = file.pages[1].dataoffsets[9], file.pages[1].databytecounts[9]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[start : start + length] = bytes(length)
    (tmp_path / "a.tif").write_bytes(data)
    with opened(tmp_path / "a.tif")[0] as slide:
        wanted, found, *_ = places_with_tissue(slide, (128, 128))
    assert sorted(found) == sorted(wanted)
    assert sum("a finer level of the pyramid is read" in record.getMessage() for record in caplog.records) == 1


def test_a_slide_smaller_than_a_tile_is_looked_at_whole(tmp_path, opened):
    pixels = np.full((100, 90, 3), 240, np.uint8)
    pixels[80:, 70:] = 150
    write_pyramid(tmp_path / "a.tif", pixels, (1, 4))
    with opened(tmp_path / "a.tif")[0] as slide:
        assert [place for place, _ in tiles_with_tissue(slide, grid(90, 100, (96, 128)), (96, 128))] == [(0, 0)]


def faded(pixels):
    """Half way to white."""
    return pixels // 2 + np.uint8(128)


def read_image(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("folder", ["icpr12", "atypia14_h", "regions"])
def test_no_labelled_figure_is_skipped(folder):
    if not (DATA / folder).is_dir():
        pytest.skip("the real images are not here")
    figures = defaultdict(list)
    with open(DATA / folder / "figures.csv", newline="") as file:
        for row in csv.DictReader(file):
            figures[row["image"]].append((float(row["x"]), float(row["y"])))
    for name, centres in figures.items():
        pixels = read_image(DATA / folder / name)
        height, width = pixels.shape[:2]
        places = grid(width, height)
        for x, y in centres:
            holding = places[np.all((places <= (x, y)) & ((x, y) < places + 512), axis=1)]
            assert len(holding)
            tiles = [pixels[top : top + 512, left : left + 512] for left, top in holding]
            # The figure's surroundings alone, as if the rest of its tile were glass.
            left, top = (int(np.clip(centre - 32, 0, side - 64)) for centre, side in ((x, width), (y, height)))
            tiles.append(pixels[top : top + 64, left : left + 64])
            for tile in tiles:
                assert has_tissue(tile)
                assert has_tissue(faded(tile))


def test_glass_of_a_slide_is_skipped():
    paths = sorted((DATA / "regions").glob("2191*.jpg"))
    if not paths:
        pytest.skip("the real images are not here")
    for path in paths:
        pixels = read_image(path)
        # Above: glass with dust and loose cells, some of which a tile is kept for. Below: tissue.
        glass, tissue = pixels[:3072], pixels[4608:]
        kept = [
            [has_tissue(read_tile(slide, left, top, (512, 512))) for left, top in grid(*slide.size, overlap=0)]
            for slide in map(ArraySlide, (glass, tissue))
        ]
        assert np.mean(kept[0]) < 0.4
        assert all(kept[1])
