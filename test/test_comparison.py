"""Several results of one image beside each other: what is one place, how far they agree, and what is written of it."""

import csv
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from midog.about import identity
from midog.detections import FIGURE, REJECTED, UNSURE, Detections
from midog.errors import UserError
from midog.images.slide import ArraySlide
from midog.report.agreement import MATCH_UM, Overlap, Result, match, overlaps, overlaps_csv, places_of
from midog.report.canvas import HEADER, MARGIN
from midog.report.comparison import compare
from midog.report.comparison_picture import (
    AGREED,
    ALONE,
    CAPTION,
    FIELD,
    LABELS,
    MAX_FIELDS,
    comparison_picture,
    fields,
)
from midog.report.intervals import wilson_interval

UM_PER_PX = (0.25, 0.5)


def places(centres, figures):
    rows = match(
        [np.reshape(each, (-1, 2)).astype(float) for each in centres], [np.array(each, bool) for each in figures]
    )
    return sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize(
    ("centres", "figures", "expected"),
    [
        ([[(0, 0)], [(7.5, 0)]], [[1], [1]], [(0, 0)]),
        ([[(0, 0)], [(7.51, 0)]], [[1], [1]], [(-1, 0), (0, -1)]),
        # nearest first, and one to one
        ([[(0, 0), (6, 0)], [(5, 0)]], [[1, 1], [1]], [(0, -1), (1, 0)]),
        # a refused candidate on the spot takes no figure's place, but is told where no figure is
        ([[(0, 0)], [(0, 0), (5, 0)]], [[1], [0, 1]], [(0, 1)]),
        ([[(0, 0)], [(0, 0), (50, 0)]], [[1], [0, 1]], [(-1, 1), (0, 0)]),
        # what all refuse is no place
        ([[(0, 0)], [(0, 0)]], [[0], [0]], []),
        # a chain: the first and the third are too far apart
        ([[(0, 0)], [(6, 0)], [(13, 0)]], [[1], [1], [1]], [(-1, -1, 0), (0, 0, -1)]),
        ([[(0, 0)], [(3, 0)], [(6, 0)]], [[1], [1], [1]], [(0, 0, 0)]),
        ([[], [(1, 1)], []], [[], [1], []], [(-1, 0, -1)]),
        ([[], []], [[], []], []),
    ],
)
def test_what_is_one_place(centres, figures, expected):
    assert places(centres, figures) == expected


candidates = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=8)


@given(st.lists(candidates, min_size=2, max_size=4))
def test_places_of_any_results(drawn):
    centres = [np.array([(x, y) for x, y, _ in each], float).reshape(-1, 2) for each in drawn]
    figures = [np.array([figure for *_, figure in each], bool) for each in drawn]
    rows = match(centres, figures)
    for column, is_figure in enumerate(figures):
        chosen = rows[rows[:, column] >= 0, column]
        assert len(set(chosen.tolist())) == len(chosen)
        assert set(np.flatnonzero(is_figure).tolist()) <= set(chosen.tolist())
    alone: list[tuple[int, np.ndarray]] = []
    for row in rows.tolist():
        members = [(column, centres[column][candidate]) for column, candidate in enumerate(row) if candidate >= 0]
        assert any(figures[column][candidate] for column, candidate in enumerate(row) if candidate >= 0)
        assert all(np.hypot(*(a - b)) <= MATCH_UM + 1e-9 for _, a in members for _, b in members)
        alone += members if len(members) == 1 else []
    assert all(np.hypot(*(a - b)) > MATCH_UM for i, a in alone for j, b in alone if i != j)  # none is left


def result(name, points, scores):
    found = Detections.of(np.tile(np.reshape(points, (-1, 2)), 2), scores, UM_PER_PX)
    return Result(name, None, "", found, found.class_names, found.probabilities)


@pytest.fixture
def three():
    """A figure of all, one of a and b, one of c alone that a refused; px of .25 x .5 um."""
    return [
        result("a", [(100, 100), (400, 100), (400, 300)], [0.9, 0.8, 0.2]),
        result("b", [(104, 100), (400, 102)], [0.7, 0.6]),
        result("c", [(100, 104), (404, 300)], [0.95, 0.5]),
    ]


