"""What the page counts after a correction is what the program counts: every protocol, interval and area."""

import json
import re
from importlib.resources import files

import numpy as np
import pytest
import shapely
from py_mini_racer import MiniRacer

from midog.detections import ATYPICAL, FIGURE, NORMAL, REJECTED, UNSURE, Detections
from midog.images.slide import ArraySlide, Slide
from midog.images.tissue import TissueMask
from midog.report.areas import Areas, whole
from midog.report.intervals import poisson_interval, wilson_interval
from midog.report.misclassification import corrected_share
from midog.report.page import write_report
from midog.report.page_counts import areas_data, protocols_data, runs_of, tissue_data
from midog.report.protocols import protocols
from midog.report.review import read_review

MM = 1_000_000


@pytest.fixture(scope="module")
def javascript():
    """The value of an expression with the page's counts.js and state.js."""
    with MiniRacer() as engine:
        for name in ("hotspot.js", "counts.js", "state.js"):
            engine.eval((files("midog.report") / "templates" / name).read_text())
        yield lambda call: json.loads(engine.eval(f"JSON.stringify({call})"))


def test_intervals_are_python_s(javascript):
    random = np.random.default_rng(27)
    counts = [*range(200), *random.integers(200, 20_001, 50).tolist(), 20_000]
    page = javascript(f"{counts}.map(Counts.poissonInterval)")
    np.testing.assert_allclose(page, [poisson_interval(count) for count in counts], rtol=1e-9)
    pairs = [(int(random.integers(0, total + 1)), total) for total in random.integers(1, 500, 100).tolist()]
    page = javascript(f"{json.dumps(pairs)}.map(pair => Counts.wilsonInterval(...pair))")
    np.testing.assert_allclose(page, [wilson_interval(*pair) for pair in pairs], rtol=0, atol=1e-12)


def test_the_corrected_share_is_python_s(javascript):
    random = np.random.default_rng(28)
    cases = [(6, 30, 0, []), (6, 30, 0, [["A", 0.6, 0.5]]), (6, 30, 0, [["A", 0.6, 0.5], ["B", 0.9, 0.9]])]
    for of in random.integers(20, 200, 100).tolist():
        atypical, reviewed = random.integers(0, of + 1, 2).tolist()
        rates = random.uniform(0, 0.9, (int(random.integers(1, 6)), 2))
        cases.append((atypical, of, reviewed, [["A", *each] for each in rates.tolist()]))
    page = javascript(f"{json.dumps(cases)}.map(each => Counts.correctedShare(...each))")
    ours = [corrected_share(*each) for each in cases]
    assert 10 < ours.count(None) < 90  # both kinds occur
    assert [each is None for each in page] == [each is None for each in ours]
    np.testing.assert_allclose([each for each in page if each], [each for each in ours if each], rtol=0, atol=1e-12)


def test_what_a_reader_had_a_say_in_is_python_s(javascript, tmp_path):
    """Of 24 figures: confirmed, of another subtype, moved, with a note, deleted, not sure, accepted, and added."""
    slide = ArraySlide(np.full((300, 400, 3), 220, np.uint8), (0.25, 0.25))
    points = np.array([(40 + 40 * (i % 8), 40 + 40 * (i // 8)) for i in range(26)], float)
    scores = np.concatenate([np.linspace(0.9, 0.6, 24), [0.3, 0.2]])
    found = Detections.of(np.tile(points, 2), scores, slide.um_per_px, slide.origin_mm)
    classify = lambda slide, found: (found.with_atypical(np.resize([0.9, 0.2, 0.3], found.accepted.sum())), "any")  # noqa: E731
    said = [
        [ATYPICAL, {"P(atypical)": 0.9}, {}] if i % 3 == 0 else [NORMAL, {"P(atypical)": 0.2}, {}] for i in range(24)
    ]
    said[0][2] = {"reviewed": "yes"}
    said[1][0] = ATYPICAL
    said[2][2] = {"note": "clumped"}
    said[3][0], said[4][0] = REJECTED, UNSURE
    said += [[FIGURE, {}, {}], [REJECTED, {}, {}], [FIGURE, {}, {"origin": "reader"}]]
    places = [*points.tolist(), [200.0, 290.0]]
    places[5][0] += 2
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [x + 0.5, y + 0.5]},
            "properties": {"classification": {"name": name}, "measurements": measured, "metadata": metadata},
        }
        for (x, y), (name, measured, metadata) in zip(places, said, strict=True)
    ]
    (tmp_path / "r.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    review, errors = read_review(tmp_path / "r.geojson", slide, found), [("A", 0.8, 0.9), ("B", 0.9, 0.7)]
    share = write_report(
        slide, found, tmp_path, "a.tif", classify_figures=classify, review=review, subtype_errors=errors
    ).share
    assert (share.of, share.reviewed) == (24, 6)
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "report.html").read_text(), re.DOTALL)[1]
    page = javascript(f"""((data, state) => {{
        const isTaken = state.load(data.review.start), {{atypical, classified, reviewed}} = state.summary();
        const corrected = Counts.correctedShare(atypical, classified, reviewed, data.subtypeErrors);
        return [isTaken, atypical, classified, reviewed, corrected];
    }})({data}, State.create({data}))""")
    assert page == [True, share.atypical, 24, 6, pytest.approx(share.corrected)]


