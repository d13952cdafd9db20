"""Dense detectors: views turned back, maps averaged, places in a map, a system of several, the same in any tiles."""

import hashlib

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from midog.engine.boxes import merge_near
from midog.engine.dense import REACH, MapViews, MeanMap, PlaceDetector
from midog.engine.detector import detector_of, find_candidates, load_detector
from midog.engine.torch_engine import TorchEngine, TorchNetwork
from midog.engine.views import dihedral, undone
from midog.images.slide import ArraySlide
from midog.models.centernet import CenterNet
from midog.system import Detector, Merge, load_system

pytestmark = pytest.mark.usefixtures("one_thread")

LOW = -10.0


def pixels(*weights):
    """A network that makes a map of single pixels' colours, weighted."""
    return lambda tiles: (np.einsum("nchw,c->nhw", tiles, np.array(weights, np.float32))[:, None],)


def right(tiles):
    """A map of the first channel, moved to the right by a cell."""
    return (np.roll(tiles[:, :1], 1, 3),)


def blobs(tiles):
    """How dark the 8 x 8 px around each cell of stride 2 are."""
    padded = np.pad(1 - tiles.mean(1), ((0, 0), (3, 3), (3, 3)))
    means = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), (1, 2))[:, ::2, ::2].mean((3, 4))
    return (20 * (means[:, None] - 0.4),)


def random_tiles(count, height, width):
    return np.random.default_rng(0).random((count, 3, height, width), np.float32)


def drawn(height, width, cells, background=LOW):
    """A map of one logit but for some cells, by row and column: (1, 1, height, width)."""
    logits = np.full((1, 1, height, width), background, np.float32)
    for (row, column), logit in cells.items():
        logits[0, 0, row, column] = logit
    return logits


def places(logits, stride=1, threshold=0.1, box_px=10):
    """What `PlaceDetector` finds in maps: boxes and scores of each."""
    tiles = np.zeros((len(logits), 3, *(stride * side for side in logits.shape[2:])), np.float32)
    return PlaceDetector(lambda tiles: (logits,), threshold, box_px)(tiles)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 5))
def test_every_view_is_undone(height, width):
    images = np.arange(4 * height * width).reshape(2, 2, height, width)
    for view in range(8):
        np.testing.assert_array_equal(undone(dihedral(images, view), view), images)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_views_of_a_network_of_single_pixels_are_that_network(count):
    network, tiles = pixels(1.0, -2.0, 0.5), random_tiles(2, 6, 10)
    np.testing.assert_allclose(MapViews(network, count)(tiles), network(tiles), rtol=1e-5, atol=1e-6)


def test_the_quarter_turns_of_a_step_to_the_right_are_steps_to_all_sides():
    tiles = drawn(6, 10, {(2, 4): 1.0}, 0.0).repeat(3, 1)
    sides = {(2, 3): 0.25, (2, 5): 0.25, (1, 4): 0.25, (3, 4): 0.25}
    np.testing.assert_array_equal(MapViews(right, 4)(tiles)[0], drawn(6, 10, sides, 0.0))
    np.testing.assert_array_equal(MapViews(right, 2)(tiles)[0], drawn(6, 10, {(2, 3): 0.5, (2, 5): 0.5}, 0.0))


def test_members_are_joined_by_the_mean_of_their_logits():
    tiles = random_tiles(2, 4, 6)
    (joined,) = MeanMap([pixels(1.0, 0.0, 0.0), pixels(0.0, 4.0, 0.0), pixels(0.0, 0.0, 1.0)])(tiles)
    np.testing.assert_allclose(joined[:, 0], (tiles[:, 0] + 4 * tiles[:, 1] + tiles[:, 2]) / 3, rtol=1e-5)


