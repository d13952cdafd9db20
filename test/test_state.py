"""A reader's review in the page: what each change makes of counts and hotspot, and that nothing is lost on the way."""

import csv
import io
import json
from importlib.resources import files

import numpy as np
import pytest
from py_mini_racer import MiniRacer

from midog.detections import ATYPICAL, FIGURE, NORMAL, REJECTED, Detections
from midog.images.slide import Slide
from midog.report.export import figures_geojson
from midog.report.hotspot import LONG_NM, SHORT_NM, find_hotspot, places_nm

SIDES = LONG_NM, SHORT_NM
SIZE, UM_PER_PX, CORNER = (16_000, 12_000), (0.25, 0.5), (300, 70)  # 4 x 6 mm
# Three in the upper left corner, four in the lower right one, one alone; the last two are refused.
X = [33.3, 900.0, 1000.25, 12_000.0, 12_100.5, 13_000.0, 13_500.0, 8000.0, 1500.0, 5000.0]
Y = [120.0, 800.5, 900.0, 9000.0, 9100.0, 9500.0, 9600.0, 5000.0, 300.0, 6000.0]
P = [0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.4, 0.1]
DATA = {
    "program": "1.7.0",
    "image": {"name": "a.tiff", "bytes": 12, "sha256": "5a"},
    "result": "7e",
    "size": SIZE,
    "umPerPx": UM_PER_PX,
    "corner": CORNER,
    "originMm": [1.5, -2],
    "x": X,
    "y": Y,
    "p": P,
    "accepted": [1] * 8 + [0, 0],
    "atypical": [0.9, 0.2, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1, None, None],
    "protocols": [
        {"key": "hotspot", "name": "Hotspot", "askedMm2": 2.37, "areaMm2": 2.37, "tissueMm2": 2, "sides": [*SIDES]},
        {"key": "whole", "name": "Whole image", "askedMm2": None, "areaMm2": 24, "tissueMm2": 16},
    ],
    "areas": {"excluded": [], "counted": [], "union": None},
    "tissue": {"columns": 2, "rows": 3, "runs": [0, 1, 2, 3], "counted": None, "sizeUm": [4000, 6000], "mm2": 16},
    "colours": {
        "accepted": "#ffe11a",
        "atypical": "#ff5a1f",
        "rejected": "#1747c9",
        "unsure": "#9333ea",
        "hotspot": "#00a878",
    },
}
COLUMNS = "x", "y", "p", "pAtypical", "system", "origin", "verdict", "subtype", "note", "touched"


@pytest.fixture(scope="module")
def engine():
    with MiniRacer() as engine:
        for name in ("hotspot.js", "counts.js", "state.js"):
            engine.eval((files("midog.report") / "templates" / name).read_text())
        yield engine


@pytest.fixture
def page(engine):
    """Runs statements on `state`, a new review of `DATA`, and gives the value of the last one."""
    engine.eval(f"globalThis.data = {json.dumps(DATA)}; globalThis.state = State.create(data); 0")
    return lambda code: json.loads(engine.eval(f"globalThis.value = undefined; {code}; JSON.stringify(value ?? null)"))


def columns(page):
    return page(f"value = Object.fromEntries({json.dumps(COLUMNS)}.map(name => [name, state[name]]))")


def summary(page):
    return page("value = state.summary()")


def python_hotspot(page):
    """Of the figures that stand in the page now."""
    slide = Slide(SIZE, UM_PER_PX)
    now = columns(page)
    figures = np.array(now["verdict"]) == "accepted"
    places = places_nm(slide, np.stack([now["x"], now["y"]], axis=1))
    found = find_hotspot(places[figures], np.rint(np.array(SIZE) * UM_PER_PX * 1000).astype(np.int64))
    return found, found.holds(places).tolist(), found.box_px(slide).tolist()


