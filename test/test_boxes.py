import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog.engine import boxes as boxes_module
from midog.engine.boxes import iou, merge_near, nms, weighted_box_fusion


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


def fused_by_definition(found, least_iou):
    """Weighted box fusion as the paper lists it: clusters in a list, every fused box compared; the score of a cluster
    is the mean over the lists of the best that each has in it."""
    boxes, scores = (np.concatenate(each) for each in zip(*found, strict=True))
    lists = [number for number, (each, _) in enumerate(found) for _ in each]
    clusters, fused = [], np.zeros((0, 4))
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], *boxes[i][[1, 0, 2, 3]])):
        overlaps = iou(boxes[[index]], fused)[0]
        if len(fused) and overlaps.max() >= least_iou:
            number = int(overlaps.argmax())
            clusters[number].append(index)
        else:
            number = len(clusters)
            clusters.append([index])
            fused = np.concatenate([fused, boxes[[index]]])
        if scores[clusters[number]].any():
            fused[number] = np.average(boxes[clusters[number]], 0, scores[clusters[number]])
    best = [{lists[index]: scores[index] for index in reversed(each)} for each in clusters]
    scores = [sum(each.values()) / len(found) for each in best]
    return sorted(zip(np.array(scores, np.float32), fused.astype(np.float32).tolist(), strict=True))


def as_rows(fused):
    return sorted(zip(fused[1], fused[0].tolist(), strict=True))


@given(st.lists(scored_boxes(), min_size=1, max_size=3), st.sampled_from([0.1, 0.25, 0.5, 0.75, 1]))
def test_box_fusion_is_the_quadratic_definition(found, least_iou):
    fused = weighted_box_fusion(found, least_iou)
    assert as_rows(fused) == fused_by_definition([(b.astype(float), s.astype(float)) for b, s in found], least_iou)
    assert (np.diff(fused[1]) <= 0).all()


@given(st.lists(scored_boxes(), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_the_order_of_what_is_fused_does_not_matter(found, random):
    fused = weighted_box_fusion(found, 0.3)
    shuffled = []
    for boxes, scores in random.sample(found, len(found)):
        order = random.sample(range(len(boxes)), len(boxes))
        shuffled.append((boxes[order], scores[order]))
    for before, after in zip(fused, weighted_box_fusion(shuffled, 0.3), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([[(0, 12, 0.8)], [(3, 15, 0.4)]], [(1, 13, 0.6)]),  # weighed 2 to 1; IoU 9 / 15
        ([[(0, 12, 0.8)], []], [(0, 12, 0.4)]),  # one of two
        ([[(0, 12, 0.8)], [(0, 12, 0.4), (0, 12, 0.6)]], [(0, 12, 0.7)]),  # a list's best one counts
        ([[(0, 12, 0.8)], [(5, 17, 0.4)]], [(0, 12, 0.4), (5, 17, 0.2)]),  # IoU 7 / 17
        # the second moves the fused box to (2, 14), so that the third, with (0, 12) at 7 / 17, reaches it at 9 / 15
        ([[(0, 12, 0.8)], [(4, 16, 0.8)], [(5, 17, 0.4)]], [(2.6, 14.6, 2 / 3)]),
        # the third overlaps both, the second one more
        ([[(0, 12, 0.8), (6, 18, 0.6)], [(4, 16, 0.3)]], [(16 / 3, 52 / 3, 0.45), (0, 12, 0.4)]),
        ([[(0, 12, 0)], [(3, 15, 0)]], [(0, 12, 0)]),
    ],
)
def test_box_fusion_by_hand(found, expected):
    """Boxes as left, right and score, 10 px high; fused from an IoU of one half on."""
    lists = []
    for rows in found:
        left, right, score = np.array(rows, np.float32).reshape(-1, 3).T
        lists.append((np.stack([left, 0 * left, right, 0 * left + 10], 1), score))
    boxes, scores = weighted_box_fusion(lists, 0.5)
    np.testing.assert_allclose(np.column_stack([boxes[:, [0, 2]], scores]), expected, rtol=1e-6)


def test_none_and_broken_boxes():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    assert nms(*none, 0.5).shape == merge_near(*none, 30).shape == (0,)
    broken = np.array([[0, 0, np.nan, 9]], np.float32), np.ones(1, np.float32)
    with pytest.raises(ValueError, match="NaN"):
        merge_near(*broken, 30)
    for choose in (nms, lambda boxes, scores, least: weighted_box_fusion([(boxes, scores)], least)):
        with pytest.raises(ValueError, match="NaN"):
            choose(*broken, 0.5)
        with pytest.raises(ValueError, match="iou_threshold"):
            choose(*none, 0)
    boxes, scores = weighted_box_fusion([none, none], 0.5)
    assert (boxes.shape, scores.shape) == ((0, 4), (0,))


def test_a_hundred_thousand_candidates(monkeypatch):
    """Comparisons are counted, not seconds: some for each candidate, however many there are."""
    compared = []

    def counting(grid, cells):
        for item in near(grid, cells):
            compared.append(1)
            yield item

    near = boxes_module._Grid.near
    monkeypatch.setattr(boxes_module._Grid, "near", counting)
    generator = np.random.default_rng(0)
    centres = generator.uniform(0, 60_000, (50_000, 2))
    centres = np.concatenate([centres, centres + generator.uniform(-5, 5, centres.shape)])  # each found by two tiles
    half = generator.uniform(22, 28, centres.shape)
    boxes = np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)
    scores = generator.random(len(boxes), np.float32)

    def fuse(boxes, scores, least_iou):
        return weighted_box_fusion([(boxes[::2], scores[::2]), (boxes[1::2], scores[1::2])], least_iou)[1]

    for choose, least in ((nms, 0.5), (merge_near, 30), (fuse, 0.5)):
        compared.clear()
        kept = choose(boxes, scores, least)
        assert len(compared) < 10 * len(boxes)
        assert 45_000 < len(kept) < 51_000