def test_agreement_by_hand(three):
    found = places_of(three, UM_PER_PX)
    assert found.rows.tolist() == [[2, -1, 1], [1, 1, -1], [0, 0, 0]]
    assert found.figures.astype(int).tolist() == [[0, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert found.found_by.tolist() == [1, 2, 3]
    assert found.disputed.tolist() == [True, True, False]
    np.testing.assert_allclose(found.centres, [(404, 300), (400, 101), (304 / 3, 304 / 3)])
    *pairs, all_of_them = overlaps(["a", "b", "c"], found.figures)
    assert pairs == [
        Overlap(("a", "b"), (2, 2), 2, 2),
        Overlap(("a", "c"), (2, 2), 1, 3),
        Overlap(("b", "c"), (2, 2), 1, 3),
    ]
    assert all_of_them == Overlap(("a", "b", "c"), (2, 2, 2), 1, 3)
    assert pairs[1].share == (1 / 3, *wilson_interval(1, 3))
    assert pairs[1].dice[0] == pytest.approx(2 * 1 / (2 + 2))
    assert all_of_them.dice is None
    first, *_, last = csv.DictReader(io.StringIO(overlaps_csv([*pairs, all_of_them])))
    assert {name: first[name] for name in ("first", "second", "both", "only_first", "places", "share", "dice")} == {
        "first": "a", "second": "b", "both": "2", "only_first": "0", "places": "2", "share": "1.0000", "dice": "1.0000"
    }  # fmt: skip
    assert (last["first"], last["second_figures"], last["both"], last["dice"]) == ("all", "", "1", "")


def test_without_figures_there_is_no_share():
    (pair,) = overlaps(["a", "b"], np.zeros((0, 2), bool))
    assert (pair.share, pair.dice) == (None, None)
    assert overlaps_csv([pair]).splitlines()[1] == "a,b,0,0,0,0,0,0,,,,,,"


def test_fields_show_what_is_disputed_first():
    """Two disputed places in one field, one in another; then the one that all have."""
    centres = np.array([(100, 100), (140, 150), (500, 500), (900, 900)], float)
    shown = fields(centres, np.array([True, True, True, False]))
    assert shown.tolist() == [[120, 125], [500, 500], [900, 900]]
    many = np.arange(40).reshape(-1, 2) * 1000.0
    assert len(fields(many, np.ones(20, bool))) == MAX_FIELDS
    assert fields(np.empty((0, 2)), np.empty(0, bool)).shape == (0, 2)


def test_the_picture_has_a_row_a_result(three):
    """Orange is what c alone has, green what several have."""
    slide = ArraySlide(np.full((800, 1600, 3), 200, np.uint8), UM_PER_PX)
    pixels = np.array(comparison_picture(slide, three, places_of(three, UM_PER_PX), "an image"))
    rows = pixels[HEADER + CAPTION :, LABELS:].reshape(3, FIELD + MARGIN, -1, 3)
    orange, green = (list(bytes.fromhex(colour[1:])) for colour in (ALONE, AGREED))
    assert [(row == orange).all(axis=2).any() for row in rows] == [False, False, True]
    assert [(row == green).all(axis=2).any() for row in rows] == [True, True, True]


def write_result(folder, points, image=None, system="one"):
    """A result of points (x, y, score) in px of .25 um, with about.json where its image is given."""
    folder.mkdir()
    found = Detections.of([(x, y, x, y) for x, y, _ in points], [score for *_, score in points], (0.25, 0.25))
    (folder / "mitotic-figures.json").write_text(json.dumps(found.to_json()))
    if image:
        about = {
            "image": {"name": image.name, **identity([image])},
            "um_per_px_given": None,
            "system": system,
            "version": "1.0",
            "resolution": {"um_per_px": [0.25, 0.25], "source": "given", "where": "", "conflict": "", "in_file": None},
        }
        (folder / "about.json").write_text(json.dumps(about))
    return folder / "mitotic-figures.json"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "<b>region.png"
    pixels = np.random.default_rng(1).integers(120, 200, (300, 400, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def reader(path, *points):
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [x + 0.5, y + 0.5]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for x, y, name in points
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_two_systems_and_a_reader(tmp_path, image):
    points = [(100, 100, 0.9), (200, 200, 0.8), (300, 100, 0.1)]
    one = write_result(tmp_path / "one", points, image)
    again = write_result(tmp_path / "again", [(102, 100, 0.6)], image)
    said = reader(tmp_path / "said.geojson", (100, 102, FIGURE), (300, 100, FIGURE), (200, 200, UNSURE))
    (tmp_path / "out").mkdir()
    page = compare(image, [one, again, said], tmp_path / "out").read_text()

    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "comparison.csv", "comparison.html", "comparison.png", "pairs.csv"
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out/comparison.csv").read_text().splitlines()))
    assert [(row["found_by"], row["one 1 class"], row["one 2 class"], row["reader class"]) for row in rows] == [
        ("1", FIGURE, "", UNSURE),
        ("1", REJECTED, "", FIGURE),
        ("3", FIGURE, FIGURE, FIGURE),
    ]
    assert [(row["one 1 score"], row["reader score"]) for row in rows] == [
        ("0.800000", ""), ("0.100000", ""), ("0.900000", "")
    ]  # fmt: skip
    assert {row["um_per_px_source"] for row in rows} == {"given"}
    assert "<b>region" not in page
    assert "&lt;b&gt;region" in page
    assert len(re.findall(r'<tr id="place-', page)) == 3
    assert 'class="notice"' not in page
    agreed = list(csv.DictReader((tmp_path / "out/pairs.csv").read_text().splitlines()))
    assert [(row["first"], row["second"], row["both"]) for row in agreed] == [
        ("one 1", "one 2", "1"), ("one 1", "reader", "1"), ("one 2", "reader", "1"), ("all", "", "1")
    ]  # fmt: skip


def test_nothing_found_and_nothing_known(tmp_path, image):
    """No figure at all, no about.json, and no resolution in the file: said in red, and written all the same."""
    results = [write_result(tmp_path / name, points) for name, points in (("a", []), ("b", [(9, 9, 0.1)]))]
    (tmp_path / "out").mkdir()
    page = compare(image, results, tmp_path / "out").read_text()
    assert page.count("Not bound to this image") == 2
    assert "Resolution: 0.25" in page
    assert (tmp_path / "out/comparison.csv").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda one, other, image: [one, one], "given twice"),
        (lambda one, other, image: [one, other.with_name("about.json")], "not a result of Track 1"),
        (lambda one, other, image: [one, image.with_name("none.json")], "cannot be read"),
        (lambda one, other, image: (image.write_bytes(image.read_bytes() + b" "), [one, other])[1], "not the image of"),
        (lambda one, other, image: [one, reader(image.with_suffix(".geojson"), (999, 9, FIGURE))], "outside the image"),
        (lambda one, other, image: [one, reader(image.with_suffix(".geojson"), (9, 9, "Tumor"))], "no verdicts"),
    ],
)  # fmt: skip
def test_bad_input(tmp_path, image, spoil, message):
    one, other = (write_result(tmp_path / name, [(9, 9, 0.9)], image, name) for name in ("one", "two"))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=message) as raised:
        compare(image, spoil(one, other, image), out)
    assert "\n" not in str(raised.value)
    assert not list(out.iterdir())