def agrees_with_python(page):
    shown = summary(page)
    found, inside, box = python_hotspot(page)
    hotspot = shown["hotspot"]
    window = hotspot["window"]
    assert [window[side] for side in ("left", "top", "width", "height", "count")] == [
        *(found.left, found.top, found.width, found.height, found.count)
    ]
    assert (hotspot["areaMm2"], hotspot["boxes"]) == (found.area_mm2, [box])
    assert shown["inHotspot"] == inside
    return shown


def test_the_hotspot_follows_the_reader_and_undo_goes_all_the_way_back(page):
    before, start = columns(page), agrees_with_python(page)
    assert (start["figures"], start["atypical"], start["classified"], start["unsure"]) == (8, 2, 8, 0)
    assert [each["figures"] for each in start["protocols"]] == [4, 8]
    assert start["protocols"][1]["perMm2Tissue"] == 8 / 16
    assert start["hotspot"]["window"]["left"] > 2 * 10**6
    page("state.setVerdict(4, 'rejected'); state.setVerdict(5, 'unsure'); state.setNote(5, 'apoptotic?')")
    assert page("value = state.add(1200, 1000.5)") == 10
    moved = agrees_with_python(page)
    assert (moved["figures"], moved["unsure"], moved["hotspot"]["figures"]) == (7, 1, 4)
    assert moved["hotspot"]["window"]["left"] == 0
    page("state.setVerdict(8, 'accepted'); state.setSubtype(1, 'atypical'); state.move(2, 15000, 11000.25)")
    shown = agrees_with_python(page)
    assert (shown["figures"], shown["atypical"], shown["hotspot"]["figures"]) == (8, 3, 4)
    assert page("value = [1, 5, 4, 8, 10].map(i => state.label(i))") == [ATYPICAL, "not sure", REJECTED, FIGURE, FIGURE]
    assert page("value = [0, 3, 10].map(i => state.name(i))") == ["1", "4", "a1"]
    assert page("value = state.edits") == 6
    page("state.setVerdict(10, 'rejected')")
    assert page("value = [state.edits, state.summary().figures]") == [5, 7]
    assert page("value = 0; while (state.undo()) value++") == 8
    assert columns(page) == before
    assert agrees_with_python(page) == start


def test_without_figures_there_is_no_hotspot(page):
    page("for (let i = 0; i < 8; i++) state.setVerdict(i, 'rejected')")
    shown = summary(page)
    assert (shown["figures"], shown["hotspot"], any(shown["inHotspot"])) == (0, None, False)
    assert [each["figures"] for each in shown["protocols"]] == [0, 0]
    assert all(feature["geometry"]["type"] == "Point" for feature in page("value = state.toGeoJSON()")["features"])


def test_the_threshold_leaves_alone_what_the_reader_touched(page):
    page("state.setVerdict(0, 'rejected'); state.setVerdict(9, 'accepted'); state.add(10, 10)")
    for threshold in (0.99, 0.9, 0.4):
        page(f"state.setThreshold({threshold})")
    figures = "value = state.x.map((_, i) => i).filter(i => state.isFigure(i))"
    assert page(figures) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    page("state.setThreshold(.9)")
    assert page(figures) == [1, 2, 9, 10]
    written = {feature["properties"]["name"] for feature in page("value = state.toGeoJSON()")["features"]}
    assert written == {*"12345678", "10", "a1", "hotspot"}  # what the threshold refused of the system's is told
    page("state.undo(); state.setThreshold(.4); state.undo()")  # the way of the slider is one change
    assert page("value = state.threshold") is None
    assert page(figures) == [1, 2, 3, 4, 5, 6, 7, 9, 10]
    page("state.setThreshold(.9); state.setThreshold(null)")
    assert page(figures) == [1, 2, 3, 4, 5, 6, 7, 9, 10]


