"""A reader's corrections: read from the page's file and from QuPath's, applied, counted and written."""

import csv
import io
import json

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from midog import __main__ as commands
from midog.about import identity
from midog.detections import ATYPICAL, COLOURS, FIGURE, NORMAL, REJECTED, UNSURE, Detections
from midog.errors import UserError
from midog.files import sha256_of
from midog.images.slide import Slide
from midog.report.areas import Areas
from midog.report.export import agreement_csv, candidates_geojson, figures_csv, figures_geojson
from midog.report.hotspot import Hotspot
from midog.report.review import FIGURES, VERDICTS, apply, classify_others, read_review

SIZE, UM_PER_PX, CORNER = (4000, 3000), (0.25, 0.5), (1000, 20)
RESULT = "a" * 64
IMAGE = {"name": "a.svs", "bytes": 9, "sha256": "b" * 64}
PLACES = [(1100.0, 200.25), (2000.5, 900.0), (3000.0, 2500.125), (1500.0, 1500.0)]


@pytest.fixture
def slide():
    slide = Slide(SIZE, UM_PER_PX)
    slide.corner_px = CORNER
    return slide


@pytest.fixture
def found():
    """Three figures and a refused candidate, best first."""
    return found_at(PLACES, [0.9, 0.8, 0.7, 0.3])


def found_at(places, probabilities):
    return Detections.of(np.tile(np.reshape(places, (-1, 2)), 2), probabilities, UM_PER_PX).best_first()


def mark(place, name, verdict, measurements=None, **metadata):
    """A feature as the page writes it, of a place in level-0 px."""
    x, y = place
    properties = {
        "objectType": "detection",
        "name": name,
        "classification": {"name": verdict, "color": [1, 2, 3]},
        "measurements": measurements or {},
        "metadata": metadata,
    }
    geometry = {"type": "Point", "coordinates": [x + 0.5 - CORNER[0], y + 0.5 - CORNER[1]]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def reviewed(features, **about):
    head = {"format": 1, "program": "1.7.0", "image": IMAGE, "result": RESULT, "counted_from_px": CORNER}
    window = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}
    hotspot = {"objectType": "annotation", "name": "hotspot", "classification": {"name": "hotspot"}}
    features = [*features, {"type": "Feature", "geometry": window, "properties": hotspot}]
    return {"type": "FeatureCollection", "midog_review": head | about, "features": features}


def read(tmp_path, content, slide, found, any_image=False):
    path = tmp_path / "reviewed.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_review(path, slide, found, IMAGE, RESULT, any_image)


def test_a_review_by_hand(tmp_path, slide, found):
    """The first left, the second moved and open to its reader, the third deleted, the fourth accepted, one added."""
    features = [
        mark(PLACES[0], "1", FIGURE, {"probability": 0.9}, origin="system"),  # as 1.7 wrote it, now "score"
        mark((2004.5, 900), "2", UNSURE, origin="system", note="=blurred, or pyknotic"),
        mark(PLACES[3], "4", ATYPICAL, origin="system"),
        mark((50.5, 60), "a1", NORMAL, origin="reader"),
    ]
    review = read(tmp_path, reviewed(features), slide, found)
    assert review.bound
    assert review.candidates.tolist() == [0, 1, 3, -1]
    corrected = apply(slide, found, review)
    assert corrected.found.centres.tolist() == [
        [1100, 200.25],
        [2004.5, 900],
        [3000, 2500.125],
        [1500, 1500],
        [50.5, 60],
    ]
    names = [FIGURE, UNSURE, REJECTED, ATYPICAL, NORMAL]
    assert corrected.names_of(corrected.found) == names
    assert corrected.numbers == ["1", "2", "3", "4", "a1"]
    assert corrected.origins == ["system"] * 4 + ["reader"]
    assert str(corrected.agreement) == (
        "3 by the system, 3 by the reader, 1 both; refused 1, added 2, moved 0, not sure 1; hotspot 3 -> 3"
    )

    rows = list(
        csv.DictReader(io.StringIO(figures_csv(corrected.found, np.ones(5, bool), True, slide.resolution, corrected)))
    )
    assert [row["name"] for row in rows] == names
    assert [row["number"] for row in rows] == corrected.numbers
    assert [row["score"] for row in rows] == ["0.900000", "0.800000", "0.700000", "0.300000", ""]
    assert {row["p_atypical"] for row in rows} == {""}  # the reader measured none
    assert [*rows[4]][10:12] == ["origin", "note"]
    assert rows[1]["note"] == "'=blurred, or pyknotic"  # no formula for a spreadsheet
    (row,) = csv.DictReader(io.StringIO(agreement_csv(corrected.agreement)))
    assert (row["system"], row["both"], row["not_sure"], row["hotspot_reader"]) == ("3", "1", "1", "3")

    hotspot = Hotspot(0, 0, 1_000_000, 1_500_000, 3)
    *figures, window = json.loads(figures_geojson(slide, corrected.found, hotspot, corrected))["features"]
    others = json.loads(candidates_geojson(slide, corrected.found, corrected))["features"]
    assert [each["properties"]["name"] for each in figures] == ["1", "4", "a1"]
    assert [each["properties"]["name"] for each in others] == ["2", "3"]
    assert window["geometry"]["type"] == "Polygon"
    assert figures[2] == mark((50.5, 60), "a1", NORMAL, origin="reader") | {
        "properties": {
            "objectType": "detection",
            "name": "a1",
            "classification": {"name": NORMAL, "color": [255, 225, 26]},
            "measurements": {},
            "metadata": {"origin": "reader"},
        }
    }
    assert others[0]["properties"]["classification"] == {"name": UNSURE, "color": [147, 51, 234]}
    assert others[0]["properties"]["metadata"]["note"] == "=blurred, or pyknotic"


