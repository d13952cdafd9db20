"""The one container of results: what it refuses, and that nothing is lost on the way to a file and back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog.detections import ATYPICAL, FIGURE, NORMAL, REJECTED, Detections
from midog.job import check_detection_result, detection_warning

millimetres = st.floats(-0.0075, 10)
TWO = [[10, 20, 30, 40], [0, 0, 4, 8]]


def two(**changes):
    given = {"boxes": TWO, "probabilities": [0.25, 0.75], "um_per_px": (0.25, 0.5), "origin": (1, 2)}
    return Detections.of(**given | changes)


def test_places_by_hand():
    found = two()
    assert found.centres.tolist() == [[20, 30], [2, 4]]
    np.testing.assert_allclose(found.points_mm, [[1.005, 2.015], [1.0005, 2.002]], rtol=1e-12)
    assert found.accepted.tolist() == [False, True]
    assert np.isnan(found.scores).all()


def test_a_result_by_hand():
    found = Detections.of([[0.11, 0.037] * 2, [0.146, 0.158] * 2], [0.25, 0.75], (1000, 1000))
    assert found.to_json() == {
        "name": "Points of interest",
        "type": "Multiple points",
        "points": [
            {"name": "mitotic figure", "point": [0.146, 0.158, 0], "probability": 0.75},
            {"name": "non-mitotic figure", "point": [0.11, 0.037, 0], "probability": 0.25},
        ],
        "version": {"major": 1, "minor": 0},
    }
    assert Detections.of([], [], (1, 1)).to_json()["points"] == []


@given(st.lists(st.tuples(millimetres, millimetres, st.floats(0, 1, width=32), st.booleans())), st.randoms())
def test_a_result_is_accepted_comes_back_and_does_not_depend_on_the_order(rows, random):
    def found(rows):
        places, accepted = [row[:2] * 2 for row in rows], [row[3] for row in rows]
        return Detections.of(places, [row[2] for row in rows], (1000, 1000), accepted=accepted)

    first = found(rows).to_json()
    check_detection_result(first)
    assert detection_warning(first) is None
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert Detections.from_json(first).to_json() == first
    probabilities = [point["probability"] for point in first["points"]]
    assert probabilities == sorted((row[2] for row in rows), reverse=True)
    random.shuffle(rows)
    assert found(rows).to_json() == first


@given(st.floats(0.05, 5), st.floats(-9, 9), st.floats(0.05, 5), st.floats(-9, 9))
def test_a_place_has_the_same_mm_on_every_grid(step, start, other_step, other_start):
    found = two(um_per_px=(step, 2 * step), origin=(start, 0))
    moved = found.on_grid((other_step, other_step), (other_start, 1.0))
    np.testing.assert_allclose(moved.points_mm, found.points_mm, atol=1e-9)
    assert found.on_grid((step, 2 * step), (start, 0.0)) is found


def test_slices_and_joins_are_new_ones_of_the_same_image():
    found = two()
    assert len(found[:1]) == 1
    assert found[np.array([False, True])].boxes.tolist() == TWO[1:]
    both = Detections.concatenate([found[1:], found[:1]])
    assert both.boxes.tolist() == TWO[::-1]
    assert (both.um_per_px, both.origin) == (found.um_per_px, found.origin)
    assert found.best_first().boxes.tolist() == TWO[::-1]
    with pytest.raises(ValueError, match="parts of one image"):
        Detections.concatenate([found, two(origin=(0, 0))])
    with pytest.raises(ValueError, match="parts of one image"):
        Detections.concatenate([])


def test_classes_follow_the_subtype():
    found = two(probabilities=[0.9, 0.9]).with_atypical([0.5, 0.4])
    assert found.class_names == [ATYPICAL, NORMAL]
    assert two().class_names == [REJECTED, FIGURE]
    assert two().with_atypical([0.7]).class_names == [REJECTED, ATYPICAL]


def test_columns_and_qupath_s_half_pixel():
    found = two().with_atypical([0.7])
    table = found.to_table()
    assert {len(column) for column in table.values()} == {2}
    assert table["x_px"].tolist() == [20, 2]
    first, second = found.to_geojson()["features"]
    assert first["geometry"] == {"type": "Point", "coordinates": [20.5, 30.5]}
    assert first["properties"]["measurements"] == {"score": 0.25}
    assert second["properties"]["measurements"] == {"score": 0.75, "P(atypical)": 0.7}
    assert second["properties"]["classification"]["name"] == ATYPICAL


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boxes": [[0, 0, 1, 1]]}, r"scores: float32 \(1,\) expected, got float32 \(2,\)"),
        ({"boxes": [[0, 0, np.nan, 1], TWO[1]]}, "boxes: finite"),
        ({"boxes": [[5, 0, 4, 1], TWO[1]]}, "x0 <= x1"),
        ({"probabilities": [0.5, 1.5]}, r"probabilities: numbers in \[0, 1\]"),
        ({"probabilities": [0.5, np.nan]}, "probabilities"),
        ({"um_per_px": (0.25, 0)}, "um_per_px"),
        ({"accepted": [True]}, r"accepted: bool \(2,\) expected, got bool \(1,\)"),
    ],
)
def test_what_is_no_result(changes, said):
    with pytest.raises(ValueError, match=said):
        two(**changes)


def test_the_wrong_type_is_named():
    found = two()
    with pytest.raises(ValueError, match="boxes: float64 .* got float32"):
        Detections(
            found.boxes.astype(np.float32),
            *(getattr(found, name) for name in ("scores", "probabilities", "accepted", "atypical", "um_per_px")),
        )
