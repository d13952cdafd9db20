"""Several detectors as one; what is found in a view must be where it is in the image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from midog.engine.detector import AveragedNetwork, DetectorViews, FusedDetector
from midog.engine.views import boxes_from_view, dihedral
from midog.engine.weights import fold_batch_norms
from midog.models.rtmdet import RTMDet


def painted(box, height, width):
    """A black image (1, 3, height, width) with a white rectangle: x0, y0, x1, y1 are its outermost pixels."""
    x0, y0, x1, y1 = box
    image = torch.zeros(1, 3, height, width)
    image[:, :, y0 : y1 + 1, x0 : x1 + 1] = 1
    return image


def white_rectangle(tiles):
    """A detector of the one white rectangle in each tile."""
    found = []
    for tile in tiles:
        y, x = torch.nonzero(tile[0], as_tuple=True)
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
        seen.extend(tile.numpy().tobytes() for tile in tiles)
        return white_rectangle(tiles)

    boxes = [(3, 4, 30, 11), (40, 20, 59, 25)]
    tiles = torch.cat([painted(box, 40, 60) for box in boxes])
    found = DetectorViews(detector, count, 0.5)(tiles)
    assert len(set(seen)) == count * len(tiles)
    for box, (got, scores) in zip(boxes, found, strict=True):
        assert got.tolist() == [list(box)]
        assert scores == np.float32(0.8)


def test_detectors_are_fused_tile_by_tile():
    """The second detector finds nothing in the first tile and the same, less surely, in the second one."""

    def unsure(tiles):
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return [none, *((boxes, scores / 2) for boxes, scores in white_rectangle(tiles[1:]))]

    tiles = torch.cat([painted((3, 4, 30, 11), 40, 60)] * 2)
    for (boxes, scores), expected in zip(FusedDetector([white_rectangle, unsure], 0.5)(tiles), (0.4, 0.6), strict=True):
        assert boxes.tolist() == [[3, 4, 30, 11]]
        np.testing.assert_allclose(scores, [expected], rtol=1e-6)


def test_boxes_and_probabilities_are_averaged_place_by_place():
    class Constant(nn.Module):
        def __init__(self, side, probabilities):
            super().__init__()
            self.answer = torch.full((1, 4, 2), side), torch.logit(torch.tensor([[probabilities]]))

        def forward(self, tiles):
            return self.answer

    boxes, logits = AveragedNetwork([Constant(10.0, [0.2, 0.9]), Constant(16.0, [0.4, 0.7])])(None)
    assert boxes.tolist() == [[[13.0, 13.0]] * 4]
    torch.testing.assert_close(logits.sigmoid(), torch.tensor([[[0.3, 0.8]]]))


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