def test_runs_begin_with_glass():
    assert runs_of(np.array([[0, 0, 1], [1, 0, 0]], bool)) == [2, 2, 2]
    assert runs_of(np.ones((2, 2), bool)) == [0, 4]
    assert runs_of(np.zeros((1, 3), bool)) == [3]


def star(random, size):
    """A polygon that does not cross itself, here and there beyond the image, often with corners on a lattice."""
    count = int(random.integers(3, 9))
    middle, step = random.random(2) * size, random.choice([1, MM // 8])
    angles = np.sort(random.random(count)) * 2 * np.pi
    reach = random.uniform(0.1, 0.6, count) * max(size)
    corners = middle + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return shapely.Polygon(np.rint(corners / step) * step)


def random_areas(random, size):
    """Up to three areas to count in and, often, one that is excluded; of none the whole image."""
    stars = [star(random, size) for _ in range(int(random.integers(0, 5)))]
    image = shapely.box(0, 0, *size)
    drawn = [each for each in stars if each.is_valid and each.intersection(image).area > 0]
    excluded = drawn.pop() if drawn and random.random() < 0.6 else shapely.Polygon()
    areas = Areas(tuple(f"area {i}" for i in range(len(drawn))), tuple(drawn), excluded, tuple(size))
    return areas if areas.union.area else whole(size)


def random_places(random, size, areas):
    """Scattered or on a lattice, some outside, and the corners of the areas."""
    places = (random.random((int(random.choice([0, 3, 60])), 2)) * 1.1 - 0.05) * size
    if random.random() < 0.5:
        places = np.rint(places / (MM // 8)) * (MM // 8)
    corners = [shapely.get_coordinates(each) for each in (*areas.counted, areas.excluded)]
    return np.rint(np.concatenate([places, *corners])).astype(np.int64)


def test_every_protocol_is_python_s(javascript):
    random = np.random.default_rng(27)
    seen = set()
    for _ in range(40):
        slide = Slide(tuple(random.integers(300, 4000, 2).tolist()), (1.0, 1.0))
        size = [side * 1000 for side in slide.size]
        areas = random_areas(random, size)
        places = random_places(random, size, areas)
        mask = random.random((slide.size[1] // 100, slide.size[0] // 100)) < random.choice([0.1, 0.9])
        tissue = TissueMask(mask, slide.size)
        diameter = float(random.choice([0.2, 0.55]))
        ours = protocols(places, size, areas, tissue, diameter)
        data = {
            "protocols": protocols_data(slide, tissue, areas, diameter),
            "areas": areas_data(areas),
            "tissue": tissue_data(tissue, areas),
        }
        page = javascript(
            f"((counter, [xs, ys]) => counter.count(xs, ys, xs.map((x, i) => counter.held(x, ys[i]))))"
            f"(Counts.create({json.dumps(data)}, {size}), {places.T.tolist()})"
        )
        assert [(each["key"], each["figures"]) for each in page] == [(each.key, each.figures) for each in ours]
        for count, found in zip(ours, page, strict=True):
            rounding = 1e-4 if count.circles else 1e-9  # a circle that an area cuts is a polygon in Python
            assert found["areaMm2"] == pytest.approx(count.area_mm2, rel=rounding)
            assert found["tissueMm2"] == pytest.approx(count.tissue_mm2, rel=1e-9)
            assert found["isReached"] == count.reached
            assert found["circles"] == [list(circle) for circle in count.circles]
            box = found["window"] and [found["window"][side] for side in ("left", "top", "width", "height")]
            assert box == (count.box and [count.box.left, count.box.top, count.box.width, count.box.height])
            seen.add((count.key[:5], count.reached, areas.is_whole, count.figures > 0))
    assert len(seen) > 15
