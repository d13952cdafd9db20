"""Areas that a reader drew: read, refused, and what lies inside and outside."""

import json
import logging

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.errors import UserError
from midog.images.slide import ArraySlide
from midog.images.tissue import TissueMask
from midog.report.areas import Areas, read_areas, whole
from midog.report.protocols import protocols

SIZE = 400_000, 300_000  # nm, of the slide here
SQUARE = [[100, 100], [200, 100], [200, 200], [100, 200], [100, 100]]
HOLE = [[140, 140], [160, 140], [160, 160], [140, 160], [140, 140]]


@pytest.fixture
def slide():
    return ArraySlide(np.full((300, 400, 3), 255, np.uint8), (1.0, 1.0))


def feature(coordinates, kind="Polygon", class_name=None, name=None):
    said = {"name": name, "classification": class_name and {"name": class_name}}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": said}


def written(tmp_path, *features):
    path = tmp_path / "areas.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def refused(path, slide):
    with pytest.raises(UserError) as raised:
        read_areas(path, slide)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_areas_and_exclusions_are_read_with_holes_names_and_clipped(tmp_path, slide, caplog):
    caplog.set_level(logging.INFO)
    beyond = [[[350, 0], [450, 0], [450, 50], [350, 50], [350, 0]]]
    inner = [[[120, 100], [130, 100], [130, 200], [120, 200], [120, 100]]]
    path = written(
        tmp_path,
        feature([SQUARE, HOLE], class_name="Tumor", name="margin"),
        feature([beyond, [[[0, 200], [10, 200], [10, 210], [0, 200]]]], "MultiPolygon", name="margin"),
        feature(inner, class_name="Ignore*"),
        feature([5, 5], "Point"),
    )
    areas = read_areas(path, slide)
    assert areas.names == ("margin", "margin (2)")
    assert areas.area_mm2 == pytest.approx((100 * 100 - 20 * 20 - 10 * 100 + 50 * 50 + 50) / 1e6)
    assert "passed over, as no areas: Point (1)" in caplog.text
    assert "1 of 3 areas reach beyond the image" in caplog.text
    places = np.array([[100, 100], [150, 150], [140, 150], [125, 150], [120, 150], [400, 20], [401, 20], [300, 250]])
    held = [True, False, True, False, True, True, False, False]
    assert areas.holds(places * 1000).tolist() == held
    assert areas.only(0).holds(places * 1000).tolist() == [True, False, True, False, True, False, False, False]


def test_places_are_counted_from_the_scanned_area_and_in_um(tmp_path):
    slide = ArraySlide(np.full((300, 400, 3), 255, np.uint8), (0.5, 0.25))
    slide.corner_px = 10, 20
    areas = read_areas(written(tmp_path, feature([SQUARE], name="")), slide)
    assert areas.names == ("area 1",)
    assert areas.union.bounds == (55_000, 30_000, 105_000, 55_000)


def test_exclusions_alone_leave_the_rest_of_the_image(tmp_path, slide):
    areas = read_areas(written(tmp_path, feature([SQUARE], class_name="EXCLUDE")), slide)
    assert (areas.names, areas.is_whole) == ((), False)
    assert areas.area_mm2 == pytest.approx(0.12 - 0.01)


@pytest.mark.parametrize(
    ("polygon", "said"),
    [
        ([[[500, 500], [600, 500], [600, 600], [500, 500]]], "lies outside the image"),
        ([SQUARE[:-1]], "is open: from 100, 100 to 100, 200 px"),
        ([[[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]], "self-intersection at 50, 50 px"),
        ([[[0, 0], [100, 100], [0, 0]]], "fewer than three corners"),
        ([[[0, 0], [100, float("nan")], [100, 0], [0, 0]]], "a corner without an end"),
        ([[[0, 0], ["a", 1], [100, 0], [0, 0]]], "corners that are no x and y"),
        ([], "corners that are no x and y"),
        (None, "corners that are no x and y"),
    ],
)
def test_what_is_no_area_is_refused_in_one_line(tmp_path, slide, polygon, said):
    message = refused(written(tmp_path, feature([SQUARE]), feature(polygon, name="a\nb")), slide)
    assert said in message
    assert r"a\nb" in message


def test_what_has_no_area_is_refused_in_one_line(tmp_path, slide):
    assert "no polygon" in refused(written(tmp_path, feature([5, 5], "Point")), slide)
    all_of_it = [[[0, 0], [400, 0], [400, 300], [0, 300], [0, 0]]]
    assert "leave nothing" in refused(written(tmp_path, feature(all_of_it, class_name="exclusion")), slide)
    path = tmp_path / "other.json"
    path.write_text('{"points": []}')
    assert "not GeoJSON" in refused(path, slide)
    path.write_text("[")
    assert "not JSON" in refused(path, slide)
    assert "cannot be read" in refused(tmp_path / "missing", slide)


def boxes(least):
    side = st.integers(0, 40).map(lambda value: value * 10_000)
    box = st.tuples(side, side, side, side).map(lambda c: shapely.box(min(c[0], c[2]), min(c[1], c[3]), *_ends(c)))
    return st.lists(box, min_size=least, max_size=3)


def _ends(corners):
    return max(corners[0], corners[2]) + 10_000, max(corners[1], corners[3]) + 10_000


points = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), max_size=40)


@given(points, boxes(1), boxes(0))
@settings(max_examples=50, deadline=None)
def test_inside_and_outside_make_all_of_it(corners, counted, excluded):
    """Corners and places on one grid, so that many lie on edges."""
    places = np.array(corners, np.int64).reshape(-1, 2) * 10_000
    tissue = TissueMask(np.ones((30, 40), bool), (400.0, 300.0))
    out, names = shapely.union_all(excluded), tuple("abc"[: len(counted)])
    areas, rest = Areas(names, tuple(counted), out, SIZE), Areas((), (), out, SIZE)
    image = whole(SIZE)
    within = [int(out.contains(shapely.Point(place))) for place in places.tolist()]
    assert rest.holds(places).sum() == len(places) - sum(within)
    assert rest.area_mm2 + out.intersection(shapely.box(0, 0, *SIZE)).area / 1e12 == pytest.approx(image.area_mm2)
    alone = [areas.only(number) for number in range(len(counted))]
    assert (areas.holds(places) == np.any([each.holds(places) for each in alone], axis=0)).all()
    assert not (areas.holds(places) & ~rest.holds(places)).any()
    assert areas.area_mm2 <= sum(each.area_mm2 for each in alone) + 1e-12

    found = {count.key: count for count in protocols(places, SIZE, areas, tissue, 0.1)}
    assert found["whole"].figures == len(places) - sum(within)
    assert found["areas"].figures == areas.holds(places).sum()
    assert found["areas"].area_mm2 == areas.area_mm2
    for name, each in zip(names, alone, strict=True):
        assert found[f"area:{name}"].figures == each.holds(places).sum()
    assert found["hotspot"].figures == found["areas"].figures  # the image is smaller than the window
    assert found["hotspot"].area_mm2 == pytest.approx(areas.area_mm2)
    assert found["fields"].figures <= found["areas"].figures
