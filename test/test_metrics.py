import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from evalutils.scorers import score_detection
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.calibration import Calibration, shift_to_half
from midog.detections import MM_PER_PX, Detections
from midog.evaluation import metrics
from midog.evaluation.metrics import (
    MATCH_UM,
    DetectionCase,
    StackCase,
    best_operating_point,
    detection_curve,
    match,
    stepwise_average_precision,
)

MM = 1e-3


def case(truths=(), points=(), image="a.tiff", domain=0, roi_type="hotspot"):
    """An image of truths (x, y) and points (x, y, score), in um; a score from .5 on is accepted."""
    truths = np.array([(x, y, 0) for x, y in truths], float).reshape(-1, 3)
    rows = np.array(points, float).reshape(-1, 3)
    return DetectionCase(image, domain, roi_type, truths * MM, detections(rows[:, :2] * MM, rows[:, 2]))


def detections(places, scores, accepted=None):
    """Of places in mm, float (N, 2), exactly."""
    return Detections.of(np.tile(places, 2), scores, MM_PER_PX, accepted=accepted)


def stack(labels, scores, domains=None):
    labels, scores = np.array(labels, bool), np.array(scores, float)
    return StackCase("s.tiff", np.array(domains or [1] * len(labels)), labels, scores >= 0.5, scores)


# The organisers' own example (test/output/metrics.json of 2025-07): truths and points in mm. Only the point that their
# range check refuses today, at 130 mm, is moved to where it also hits nothing.
EXAMPLE = {
    "140.tiff": (
        [(0.6732737644102278, 0.6380649407634927), (0.701136862260162, 0.5339582751605569)]
        + [(0.004306115122262555, 0.017097810044277795)],
        [(0.701136862260162, 0.5339582751605569, 0.85), (0.004106115122262555, 0.017197810044277794, 0.52)],
        (0, "challenging"),
    ),
    "007.tiff": ([(0.374850364, 0.756961752)], [(0.374850364, 0.756961752, 0.92), (9.1, 9.5, 0.92)], (0, "hotspot")),
    "201.tiff": (
        [(0.6596242342527185, 0.6275941892514884), (0.6869224531269846, 0.5251959312989827)]
        + [(0.004218815644204747, 0.016817232145484504)],
        [(0.04, 0.8, 0.92), (1.3, 1.1, 0.4)],
        (1, "random"),
    ),
}


def example():
    cases = []
    for image, (truths, points, (domain, roi_type)) in EXAMPLE.items():
        truths, rows = np.array([(x, y, 0) for x, y in truths]), np.array(points)
        found = detections(rows[:, :2], rows[:, 2], np.ones(2, bool))
        cases.append(DetectionCase(image, domain, roi_type, truths, found))
    return cases


def test_the_organisers_example():
    found = metrics.detection_aggregates(example())
    expected = {
        "precision": 0.49999991666668053,
        "recall": 0.4285713673469475,
        "f1_score": 0.46153850295857674,
        "AP": 0.3148514926433563,  # hits at ranks 1, 4, 5 of 7 truths: (15 + 28 x .6) / 101
        "tumor_0_precision": 0.7499998125000469,
        "tumor_0_f1": 0.7500000312499961,
        "tumor_0_AP": 0.6287128925323486,
        "tumor_1_f1": 1.99999960000008e-07,
        "tumor_1_AP": 0.0,
        "roi_type_hotspot_AP": 1.0,
        "roi_type_challenging_recall": 0.6666664444445185,
        "roi_type_challenging_AP": 0.6633663177490234,
        "roi_type_random_precision": 0.0,
    }
    assert {name: found[name] for name in expected} == expected
    assert pytest.approx(found["AP"], abs=1e-7) == (15 + 28 * 0.6) / 101
    # FROC: the 40 thresholds go from .4 to .92. At .52 and lower two in three images hold a false positive, at .4 three
    # in three: recall 3/7. Above .52 recall is 2/7, above .85 it is 1/7, both at 2/3 false positives an image.
    false_per_image, recall = metrics.froc(example())
    assert sorted(set(false_per_image)) == pytest.approx([2 / 3, 1])
    assert sorted(set(recall.round(4))) == pytest.approx([0.1429, 0.2857, 0.4286])


