"""Faster R-CNN and SSD against torchvision's own way through them, and one training."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, training_arguments
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from midog.engine.detector import NetworkDetector
from midog.engine.torch_engine import TorchNetwork
from midog.models import torchvision_detectors
from midog.models.torchvision_detectors import ABSENT, PROPOSALS, SSD, FasterRCNN, TileBoxes, torchvision_detector
from midog.system import load_system
from resources.train import torchvision_detector as script

pytestmark = pytest.mark.usefixtures("one_thread")

TRUTHS = [torch.tensor([[10.0, 12, 40, 44], [30, 30, 62, 60]]), torch.zeros(0, 4)]


class Maps(nn.Module):
    """Stands for VGG-16: maps as wide and as coarse as its own, of one layer each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, width, 1) for width in (512, 1024, 512, 256, 256, 256))

    def forward(self, tiles):
        scaled = (nn.functional.avg_pool2d(tiles / 255, 8 << level, ceil_mode=True) for level in range(6))
        named = enumerate(layer(each) for layer, each in zip(self.layers, scaled, strict=True))
        return OrderedDict((str(level), each) for level, each in named)


class SmallSSD(SSD):
    least_side = 32

    def __init__(self):
        super().__init__()
        self.detector.backbone = Maps()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["fasterrcnn_resnet50_fpn", "ssd300_vgg16"])
def pair(request):
    """Our network, and torchvision's whole with the same weights, which leaves images of 64 x 96 px as they are."""
    torch.manual_seed(0)
    same = {"weights": None, "weights_backbone": None, "num_classes": 2}
    if request.param == "ssd300_vgg16":
        ours, theirs = SmallSSD(), ssd300_vgg16(**same, nms_thresh=0.3, score_thresh=0.3, topk_candidates=10_000)
        theirs.backbone, theirs.anchor_generator = Maps(), ours.detector.anchor_generator
        scale = theirs.transform.image_mean, theirs.transform.image_std
        theirs.transform = GeneralizedRCNNTransform(64, 96, *scale, size_divisible=1, fixed_size=(96, 64))
    else:
        ours = FasterRCNN()
        settings = {"min_size": 64, "max_size": 96, "box_nms_thresh": 0.3, "box_score_thresh": 0.3}
        theirs = fasterrcnn_resnet50_fpn(**same, **settings, box_detections_per_img=1000)
        for module in ours.modules():  # as after a training: in a new network the signal grows from block to block
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 0.3)
    theirs.load_state_dict(ours.detector.state_dict())
    return ours, theirs


@torch.no_grad()
def test_boxes_and_scores_are_torchvisions(pair, images):
    ours, theirs = (each.eval() for each in pair)
    boxes, logits = ours(images)
    assert boxes.shape == (2, 4, logits.shape[2])
    assert logits.shape[1] == 1
    network = TorchNetwork(ours, torch.device("cpu"), "float32")
    found = NetworkDetector(network, 0.3, 0.3)(images.numpy())
    for (box, score), expected in zip(found, theirs(list(images)), strict=True):
        assert len(score) > 3
        wanted, sure = expected["boxes"].numpy(), expected["scores"].numpy()
        centres = (box[:, :2] + box[:, 2:]) / 2
        assert ((centres > 0) & (centres < [96, 64])).all()
        best = np.abs(wanted[None] - box[:, None]).max(2).argmin(1)  # theirs keeps those that are centred beyond, too
        np.testing.assert_allclose(box[:4], wanted[best][:4], atol=0.05)
        np.testing.assert_allclose(score[:4], sure[best][:4], atol=1e-4)


def test_losses_are_torchvisions_in_evaluation_too(pair, images):
    """As they are validated: torchvision's whole tells them in training alone, here with the norms as at test."""
    ours, theirs = pair[0].eval(), pair[1].train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    targets = [{"boxes": each, "labels": torch.ones(len(each), dtype=torch.int64)} for each in TRUTHS]
    torch.manual_seed(1)
    expected = theirs(list(images), targets)
    modes = [each.training for each in ours.modules()]
    torch.manual_seed(1)
    losses = ours.losses(images, TRUTHS)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-3, atol=1e-5)
    sum(losses.values()).backward()
    assert all(each.grad is not None for each in ours.parameters())
    assert all(loss.isfinite() for loss in ours.losses(images, [torch.zeros(0, 4)] * 2).values())
    assert [each.training for each in ours.modules()] == modes


