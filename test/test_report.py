"""Overlay, gallery, density, tables and the page of a Track 1 result."""

import csv
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import shapely
import tifffile
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from midog import __main__ as commands
from midog.about import identity
from midog.detections import ATYPICAL, COLOURS, FIGURE, NORMAL, REJECTED, Detections
from midog.errors import UserError
from midog.images.resolution import ASSUMED, GIVEN, Resolution
from midog.images.slide import Slide, open_slide
from midog.images.tissue import tissue_mask
from midog.report.areas import Areas
from midog.report.binding import bind
from midog.report.canvas import (
    AREA_COLOUR,
    EXCLUDED_COLOUR,
    HEADER,
    HOTSPOT_COLOUR,
    NOT_COUNTED,
    RING_COLOURS,
    TISSUE_COLOUR,
    scale_bar,
)
from midog.report.contact_sheet import write_contact_sheets
from midog.report.counts import SHARE_COLUMNS, count
from midog.report.density import COLOUR_SCALE, density_picture, field_map, scale_top
from midog.report.draw import draw
from midog.report.export import candidates_geojson, counts_csv, figures_csv, figures_geojson
from midog.report.gallery import CROP, MAX_CROPS, cut_crops, gallery
from midog.report.hotspot import Hotspot
from midog.report.hotspot_picture import hotspot_picture
from midog.report.intervals import wilson_interval
from midog.report.overlay import LONGEST_SIDE, MAX_LABELS, outside_warning, overlay
from midog.report.page import HOTSPOT_PICTURE, LEAFLET, NAMES, write_report

REGION = next((ROOT / "test/input/track1/images").glob("*/*.tif*"))
EXPECTED = ROOT / "test/expected/track1/mitotic-figures.json"
SAMPLE_MPP = "0.25"