def test_places_by_hand():
    """A cell within reach of a higher one is no place; the next one is, and so is one at the border."""
    cells = {(2, 3): 2.0, (2, 3 + REACH): 1.0, (2, 11): 1.5, (9, 0): 0.0, (9, REACH + 1): -0.5, (9, 15): -3.0}
    ((boxes, scores),) = places(drawn(12, 16, cells), stride=2)
    centres = [(6.5, 4.5), (22.5, 4.5), (0.5, 18.5), (8.5, 18.5)]
    assert boxes.tolist() == [[x - 5, y - 5, x + 5, y + 5] for x, y in centres]
    assert scores == pytest.approx(1 / (1 + np.exp([-2.0, -1.5, 0.0, 0.5])))
    assert (boxes.dtype, scores.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize(("stride", "centre"), [(1, (3, 2)), (2, (6.5, 4.5)), (4, (13.5, 9.5))])
def test_a_place_is_the_middle_of_its_cell(stride, centre):
    ((boxes, _),) = places(drawn(8, 8, {(2, 3): 1.0}), stride)
    assert tuple((boxes[0, :2] + boxes[0, 2:]) / 2) == centre


def test_every_image_of_a_batch_has_its_own_places_and_an_empty_one_none():
    found = places(
        np.concatenate([drawn(9, 9, {(1, 1): 1.0, (8, 8): 1.0}), drawn(9, 9, {}), drawn(9, 9, {(4, 4): 1.0})])
    )
    assert [len(scores) for _, scores in found] == [2, 0, 1]
    assert found[1][0].shape == (0, 4)


def test_a_plateau_is_a_place_in_each_cell_which_the_merging_joins():
    ((boxes, scores),) = places(drawn(9, 9, {(4, 4): 1.0, (4, 5): 1.0}))
    assert len(boxes) == 2
    assert len(merge_near(boxes, scores, 15)) == 1


# --- as a system's detector -----------------------------------------------------

OPTIONS = {"encoder": "test_efficientnet", "channels": 4}


def test_members_and_views_of_a_system_are_averaged(tmp_path):
    """On maps: two members in four views, by hand."""
    members, networks = [], []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = CenterNet(**OPTIONS)
        torch.nn.init.normal_(network.head.weight)
        path = tmp_path / f"{seed}.safetensors"
        save_file(network.state_dict(), path)
        members.append({"weights": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        networks.append(TorchNetwork(network, torch.device("cpu"), "float32"))
    detector = {"network": "centernet", "options": OPTIONS, "tile": [64, 64], "overlap": 0.1, "um_per_px": 0.5}
    detector |= {"score_threshold": 0.9, "merge": {"distance_um": 7.5}, "views": 4, "members": members}
    detector |= {"precision": "float32"}
    values = {"system": "dense", "track": 1, "version": "0", "detector": detector}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(values))

    tiles = random_tiles(2, 32, 48)
    views = [(network, turn) for network in networks for turn in range(4)]
    maps = [np.rot90(network(np.rot90(tiles, turn, (2, 3)).copy())[0], -turn, (2, 3)) for network, turn in views]
    expected = places(np.mean(maps, axis=0), 2, 1e-4, 12.5 / 0.5)
    got = load_detector(load_system(tmp_path), TorchEngine("cpu"), 1e-4)(tiles)
    assert sum(len(scores) for _, scores in expected) > 4
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-3)


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("tile", [(64, 64), (96, 64), (512, 512)])
def test_each_blob_is_found_once_and_to_half_a_pixel_in_any_tiles(tile, views):
    """Tiles begin at odd pixels, too, where a cell of stride 2 has its middle between those of another tile."""
    width, height = 241, 187
    generator = np.random.default_rng(0)
    middles = np.stack(np.meshgrid(np.arange(24, width - 20, 32), np.arange(24, height - 20, 32)), -1).reshape(-1, 2)
    middles = middles + generator.integers(-4, 5, middles.shape)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    squares = (x[..., None] - middles[:, 0]) ** 2 + (y[..., None] - middles[:, 1]) ** 2
    grey = 210 - 190 * np.exp(-squares / (2 * 4.0**2)).sum(-1)
    slide = ArraySlide(np.repeat(grey.round().astype(np.uint8)[..., None], 3, 2), (0.5, 0.5))
    merge = Merge(distance_um=7.5)
    part = Detector("centernet", {}, tile, 0.4, 0.5, 0.5, merge, views=views)
    boxes, scores = find_candidates(slide, detector_of([blobs], part, 0.5), tile, part.overlap, "cpu")
    kept = merge_near(boxes, scores, 15)
    centres = (boxes[kept, :2] + boxes[kept, 2:]) / 2
    assert len(centres) == len(middles)
    apart = np.abs(centres[:, None] - middles).max(-1)
    assert (apart.min(0) <= 0.5).all()