def test_ties_of_scores_are_ranked_in_the_order_of_the_images():
    first, second, third = example()
    assert metrics.average_precision([third, first, second]) == pytest.approx(43 * 0.6 / 101)
    assert metrics.average_precision([second, third, first]) == metrics.average_precision([first, second, third])


@pytest.mark.parametrize(
    ("truths", "points", "expected"),  # true positives, false negatives, false positives
    [
        # greedy, in the truths' order: 0 takes 4 (nearer than -6), and 10 is left without one
        ([(0, 0), (10, 0)], [(4, 0, 0.9), (-6, 0, 0.9)], (1, 1, 1)),
        ([(10, 0), (0, 0)], [(4, 0, 0.9), (-6, 0, 0.9)], (2, 0, 0)),
        ([(0, 0)], [(2, 0, 0.9), (3, 0, 0.9)], (1, 0, 1)),  # a duplicate is false
        ([(0, 0)], [(7.5, 0, 0.9)], (1, 0, 0)),
        ([(0, 0)], [(7.6, 0, 0.9)], (0, 1, 1)),
        ([(0, 0)], [(0, 0, 0.4)], (0, 1, 0)),  # not named a mitotic figure
        ([(0, 0)], [], (0, 1, 0)),
        ([], [(0, 0, 0.9), (50, 0, 0.9)], (0, 0, 2)),
        ([], [], (0, 0, 0)),
    ],
)
def test_counts_by_hand(truths, points, expected):
    assert tuple(case(truths, points).counts) == expected


def test_f1_and_its_stand_ins():
    found = metrics.detection_figures([case([(0, 0), (90, 0)], [(0, 0, 0.9), (0, 50, 0.8), (0, 90, 0.7)])])
    assert found["f1"] == pytest.approx(2 / 5, abs=1e-6)  # TP 1, FP 2, FN 1
    nothing = metrics.detection_figures([])
    assert nothing["f1"] == 1.0
    assert (nothing["precision"], nothing["recall"], nothing["AP"]) == (0, 0, -1)
    assert math.isnan(nothing["froc_auc"])
    unfound = metrics.detection_figures([case([(0, 0)])])
    assert (unfound["AP"], unfound["recall"]) == (0, 0)
    assert metrics.detection_figures([case([], [(0, 0, 0.9)])])["AP"] == -1  # no truth anywhere
    wrong = metrics.detection_figures([case([(0, 0)], [(90, 0, 0.9)])])
    assert (wrong["AP"], wrong["froc_auc"]) == (0, 0)
    assert metrics.bootstrap_by_image([(1, 2, 3)] * 4, metrics.f1) == pytest.approx((2 / 7, 2 / 7), abs=1e-6)


def test_froc_by_hand():
    cases = [
        case([(0, 0), (90, 0)], [(0, 0, 0.9), (90, 0, 0.3), (50, 50, 0.5)]),
        case([(0, 0)], [(0, 0, 0.8), (20, 0, 0.1)]),
    ]
    # from .9: 1/3 at 0 | .8: 2/3 at 0 | .5: 2/3 at 1/2 | .3: 1 at 1/2 | .1: 1 at 1 false positive an image
    false_per_image, recall = metrics.froc(cases)
    assert len(recall) == 40
    assert set(zip(false_per_image, recall.round(4), strict=True)) == {
        *((0, 0.3333), (0, 0.6667), (0.5, 0.6667), (0.5, 1.0), (1.0, 1.0))
    }
    equal = metrics.froc([case([(0, 0)], [(0, 0, 0.7), (50, 0, 0.7)])])
    assert [values.tolist() for values in equal] == [[1.0], [pytest.approx(1)]]
    # Left of the only point, at 1 false positive, recall is 0, right of it 1: 7 squares, and a part of the step that
    # the 50 places, 8/49 apart, cut: the first one from 1 on is 7 x 8/49 = 1.1429, so half a step more.
    area = metrics.froc_area([case([(0, 0)], [(0, 0, 0.7), (50, 0, 0.7)])])
    assert area == pytest.approx(8 - 7 * 8 / 49 + 4 / 49, abs=1e-5)


