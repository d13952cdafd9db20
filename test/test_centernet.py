"""CenterNet: its map, its targets and its loss by hand, and both stages' trainings as users run them."""

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from conftest import training_arguments as arguments
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.engine.torch_engine import TorchEngine
from midog.engine.two_stages import SystemDetector
from midog.models.centernet import PRIOR, CenterNet
from midog.system import DataSource, load_system
from resources.data.fields import read_fields
from resources.train import candidates, centernet
from resources.train.centernet import DEVIATION_PX
from resources.train.kit.centernet_loss import CENTRE, centernet_loss, centre_map, targets_of
from resources.train.kit.proposals import read_proposals

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the network ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "stride", "behind"),
    [
        ("tf_efficientnet_lite0", 2, ("blocks.5.", "conv_head", "classifier")),
        ("tf_efficientnet_lite0", 4, ("blocks.5.", "conv_head", "classifier")),
        ("resnet18", 4, ("layer4", "fc")),
        ("convnextv2_atto", 4, ("stages_3", "stages.3", "head")),
    ],
)
def test_a_cell_is_a_stride_wide_and_nothing_stands_behind_the_deepest_map(encoder, stride, behind):
    network = CenterNet(encoder, 8, stride).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, 3, 32, 48))
    assert (network.stride, logits.dtype) == (stride, torch.float32)
    assert logits.shape == (2, 1, 32 // stride, 48 // stride)
    assert not [name for name in network.encoder.model.state_dict() if name.startswith(behind)]
    assert torch.sigmoid(network.head.bias).item() == pytest.approx(PRIOR)


@pytest.mark.parametrize(("encoder", "stride"), [("convnextv2_atto", 2), ("test_efficientnet", 16)])
def test_a_stride_without_a_map_is_refused(encoder, stride):
    with pytest.raises(ValueError, match=rf"{encoder} has maps of strides .+, {stride} and 16 expected"):
        CenterNet(encoder, stride=stride)


def test_an_image_of_the_mean_is_0_for_the_encoder():
    network, seen = CenterNet("resnet18", 8, 4).eval(), []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        network((mean + torch.tensor([0.0, 1.0])[:, None, None, None] * std).expand(2, 3, 32, 32))
    torch.testing.assert_close(seen[0], torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 32, 32))


# --- targets ----------------------------------------------------------------------


def centres(*places):
    return torch.tensor(places, dtype=torch.float32).view(-1, 2)


def test_targets_by_hand():
    """Of stride 2, whose cells have their middles at .5, 2.5 and so on, and of a deviation of 2 px."""
    on_a_cell = centre_map(centres((2.5, 4.5)), 4, 6, 2, 2.0)
    assert on_a_cell.shape == (4, 6)
    assert on_a_cell[2, 1] == 1
    assert on_a_cell[2, [0, 2]].tolist() == pytest.approx([np.exp(-1 / 2)] * 2)
    between_four = centre_map(centres((3.5, 1.5)), 4, 6, 2, 2.0)
    assert between_four[:2, 1:3].flatten().tolist() == [1] * 4  # each as near as the others
    assert between_four[0, 3] == pytest.approx(np.exp(-10 / 8))
    outside = centre_map(centres((-3.5, 0.5)), 4, 6, 2, 2.0)
    assert outside[0, :2].tolist() == pytest.approx([np.exp(-2), np.exp(-9 / 2)])
    both = centre_map(centres((2.5, 4.5), (3.5, 1.5)), 4, 6, 2, 2.0)
    assert torch.equal(both, torch.maximum(on_a_cell, between_four))
    assert not centre_map(centres(), 4, 6, 2, 2.0).any()


def test_targets_of_a_batch_are_at_the_middles_of_its_boxes():
    truths = [torch.tensor([[-12.0, 0, 13, 25], [4, 2, 29, 27]]), torch.zeros(0, 4)]
    targets = targets_of(truths, torch.Size((2, 16, 24)), 2, 2.0)
    assert targets.shape == (2, 16, 24)
    assert (targets == 1).nonzero().tolist() == [[0, 6, 0], [0, 7, 8]]