def test_what_qupath_counts_are_figures(slide, found):
    figures = json.loads(figures_geojson(slide, found, None))
    others = json.loads(candidates_geojson(slide, found))
    assert figures["counted_from_px"] == others["counted_from_px"] == list(CORNER)
    assert [each["properties"]["name"] for each in figures["features"]] == ["1", "2", "3"]
    (other,) = others["features"]
    assert other["geometry"]["coordinates"] == [500.5, 1480.5]
    assert (other["properties"]["name"], other["properties"]["classification"]["name"]) == ("4", REJECTED)


QUPATH = """{"type":"FeatureCollection","features":[
{"type":"Feature","id":"0b0d3c38-3b0b-4f2e-9b39-5f0a5c1f7d11",
 "geometry":{"type":"Point","coordinates":[100.5,180.75]},
 "properties":{"objectType":"detection","name":"1","classification":{"name":"mitotic figure","color":[255,225,26]},
  "measurements":{"probability":0.9,"P(atypical)":NaN}}},
{"type":"Feature","id":"0b0d3c38-3b0b-4f2e-9b39-5f0a5c1f7d12",
 "geometry":{"type":"Point","coordinates":[1003.0,880.5]},
 "properties":{"objectType":"annotation","name":"seen twice","color":[9,9,9],"isLocked":true,
  "classification":{"name":"non-mitotic figure","colorRGB":-15251511},
  "measurements":[{"name":"probability","value":0.8}],"metadata":{"ANNOTATION_DESCRIPTION":"pyknotic"}}},
{"type":"Feature","id":"0b0d3c38-3b0b-4f2e-9b39-5f0a5c1f7d13",
 "geometry":{"type":"Point","coordinates":[2000.5,2480.63],"plane":{"c":-1,"z":0,"t":0}},
 "properties":{"objectType":"detection","classification":{"names":["atypical mitotic figure"],"color":[255,90,31]},
  "measurements":{"P(atypical)":0.75}}},
{"type":"Feature","id":"0b0d3c38-3b0b-4f2e-9b39-5f0a5c1f7d14",
 "geometry":{"type":"MultiPoint","coordinates":[[10.5,20.5],[30.5,40.5]]},
 "properties":{"objectType":"annotation","classification":{"name":"mitotic figure","color":[255,225,26]}}},
{"type":"Feature","id":"0b0d3c38-3b0b-4f2e-9b39-5f0a5c1f7d15",
 "geometry":{"type":"Polygon","coordinates":[[[0,0],[90,0],[90,90],[0,90],[0,0]]]},
 "properties":{"objectType":"annotation","name":"hotspot","classification":{"name":"hotspot","color":[0,168,120]}}}
]}"""


