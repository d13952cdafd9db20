"""Several detectors as one; what is found in a view must be where it is in the image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from midog.calibration import logit, sigmoid
from midog.engine import detector as engine
from midog.engine.detector import AveragedNetwork, DetectorView, FusedDetector, NetworkDetector, detector_of
from midog.engine.torch_engine import fold_batch_norms
from midog.engine.views import VIEWS, boxes_from_view, dihedral
from midog.models.rtmdet import RTMDet
from midog.system import Detector, Merge

BLACK = np.zeros((1, 3, 64, 64), np.float32)


def painted(box, height, width):
    """A black image (1, 3, height, width) with a white rectangle: x0, y0, x1, y1 are its outermost pixels."""
    x0, y0, x1, y1 = box
    image = np.zeros((1, 3, height, width), np.float32)
    image[:, :, y0 : y1 + 1, x0 : x1 + 1] = 1
    return image


def white_rectangle(tiles):
    """A detector of the one white rectangle in each tile."""
    found = []
    for tile in tiles:
        y, x = np.nonzero(tile[0])
        found.append((np.array([[x.min(), y.min(), x.max(), y.max()]], np.float32), np.full(1, 0.8, np.float32)))
    return found


@given(st.data(), st.integers(0, 7), st.integers(1, 12), st.integers(1, 12))
def test_a_box_comes_back_from_every_view(data, view, height, width):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = x0, y0, data.draw(st.integers(x0, width - 1)), data.draw(st.integers(y0, height - 1))
    boxes, _ = white_rectangle(dihedral(painted(box, height, width), view))[0]
    assert boxes_from_view(boxes, view, height, width).tolist() == [list(box)]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_what_is_the_same_in_every_view_is_found_once(count):
    seen = []

    def detector(tiles):
        seen.extend(tile.tobytes() for tile in tiles)
        return white_rectangle(tiles)

    boxes = [(3, 4, 30, 11), (40, 20, 59, 25)]
    tiles = np.concatenate([painted(box, 40, 60) for box in boxes])
    found = FusedDetector([DetectorView(detector, view) for view in VIEWS[count]], 0.5)(tiles)
    assert len(set(seen)) == count * len(tiles)
    for box, (got, scores) in zip(boxes, found, strict=True):
        assert got.tolist() == [list(box)]
        assert scores == np.float32(0.8)


def test_detectors_are_fused_tile_by_tile():
    """The second detector finds nothing in the first tile and the same, less surely, in the second one."""

    def unsure(tiles):
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return [none, *((boxes, scores / 2) for boxes, scores in white_rectangle(tiles[1:]))]

    tiles = np.concatenate([painted((3, 4, 30, 11), 40, 60)] * 2)
    for (boxes, scores), expected in zip(FusedDetector([white_rectangle, unsure], 0.5)(tiles), (0.4, 0.6), strict=True):
        assert boxes.tolist() == [[3, 4, 30, 11]]
        np.testing.assert_allclose(scores, [expected], rtol=1e-6)


def bright_cells(tiles):
    """A network: every cell of 8 px is a box of 20 px about it, with the cell's brightness as its score."""
    count, _, height, width = tiles.shape
    scores = tiles[:, 0].reshape(count, height // 8, 8, width // 8, 8).mean((2, 4))
    x, y = np.meshgrid(*(8 * np.arange(side) + 3.5 for side in scores.shape[:0:-1]))
    centres = np.stack([x, y]).reshape(2, -1)
    boxes = np.concatenate([centres - 10, centres + 10]).astype(np.float32)
    return boxes[None].repeat(count, 0), logit(scores.reshape(count, 1, -1)).astype(np.float32)


def part_of(**changes):
    """A system's detector; of it, what joins members and views."""
    fixed = {"network": "rtmdet", "options": {}, "tile": (64, 64), "overlap": 0.0, "um_per_px": 0.25, "nms_iou": 0.3}
    return Detector(**fixed, score_threshold=0.3, merge=Merge(distance_um=7.5), **changes)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_same_answer_in_every_view_is_the_answer_of_one(seed):
    """Boxes and scores, of crowded figures above and below the threshold alike."""
    brightness = np.zeros((8, 12), np.float32)
    brightness[2:-2, 2:-2] = np.random.default_rng(seed).random((4, 8))
    tiles = brightness.repeat(8, 0).repeat(8, 1)[None, None].repeat(3, 1)
    ((boxes, scores),) = detector_of([bright_cells], part_of(), 0.3)(tiles)
    for views in (2, 4, 8):
        for members, fusion in ((1, "average"), (3, "average"), (3, "weighted_box_fusion")):
            part = part_of(views=views, fusion=fusion)
            ((fused, fused_scores),) = detector_of([bright_cells] * members, part, 0.3)(tiles)
            np.testing.assert_allclose(fused_scores, scores, rtol=1e-4)
            np.testing.assert_allclose(fused, boxes, atol=1e-2)


def told(probabilities):
    """A network that finds one box, as likely as it is told from call to call."""
    logits = iter(logit(probabilities).astype(np.float32))
    return lambda tiles: (np.array([[[20], [20], [44], [44]]], np.float32), next(logits).reshape(1, 1, 1))


@given(st.data(), st.sampled_from([2, 4, 8]), st.floats(0.05, 0.95), st.floats(0.05, 0.9))
@settings(deadline=None)
def test_scores_that_differ_from_view_to_view_are_fused_to_their_mean(data, views, mean, threshold):
    reach = min(mean, 1 - mean) - 0.01
    up = data.draw(st.lists(st.floats(0, reach), min_size=views // 2, max_size=views // 2))
    probabilities = data.draw(st.permutations([mean + sign * each for each in up for sign in (1, -1)]))
    part = part_of(views=views)
    ((boxes, scores),) = detector_of([told(probabilities)], part, threshold)(BLACK)
    left_out = threshold / views
    if len(boxes):
        assert mean - left_out - 1e-5 < scores[0] < mean + 1e-5
        assert scores[0] >= np.float32(threshold)
    else:
        assert mean < threshold + left_out + 1e-5


def test_a_figure_that_half_of_the_views_doubt_keeps_what_they_say():
    """.5 and .1 four times each: .3, where a threshold of .2 in each view would make it .25."""
    ((_, scores),) = detector_of([told([0.5, 0.1] * 4)], part_of(views=8), 0.2)(BLACK)
    np.testing.assert_allclose(scores, [0.3], rtol=1e-5)


@pytest.mark.parametrize(("probability", "expected"), [(0.1, 3), (0.5, 8)])
def test_of_weak_candidates_a_view_takes_the_best_and_of_others_all(probability, expected, monkeypatch):
    monkeypatch.setattr(engine, "WEAK_CANDIDATES", 3)
    corners = 8 * np.arange(8, dtype=np.float32)
    boxes = np.stack([corners, corners, corners + 7, corners + 7])[None]
    logits = logit(np.linspace(probability, probability + 0.01, 8)).reshape(1, 1, 8).astype(np.float32)
    ((found, scores),) = NetworkDetector(lambda tiles: (boxes, logits), 0.4, 0.5, lists=8)(BLACK)
    assert len(found) == expected
    assert scores.max() == pytest.approx(probability + 0.01)


def test_boxes_and_probabilities_are_averaged_place_by_place():
    def constant(side, probabilities):
        return lambda tiles: (np.full((1, 4, 2), side, np.float32), logit([[probabilities]]).astype(np.float32))

    boxes, logits = AveragedNetwork([constant(10, [0.2, 0.9]), constant(16, [0.4, 0.7])])(None)
    assert boxes.tolist() == [[[13.0, 13.0]] * 4]
    np.testing.assert_allclose(sigmoid(logits), [[[0.3, 0.8]]], rtol=1e-6)


def test_a_shared_convolution_is_folded_once_for_each_of_its_norms():
    torch.manual_seed(0)
    network = RTMDet("tiny").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    tiles = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        before = network(tiles)
        for got, expected in zip(fold_batch_norms(network)(tiles), before, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