def scored(each, allowed):
    """The organisers' counts of some points alone."""
    found = each.points[allowed].tolist()
    return score_detection(ground_truth=each.truths.tolist(), predictions=found, radius=metrics.MATCH_MM)


def by_definition(cases):
    """FROC as the organisers define it: `score_detection` anew at each of the 40 thresholds."""
    scores = np.concatenate([each.scores for each in cases])
    thresholds = np.linspace(scores.min(), scores.max(), 40) if scores.min() < scores.max() else scores[:1]
    false_per_image, recall = [], []
    for threshold in thresholds:
        counts = [scored(each, each.scores >= threshold) for each in cases]
        true, missed = sum(each.true_positives for each in counts), sum(each.false_negatives for each in counts)
        recall.append(true / (true + missed + 1e-6))
        false_per_image.append(np.mean([each.false_positives for each in counts]))
    return false_per_image, recall


def area_by_definition(cases):
    false_per_image, recall = map(np.array, by_definition(cases))
    order, places = np.argsort(false_per_image), np.linspace(0, 8, 50)
    heights = np.interp(places, false_per_image[order], recall[order], left=0, right=recall[order][-1])
    return np.trapezoid(heights, places)


@st.composite
def some_cases(draw):
    """One to four crowded images; all scores differ."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cases = []
    for _ in range(draw(st.integers(1, 4))):
        truths = generator.uniform(0, 60, (generator.integers(0, 9), 2))
        near = truths + generator.normal(0, 4, truths.shape)
        places = np.concatenate([near, generator.uniform(0, 60, (generator.integers(0, 9), 2))])
        cases.append(case(truths, np.column_stack([places, generator.random(len(places))])))
    return cases


@settings(max_examples=25, deadline=None)
@given(some_cases())
def test_froc_is_the_definition(cases):
    found = metrics.froc(cases)
    if len(found[0]):
        expected = by_definition(cases)
        assert [values.tolist() for values in found] == [list(values) for values in expected]
    assert not any(each.has_ties for each in cases)  # so they were counted once for all thresholds


def lattice(generator, step, shifted):
    """Up to four images of truths, and of points shifted by half a step or not, on a square lattice; few scores."""
    cases = []
    for _ in range(generator.integers(1, 5)):
        side = generator.integers(2, 9)
        truths, places = (
            generator.integers(0, side, (generator.integers(0, most), 2)) * step + shift
            for most, shift in ((side * side, 0), (2 * side * side, shifted * step / 2))
        )
        found = detections(places, generator.integers(0, 30, len(places)) / 32, generator.random(len(places)) < 0.5)
        cases.append(DetectionCase("a", 0, "random", np.pad(truths, ((0, 0), (0, 1))), found))
    return cases


@pytest.mark.parametrize("step", [2**-9, 2**-8, 0.0025, 0.0075])  # the last are the radius, and a part of it
@pytest.mark.parametrize("shifted", [False, True])  # shifted, a truth has four points equally far
def test_ties_of_distances_are_broken_as_the_organisers_break_them(step, shifted):
    """The tree of `score_detection` breaks them by what else is in it, so at another threshold in another way."""
    generator = np.random.default_rng(0)
    for _ in range(12):
        cases = lattice(generator, step, shifted)
        found = metrics.froc(cases)
        if len(found[0]):
            assert [values.tolist() for values in found] == [list(values) for values in by_definition(cases)]
            assert metrics.froc_area(cases) == area_by_definition(cases)
        for each in cases:
            assert each.counts == scored(each, each.accepted)
            assert len(each.missed) == each.counts.false_negatives
            assert (each.accepted & ~each.matched(each.accepted)).sum() == each.counts.false_positives


def test_a_figure_is_missed_where_it_counts_as_missed():
    """Which of two figures is missed hangs on the rejected points no more than the count does."""
    generator = np.random.default_rng(1)
    for _ in range(60):
        (each, *_) = lattice(generator, 2**-8, True)
        alone = replace(each, detections=each.detections[each.accepted])
        assert each.missed.tolist() == alone.missed.tolist()
        assert each.points[each.matched(each.accepted)].tolist() == alone.points[alone.matched(alone.accepted)].tolist()


def shuffled(each, random):
    order = random.sample(range(len(each.scores)), len(each.scores))
    return replace(each, detections=each.detections[np.array(order, int)])


@settings(max_examples=15, deadline=None)
@given(some_cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(cases, random):
    others = [shuffled(each, random) for each in cases]
    assert metrics.average_precision(others) == metrics.average_precision(cases)
    np.testing.assert_equal(metrics.froc_area(others), metrics.froc_area(cases))


@settings(max_examples=25, deadline=None)
@given(some_cases(), st.floats(0.5, 1))
def test_a_false_positive_far_away_never_raises_f1(cases, score):
    found = Detections.concatenate([cases[0].detections, detections([(5, 5)], [score])])
    more = replace(cases[0], detections=found)

    def f1_of(chosen):
        return metrics.f1(*np.sum([each.counts for each in chosen], axis=0))

    assert f1_of([more, *cases[1:]]) < f1_of(cases)
    points = metrics.operating_points([more, *cases[1:]])
    assert points.all[-1] == sum(len(each.scores) for each in cases) + 1


def test_counts_at_any_threshold():
    points = metrics.operating_points([case([(0, 0), (90, 0)], [(0, 0, 0.9), (90, 0, 0.3), (50, 0, 0.3)])])
    assert [values.tolist() for values in points] == [[0.9, 0.3], [1, 2], [1, 3]]
    true, positives = metrics.counts_at(points, [1, 0.9, 0.5, 0.3, 0])
    assert (true.tolist(), positives.tolist()) == ([0, 1, 1, 2, 2], [0, 1, 1, 3, 3])


def test_track_2_by_hand():
    stacks = [stack([1, 1, 0, 0], [0.9, 0.2, 0.6, 0.1]), stack([0, 1], [0.3, 0.7], [2, 2]), stack([0], [0.2], [3])]
    found = metrics.stack_aggregates(stacks)
    # TP .9 .7, FN .2, FP .6, TN .1 .3 .2. Pairs of an atypical and a normal crop in the right order: .9 and .7 beat all
    # four; .2 beats .1 and ties with .2: 9.5 of 12.
    assert [found[f"overall_{name}"] for name in ("sensitivity", "specificity", "accuracy", "roc_auc")] == (
        pytest.approx([2 / 3, 3 / 4, 5 / 7, 9.5 / 12])
    )
    assert found["overall_balanced_accuracy"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert found["domain_2"] == dict.fromkeys(found["domain_2"], 1.0)
    assert found["domain_1"]["balanced_accuracy"] == 0.5
    assert (found["domain_3"]["sensitivity"], found["domain_3"]["balanced_accuracy"]) == (0, 0.5)  # scikit-learn's 0
    assert math.isnan(found["domain_3"]["roc_auc"])
    assert stacks[0].counts == (1, 1, 1, 1)
    assert metrics.balanced_accuracy(1, 1, 1, 1) == 0.5
    only_normal = metrics.stack_aggregates(stacks[2:])
    assert math.isnan(only_normal["overall_balanced_accuracy"])
    assert only_normal["overall_accuracy"] == 1


def test_calibration_errors_by_hand():
    probabilities, positive = np.array([0.12, 0.18, 0.95, 0.95]), np.array([False, True, True, True])
    error, brier = metrics.calibration_errors(probabilities, positive, np.ones(4))
    # bins: .1 to .2 predicts .15 and sees 1/2; .9 to 1 predicts .95 and sees 1
    assert error == pytest.approx((0.35 + 0.05) / 2)
    assert brier == pytest.approx((0.12**2 + 0.82**2 + 2 * 0.05**2) / 4)
    weighted = partial(metrics.calibration_errors, weights=np.array([3, 1, 1, 1]))
    assert weighted(probabilities, positive)[0] == pytest.approx((4 * abs(0.135 - 0.25) + 2 * 0.05) / 6)


def counts(truths, found, radius):
    """True positives, false negatives, false positives."""
    matched = match(truths, found, radius)
    hits = matched[matched >= 0]
    assert len(set(hits)) == len(hits)
    return len(hits), len(truths) - len(hits), len(found) - len(hits)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 60))
def test_matching_is_the_organisers(seed, truth_count, found_count):
    generator = np.random.default_rng(seed)
    truths, found = (generator.uniform(0, 0.06, (count, 2)) for count in (truth_count, found_count))
    scored = score_detection(ground_truth=truths.tolist(), predictions=found.tolist(), radius=0.0075)
    assert counts(truths, found, 0.0075) == tuple(scored)


@pytest.mark.parametrize(
    ("truths", "found", "expected"),
    [
        ([(0, 0), (10, 0)], [(4, 0), (-6, 0)], [0, -1]),  # greedy: the second truth could have had the first prediction
        ([(10, 0), (0, 0)], [(4, 0), (-6, 0)], [0, 1]),
        ([(0, 0)], [(3, 0), (2, 0)], [1]),  # the other prediction is false
        ([(0, 0)], [(7.5, 0)], [0]),
        ([(0, 0)], [(7.6, 0)], [-1]),
        ([(0, 0)], [(-3, 0), (3, 0)], [0]),
        ([], [(1, 1)], []),
        ([(1, 1)], [], [-1]),
        ([], [], []),
    ],
)
def test_matching_by_hand(truths, found, expected):
    assert match(truths, found, 7.5).tolist() == expected


# --- the best operating point -------------------------------------------------


def test_equal_scores_come_in_together():
    assert best_operating_point([0.9] * 4, [1, 0, 0, 0], 1)[0] == pytest.approx(0.4)
    assert best_operating_point([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0], 2) == (
        pytest.approx(0.8),
        pytest.approx(0.4, abs=1e-9),
    )
    assert best_operating_point([], [], 3) == best_operating_point([0.4], [0], 3) == (0, 0.5)
    for hits in ([1, 0, 0], [0, 1, 0], [0, 0, 1]):
        assert stepwise_average_precision([0.9] * 3, hits, 1) == pytest.approx(1 / 3)
    # hits at ranks 1 and 3 of 3, one of three figures is never found
    assert stepwise_average_precision([0.9, 0.8, 0.7], [1, 0, 1], 3) == pytest.approx((1 + 2 / 3) / 3)


def test_the_order_of_a_fields_detections_does_not_matter():
    figures, centres = np.array([[20, 20]], np.float32), np.array([[20, 20], [25, 20], [70, 70]], np.float32)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        found = detection_curve([figures], [MATCH_UM / 0.25], [centres[order]], [np.full(3, 0.9, np.float32)])
        assert found == {
            "average_precision": pytest.approx(1 / 3),
            "f1": 0.5,
            "threshold": pytest.approx(0.89, abs=0.01),
        }
    assert detection_curve([], [], [], []) == {"average_precision": 0, "f1": 0, "threshold": 0.5}


def test_no_threshold_rejects_its_own_candidate():
    """Each of 2,000 scores once the last one that its threshold lets in."""
    scores = np.sort(np.random.default_rng(0).random(2000))
    for last in range(2000):
        _, threshold = best_operating_point(scores, np.arange(2000) == last, 1)
        accepted = Calibration(1.0, shift_to_half(threshold)).apply(scores) >= 0.5
        assert (accepted == (np.arange(2000) >= last)).all()