def test_a_forward_in_training_measures_the_norms():
    """As the averaged weights' norms are measured, and with as many places as ever."""
    network = FasterRCNN().train()
    with torch.no_grad():
        boxes, logits = network(torch.rand(2, 3, 32, 64))
    assert boxes.shape == (2, 4, PROPOSALS)
    found = logits[0, 0] > ABSENT
    assert 0 < found.sum() < PROPOSALS
    assert not boxes[0, :, ~found].any()


@pytest.mark.parametrize(("height", "width", "finest"), [(32, 64, (36, 36)), (224, 512, (36, 64)), (64, 32, (36, 36))])
def test_vgg_has_its_six_maps_of_every_tile(height, width, finest):
    with torch.device("meta"):
        network = SSD()
    tiles, maps = network.maps(torch.zeros(1, 3, height, width, device="meta"))
    sides = [tuple(each.shape[2:]) for each in maps.values()]
    assert sides[0] == finest
    assert len(sides) == 6
    assert min(sides[-1]) >= 1
    (anchors,) = network.detector.anchor_generator(tiles, list(maps.values()))
    assert len(anchors) == sum(y * x * count for (y, x), count in zip(sides, (4, 6, 6, 6, 4, 4), strict=True))


def test_default_boxes_are_as_large_in_every_tile():
    boxes = TileBoxes([[2], [2]], scales=[0.07, 0.15, 0.33])
    for height, width in ((64, 96), (128, 64)):
        tiles = ImageList(torch.zeros(2, 3, height, width), [(height, width)] * 2)
        maps = [torch.zeros(2, 1, height // stride, width // stride) for stride in (8, 16)]
        first, second = boxes(tiles, maps)
        torch.testing.assert_close(first, second)
        assert len(first) == 4 * sum(each[0, 0].numel() for each in maps)
        torch.testing.assert_close(first[0], torch.tensor([4 - 10.5, 4 - 10.5, 4 + 10.5, 4 + 10.5]))
        torch.testing.assert_close(first[4, :2] - first[0, :2], torch.tensor([8.0, 0.0]))
        coarse = first[4 * maps[0][0, 0].numel()]
        torch.testing.assert_close(coarse, torch.tensor([8 - 22.5, 8 - 22.5, 8 + 22.5, 8 + 22.5]))


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="'yolov3' is not one of fasterrcnn_resnet50_fpn, ssd300_vgg16"):
        torchvision_detector("yolov3")


def test_the_parts_of_a_batch_add_up(images):
    network = SmallSSD()
    loss = script.make_loss()
    parts = [
        loss(network, images[each : each + 1], TRUTHS[each : each + 1], lambda count: 2 * count) for each in (0, 1)
    ]
    expected = [sum(network.losses(images[each : each + 1], TRUTHS[each : each + 1]).values()) for each in (0, 1)]
    torch.testing.assert_close(sum(parts), sum(expected) / 2)


def test_a_training_ends_in_a_system(data, tmp_path, monkeypatch):
    monkeypatch.setitem(torchvision_detectors.NETWORKS, "ssd300_vgg16", SmallSSD)
    values = yaml.safe_load((ROOT / "resources/systems/ssd.yaml").read_text())
    values["detector"]["tile"] = [256, 256]
    values["training"]["detector"] |= {"tile": [64, 64], "epochs": 1, "steps_an_epoch": 2, "batch": 2}
    (tmp_path / "ssd.yaml").write_text(yaml.safe_dump(values))
    assert script.main(training_arguments(data, tmp_path / "ssd.yaml", tmp_path / "out")) == 0
    model = load_system(tmp_path / "out/model/ssd")
    assert [each.weights for each in model.detector.members] == ["detector.safetensors"]
