"""The window with the most figures: by hand, at the edges, against trying every window, and as the page finds it."""

import dataclasses
import json
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_mini_racer import MiniRacer

from midog.images.slide import Slide
from midog.report import hotspot
from midog.report.density import CELLS, field_map, scale_top
from midog.report.hotspot import LONG_NM, SHORT_NM, find_hotspot, places_nm

MM = 1_000_000
LARGE = 20 * MM, 15 * MM


def nm(*places_mm):
    return np.rint(np.array(places_mm).reshape(-1, 2) * MM).astype(np.int64)


def most(places, size, sides=(LONG_NM, SHORT_NM)):
    """Tries every window that has a figure on its right and one on its lower edge."""
    best = 0
    for shape in (sides, sides[::-1]):
        width, height = np.minimum(shape, size)
        for right in set(places[:, 0].tolist()):
            column = places[(places[:, 0] <= right) & (places[:, 0] >= right - width), 1]
            for bottom in column.tolist():
                best = max(best, int(((column <= bottom) & (column >= bottom - height)).sum()))
    return best


def test_the_window_is_of_the_field_and_figures_on_its_edges_count():
    assert pytest.approx(2.37, abs=1e-5) == LONG_NM * SHORT_NM / MM**2
    assert pytest.approx(4 / 3, abs=1e-6) == LONG_NM / SHORT_NM
    start = np.array([5 * MM, 5 * MM])
    corners = start + np.array([[0, 0], [LONG_NM, 0], [0, SHORT_NM], [LONG_NM, SHORT_NM]])
    found = find_hotspot(corners, LARGE)
    assert (found.left, found.top, found.count) == (*start, 4)
    assert found.holds(corners).all()
    assert not found.holds(corners + [[-1, 0], [1, 0], [0, 1], [1, 1]]).any()
    apart = corners + [[0, 0], [1, 0], [0, 1], [1, 1]]  # 1 nm too far
    assert find_hotspot(apart, LARGE).count == 2


def test_the_fuller_of_two_groups_wins_and_lies_in_the_middle():
    places = nm((1, 1), (1.2, 1.1), (9, 9), (9.5, 9.4), (9.9, 9.8))
    found = find_hotspot(places, LARGE)
    assert found.count == 3
    assert found.density == pytest.approx(3 / 2.37, abs=1e-5)
    assert found.left + found.width / 2 == pytest.approx(9.45 * MM, abs=1)
    assert (found.width, found.height) == (LONG_NM, SHORT_NM)


def test_a_tall_group_needs_the_upright_window():
    found = find_hotspot(nm((5, 5), (5.1, 6.7), (6.3, 5.2)), LARGE)
    assert (found.count, found.width, found.height) == (3, SHORT_NM, LONG_NM)