@settings(deadline=None)
@given(st.floats(-0.5, 31.5), st.floats(-0.5, 31.5))
def test_every_centre_in_a_tile_has_a_cell_and_no_more_than_four(x, y):
    holds = centre_map(centres((x, y)), 16, 16, 2, DEVIATION_PX) > CENTRE
    assert 1 <= holds.sum() <= 4


# --- the loss ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((1.0, 0.5, 0.0), 1 / 4 + 1 / 2**4 / 4 + 1 / 4),
        ((1.0, 1.0, 0.0), 3 / 4 / 2),
        ((0.0, 0.0, 0.0), 3 / 4),
    ],
)
def test_loss_by_hand(targets, expected):
    """Every logit is 0, so that every logarithm is that of 1/2."""
    loss = centernet_loss(torch.zeros(1, 1, 3), torch.tensor(targets).view(1, 1, 3))
    assert loss.item() == pytest.approx(expected * np.log(2))


def test_loss_has_right_gradients_and_is_finite_anywhere():
    targets = torch.tensor([1.0, 0.95, 0.85, 0.3, 0.0, 0.0], dtype=torch.float64).view(1, 2, 3)
    logits = torch.linspace(-2, 2, 6, dtype=torch.float64).view(1, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda each: centernet_loss(each, targets), logits)
    far = torch.tensor([-200.0, 200.0, 200.0, -200.0]).view(1, 2, 2).requires_grad_()
    for each in (torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 2, 2), torch.zeros(1, 2, 2)):
        loss = centernet_loss(far, each)
        assert torch.cat([torch.autograd.grad(loss, far)[0].flatten(), loss.detach()[None]]).isfinite().all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-5, 5)), min_size=1, max_size=8))
def test_the_loss_leads_to_its_targets(cells):
    """Towards 1 where a cell holds a centre, else towards 0; where it has arrived there is none left."""
    targets, logits = (torch.tensor(each, dtype=torch.float64).view(1, 1, -1) for each in zip(*cells, strict=True))
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(centernet_loss(logits, targets), logits)
    holds = targets > CENTRE
    assert (gradient[holds] < 0).all()
    assert (gradient[~holds] > 0).all()
    assert centernet_loss(torch.where(holds, 30.0, -30.0), targets) < 1e-9


# --- both trainings -----------------------------------------------------------------


def test_two_steps_of_each_stage_make_a_system(data, tmp_path):
    """Of fields and crops, in half precision; the second stage learns from labelled cells alone."""
    values = yaml.safe_load((ROOT / "resources/systems/centernet_two_stages.yaml").read_text())
    values["system"] = "tiny"
    # After so few steps every score is about the network's first: one in 100.
    values["detector"] |= {"options": {"encoder": "test_efficientnet", "channels": 8}, "score_threshold": 1e-4}
    values["classifier"] |= {"network": "timm", "options": {"name": "test_efficientnet"}, "input_px": 32}
    for recipe in values["training"].values():
        recipe |= {"steps_an_epoch": 2, "batch": 4}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    crops = ("--data", f"{data}/crops")

    assert centernet.main(arguments(data, path, tmp_path / "detector", *crops)) == 0
    detector = load_system(tmp_path / "detector/model/tiny")
    assert detector.classifier is None
    assert DataSource(set="crops") in detector.made.data

    behind = ("--detector", str(detector.folder))
    assert candidates.main(arguments(data, path, tmp_path / "both", *crops, *behind)) == 0
    learnt = read_proposals(tmp_path / "both/training.safetensors")
    assert learnt.scores.tolist() == [1] * 8
    assert learnt.labels.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    system = load_system(tmp_path / "both/model/tiny")
    assert system.detector.members == detector.detector.members
    assert system.classifier.score_weight == values["classifier"]["score_weight"]
    found = SystemDetector(system, TorchEngine("cpu"))(read_fields([f"{data}/fields:case1"])[0])
    assert len(found) > 0
    assert ((found.probabilities > 0) & (found.probabilities < 1)).all()
