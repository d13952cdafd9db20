"""The window with the most figures: by hand, at the edges, and against trying every window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.images.slide import Slide
from midog.report import hotspot
from midog.report.hotspot import LONG_NM, SHORT_NM, find_hotspot, places_nm

MM = 1_000_000
LARGE = 20 * MM, 15 * MM


def nm(*places_mm):
    return np.rint(np.array(places_mm).reshape(-1, 2) * MM).astype(np.int64)


def most(places, size):
    """Tries every window that has a figure on its right and one on its lower edge."""
    best = 0
    for sides in ((LONG_NM, SHORT_NM), (SHORT_NM, LONG_NM)):
        width, height = np.minimum(sides, size)
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
    with pytest.MonkeyPatch.context() as patch:
        for module in (hotspot, globals()):
            for name, value in (("LONG_NM", 4), ("SHORT_NM", 3)):
                (patch.setitem if isinstance(module, dict) else patch.setattr)(module, name, value)
        found = find_hotspot(places, size)
        inside = places[(places <= size).all(axis=1)]
        if len(inside) == 0:
            assert found is None
            return
        assert found.count == most(inside, size) == found.holds(inside).sum()
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