def test_an_image_smaller_than_the_window_gives_its_real_area():
    places = nm((0, 0), (1, 0.5))
    found = find_hotspot(places, (1 * MM, MM // 2))
    assert (found.left, found.top, found.width, found.height, found.count) == (0, 0, MM, MM // 2, 2)
    assert found.density == pytest.approx(4)
    narrow = find_hotspot(nm((0.2, 0), (0.2, 4)), (MM // 2, 4 * MM))
    assert (narrow.width, narrow.height, narrow.count) == (MM // 2, LONG_NM, 1)


def test_nothing_found_has_no_hotspot_and_figures_outside_the_image_do_not_count():
    assert find_hotspot(nm(), LARGE) is None
    assert find_hotspot(nm((-1, 3)), LARGE) is None
    assert find_hotspot(nm((-0.1, 3), (0, 3)), LARGE).count == 1


coordinate = st.one_of(st.integers(0, 12), st.sampled_from([0, 3, 4, 5, 8]))


@given(st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=40), st.tuples(*[st.integers(1, 14)] * 2))
@settings(max_examples=200, deadline=None)
def test_no_window_holds_more(places, size):
    """On a coarse grid, where figures often share a line and lie on edges: the window is 4 x 3."""
    places = np.array(places, np.int64)
    found = find_hotspot(places, size, (4, 3))
    inside = places[(places <= size).all(axis=1)]
    if len(inside) == 0:
        assert found is None
        return
    assert found.count == most(inside, size, (4, 3)) == found.holds(inside).sum()
    assert min(found.left, found.top) >= 0
    assert found.left + found.width <= size[0]
    assert found.top + found.height <= size[1]


@pytest.mark.parametrize("seed", range(3))
def test_no_window_holds_more_of_many_scattered_figures(seed):
    random = np.random.default_rng(seed)
    places = (random.random((300, 2)) * (6 * MM, 5 * MM)).astype(np.int64)
    found = find_hotspot(places, (6 * MM, 5 * MM))
    assert found.count == most(places, (6 * MM, 5 * MM))
    assert find_hotspot(random.permutation(places), (6 * MM, 5 * MM)) == found


def test_a_pixel_is_counted_from_the_outer_corner_of_the_first():
    slide = Slide((100, 80), (0.25, 0.5), (3, -1))
    np.testing.assert_array_equal(places_nm(slide, [[0, 0], [99.5, 79.5]]), [[125, 250], [25_000, 40_000]])


def test_a_figure_enters_and_leaves_the_tree_once(monkeypatch):
    """So 20,000 take 80,000 changes of O(log n) each, for each of the two shapes; counted, because clocks differ."""
    places = (np.random.default_rng(0).random((20_000, 2)) * LARGE).astype(np.int64)
    changes = []
    add = hotspot._PrefixTree.add
    monkeypatch.setattr(
        hotspot._PrefixTree, "add", lambda tree, place, amount: changes.append(1) or add(tree, place, amount)
    )
    assert find_hotspot(places, LARGE).count > 100
    assert len(changes) <= 2 * 4 * len(places)


@pytest.fixture(scope="module")
def javascript():
    """Calls a function of the page's hotspot.js or density.js."""
    with MiniRacer() as engine:
        for name in ("hotspot.js", "density.js"):
            engine.eval((files("midog.report") / "templates" / name).read_text())
        yield lambda call: json.loads(engine.eval(f"JSON.stringify({call})"))


def random_set(random):
    """Places and an image's size, nm: scattered or on a lattice, some equal, some outside; the image of any size."""
    size = (random.choice([0.3, 1, 2, 8], 2) * random.integers(MM // 2, 2 * MM, 2)).astype(np.int64)
    count = int(random.choice([random.integers(0, 4), random.integers(0, 301)]))
    places = (random.random((count, 2)) * 1.2 - 0.1) * size
    if random.random() < 0.5:  # with steps of which some fit the window exactly
        step = random.choice([LONG_NM, SHORT_NM, 444_409, MM // 4], 2)
        places = np.rint(places / step) * step
    if random.random() < 0.3:
        places = np.clip(places, -1, size)  # some on the image's edge
    return np.rint(places).astype(np.int64), size


def test_the_page_finds_the_same_windows(javascript):
    random = np.random.default_rng(26)
    sets = [random_set(random) for _ in range(500)]
    rows = [[*places.T.tolist(), *size.tolist()] for places, size in sets]
    pages = javascript(f"{json.dumps(rows)}.map(row => Hotspot.find(...row, {LONG_NM}, {SHORT_NM}))")
    ours = [find_hotspot(places, size) for places, size in sets]
    assert pages == [window and dataclasses.asdict(window) for window in ours]
    shapes = {window and window.width == LONG_NM for window in ours}
    assert shapes == {None, True, False}  # the sets are of every kind


def test_the_page_counts_pixels_in_the_same_nm(javascript):
    """Half a nm goes to the even one, at 0.001 um/px, and on either side of 0."""
    x = np.array([0, 1, 2, -1, -2, 0.25, 12345.678, 0.1])
    for step in (0.001, 0.2529, 1 / 3):
        ours = places_nm(Slide((9, 9), (step, step)), np.stack([x, x], axis=1)).T.tolist()
        assert javascript(f"Hotspot.places({x.tolist()}, {x.tolist()}, [{step}, {step}])") == ours
    assert javascript("Hotspot.places([0, 1, 2, -1], [0, 1, 2, -2], [.001, .001])") == [[0, 2, 2, 0], [0, 2, 2, -2]]
    assert javascript("Hotspot.extent([5, 7], [.0005, .0015])") == [2, 10]


@pytest.mark.parametrize("size_mm", [(15.0, 12.5), (1.8, 2.4)])
def test_the_page_counts_the_same_fields_around_each_place(javascript, size_mm):
    places = np.random.default_rng(0).random((200, 2)) * 1.1 * size_mm
    places = np.concatenate([places, [[0, 0], size_mm, np.array(size_mm) / 4]])  # on the edges of cells
    ours = field_map(places, size_mm, 0.55)
    xs, ys = places.T.tolist()
    page = javascript(
        "(({values, ...shape}) => ({...shape, values: [...values], top: Density.scaleTop(values)}))"
        f"(Density.field({xs}, {ys}, {size_mm[0]}, {size_mm[1]}, .55, {CELLS}))"
    )
    assert (page["rows"], page["columns"]) == ours.shape
    assert page["values"] == ours.ravel().tolist()
    assert page["top"] == scale_top(ours)
    assert javascript("Density.scaleTop([0])") == 1