class PlainSlide(Slide):
    """One colour, of any size; counts the px that are read."""

    read_px = 0

    def overview(self, longest_side):
        scale = min(1, longest_side / max(self.size))
        width, height = (max(1, round(side * scale)) for side in self.size)
        return np.full((height, width, 3), (230, 180, 215), np.uint8)

    def _read(self, x, y, width, height):
        self.read_px += width * height
        return np.full((height, width, 3), (230, 180, 215), np.uint8)

    def shrunk(self, x, y, width, height, factor):
        return np.full((-(-height // factor), -(-width // factor), 3), (230, 180, 215), np.uint8)


def found_on(slide, points, probabilities, **more):
    """Candidates at points in px, in their order."""
    return Detections.of(
        np.tile(np.reshape(points, (-1, 2)), 2), probabilities, slide.um_per_px, slide.origin_mm, **more
    )


def picture_of(slide, points, probabilities, hotspot=None, title="a.tif", areas=None):
    view, found = slide.overview(LONGEST_SIDE), found_on(slide, points, probabilities)
    tissue = tissue_mask(slide, view)
    return overlay(slide, view, found, hotspot, title, tissue, count(slide, found, tissue, areas), areas)


def marked(picture, name):
    """Where a ring's colour is in the picture, below the header: left, top, right, bottom."""
    return coloured(picture, RING_COLOURS[name])


def coloured(picture, colour):
    below = np.asarray(picture)[HEADER:]
    rows, columns = np.nonzero((below == ImageColor.getrgb(colour)).all(-1))
    return None if len(rows) == 0 else (columns.min(), rows.min(), columns.max(), rows.max())


def many(count, size):
    random = np.random.default_rng(0)
    return random.uniform(0, 1, (count, 2)) * size, np.round(random.uniform(0.2, 1, count), 4)


@pytest.mark.parametrize("probability", [0.9, 0.1])
@pytest.mark.parametrize("width", [1000, 8000])
def test_a_ring_lies_around_its_pixel(probability, width, monkeypatch):
    monkeypatch.setattr("midog.report.overlay.MAX_LABELS", 0)  # labels bear the ring's colour
    slide = PlainSlide((width, width // 2), (0.2, 0.5), (3.0, -1.5))
    place = np.array([0.3 * width, 0.2 * width])
    picture = picture_of(slide, [place], [probability])
    left, top, right, bottom = marked(picture, FIGURE if probability >= 0.5 else REJECTED)
    scale = min(1, LONGEST_SIDE / width)
    centre = (left + right) / 2, (top + bottom) / 2
    assert centre == pytest.approx(place * scale, abs=1)
    assert right - left == pytest.approx(bottom - top, abs=1)
    assert marked(picture, REJECTED if probability >= 0.5 else FIGURE) is None


@pytest.mark.parametrize(("given", "default", "used"), [(0.2274, 0.25, 0.2274), (None, 0.5, 0.5), (None, 0.25, 0.25)])
def test_a_result_comes_back_to_the_pixels_that_it_was_made_from(given, default, used, tmp_path):
    """The image names no resolution; the result was made with the one given, or one was assumed."""
    Image.new("RGB", (1200, 900), (230, 180, 215)).save(tmp_path / "a.png")
    places = [(12.25, 300.5), (1000, 800)]
    result = Detections.of(np.tile(places, 2), [0.4, 0.9], (used, used)).to_json()
    result["points"].reverse()  # the report sorts them
    resolution = Resolution((given, given), GIVEN, "") if given else None
    draw(1, tmp_path / "a.png", result, tmp_path, resolution, default_um_per_px=default)
    rows = list(csv.DictReader((tmp_path / "figures.csv").open()))
    assert [(row["x_px"], row["y_px"]) for row in rows] == [("1000.00", "800.00"), ("12.25", "300.50")]
    assert f"{used:g} × {used:g} µm/px" in (tmp_path / "report.html").read_text()


def test_candidates_of_another_grid_are_drawn_on_the_slides_own(tmp_path):
    slide = PlainSlide((500, 400), (0.2, 0.5), (3.0, -1.5))
    found = found_on(slide, [(499, 399), (0, 0), (12.25, 300.5)], [0.8, 0.4, 0.9])
    write_report(slide, found.on_grid((0.25, 0.25), (0.0, 0.0)), tmp_path, "a.tif")
    rows = list(csv.DictReader((tmp_path / "figures.csv").open()))
    places = [[float(row["x_px"]), float(row["y_px"])] for row in rows]
    np.testing.assert_allclose(places, [[12.25, 300.5], [499, 399], [0, 0]], atol=0.005)
    assert [row["name"] for row in rows] == [FIGURE, FIGURE, REJECTED]


def test_labels_stand_inside_the_picture_and_only_where_they_are_few():
    slide = PlainSlide((900, 600), (0.25, 0.25), (0, 0))

    def columns(points):
        return marked(picture_of(slide, points, [0.9] * len(points)), FIGURE)

    assert columns([(450, 300)])[2] > 450 + 50 + 10
    assert columns([(880, 300)])[0] < 880 - 50 - 10
    assert columns([(450, 300)] * (MAX_LABELS + 1))[2] < 450 + 50 + 5


def test_the_hotspot_is_drawn_where_it_lies():
    slide = PlainSlide((1000, 800), (0.25, 0.25), (0, 0))
    window = Hotspot(25_000, 50_000, 100_000, 75_000, 3)  # 100, 200 px; 400 x 300 px
    assert coloured(picture_of(slide, [], [], window), HOTSPOT_COLOUR) == pytest.approx((100, 200, 500, 500), abs=2)


def test_the_edge_of_the_tissue_and_what_a_reader_drew():
    """Of 1000 x 800 px the left half is tissue; counted in x 100 to 600, of which x 200 to 300 is excluded."""

    class HalfGlass(PlainSlide):
        def overview(self, longest_side):
            view = super().overview(longest_side)
            view[:, view.shape[1] // 2 :] = 240
            return view

    slide = HalfGlass((1000, 800), (1, 1), (0, 0))

    def box(left, right):
        return shapely.box(left * 1000, 100_000, right * 1000, 700_000)

    areas = Areas(("here",), (box(100, 600),), box(200, 300), (1_000_000, 800_000))
    picture = picture_of(slide, [(150, 400), (250, 400), (800, 400)], [0.9, 0.8, 0.7], areas=areas)
    left, top, right, bottom = coloured(picture, TISSUE_COLOUR)
    assert (left, right) == pytest.approx((500, 500), abs=8)  # a cell of the mask
    assert (top, bottom) == (0, 799)
    assert coloured(picture, AREA_COLOUR) == pytest.approx((100, 100, 600, 700), abs=2)
    assert coloured(picture, EXCLUDED_COLOUR) == pytest.approx((200, 100, 300, 700), abs=4)  # below the other line
    assert marked(picture, NOT_COUNTED) == pytest.approx((250 - 12, 388, 800 + 12, 412), abs=2)
    assert coloured(picture_of(slide, [], []), AREA_COLOUR) is None


def test_the_hotspot_at_10x_has_its_figures_where_they_lie(monkeypatch):
    monkeypatch.setattr("midog.report.overlay.MAX_LABELS", 0)
    slide = PlainSlide((4000, 3000), (0.25, 0.5), (0, 0))  # 1000 x 1500 um
    found = found_on(slide, [(1000, 500), (3990, 2000), (1200, 600), (1400, 600)], [0.9, 0.8, 0.7, 0.3])
    counted = np.array([True, True, False, True])
    window = Hotspot(200_250, 100_500, 400_000, 300_000, 1)
    picture = hotspot_picture(slide, found, window, "a.tif", counted)
    assert picture.height == HEADER + 300
    left, top, right, bottom = marked(picture, FIGURE)  # at 250, 250 um of the slide
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((250.125 - 200.75, 250.25 - 101), abs=1)
    assert right - left == pytest.approx(25, abs=2)  # one ring
    assert slide.read_px == 0  # `shrunk` reads the window alone


def test_a_huge_slide_with_many_candidates_takes_bounded_memory():
    slide = PlainSlide((200_000, 150_000), (0.25, 0.25), (0, 0))
    points = np.random.default_rng(0).uniform(0, 150_000, (5_000, 2))
    view, found = slide.overview(LONGEST_SIDE), found_on(slide, points, np.linspace(0, 1, len(points)))
    tissue = tissue_mask(slide, view)
    counts = count(slide, found, tissue)
    tracemalloc.start()
    picture = overlay(slide, view, found, None, "a.svs", tissue, counts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.size == (2000, HEADER + 1500)
    assert peak < 40e6


@pytest.mark.parametrize("size", [(1, 1), (3000, 2)])
def test_odd_sizes(size, tmp_path):
    slide = PlainSlide(size, (0.25, 0.25), (0, 0))
    picture = picture_of(slide, [(0, 0)], [0.9], title="a name that is longer than the image is wide")
    assert picture.size[0] >= min(size[0], 2000)
    write_report(slide, found_on(slide, [(0, 0)], [0.9]), tmp_path, "a.tif")


def test_the_scale_bar_is_a_round_length():
    assert scale_bar(1600, 0.25) == (200, "50 um")
    px, label = scale_bar(2000, 7.5)
    assert (px, label) == (pytest.approx(2000 / 7.5), "2 mm")
    assert scale_bar(1, 0.25)[0] <= 1


def test_a_result_of_another_image_is_noticed():
    slide = PlainSlide((700, 300), (0.25, 0.25), (0, 0))
    assert "1 of 2 points" in outside_warning(slide, found_on(slide, [(10, 10), (10, 900)], [0.9, 0.2]), "a.tif")
    assert outside_warning(slide, found_on(slide, [(10, 10), (10, 310)], [0.9, 0.2]), "a.tif") is None


def test_the_density_is_what_a_round_field_around_the_place_holds():
    """A grid of 1/64 mm a cell, of which nothing is rounded; 3, 4 and 5 cells are the sides of a triangle."""
    size, cell = (6.25, 3.125), 1 / 64
    assert field_map(np.zeros((0, 2)), size, 0.5).shape == (200, 400)
    centre = (np.array([[100, 50]]) + 0.5) * cell
    field = field_map(centre, size, 10 * cell)  # a radius of 5 cells
    rows, columns = np.indices(field.shape)
    np.testing.assert_array_equal(field, (rows - 50) ** 2 + (columns - 100) ** 2 <= 25)
    assert field[53, 104] == field[50, 105] == 1  # on its edge
    assert field[53, 105] == field[50, 106] == 0
    corners = np.array([(0, 0), size, (-cell, 0), (0, 3.125 + cell)])  # the last two are outside the image
    quarters = field_map(np.concatenate([corners, centre, centre]), size, 10 * cell)
    assert [quarters[0, 0], quarters[-1, -1], quarters[-1, 0], quarters[50, 100]] == [1, 1, 0, 2]
    assert [scale_top(np.array([most], np.int32)) for most in (0, 1, 7, 10, 11, 121)] == [1, 1, 8, 10, 15, 150]


places_mm = st.tuples(st.floats(-0.1, 2.1), st.floats(-0.1, 1.1))


@given(st.lists(places_mm, max_size=9), st.floats(0.01, 3))
@settings(max_examples=25, deadline=None)
def test_the_density_is_a_count(places, diameter):
    """Of random fields, at every fifth cell; on its very edge either answer is right."""
    places, size = np.reshape(places, (-1, 2)), np.array([2.0, 1.0])
    field = field_map(places, size, diameter)[::5, ::5]
    inside = places[((places >= 0) & (places <= size)).all(axis=1)]
    rows, columns = np.indices(field.shape)
    centres = (np.stack([columns, rows], axis=-1) * 5 + 0.5) / 200
    away = np.linalg.norm(centres[..., None, :] - inside, axis=-1)
    low, high = ((away <= diameter / 2 + room).sum(axis=-1) for room in (-1e-9, 1e-9))
    assert ((low <= field) & (field <= high)).all()


def test_glass_is_not_painted():
    view = np.full((100, 200, 3), 255, np.uint8)
    tissue = np.zeros((10, 20), bool)
    tissue[:, :10] = True
    picture = np.asarray(density_picture(view, 10, np.full((50, 100), 3, np.int32), 0.55, "a.tif", tissue))
    assert (picture[HEADER:, :98] == ImageColor.getrgb(COLOUR_SCALE[-1])).all()
    assert (picture[HEADER:, 102:200] == 255).all()


def test_the_gallery_cuts_the_most_probable_and_reads_nothing_else(tmp_path):
    slide = PlainSlide((200_000, 150_000), (0.5, 0.5), (0, 0))
    found = found_on(slide, *many(5_000, slide.size))
    crops = cut_crops(slide, found)
    assert len(crops) == MAX_CROPS
    assert slide.read_px <= MAX_CROPS * 48 * 48  # 24 um
    sheet = gallery(crops, found, "a.svs", found.accepted)
    assert sheet.size == (1120, 64 + 40 * 164)


def test_a_crop_has_its_candidate_in_the_middle_and_white_outside_the_slide():
    class Marked(PlainSlide):
        def _read(self, x, y, width, height):
            rows, columns = np.mgrid[y : y + height, x : x + width]
            return np.repeat(((columns == 300) & (rows == 200)).astype(np.uint8)[..., None] * 255, 3, axis=2)

    slide = Marked((400, 300), (0.25, 0.25), (0, 0))
    inside, corner = cut_crops(slide, found_on(slide, [(300, 200), (0, 0)], [0.9, 0.8]))
    rows, columns = np.nonzero(inside[..., 0])
    assert (rows.tolist(), columns.tolist()) == ([CROP // 2], [CROP // 2])
    assert corner[: CROP // 2 - 1].min() == 255
    assert corner[CROP // 2 + 1 :, CROP // 2 + 1 :].max() == 0


def test_csv_and_geojson_hold_every_candidate():
    slide = PlainSlide((4000, 3000), (0.25, 0.5), (1.0, 2.0))
    found = found_on(slide, [(100, 200), (3000.25, 10), (7, 8)], [0.9, 0.8, 0.3], atypical=[0.75, 0.25, np.nan])
    in_hotspot = np.array([True, False, True])
    resolution = Resolution((0.25, 0.5), ASSUMED, "no resolution in the file")
    rows = list(csv.DictReader(io.StringIO(figures_csv(found, in_hotspot, True, resolution))))
    assert [row["name"] for row in rows] == [ATYPICAL, NORMAL, REJECTED]
    first = [*rows[0].values()]
    assert [*rows[0]][:10] == [
        *("number", "name", "score", "share_on_validation", "x_px", "y_px", "x_mm", "y_mm", "in_hotspot", "p_atypical")
    ]
    assert first[:10] == ["1", ATYPICAL, "0.900000", "", "100.00", "200.00", "1.025000", "2.100000", "1", "0.750000"]
    assert all(row["um_per_px"] == "0.25 x 0.5" and row["um_per_px_source"] == "assumed" for row in rows)
    assert [row["in_hotspot"] for row in rows] == ["1", "0", "1"]
    assert rows[2]["p_atypical"] == ""
    assert "p_atypical" not in figures_csv(found, in_hotspot, False, resolution)
    reliability = ((0.34, 0.2, 70), (0.93, 0.8125, 60))
    table = figures_csv(found, in_hotspot, False, resolution, None, np.array([True, False, True]), reliability)
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["share_on_validation"] for row in rows] == ["0.8125", "", "0.2000"]
    assert [row["counted"] for row in rows] == ["1", "0", "1"]

    collection = json.loads(figures_geojson(slide, found, Hotspot(0, 0, 500_000, 400_000, 1)))
    assert set(collection) == {"type", "features"}
    assert collection["type"] == "FeatureCollection"
    *points, window = collection["features"]
    assert points[1] == {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [3000.75, 10.5]},  # QuPath's centre of a pixel is at .5
        "properties": {
            "objectType": "detection",
            "name": "2",
            "classification": {"name": NORMAL, "color": [255, 225, 26]},
            "measurements": {"score": 0.8, "P(atypical)": 0.25},
        },
    }
    assert [point["properties"]["classification"]["name"] for point in points] == [ATYPICAL, NORMAL]
    (refused,) = json.loads(candidates_geojson(slide, found))["features"]  # apart, so that QuPath counts figures alone
    assert refused["properties"]["measurements"] == {"score": 0.3}
    assert (refused["properties"]["name"], refused["properties"]["classification"]["name"]) == ("3", REJECTED)
    assert window["properties"]["objectType"] == "annotation"
    assert window["geometry"]["coordinates"] == [[[0, 0], [2000, 0], [2000, 800], [0, 800], [0, 0]]]

    slide.corner_px = 1000, 10  # QuPath opens the scanned area alone
    collection = json.loads(figures_geojson(slide, found, Hotspot(0, 0, 500_000, 400_000, 1)))
    assert collection["counted_from_px"] == [1000, 10]
    *points, window = collection["features"]
    assert points[1]["geometry"]["coordinates"] == [2000.75, 0.5]
    assert window["geometry"]["coordinates"][0][2] == [1000, 790]


def test_counts_by_hand():
    """500 x 400 um: smaller than every window, and than a field."""
    slide = PlainSlide((2000, 800), (0.25, 0.5), (0, 0))
    found = found_on(slide, [(100, 200), (1000, 300)], [0.9, 0.3])
    counts = count(slide, found, tissue_mask(slide, slide.overview(LONGEST_SIDE)))
    hotspot, _, fields, whole = csv.DictReader(io.StringIO(counts_csv(counts, slide)))
    assert {name: hotspot[name] for name in ("figures", "low_95", "high_95", "reached", "asked_mm2", "area_mm2")} == {
        "figures": "1",
        "low_95": "0.025",
        "high_95": "5.572",
        "reached": "0",
        "asked_mm2": "2.370000",
        "area_mm2": "0.200000",
    }
    place = [hotspot[name] for name in ("left_px", "top_px", "right_px", "bottom_px")]
    assert place == ["0.00", "0.00", "2000.00", "800.00"]
    assert (fields["area_mm2"], fields["per_mm2"], fields["left_px"]) == ("0.000000", "", "")
    assert (whole["asked_mm2"], whole["per_mm2"], whole["per_mm2_tissue"]) == ("", "5.000000", "5.000000")


def test_the_share_of_atypical_figures_stands_with_the_count_that_it_is_of(tmp_path):
    """5 of 20, by a system whose errors on two domains are known; those are on the page, too, with what they mean."""
    slide = PlainSlide((2000, 800), (0.25, 0.5), (0, 0))
    found = found_on(slide, [(50 * i + 50, 200) for i in range(20)], np.full(20, 0.9))
    errors = [("UMC <Utrecht>", 0.8, 0.9), ("B", 0.6, 0.95)]
    classify = lambda slide, found: (found.with_atypical([0.9] * 5 + [0.2] * 15), "any")  # noqa: E731
    counts = write_report(slide, found, tmp_path, "a.tif", classify_figures=classify, subtype_errors=errors)
    *_, fields, whole = csv.DictReader((tmp_path / "counts.csv").open())
    assert {fields[name] for name in SHARE_COLUMNS} == {""}
    low, high = counts.share.interval
    middle, lowest, highest = (0.25 - 0.075) / 0.625, (low - 0.1) / 0.7, (high - 0.05) / 0.55
    values = 0.25, low, high, middle, lowest, highest
    assert [whole[name] for name in SHARE_COLUMNS] == [*(f"{value:.4f}" for value in values), "5"]
    page = (tmp_path / "report.html").read_text()
    assert "for atypical figures: UMC &lt;Utrecht&gt; 80 and 90 %, B 60 and 95 %." in page
    write_report(slide, found, tmp_path, "a.tif", classify_figures=classify)
    assert "How often Track 2&#39;s system errs is not known here" in (tmp_path / "report.html").read_text()


def write_scn(path, pixels, corner, size):
    """A Leica slide of .25 um/px: pixels, uint8 (H, W, 3), scanned at a corner (x, y) of a glass of a size, px."""

    def image(number, area, px, objective):
        x, y, width, height = (250 * side for side in area)  # nm
        width_px, height_px = px
        return (
            f'<image name="{number}" uuid="{number}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
            f'<device model="any" version="1"/><pixels sizeX="{width_px}" sizeY="{height_px}">'
            f'<dimension sizeX="{width_px}" sizeY="{height_px}" r="0" ifd="{number}"/></pixels>'
            f'<view sizeX="{width}" sizeY="{height}" offsetX="{x}" offsetY="{y}" spacingZ="0"/><scanSettings>'
            f"<objectiveSettings><objective>{objective}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.65</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    height, width = pixels.shape[:2]
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="0">'
        f'<collection name="0" uuid="0" sizeX="{250 * size[0]}" sizeY="{250 * size[1]}">'
        f"{image(1, (0, 0, *size), (256, 256), 1)}{image(0, (*corner, width, height), (width, height), 40)}"
        "</collection></scn>"
    )
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg", "metadata": None}
    options |= {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(pixels, description=xml, **options)
        tif.write(np.full((256, 256, 3), 230, np.uint8), **options)
    return path


def test_qupath_counts_from_the_corner_of_the_scanned_area(tmp_path):
    pixels = np.full((512, 768, 3), 230, np.uint8)
    pixels[96:105, 196:205] = 0
    image = write_scn(tmp_path / "a.scn", pixels, (1000, 2000), (4000, 5000))
    with open_slide(image) as slide:
        assert (slide.size, slide.corner_px, slide.um_per_px) == ((4000, 5000), (1000, 2000), (0.25, 0.25))
        place = 1200, 2100
        assert slide.read(*place, 1, 1).max() < 30
        result = found_on(slide, [place], [0.9]).to_json()
    draw(1, image, result, tmp_path)
    collection = json.loads((tmp_path / "figures.geojson").read_text())
    assert collection["features"][0]["geometry"]["coordinates"] == [200.5, 100.5]
    assert collection["counted_from_px"] == [1000, 2000]
    assert ",1200.00,2100.00," in (tmp_path / "figures.csv").read_text()  # of the file as it is read


def test_a_contact_sheet_is_written_whole_or_not_at_all(tmp_path):
    crops, result = np.zeros((2, 128, 128, 3), np.uint8), [{"class": "normal", "confidence": 0.25}] * 2
    (path,) = write_contact_sheets(crops, result, tmp_path, "a.tif")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes; what a full disk does
    try:
        with pytest.raises(UserError, match=r"contact-sheet\.png: cannot be written"):
            write_contact_sheets(crops, result, tmp_path, "b.tif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["contact-sheet.png"]


def test_wilson_interval():
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson_interval(15, 50) == pytest.approx((0.1910, 0.4375), abs=1e-4)  # Newcombe, Stat Med 1998;17:857-872
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


# --- the page in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Opens a page in headless Chromium; returns its DOM, or writes a screenshot."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH: the page is not opened")

    def run(page, *options):
        profile = tmp_path_factory.mktemp("profile")
        command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        command += [f"--user-data-dir={profile}", "--window-size=1400,2400", *options, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def written(slide, points, probabilities, folder, **more):
    write_report(slide, found_on(slide, points, probabilities), folder, "<a> & b.svs", **more)
    return folder / "report.html"


def test_the_page_says_what_is_known_and_nothing_a_name_holds_is_markup(tmp_path):
    slide = PlainSlide((4000, 3000), (0.25, 0.25), (0, 0))
    points = [(100, 200), (300, 200), (700, 800)]

    def classify_figures(slide, found):
        return found.with_atypical([0.75, 0.25]), "sztu <b>, weights 1"

    path = written(slide, points, [0.9, 0.8, 0.3], tmp_path, system="s & t", classify_figures=classify_figures)
    page = path.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert (data["x"], data["p"], data["atypical"]) == ([100, 300, 700], [0.9, 0.8, 0.3], [0.75, 0.25, None])
    assert data["accepted"] == [1, 1, 0]
    assert "&lt;a&gt; &amp; b.svs" in page
    assert "<a>" not in page
    assert "sztu &lt;b&gt;, weights 1" in page
    assert "s &amp; t" in page


def text_of(dom, identifier):
    return re.sub(r"<[^>]*>", "", re.search(rf'id="{identifier}"[^>]*>(.*?)</(?:div|output|p)>', dom, re.DOTALL)[1])


def test_the_page_of_twenty_thousand_candidates_opens_fast_and_is_small(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("midog.report.page.PIXEL_BYTES", 1_000_000)
    slide = PlainSlide((100_000, 80_000), (0.25, 0.25), (0, 0))
    path = written(slide, *many(20_000, slide.size), tmp_path, system="sztu_small, weights 0.9")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([*NAMES, HOTSPOT_PICTURE])
    assert path.stat().st_size < 6e6
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    dom = browser(path, "--dump-dom")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = int(re.search(r'data-ready-ms="(\d+)"', dom)[1]) / 1000
    processor_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert min(seconds, processor_seconds) < 3  # the second, with the browser's start, where the machine is busy
    accepted = int((many(20_000, slide.size)[1] >= 0.5).sum())
    assert f"{accepted:,} mitotic figures" in text_of(dom, "recount")
    assert "sztu_small, weights 0.9" in dom
    assert "&lt;a&gt; &amp; b.svs" in dom
    assert dom.count('class="card') == MAX_CROPS
    own = path.read_text()
    for name in ("leaflet.js", "leaflet.css"):  # they name addresses, and ask for none
        own = own.replace((LEAFLET / name).read_text(), "")
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|https?://', own)


def test_the_page_shows_and_recounts(browser, tmp_path, caplog):
    caplog.set_level("INFO", "midog")
    slide = PlainSlide((20_000, 16_000), (0.25, 0.25), (0, 0))
    points = [(4000, 4000), (4400, 4200), (4800, 4100), (15_000, 12_000), (9000, 9000)]
    path = written(slide, points, [0.95, 0.85, 0.6, 0.7, 0.3], tmp_path)
    assert caplog.messages[0] == "mitotic figures 4, hotspot 3 in 2.37 mm2, tissue 20 of 20 mm2"
    page = path.read_text()
    moved = (
        "const moved = document.getElementById('threshold'); moved.value = .8; moved.dispatchEvent(new Event('input'));"
    )
    (tmp_path / "moved.html").write_text(
        page.replace("document.body.dataset.readyMs", f"{moved} document.body.dataset.ms")
    )
    dom = browser(tmp_path / "moved.html", "--dump-dom")
    assert "2 mitotic figures (0.1 per mm² of tissue) · 2 in the hotspot (" in text_of(dom, "recount")
    assert text_of(dom, "value") == "0.80"
    assert dom.count('class="thumb accepted"') == 2

    picture = tmp_path / "screenshot.png"
    browser(path, "--hide-scrollbars", f"--screenshot={picture}")
    shown = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for colour in (COLOURS[FIGURE], COLOURS[REJECTED], HOTSPOT_COLOUR):  # on the canvas and around it
        assert (shown == ImageColor.getrgb(colour)).all(axis=1).sum() > 20


def test_an_empty_result_has_a_page(browser, tmp_path):
    path = written(PlainSlide((700, 300), (0.25, 0.25), (0, 0)), np.zeros((0, 2)), [], tmp_path)
    dom = browser(path, "--dump-dom")
    assert "no mitotic figure was accepted" in dom
    assert "0 mitotic figures" in text_of(dom, "recount")
    assert 'id="no-cards">' in dom  # no longer hidden
    assert (tmp_path / "figures.csv").read_text().count("\n") == 1
    assert json.loads((tmp_path / "figures.geojson").read_text())["features"] == []
    picture = np.asarray(Image.open(tmp_path / "overlay.png"))
    assert picture.shape == (HEADER + 300, 700, 3)
    assert picture[:HEADER].min() == 0  # the header says so


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def accepted(tmp_path):
    """The sample's result with its first four candidates accepted, and no other."""
    result = json.loads(EXPECTED.read_text())
    for number, point in enumerate(result["points"]):
        point.update(name=FIGURE if number < 4 else REJECTED, probability=0.9 if number < 4 else 0.1)
    path = tmp_path / "result" / "mitotic-figures.json"
    path.parent.mkdir()
    path.write_text(json.dumps(result))
    return path


def test_track_1_and_track_2_in_one_command(accepted, tmp_path, capfd):
    out = tmp_path / "out"
    about = {"system": "hand-made", "version": "7", "image": {"name": REGION.name}, "um_per_px_given": None}
    (accepted.parent / "about.json").write_text(json.dumps(about))
    arguments = ["report", str(REGION), str(accepted), "--out", str(out)]
    assert commands.main([*arguments, "--atypical"]) == 0
    said = capfd.readouterr()
    assert "figures 4" in said.out
    rows = list(csv.DictReader((out / "figures.csv").open()))
    values = [float(row["p_atypical"]) for row in rows[:4]]
    assert all(0 <= value <= 1 for value in values)
    assert len(set(values)) > 1
    assert all(row["p_atypical"] == "" and row["name"] == REJECTED for row in rows[4:])
    features = json.loads((out / "figures.geojson").read_text())["features"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert names[:4] == [row["name"] for row in rows[:4]]
    assert set(names[:4]) <= {ATYPICAL, NORMAL}
    page = (out / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["atypical"] == [*values, *[None] * (len(rows) - 4)]
    assert "hand-made, weights 7" in page


def test_a_result_is_reported_at_the_um_per_px_that_it_was_made_with(tmp_path):
    Image.new("RGB", (1200, 900), (230, 180, 215)).save(tmp_path / "a.png")
    result = Detections.of([[1000, 800, 1000, 800]], [0.9], (0.2274, 0.2274)).to_json()
    (tmp_path / "result.json").write_text(json.dumps(result))
    about = {"system": "any", "version": "1", "image": {"name": "a.png"}, "um_per_px_given": 0.2274}
    (tmp_path / "about.json").write_text(json.dumps(about))
    command = ["report", str(tmp_path / "a.png"), str(tmp_path / "result.json"), "--out", str(tmp_path)]
    assert commands.main(command) == 0
    assert ",1000.00,800.00," in (tmp_path / "figures.csv").read_text()


def doubts_of(page):
    return re.findall(r'class="notice doubt"><p>(.*?)</p>', page.read_text())


@pytest.fixture
def bound(tmp_path):
    """An image without a resolution, its result as predict leaves it with .25 um/px assumed, and report's arguments."""
    folder = tmp_path / "made"
    folder.mkdir()
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(image)
    (folder / "result.json").write_text(json.dumps(Detections.of([[9, 8, 9, 8]], [0.9], (0.25, 0.25)).to_json()))
    taken = {"um_per_px": [0.25, 0.25], "source": "assumed", "where": "no resolution in the file", "in_file": None}
    about = {"system": "any", "version": "1", "um_per_px_given": None, "resolution": taken}
    (folder / "about.json").write_text(json.dumps(about | {"image": {"name": "a.png"} | identity([image])}))
    return image, folder / "result.json", tmp_path / "out"


def report(image, result, out, *more):
    return commands.main(["report", str(image), str(result), "--out", str(out), *more])


def test_an_assumed_resolution_is_told_in_red_and_in_the_table(bound):
    image, result, out = bound
    renamed = image.rename(image.with_name("b.png"))
    assert report(renamed, result, out) == 0
    (doubt,) = doubts_of(out / "report.html")
    assert doubt == "Resolution: 0.25 um/px, assumed (no resolution in the file)."
    assert (out / "figures.csv").read_text().splitlines()[1].endswith(",9.00,8.00,0.002250,0.002000,1,0.25,assumed")
    assert "any, weights 1" in (out / "report.html").read_text()
    assert report(renamed, result, out, "--mpp", "0.5") == 0
    assert doubts_of(out / "report.html") == [
        "The result was made with 0.25 um/px, and is drawn with another.",
        "Resolution: 0.5 um/px, given (--mpp).",
    ]


def test_how_often_the_subtypes_system_errs_comes_back_with_the_result(bound):
    image, result, _ = bound
    assert bind(result, image, None, False, None).subtype_errors == ()
    note = result.parent / "about.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"subtype_errors": [["A", 0.8, 0.9]]}))
    assert bind(result, image, None, False, None).subtype_errors == (("A", 0.8, 0.9),)


def test_another_image_is_refused_unless_asked_for(bound, capfd):
    image, result, out = bound
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(image)
    assert report(image, result, out) == 1
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert "a.png: not the image of" in told
    assert "--any-image" in told
    assert report(image, result, out, "--any-image") == 0
    assert doubts_of(out / "report.html")[0].startswith("Not the result&#39;s own image: it was made from a.png,")


def test_a_result_without_its_note_is_bound_to_nothing(bound, capfd):
    """What inference.py wrote, or another team."""
    image, result, out = bound
    (result.parent / "about.json").unlink()
    assert report(image, result, out) == 0
    first, second = doubts_of(out / "report.html")
    assert first.startswith("Not bound to this image")
    assert second == "Resolution: 0.25 um/px, assumed (no resolution in the file)."
    for note in ("{", "[]", '{"image": "a.png"}', '{"image": {"name": "a.png", "sha256": "0"}, "resolution": 3}'):
        (result.parent / "about.json").write_text(note)
        assert report(image, result, out) == 0
        assert doubts_of(out / "report.html")[0].startswith("Not bound")


def test_points_by_a_spacing_that_cannot_be_right_come_back_to_their_pixels(tmp_path):
    """inference.py leaves them by the file's own, with which the platform's viewer takes them apart."""
    options = {"resolution": (200_000, 200_000), "resolutionunit": "CENTIMETER", "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", np.full((300, 400, 3), 200, np.uint8), photometric="rgb", **options)
    result = Detections.of([[100, 80, 100, 80]], [0.9], (0.05, 0.05)).to_json()
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert report(tmp_path / "a.tif", tmp_path / "result.json", tmp_path / "out") == 0
    assert ",100.00,80.00,0.025000,0.020000," in (tmp_path / "out/figures.csv").read_text()
    assert "0.25 um/px, assumed (the file says 0.05" in doubts_of(tmp_path / "out/report.html")[1]


def test_a_crop_for_track_2_is_32_um_whatever_the_spacing(monkeypatch):
    from midog.engine import classifier
    from midog.run import Track2

    seen = []
    monkeypatch.setattr(Track2, "_classifier", None)
    monkeypatch.setattr(Track2, "engine", SimpleNamespace(device="cpu"))
    monkeypatch.setattr(classifier, "classify", lambda crops, *_: seen.extend(crops) or np.zeros(1, np.float32))

    class Marked(PlainSlide):
        def _read(self, x, y, width, height):
            rows, columns = np.mgrid[y : y + height, x : x + width]
            return np.repeat(
                (np.maximum(abs(columns - 300), abs(rows - 200)) <= 4).astype(np.uint8)[..., None] * 255, 3, 2
            )

    slide = Marked((600, 400), (0.5, 0.5), (0, 0))  # a square of 9 px is 18 px of a crop
    Track2(None, "cpu").classify_figures(slide, found_on(slide, [(300, 200)], [0.9]))
    (crop,) = seen
    assert crop.shape == (128, 128, 3)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (55, 72, 55, 72)


def test_pytorch_is_imported_for_atypical_alone(accepted, tmp_path):
    code = (
        "import sys; from midog.__main__ import main;"
        f"code = main(['report', {str(REGION)!r}, {str(accepted)!r}, '--out', {str(tmp_path / 'out')!r}]);"
        "print(code, 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_what_cannot_be_reported_is_one_line(accepted, tmp_path, capfd):
    stack = next((ROOT / "test/input/track2/images").glob("*/*.tif*"))
    classes = ROOT / "test/expected/track2/multiple-mitotic-figure-classification.json"
    for image, result, named in [
        (tmp_path / "none.tiff", accepted, "none.tiff"),
        (REGION, tmp_path / "none.json", "none.json"),
        (stack, classes, "leave --atypical out"),
    ]:
        assert commands.main(["report", str(image), str(result), "--out", str(tmp_path / "out"), "--atypical"]) == 1
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert named in said
