"""Counts by protocol, by hand on made slides and against trying everything; intervals; what a score says."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.detections import Detections
from midog.errors import UserError
from midog.images.slide import ArraySlide, Slide
from midog.images.tissue import TissueMask
from midog.report.areas import whole
from midog.report.counts import Share, count
from midog.report.hotspot import find_hotspot
from midog.report.intervals import poisson_interval, wilson_interval
from midog.report.misclassification import corrected_share, true_share
from midog.report.protocols import FIELD_DIAMETER_MM, check_field, protocols
from midog.report.reliability import is_calibrated, name_of, sentence, share_at

MM = 1_000_000
FIELD_MM2 = math.pi * 0.275**2


def nm(*places_mm):
    return np.rint(np.array(places_mm).reshape(-1, 2) * MM).astype(np.int64)


def counted(places, size, tissue_share=1.0, diameter=FIELD_DIAMETER_MM):
    columns = 100
    mask = np.zeros((1, columns), bool)
    mask[:, : round(columns * tissue_share)] = True
    tissue = TissueMask(mask, (size[0] / 1000, size[1] / 1000))
    return {each.key: each for each in protocols(places, size, whole(size), tissue, diameter)}


@pytest.mark.parametrize(
    ("figures", "low", "high"), [(0, 0, 3.689), (1, 0.0253, 5.572), (10, 4.795, 18.39), (100, 81.36, 121.63)]
)
def test_poisson_intervals_are_garwoods(figures, low, high):
    assert poisson_interval(figures) == pytest.approx((low, high), rel=1e-3)


def test_shares_are_given_from_twenty_figures_on():
    assert (Share(5, 19).given, Share(5, 20).given) == (False, True)
    assert (Share(5, 20).fraction, Share(5, 20).interval) == (0.25, wilson_interval(5, 20))
    assert wilson_interval(5, 20) == pytest.approx((0.1119, 0.4687), abs=1e-4)
    assert (Share(0, 0).fraction, Share(0, 0).interval) == (0, (0, 1))


def test_the_share_behind_an_observed_one():
    """Of 100 figures 30 are atypical: 24 of them are told (sensitivity .8), and 7 of the others (specificity .9)."""
    assert true_share(0.31, 0.8, 0.9) == pytest.approx(0.3)
    assert (true_share(0.05, 0.8, 0.9), true_share(0.9, 0.8, 0.9)) == (0, 1)
    assert true_share(0.31, 0.6, 0.5) is None
    low, high = wilson_interval(31, 100)
    one, other = ("A", 0.8, 0.9), ("B", 0.9, 0.8)
    middle, *ends = corrected_share(31, 100, 0, [one, other])
    assert middle == pytest.approx((0.31 - 0.15) / 0.7)
    assert ends == pytest.approx([(low - 0.2) / 0.7, (high - 0.1) / 0.7])
    half = corrected_share(31, 100, 50, [one])  # the reader's half has no errors: .9 and .95 of all
    assert half[0] == pytest.approx((0.31 - 0.05) / 0.85)
    assert corrected_share(31, 100, 100, [one, other]) == pytest.approx((0.31, low, high))
    assert corrected_share(31, 100, 0, [one, ("C", 0.55, 0.55)])[1:] == (0, 1)
    assert corrected_share(31, 100, 0, [("C", 0.55, 0.55)]) is None
    assert corrected_share(31, 100, 0, []) is None


rates = st.floats(0, 1)


@given(st.lists(st.tuples(st.just("a"), rates, rates), min_size=1, max_size=5), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_the_range_holds_the_corrected_share_whatever_the_order_of_the_domains(errors, atypical, reviewed):
    found = corrected_share(atypical, 60, reviewed, errors)
    assert (found is None) == (corrected_share(atypical, 60, reviewed, errors[::-1]) is None)
    if found:
        share, low, high = found
        assert 0 <= low <= share + 1e-9
        assert share - 1e-9 <= high <= 1
        assert corrected_share(atypical, 60, reviewed, errors[::-1]) == pytest.approx(found)
        guess = ("b", 1 - errors[0][1], 1 - errors[0][2])
        wider = corrected_share(atypical, 60, reviewed, [*errors, guess])
        assert wider is None or (wider[1] <= low and wider[2] >= high)


def test_protocols_by_hand():
    """A slide of 6 x 4 mm whose left half is tissue: two groups of figures, and one alone."""
    left, right = [(1, 1), (1.1, 1), (1, 1.2)], [(4, 3), (4.1, 3.1)]
    found = counted(nm(*left, *right, (5.9, 0.1)), (6 * MM, 4 * MM), 0.5)
    assert list(found) == ["hotspot", "who", "fields", "whole"]
    assert [each.figures for each in found.values()] == [3, 3, 6, 6]
    assert [each.asked_mm2 for each in found.values()] == [
        pytest.approx(2.37, abs=1e-5),
        pytest.approx(2, abs=1e-5),
        pytest.approx(2.376, abs=1e-3),
        None,
    ]
    assert all(each.reached for each in found.values())
    assert (found["whole"].area_mm2, found["whole"].tissue_mm2) == (24, pytest.approx(12))
    assert (found["whole"].per_mm2, found["whole"].per_mm2_tissue) == (0.25, pytest.approx(0.5))
    assert found["whole"].interval == poisson_interval(6)
    assert found["hotspot"].box == find_hotspot(nm(*left), (6 * MM, 4 * MM))
    assert found["hotspot"].tissue_mm2 == pytest.approx(found["hotspot"].area_mm2)
    assert found["fields"].area_mm2 == pytest.approx(10 * FIELD_MM2)


def test_ten_fields_by_hand():
    """3 x 2 mm: the fullest field, the next fullest, and then around the first."""
    size = 3 * MM, 2 * MM
    found = counted(nm((0.5, 0.5), (0.6, 0.5), (0.55, 0.6), (2.5, 1.5), (2.6, 1.5)), size)["fields"]
    step, radius = 34_375, 275_000
    assert (found.figures, found.reached, len(found.circles)) == (5, True, 10)
    assert found.circles[0] == (
        radius + 6 * step,
        radius + 2 * step,
        radius,
    )  # the topmost with three, .25625 above one
    assert math.dist(found.circles[1][:2], (2.55 * MM, 1.5 * MM)) < radius
    first = found.circles[0]
    away = [math.dist(first[:2], each[:2]) for each in found.circles[2:]]
    assert away == sorted(away)
    assert away[0] == pytest.approx(550_000, abs=step)


def test_an_image_smaller_than_a_protocols_area_says_so():
    places = nm((0.5, 0.3), (0.4, 0.5))
    found = counted(places, (MM, MM))
    assert [found[key].reached for key in ("hotspot", "who", "fields", "whole")] == [False, False, False, True]
    assert [found[key].figures for key in found] == [2, 2, 2, 2]
    assert (found["hotspot"].area_mm2, found["who"].area_mm2) == (1, 1)
    assert found["fields"].area_mm2 == pytest.approx(len(found["fields"].circles) * FIELD_MM2)
    assert 1 <= len(found["fields"].circles) <= 3
    narrow = counted(places, (MM, MM // 2))["fields"]  # no field fits
    assert (narrow.figures, narrow.area_mm2, narrow.circles, narrow.per_mm2) == (0, 0, (), None)


def test_without_figures_the_counts_are_nought():
    found = counted(nm(), (6 * MM, 4 * MM), 0.5)
    assert all((each.figures, each.reached, each.per_mm2, each.box) == (0, True, 0, None) for each in found.values())
    assert not counted(nm(), (MM, MM))["hotspot"].reached
    assert found["hotspot"].tissue_mm2 <= found["hotspot"].area_mm2


coordinates = st.integers(0, 60)


@given(st.lists(st.tuples(coordinates, coordinates), max_size=60), st.tuples(*[st.integers(20, 60)] * 2))
@settings(max_examples=60, deadline=None)
def test_the_fields_are_the_fullest_that_do_not_overlap(places, size):
    """On a lattice of 2 with fields of 32 across, in steps in which figures often lie on their edges."""
    found = counted(np.array(places, np.int64).reshape(-1, 2), size, diameter=32 / MM)["fields"]
    rest = [(x, y) for x, y in places if x <= size[0] and y <= size[1]]
    lattice = list(itertools.product(*(range(16, side - 16 + 1, 2) for side in size)))
    chosen, total = [], 0
    while len(chosen) < 10:
        free = [(x, y) for x, y in lattice if all((x - a) ** 2 + (y - b) ** 2 >= 32**2 for a, b in chosen)]
        if not free:
            break
        held = {(x, y): sum((x - a) ** 2 + (y - b) ** 2 <= 16**2 for a, b in rest) for x, y in free}
        first = chosen[0] if chosen else None
        best = min(free, key=lambda c: (-held[c], first and math.dist(c, first) ** 2, c[1], c[0]))
        chosen.append(best)
        total += held[best]
        rest = [(a, b) for a, b in rest if (best[0] - a) ** 2 + (best[1] - b) ** 2 > 16**2]
    assert [circle[:2] for circle in found.circles] == chosen
    assert found.figures == total


def test_a_field_is_as_wide_as_a_microscopes():
    check_field(FIELD_DIAMETER_MM)
    for diameter in (0, 0.19, 1.6, math.nan, math.inf):
        with pytest.raises(UserError, match="give the diameter in mm, 0.2 to 1.5"):
            check_field(diameter)


def test_counts_of_a_slide_and_their_json():
    slide = ArraySlide(np.full((200, 400, 3), 255, np.uint8), (0.5, 0.5))
    centres = np.array([[10, 10], [20, 20], [30, 30], [500, 10]])
    found = Detections.of(np.tile(centres, 2), [0.9, 0.8, 0.2, 0.7], (0.5, 0.5))
    tissue = TissueMask(np.ones((10, 20), bool), (200.0, 100.0))
    plain = count(slide, found, tissue)
    assert plain.share is None
    assert plain.counted.tolist() == [True, True, True, False]
    assert (plain.image_mm2, plain.of("whole").figures) == (pytest.approx(0.02), 2)
    asked = count(slide, found.with_atypical([0.7, 0.1, 0.9]), tissue)
    assert asked.share == Share(1, 2)
    content = json.loads(json.dumps(asked.to_builtins(), allow_nan=False))
    assert (content["share"]["of"], content["share"]["corrected"]) == (2, None)
    errors = [("A", 0.75, 0.75)]
    reviewed = np.array([False, True, True, True])  # of those that have a subtype and count, one
    known = count(slide, found.with_atypical([0.7, 0.1, 0.9]), tissue, errors=errors, reviewed=reviewed)
    assert known.share == Share(1, 2, 1, errors)
    assert known.to_builtins()["share"]["corrected"][0] == 0.5
    assert [each["figures"] for each in content["protocols"]] == [2, 2, 0, 2]
    assert content["protocols"][0]["box_nm"] == [0, 0, 200_000, 100_000]


def test_a_thousand_figures_on_a_whole_slide_take_no_time():
    slide = Slide((120_000, 80_000), (0.25, 0.25))
    places = np.random.default_rng(1).integers(0, (120_000, 80_000), (1000, 2))
    tissue = TissueMask(np.ones((1333, 2000), bool), (30_000.0, 20_000.0))
    found = count(slide, Detections.of(np.tile(places, 2), np.ones(1000), (0.25, 0.25)), tissue)
    fields = found.of("fields")
    assert len(fields.circles) == 10
    assert fields.tissue_mm2 == pytest.approx(fields.area_mm2, rel=0.02)


def test_a_score_is_a_probability_where_bins_say_so():
    good, off = (0.45, 0.47, 80), (0.95, 0.80, 200)
    few = (0.15, 0.6, 49)
    assert is_calibrated([good, few])
    assert not is_calibrated([good, off])
    assert not is_calibrated([few])
    assert not is_calibrated([])
    assert (name_of([good]), name_of([good, off])) == ("Probability", "Score")
    assert share_at([good, off], 0.4) == (0.47, 80)
    assert share_at([good, off], 1.0) == (0.80, 200)
    assert share_at([good, off], 0.5) is None
    assert sentence([good, off], 0.93) == "80 % of such points were figures on validation (200)"
    assert sentence([good, off], 0.1) == ""
