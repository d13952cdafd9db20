import csv
from collections import defaultdict

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from midog.images.slide import ArraySlide
from midog.images.tiles import grid, has_tissue, read_tile

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