@pytest.mark.parametrize("shape", ["collection", "list", "one"])
def test_qupath_s_own_export(shape, tmp_path, slide, found):
    """Written by hand after 0.4 (`colorRGB`, 0.3's list of measurements) and 0.5 (`names`); places with two digits."""
    content = json.loads(QUPATH)
    if shape != "collection":
        content = content["features"]
    review = read(tmp_path, json.dumps(content[0] if shape == "one" else content), slide, found)
    assert not review.bound
    if shape == "one":
        assert review.candidates.tolist() == [0]
        return
    assert review.candidates.tolist() == [0, 1, 2, -1, -1]
    assert review.points[:4].tolist() == [[1100, 200.25], [2002.5, 900], [3000, 2500.125], [1010, 40]]
    assert review.names == [FIGURE, REJECTED, ATYPICAL, FIGURE, FIGURE]
    assert review.notes == ["", "pyknotic", "", "", ""]
    corrected = apply(slide, found, review)
    assert corrected.found.accepted.tolist() == [True, False, True, False, True, True]
    np.testing.assert_array_equal(corrected.found.atypical[:3], np.float32([np.nan, np.nan, 0.75]))
    assert not corrected.by_reader.any()  # the system said so, and the reader left it
    assert corrected.agreement.hotspot_reader == 4
    assert str(corrected.agreement).startswith("3 by the system, 4 by the reader, 2 both; refused 1, added 2, moved 0")


def test_the_nearest_within_7_5_um_is_the_candidate_each_once(tmp_path, slide):
    """An x of 30 px and a y of 15 px are 7.5 um."""
    found = found_at([(1200, 500), (1220, 500), (1500, 500), (1800, 500)], [0.9, 0.8, 0.7, 0.6])
    points = [(1221, 500), (1219, 500), (1500, 515), (1800, 515.5)]
    content = [mark(point, "", FIGURE) for point in points]
    review = read(tmp_path, content, slide, found)
    assert review.candidates.tolist() == [1, 0, 2, -1]
    agreement = apply(slide, found, review).agreement
    assert (agreement.both, agreement.moved, agreement.refused, agreement.added) == (3, 3, 1, 1)


def test_what_both_count_lies_in_the_areas(tmp_path, slide, found):
    """The upper half: the first is left, the second moved out of it, the third outside, one added in it, one not."""
    areas = Areas((), (), shapely.box(0, 600_000, 1_000_000, 1_500_000), (1_000_000, 1_500_000))  # nm
    marks = [(PLACES[0], "1", FIGURE), ((2000.5, 2000), "2", FIGURE), (PLACES[2], "3", FIGURE)]
    marks += [(PLACES[3], "4", UNSURE), ((1200, 300), "a1", FIGURE), ((1200, 2900), "a2", FIGURE)]
    agreement = apply(
        slide, found, read(tmp_path, reviewed([mark(*each) for each in marks]), slide, found), areas
    ).agreement
    assert str(agreement) == (
        "2 by the system, 2 by the reader, 1 both; refused 1, added 1, moved 0, not sure 0; hotspot 2 -> 2"
    )


def test_a_subtype_of_the_reader_is_not_classified_again(tmp_path, slide, found):
    asked = []

    def classify_figures(_, given):
        asked.append(given.accepted.tolist())
        return given.with_atypical(np.full(given.accepted.sum(), 0.875)), "any"

    features = [mark(PLACES[0], "1", NORMAL), mark(PLACES[1], "2", FIGURE), mark(PLACES[3], "4", UNSURE)]
    corrected = apply(slide, found, read(tmp_path, reviewed(features), slide, found))
    with_subtypes, system = classify_others(classify_figures)(slide, corrected.found)
    assert (asked, system) == ([[False, True, False, False]], "any")
    assert corrected.names_of(with_subtypes) == [NORMAL, ATYPICAL, REJECTED, UNSURE]


def test_an_empty_review_refuses_all_and_nothing_found_can_be_reviewed(tmp_path, slide, found):
    agreement = apply(slide, found, read(tmp_path, reviewed([]), slide, found)).agreement
    assert (agreement.system, agreement.reader, agreement.refused, agreement.hotspot_reader) == (3, 0, 3, 0)
    nothing = found_at([], [])
    for content in (reviewed([mark((5, 6), "a1", FIGURE)]), [mark((5, 6), "", FIGURE)]):
        agreement = apply(slide, nothing, read(tmp_path, content, slide, nothing)).agreement
        assert (agreement.system, agreement.reader, agreement.added) == (0, 1, 1)


def polygon(name):
    geometry = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