def test_candidates_for_a_local_threshold_are_spread_around_the_operating_point(page):
    chosen = "value = state.x.map((_, i) => i).filter(i => state.isForThreshold(i))"
    page("state.setVerdict(2, 'accepted'); state.add(1, 2)")
    assert page(chosen) == [0, 1, 3, 4, 5, 6, 7, 8, 9]  # not what was reviewed
    for count, figures, ranks in ((500, 100, 200), (500, 3, 80), (30, 3, 30)):
        flags = [int(row < figures) for row in range(count)]
        columns = {"x": [5] * count, "y": [5] * count, "p": [0.5] * count, "atypical": [None] * count}
        page(f"state = State.create({{...data, ...{json.dumps(columns | {'accepted': flags})}}})")
        rows = page(chosen)
        assert len(rows) == min(40, count)
        assert 0 <= rows[0] < rows[-1] < ranks
        assert max(np.diff(rows)) - min(np.diff(rows)) <= 1


def test_geojson_is_what_qupath_reads(page):
    page("state.setVerdict(4, 'rejected'); state.setNote(4, 'blurred'); state.move(1, 901, 800); state.add(50, 60.5)")
    collection = page("value = state.toGeoJSON()")
    assert collection["midog_review"] == {
        "format": 1,
        "program": "1.7.0",
        "image": DATA["image"],
        "result": "7e",
        "counted_from_px": list(CORNER),
        "threshold": None,
    }
    *points, hotspot = collection["features"]
    by_name = {point["properties"]["name"]: point for point in points}
    assert list(by_name) == [*"12345678", "a1"]  # without what the system refused and the reader left
    assert by_name["2"] == {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [601.5, 730.5]},
        "properties": {
            "objectType": "detection",
            "name": "2",
            "classification": {"name": NORMAL, "color": [255, 225, 26]},
            "measurements": {"score": 0.95, "P(atypical)": 0.2},
            "metadata": {"origin": "system", "system": FIGURE, "moved_from": "600.5, 731", "reviewed": "yes"},
        },
    }
    assert by_name["5"]["properties"]["classification"] == {"name": REJECTED, "color": [0x17, 0x47, 0xC9]}
    assert by_name["5"]["properties"]["metadata"]["note"] == "blurred"
    added = by_name["a1"]["properties"]
    assert (added["measurements"], added["metadata"]) == ({}, {"origin": "reader", "reviewed": "yes"})
    slide = Slide(SIZE, UM_PER_PX)
    slide.corner_px = CORNER
    none = Detections.of(np.zeros((0, 4)), [], UM_PER_PX)
    [ours] = json.loads(figures_geojson(slide, none, python_hotspot(page)[0]))["features"]
    assert hotspot == ours


def random_edits(page, seed):
    random = np.random.default_rng(seed)
    for _ in range(40):
        i, x, y = int(random.integers(page("value = state.x.length"))), *(random.random(2) * SIZE).tolist()
        verdict, subtype = random.choice(["accepted", "rejected", "unsure"]), random.choice(["atypical", "normal"])
        page(
            str(
                random.choice(
                    [
                        f"state.setVerdict({i}, '{verdict}')",
                        f"state.setSubtype({i}, '{subtype}')",
                        f"state.move({i}, {x}, {y})",
                        f"state.setNote({i}, 'ä, \"{x}\"')",
                        f"state.add({x}, {y})",
                        f"state.setThreshold({random.random()})",
                        "state.undo()",
                    ]
                )
            )
        )
        agrees_with_python(page)


@pytest.mark.parametrize("seed", range(4))
def test_a_review_comes_back_as_it_was(page, seed):
    """From the browser, and from the file, which keeps neither removed ones nor the subtypes of refused ones."""
    random_edits(page, seed)
    before, shown = columns(page), summary(page)
    page("saved = JSON.stringify(state); file = JSON.stringify(state.toGeoJSON()); state = State.create(data)")
    assert page("value = state.restore(JSON.parse(saved))")
    assert columns(page) == before
    assert summary(page) == shown
    assert page("value = state.undo()") is False
    page("state = State.create(data); state.setVerdict(0, 'unsure'); state.add(1, 2)")
    assert page("value = state.load(JSON.parse(file))")
    kept = [i for i in range(len(before["x"])) if i < len(X) or before["verdict"][i] != "rejected"]
    after = columns(page)
    for name in sorted(set(COLUMNS) - {"subtype", "x", "y"}):
        assert after[name] == [before[name][i] for i in kept], name
    for axis in "xy":  # a moved place has lost the last bit to the corner
        np.testing.assert_allclose(after[axis], [before[axis][i] for i in kept], rtol=0, atol=1e-9)
    assert [after["subtype"][row] for row, i in enumerate(kept) if before["verdict"][i] == "accepted"] == [
        before["subtype"][i] for i in kept if before["verdict"][i] == "accepted"
    ]
    assert page("value = state.toGeoJSON()") == page("value = JSON.parse(file)")


