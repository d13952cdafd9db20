import numpy as np
import pytest
from evalutils.scorers import score_detection
from hypothesis import given
from hypothesis import strategies as st

from midog import boxes as boxes_module
from midog.boxes import iou, match, merge_near, nms


@st.composite
def scored_boxes(draw):
    """Up to 30 boxes on whole pixels, with few scores, so that ties and exact thresholds happen."""
    place, side, score = st.integers(-20, 60), st.integers(0, 30), st.integers(0, 3)
    rows = draw(st.lists(st.tuples(place, place, side, side, score), max_size=30))
    table = np.array(rows, np.float32).reshape(-1, 5)
    return np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1), table[:, 4] / 4


def greedy(boxes, scores, same):
    """The quadratic definition: best first, of equal scores the upper, then the left box; `same` is (N, N)."""
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], *boxes[i][[1, 0, 2, 3]], i))
    kept = []
    for index in order:
        if not any(same[index, other] for other in kept):
            kept.append(index)
    return kept


def centre_distances(boxes):
    centres = (boxes[:, :2] + boxes[:, 2:]).astype(float) / 2
    return np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))


def test_iou_by_hand():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [5, 5, 5, 5]], np.float32)
    expected = [[1, 1 / 7, 0, 0], [1 / 7, 1, 1 / 7, 0], [0, 1 / 7, 1, 0]]
    assert iou(boxes[:3], boxes) == pytest.approx(np.array(expected))
    assert iou(boxes[3:], boxes[3:]) == 0
    assert iou(np.zeros((0, 4)), boxes).shape == (0, 4)


@given(scored_boxes(), st.sampled_from([0.1, 0.25, 0.5, 0.75, 1]))
def test_nms_is_the_quadratic_definition(candidates, least_iou):
    boxes, scores = candidates
    assert nms(boxes, scores, least_iou).tolist() == greedy(boxes, scores, iou(boxes, boxes) >= least_iou)


@given(scored_boxes(), st.sampled_from([0, 0.5, 5, 12.5, 100]))
def test_merging_by_distance_is_the_quadratic_definition(candidates, distance):
    boxes, scores = candidates
    assert merge_near(boxes, scores, distance).tolist() == greedy(boxes, scores, centre_distances(boxes) <= distance)


@given(scored_boxes(), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(candidates, random):
    boxes, scores = candidates
    shuffled = random.sample(range(len(boxes)), len(boxes))
    for kept_of in (lambda b, s: nms(b, s, 0.3), lambda b, s: merge_near(b, s, 9)):
        kept, kept_after = kept_of(boxes, scores), kept_of(boxes[shuffled], scores[shuffled])
        assert np.array_equal(boxes[kept], boxes[shuffled][kept_after])
        assert np.array_equal(scores[kept], scores[shuffled][kept_after])


def test_a_figure_found_in_two_tiles_is_one():
    boxes = np.array([[100, 100, 150, 150], [104, 100, 154, 150], [300, 300, 350, 350]], np.float32)
    scores = np.array([0.7, 0.9, 0.8], np.float32)
    assert nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert merge_near(boxes, scores, 4).tolist() == [1, 2]
    assert merge_near(boxes, scores, 3.9).tolist() == [1, 2, 0]


def test_none_and_broken_boxes():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    assert nms(*none, 0.5).shape == merge_near(*none, 30).shape == (0,)
    broken = np.array([[0, 0, np.nan, 9]], np.float32), np.ones(1, np.float32)
    with pytest.raises(ValueError, match="NaN"):
        nms(*broken, 0.5)
    with pytest.raises(ValueError, match="NaN"):
        merge_near(*broken, 30)
    with pytest.raises(ValueError, match="least_iou"):
        nms(*none, 0)


def test_a_hundred_thousand_candidates(monkeypatch):
    """Comparisons are counted, not seconds: some for each candidate, however many there are."""
    compared = []

    def counting(order, rows, extents, same):
        return choice(order, rows, extents, lambda a, b: compared.append(1) or same(a, b))

    choice = boxes_module._best_of_each
    monkeypatch.setattr(boxes_module, "_best_of_each", counting)
    generator = np.random.default_rng(0)
    centres = generator.uniform(0, 60_000, (50_000, 2))
    centres = np.concatenate([centres, centres + generator.uniform(-5, 5, centres.shape)])  # each found by two tiles
    half = generator.uniform(22, 28, centres.shape)
    boxes = np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)
    scores = generator.random(len(boxes), np.float32)
    for choose, least in ((nms, 0.5), (merge_near, 30)):
        compared.clear()
        kept = choose(boxes, scores, least)
        assert len(compared) < 10 * len(boxes)
        assert 45_000 < len(kept) < 51_000


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