ONE = [mark(PLACES[0], "1", FIGURE)]
BAD = {
    "not JSON": ("{", "not JSON"),
    "another kind of file": ('{"type": "Multiple points"}', "no FeatureCollection and no Feature"),
    "numbers": ("[1]", "no FeatureCollection and no Feature"),
    "a broken feature": ([{"type": "Feature", "geometry": 3}], r"Expected `object \| null`, got `int`"),
    "coordinates": ([ONE[0] | {"geometry": {"type": "Point", "coordinates": ["x"]}}], "are no x and y"),
    "infinity": ([ONE[0] | {"geometry": {"type": "Point", "coordinates": [1e999, 0]}}], "are no x and y"),
    "a later format": (reviewed(ONE, format=2, program="9.1"), "of format 2, made by midog 9.1; install that one"),
    "another image": (reviewed(ONE, image=IMAGE | {"sha256": "c"}), r"another image, a\.svs, 9 bytes; give that one"),
    "another result": (reviewed(ONE, result="d" * 64), "another result"),
    "polygons": ([*ONE, polygon(FIGURE), polygon("")], r"not points: 'Polygon' \(2\); mark each figure"),
    "classes": (
        [mark(PLACES[0], "1", "Tumor"), mark(PLACES[1], "2", "Tumor"), mark(PLACES[2], "3", None)],
        rf"'Tumor' \(2\), no class \(1\); give each point one of {FIGURE}, {ATYPICAL}, {NORMAL}, {REJECTED}, {UNSURE}",
    ),
    "outside": ([*ONE, mark((3999.75, 5), "", FIGURE)], r"1 points lie outside the image, 3000\.25, -14\.5 first"),
    "a number of 5,000 digits": (reviewed([mark(PLACES[0], "9" * 5000, FIGURE)]), "of a result with 4"),
    "more candidates": (reviewed([mark(PLACES[0], "5", FIGURE)]), "candidate 5 of a result with 4"),
    "two reviews": (reviewed(ONE + [mark(PLACES[0], "1", REJECTED)]), "1 points occur twice, 1 first"),
    "two exports": (ONE + ONE, "1 points lie on another"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_review_of_this_result_is_one_line(case, tmp_path, slide, found):
    content, said = BAD[case]
    with pytest.raises(UserError, match=said) as told:
        read(tmp_path, content, slide, found)
    line = str(told.value)
    assert line.startswith(f"{tmp_path / 'reviewed.geojson'}: ")
    assert "\n" not in line
    assert "; " in line  # the remedy


def test_a_review_of_another_image_is_drawn_where_asked_for(tmp_path, slide, found):
    content = reviewed(ONE, image=IMAGE | {"sha256": "c"})
    assert read(tmp_path, content, slide, found, any_image=True).candidates.tolist() == [0]


def test_a_candidate_that_the_edge_cuts_may_lie_outside_but_is_not_moved_there(tmp_path, slide):
    found = found_at([(-3, 40)], [0.9])
    assert read(tmp_path, reviewed([mark((-3, 40), "1", FIGURE)]), slide, found).points.tolist() == [[-3, 40]]
    with pytest.raises(UserError, match="outside"):
        read(tmp_path, reviewed([mark((-3, 41), "1", FIGURE)]), slide, found)


thirds = st.tuples(st.integers(0, 3 * (SIZE[0] // 2 - 1)), st.integers(0, 3 * (SIZE[1] - 1)))
left_half = thirds.map(lambda place: (place[0] / 3, place[1] / 3))
edits = st.tuples(
    left_half, st.sampled_from(["left", "moved", "deleted", "added"]), st.sampled_from(VERDICTS), st.text(max_size=9)
)


@given(st.lists(edits, unique_by=lambda edit: edit[0]))
def test_a_review_comes_back_as_it_was_written(tmp_path_factory, edits):
    slide = Slide(SIZE, UM_PER_PX)
    slide.corner_px = CORNER
    edits.sort(key=lambda edit: edit[1] == "added")
    of_system = [place for place, kind, _, _ in edits if kind != "added"]
    found = found_at(of_system, np.linspace(1, 0, len(of_system)))
    features, expected = [], []
    for number, ((x, y), kind, verdict, note) in enumerate(edits, start=1):
        if kind == "deleted":
            expected.append((x, y, REJECTED, ""))
            continue
        x += SIZE[0] / 2 * (kind == "moved")
        name = f"a{number}" if kind == "added" else str(number)
        features.append(mark((x, y), name, verdict, note=note))
        expected.append((x, y, verdict, note))
    review = read(tmp_path_factory.getbasetemp(), reviewed(features), slide, found)
    corrected = apply(slide, found, review)
    rows = zip(corrected.names_of(corrected.found), corrected.notes, strict=True)
    assert list(rows) == [(verdict, note) for _, _, verdict, note in expected]
    places = np.reshape([edit[:2] for edit in expected], (-1, 2))
    np.testing.assert_allclose(corrected.found.centres, places, rtol=0, atol=1e-9)
    assert corrected.added.sum() == len(edits) - len(of_system)
    assert corrected.agreement.reader == sum(verdict in FIGURES for _, _, verdict, _ in expected)


@pytest.fixture
def made(tmp_path):
    """An image, its result of three figures as predict leaves it, and a review: one refused, one open, one added."""
    image, result = tmp_path / "a.png", tmp_path / "made/mitotic-figures.json"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(image)
    result.parent.mkdir()
    places = [[90, 80], [200.25, 150.5], [320, 250]]
    result.write_text(json.dumps(Detections.of(np.tile(places, 2), [0.9, 0.8, 0.7], (0.25, 0.25)).to_json()))
    taken = {"um_per_px": [0.25, 0.25], "source": "given", "where": "--mpp", "in_file": None}
    about = {"system": "any", "version": "1", "um_per_px_given": None, "resolution": taken}
    (result.parent / "about.json").write_text(json.dumps(about | {"image": {"name": "a.png"} | identity([image])}))
    features = [
        mark(places[0], "1", REJECTED, note="apoptosis"),
        mark(places[1], "2", FIGURE),
        mark(places[2], "3", UNSURE),
        mark((300, 20), "a1", FIGURE, origin="reader"),
    ]
    for feature in features:
        x, y = feature["geometry"]["coordinates"]
        feature["geometry"]["coordinates"] = [x + CORNER[0], y + CORNER[1]]
    whole = {"name": "a.png"} | identity([image])
    review = tmp_path / "reviewed.geojson"
    review.write_text(json.dumps(reviewed(features, image=whole, result=sha256_of(result), counted_from_px=[0, 0])))
    return image, result, review


def report(image, result, out, *more):
    return commands.main(["report", str(image), str(result), "--out", str(out), *map(str, more)])


def test_a_report_of_corrected_figures(made, tmp_path, capfd):
    image, result, review = made
    assert report(image, result, tmp_path / "out", "--figures", review) == 0
    said = "3 by the system, 2 by the reader, 1 both; refused 1, added 1, moved 0, not sure 1; hotspot 3 -> 2"
    assert said in capfd.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out/figures.csv").open()))
    assert [(row["number"], row["name"], row["x_px"], row["origin"], row["note"]) for row in rows] == [
        ("1", REJECTED, "90.00", "system", "apoptosis"),
        ("2", FIGURE, "200.25", "system", ""),
        ("3", UNSURE, "320.00", "system", ""),
        ("a1", FIGURE, "300.00", "reader", ""),
    ]
    figures, others = (
        json.loads((tmp_path / "out" / f"{name}.geojson").read_text()) for name in ("figures", "candidates")
    )
    assert [each["properties"]["name"] for each in figures["features"]] == ["2", "a1", "hotspot"]
    assert figures["features"][2]["properties"]["measurements"]["figures"] == 2
    assert [each["properties"]["name"] for each in others["features"]] == ["1", "3"]
    overlay = np.asarray(Image.open(tmp_path / "out/overlay.png"))
    assert (overlay == ImageColor.getrgb(COLOURS[UNSURE])).all(-1).sum() > 100  # a ring
    (agreement,) = csv.DictReader((tmp_path / "out/agreement.csv").open())
    assert (agreement["system"], agreement["reader"], agreement["refused"]) == ("3", "2", "1")


def test_what_cannot_be_corrected_is_one_line(made, tmp_path, capfd):
    image, result, review = made
    classes = tmp_path / "classes.json"
    classes.write_text('[{"class": "normal", "confidence": 0.25}]')
    other = tmp_path / "b.png"
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(other)
    unbound = tmp_path / "mitotic-figures.json"  # of another image, without a note of its own
    unbound.write_bytes(result.read_bytes())
    for named, arguments in {
        "reviews are not merged; give one": (image, result, "--figures", review, "--figures", review),
        "leave --figures out": (image, classes, "--figures", review),
        "none.geojson: cannot be read": (image, result, "--figures", tmp_path / "none.geojson"),
        "reviewed.geojson: a review of another image, a.png": (other, unbound, "--figures", review),
    }.items():
        assert report(*arguments[:2], tmp_path / "out", *arguments[2:]) == 1
        said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert len(said) == 1
        assert named in said[0]
    assert not list((tmp_path / "out").iterdir())
    assert report(other, unbound, tmp_path / "out", "--figures", review, "--any-image") == 0