def test_what_another_program_deleted_or_renamed_is_the_readers(page):
    page("file = state.toGeoJSON(); file.features.splice(3, 1)")  # number 4
    page("file.features[0].properties.classification.name = 'not sure'")
    assert page("value = state.load(file)")
    now = columns(page)
    assert (now["verdict"][3], now["verdict"][0], now["touched"]) == (
        "rejected",
        "unsure",
        [True, *[False] * 2, True, *[False] * 6],
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("file.midog_review.image.sha256 = '00'", "another image, a.tiff"),
        ("file.midog_review.result = null", "another result"),
        ("file.midog_review.format = 2", "another version"),
        ("delete file.midog_review", "no review"),
        ("file.features[0].geometry.type = 'Polygon'", "a Polygon"),
        ("file.features[0].properties.classification.name = 'Tumor'", '"Tumor"'),
        ("file.features[0].geometry.coordinates[0] = 1e6", "outside the image"),
        ("file.features[0].geometry.coordinates = null", "damaged"),
        ("file.midog_review.threshold = 'high'", "damaged"),
        ("file.features[0].properties.name = '11'", '"11" is not in the result'),
        ("file.features[0].properties.name = '2'", '"2" is not in the result, or twice'),
    ],
)
def test_a_file_that_is_no_review_of_this_result_changes_nothing(page, damage, reason):
    page(f"file = JSON.parse(JSON.stringify(state.toGeoJSON())); {damage}; state.setVerdict(2, 'unsure')")
    before = columns(page)
    assert page("value = state.load(file)") is False
    assert reason in page("value = state.reason")
    assert columns(page) == before
    assert page("value = state.undo()") is True


def test_storage_of_another_result_is_not_taken(page):
    for change in ("result: '00'", "format: 2", "image: {bytes: 12, sha256: '00'}", "rows: [{i: 99}]"):
        assert page(f"value = state.restore({{...state.toJSON(), {change}}})") is False
    assert page("value = state.restore(state.toJSON())")


def test_csv_leaves_who_and_when_to_the_reader_and_computes_nothing(page):
    notes = ["=1+1", "+a", "-b", "@c", 'a "b", c\nd', "plain = ok"]
    for number, note in enumerate(notes):
        page(f"state.setNote({number}, {json.dumps(note)})")
    page("state.add(10, 20.5); state.add(1, 2); state.setVerdict(11, 'rejected'); state.setVerdict(9, 'unsure')")
    rows = list(csv.DictReader(io.StringIO(page("value = state.toCSV()"))))
    assert [row["note"] for row in rows[:6]] == ["'=1+1", "'+a", "'-b", "'@c", 'a "b", c\nd', "plain = ok"]
    assert [row["number"] for row in rows] == [*map(str, range(1, 11)), "a1"]
    assert rows[0] == {
        "number": "1",
        "name": ATYPICAL,
        "score": "0.990000",
        "p_atypical": "0.900000",
        "x_px": "33.30",
        "y_px": "120.00",
        "x_mm": "1.508325",
        "y_mm": "-1.940000",
        "in_hotspot": "1",
        "origin": "system",
        "note": "'=1+1",
        "reviewed_by": "",
        "reviewed_at": "",
    }
    assert (rows[9]["name"], rows[10]["score"], rows[10]["origin"]) == ("not sure", "", "reader")
