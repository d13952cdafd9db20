"""The slide in tiles: averages, the same with and without levels in the file, and which a page of one file holds."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from midog.images import slide as slides
from midog.images.slide import ArraySlide, at_spacing
from midog.report import pyramid
from midog.report.hotspot import Hotspot
from midog.report.pyramid import TILE, Place, embedded, grid, jpeg, levels, pixels_of

DPCM = 40_000  # 0.25 um/px


@pytest.fixture(scope="module")
def picture():
    """Tissue-like waves with noise, uint8 (701, 1001, 3)."""
    y, x = np.mgrid[:701, :1001]
    waves = np.stack([np.sin(x / 19 + y / 31), np.cos(x / 23 - y / 17), np.sin(x * y / 9000)], axis=-1)
    return (128 + 90 * waves + np.random.default_rng(0).normal(0, 4, (701, 1001, 1))).round().astype(np.uint8)


def write_levels(path, picture, shrunk):
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(picture, resolution=(DPCM, DPCM), resolutionunit="CENTIMETER", **options)
        for level in shrunk:
            file.write(level, subfiletype=1, **options)


def resized(picture, width, height):
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def averaged(picture, x, y, columns, rows, factor):
    """By the definition, from an image with much white around."""
    margin = 2048
    padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)
    area = padded[y + margin :, x + margin :][: rows * factor, : columns * factor].astype(float)
    return area.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))


AREAS = [
    (0, 0, 64, 40, 1),
    (3, 5, 300, 200, 2),
    (-40, -8, 512, 512, 8),
    (900, 600, 512, 512, 32),
    (640, 0, 256, 704, 64),
]


@pytest.mark.parametrize("area", AREAS)
def test_a_part_is_averaged_whatever_is_held_at_once(picture, area, monkeypatch):
    x, y, width, height, factor = area
    wanted = averaged(picture, x, y, -(-width // factor), -(-height // factor), factor)
    slide = ArraySlide(picture)
    np.testing.assert_allclose(slide.shrunk(*area), wanted, atol=1)  # rows and columns are rounded one after the other
    read, sizes = slide._read, []
    monkeypatch.setattr(slide, "_read", lambda *place: sizes.append(3 * place[2] * place[3]) or read(*place))
    monkeypatch.setattr(slides, "BAND_BYTES", 3 * 64 * 64)
    np.testing.assert_allclose(slide.shrunk(*area), wanted, atol=1)  # rows and columns are rounded one after the other
    assert max(sizes) <= 3 * 64 * 64


def test_outside_is_white_and_nothing_is_read(picture):
    slide = ArraySlide(picture)
    slide._read = None
    for x, y in ((1001, 0), (0, 704), (-512, 0), (5000, 5000)):
        assert (slide.shrunk(x, y, 512, 512, 8) == 255).all()
    assert slide.shrunk(2000, 0, 20, 9, 8).shape == (2, 3, 3)


@pytest.mark.parametrize("size", [(961, 641), (959, 639)])  # a bit more and a bit less than whole squares
def test_a_file_with_levels_shows_the_same_as_one_without(tmp_path, picture, opened, size):
    picture = picture[: size[1], : size[0]]
    sizes = [tuple(round(side / factor) for side in size) for factor in (2, 4, 16)]
    write_levels(tmp_path / "levels.tif", picture, [resized(picture, *size) for size in sizes])
    write_levels(tmp_path / "plain.tif", picture, [])
    with opened(tmp_path / "levels.tif")[0] as some, opened(tmp_path / "plain.tif")[0] as none:
        assert len(some._levels) == 4
        for factor in (1, 2, 4, 8, 16, 32):
            area = (0, 0, 1024, 768, factor)
            ours, plain = some.shrunk(*area).astype(int), none.shrunk(*area).astype(int)
            difference = np.abs(ours - plain)[
                : size[1] // factor, : size[0] // factor
            ]  # the edge cuts no other squares
            assert difference.mean() < 3, factor
        read, asked = some._read_level, []
        some._read_level = lambda level, *place: asked.append(level) or read(level, *place)
        for factor in (2, 4, 8, 16):
            some.shrunk(0, 0, 512, 512, factor)
        assert asked == [some._levels[i] for i in (1, 2, 2, 3)]  # the nearest larger one


def test_of_a_damaged_level_the_finer_one_is_shown(tmp_path, picture, opened, caplog):
    write_levels(tmp_path / "a.tif", picture, [resized(picture, 500, 350), resized(picture, 250, 175)])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        start, size = file.pages[2].dataoffsets[0], file.pages[2].databytecounts[0]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * size)
    slide, _ = opened(tmp_path / "a.tif")
    with slide:
        wanted = averaged(picture, 0, 0, 128, 128, 4)
        for _ in range(2):
            assert np.abs(slide.shrunk(0, 0, 512, 512, 4) - wanted).mean() < 3
    (warning,) = [record.getMessage() for record in caplog.records if "finer level" in record.getMessage()]
    assert "a.tif" in warning


def test_a_resampled_slide_is_shrunk_too(picture):
    half = at_spacing(ArraySlide(picture), 0.5)
    assert half.shrunk(0, 0, *half.size, 4).shape == (88, 125, 3)


def test_the_last_level_has_one_tile():
    sizes = {(1, 1): 1, (512, 512): 1, (513, 1): 2, (1, 1025): 3, (1024, 1024): 2, (7215, 5412): 5, (60_000, 60_000): 8}
    assert {size: levels(size) for size in sizes} == sizes
    for size, count in sizes.items():
        assert grid(size, count - 1) == (1, 1)
        assert count == 1 or max(grid(size, count - 2)) == 2


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def test_a_tile_is_of_one_size_and_white_beyond_the_image(picture):
    shown = decoded(jpeg(pixels_of(ArraySlide(picture), Place(1, 0, 0))))
    assert shown.shape == (TILE, TILE, 3)
    assert np.abs(shown[:350, :500] - averaged(picture, 0, 0, 500, 350, 2)).mean() < 4
    assert shown[360:].min() > 250
    assert shown[:, 512 - 8 :].min() > 240
    dot = decoded(jpeg(pixels_of(ArraySlide(np.zeros((1, 1, 3), np.uint8)), Place(0, 0, 0))))
    assert dot.shape == (TILE, TILE, 3)
    assert dot[8:, 8:].min() == 255
    assert dot[0, 0].max() < 120


@pytest.fixture(scope="module")
def large():
    """4,600 x 1,000 px of noise, .25 um each: 9 x 2 tiles of level 0, five of level 1."""
    return ArraySlide(np.random.default_rng(0).integers(110, 140, (1000, 4600, 3), np.uint8))


def of_level(tiles, level):
    return sorted(tuple(map(int, key.split("/")[1:])) for key in tiles if key.startswith(f"{level}/"))


CELLS = np.array([[1663.5, 300], [2559, 700], [700, 511], [3800, 990]])  # the first as far left as its tile allows
ACCEPTED = np.array([True, False, True, False])
WINDOW = Hotspot(0, 0, 255_999, 127_999, 1)  # 1024 x 512 px, less a nm


def test_a_page_holds_what_is_coarse_the_hotspot_and_every_candidate(large):
    tiles, left_out = embedded(large, WINDOW, CELLS, ACCEPTED, 10**8)
    assert left_out == 0
    assert [len(of_level(tiles, level)) for level in range(1, 6)] == [5, 3, 2, 1, 0]
    window, cells = {(0, 0), (1, 0)}, {(3, 0), (4, 1), (5, 1), (1, 1), (7, 1)}
    assert of_level(tiles, 0) == sorted(window | cells)
    assert tiles["0/1/1"] != tiles["0/1/0"]
    assert embedded(large, None, CELLS[:0], ACCEPTED[:0], 10**8)[0].keys() == {key for key in tiles if key[0] != "0"}


def test_quality_falls_until_the_hotspot_and_the_accepted_fit(large):
    best, _ = embedded(large, WINDOW, CELLS[ACCEPTED], ACCEPTED[ACCEPTED], 10**8)
    budget = int(0.8 * sum(map(len, best.values())))
    tiles, _ = embedded(large, WINDOW, CELLS, ACCEPTED, budget)
    assert tiles.keys() >= best.keys()
    assert sum(map(len, tiles.values())) <= budget
    assert len(tiles["0/3/0"]) < len(best["0/3/0"])


def test_what_does_not_fit_is_left_out_the_least_probable_refused_one_first(large, monkeypatch):
    monkeypatch.setattr(pyramid, "QUALITIES", (55,))
    coarse, left_out = embedded(large, WINDOW, CELLS, ACCEPTED, 0)
    assert (of_level(coarse, 0), left_out) == ([], 4)
    room, one = sum(map(len, coarse.values())), len(embedded(large, WINDOW, CELLS, ACCEPTED, 10**8)[0]["0/3/0"])
    for count, left in ((2, 4), (4, 2), (6, 1), (7, 0)):  # tiles: the hotspot's, then each cell's
        tiles, left_out = embedded(large, WINDOW, CELLS, ACCEPTED, room + int((count + 0.5) * one))
        assert (len(of_level(tiles, 0)), left_out) == (count, left)


def test_a_small_image_is_one_tile(picture):
    tiles, left_out = embedded(ArraySlide(picture[:5, :7]), None, np.array([[3.0, 2]]), np.array([False]), 10**6)
    assert (list(tiles), left_out) == (["0/0/0"], 0)
