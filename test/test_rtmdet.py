"""RTMDet: published counts, shapes, its grid points, assignment, losses, overfitting."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from msgspec.structs import replace
from torchvision.ops import sigmoid_focal_loss

from midog.engine.detector import NetworkDetector
from midog.engine.torch_engine import TorchEngine, TorchNetwork
from midog.engine.two_stages import SystemDetector
from midog.evaluation.metrics import match
from midog.models.rtmdet import BGR_MEAN, BGR_STD, PRIOR, RTMDet, grid_points
from midog.system import Weights, load_system, read_system
from resources.data import synthetic
from resources.data.fields import read_fields
from resources.train import ablation
from resources.train.kit.export import save_weights, write_model
from resources.train.kit.rtmdet_loss import RTMDetLoss, assign, paired_iou

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 40


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "num_classes", "parameters"),
    [
        *[("s", 80, 8_886_924), ("s", 1, 8_856_351), ("tiny", 80, 4_896_168)],
        *[("m", 80, 24_709_188), ("l", 80, 52_315_804), ("x", 80, 94_855_572)],
    ],
)
def test_parameters_are_those_published(size, num_classes, parameters):
    with torch.device("meta"):
        network = RTMDet(size, num_classes)
    assert count(network) == parameters
    if (size, num_classes) == ("s", 80):
        parts = network.backbone, network.neck, network.bbox_head
        assert [count(part) for part in parts] == [4_378_320, 3_883_200, 625_404]


@pytest.mark.parametrize("backbone", ["convnext_base", "swin_base_patch4_window12_384"])
def test_with_a_backbone_of_timm_neck_and_head_are_those_of_mmdetections_l(backbone):
    with torch.device("meta"):
        network, stock = RTMDet("l", 80, backbone), RTMDet("l", 80)
    assert [count(each) for each in (network.neck, network.bbox_head)] == [23_746_688, 2_430_204]
    assert {name for name, _ in network.state_dict().items() if not name.startswith("backbone.")} == {
        name for name, _ in stock.state_dict().items() if not name.startswith("backbone.")
    }


@pytest.mark.parametrize("backbone", ["convnext_atto", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_a_backbone_of_timm_takes_every_tile_in_its_own_colours(backbone):
    network, seen, answers = RTMDet("tiny", backbone=backbone).eval(), [], []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for height, width in ((32, 64), (96, 160), (224, 224), (32, 64)):
        tile = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        boxes, logits = network(tile)
        assert boxes.shape[2] == logits.shape[2] == grid_points(height, width, "cpu")[0].shape[1]
        assert boxes.isfinite().all()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        torch.testing.assert_close(seen.pop()[0, :, 5, 7], (tile[0, :, 5, 7] - mean) / std)
        if (height, width) == (32, 64):
            answers.append(logits)
    torch.testing.assert_close(*answers)  # tiles of other sizes between leave nothing behind


def test_a_backbone_without_maps_of_these_strides_is_refused():
    for backbone, words in (("resnet18", r"strides \[4, 8, 16\]"), ("resnet19", "no network of timm")):
        with torch.device("meta"), pytest.raises(ValueError, match=words):
            RTMDet("tiny", backbone=backbone)


def test_an_image_of_640_px_has_8400_grid_points():
    network = RTMDet("tiny", 3).eval()
    with torch.no_grad():
        boxes, logits = network(torch.rand(2, 3, 64, 96))
    assert boxes.shape == (2, 4, (8 * 12 + 4 * 6 + 2 * 3))
    assert logits.shape == (2, 3, 126)
    points, strides = grid_points(640, 640, "cpu")
    assert points.shape == (2, 8400)
    assert [(strides == stride).sum().item() for stride in (8, 16, 32)] == [6400, 1600, 400]
    assert points[:, :2].T.tolist() == [[0, 0], [8, 0]]  # offset 0; x runs first
    assert points[:, 6400 + 41].tolist() == [16, 16]
    assert torch.sigmoid(logits).mean().item() == pytest.approx(PRIOR, abs=0.005)


def test_a_box_is_its_distances_times_the_stride_from_its_point():
    network = RTMDet("tiny").eval()
    for level in range(3):
        torch.nn.init.zeros_(network.bbox_head.rtm_reg[level].weight)
        with torch.no_grad():
            network.bbox_head.rtm_reg[level].bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    with torch.no_grad():
        boxes, _ = network(torch.rand(1, 3, 64, 64))
    assert boxes[0, :, 9].tolist() == [8 - 8, 8 - 16, 8 + 24, 8 + 32]
    assert boxes[0, :, 64 + 5].tolist() == [16 - 16, 16 - 32, 16 + 48, 16 + 64]


def test_input_is_normalised_in_blue_green_red():
    network = RTMDet("tiny").eval()
    seen = []
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    red = torch.tensor([1.0, 0.0, 0.5])[None, :, None, None].expand(1, 3, 64, 64)
    with torch.no_grad():
        network(red)
    expected = (torch.tensor([127.5, 0.0, 255.0]) - torch.tensor(BGR_MEAN)) / torch.tensor(BGR_STD)
    torch.testing.assert_close(seen[0][0, :, 3, 3], expected, atol=1e-4, rtol=1e-4)


def grid(truths, boxes=None, logits=None):
    """Assignment in an image of 64 px, where every point predicts `boxes` (or the truth it is nearest to)."""
    points, strides = grid_points(64, 64, "cpu")
    truths = torch.tensor(truths, dtype=torch.float32).view(-1, 4)
    if boxes is None:
        middles = (truths[:, :2] + truths[:, 2:]) / 2
        boxes = truths[torch.cdist(points.T, middles).argmin(1)]
    logits = torch.zeros(len(boxes)) if logits is None else logits
    owner, quality = assign(boxes, logits, points, strides, truths)
    return points, strides, owner, quality


def test_a_truth_gets_as_many_points_as_its_best_overlaps_sum_to():
    """Every point inside predicts the truth exactly: the 13 best overlaps sum to 13."""
    points, _, owner, quality = grid([[4, 4, 60, 60]])
    assert (owner == 0).sum() == 13
    assert torch.equal(quality > 0, owner == 0)
    away = (points.T - 32).norm(dim=1)
    assert away[owner == 0].max() < 20  # the centre prior: the nearest ones


def test_a_truth_whose_boxes_are_all_bad_keeps_one_point():
    boxes = torch.tensor([[60.0, 60, 64, 64]]).expand(84, 4)
    points, strides, owner, _ = grid([[0, 0, 24, 24]], boxes)
    assert (owner == 0).sum() == 1
    distance = (points[:, owner == 0].T - 12).norm() / strides[owner == 0]
    assert distance.item() == pytest.approx(min(((points.T - 12).norm(dim=1) / strides).tolist()))


def test_a_point_that_two_truths_want_goes_to_the_cheaper():
    """Both hold the point (32, 32); its box is the second one's."""
    truths = [[8, 8, 40, 40], [24, 24, 56, 56]]
    boxes = torch.tensor(truths[1], dtype=torch.float32).expand(84, 4)
    points, _, owner, quality = grid(truths, boxes)
    point = ((points == 32).all(0)).nonzero()[0, 0]
    assert owner[point] == 1
    assert quality[point] == 1
    assert (owner == 0).any()  # the least a truth gets is one point


def test_no_truths_no_points():
    _, _, owner, quality = grid([], torch.rand(84, 4))
    assert (owner == -1).all()
    assert not quality.any()


class Fixed(torch.nn.Module):
    """A network that says what it was told."""

    def __init__(self, boxes, logits):
        super().__init__()
        self.boxes, self.logits = torch.nn.Parameter(boxes), torch.nn.Parameter(logits)

    def forward(self, images):
        return self.boxes, self.logits


@pytest.mark.parametrize("kind", ["focal", "quality"])
def test_loss_of_a_batch_by_hand(kind):
    """Image 0 has a truth that one point finds with IoU .5, image 1 none; logits are 0 everywhere."""
    truth = torch.tensor([[20.0, 20, 44, 44]])
    boxes = torch.full((2, 84, 4), 60.0)
    boxes[..., 2:] = 64
    points, _ = grid_points(64, 64, "cpu")
    point = (points == 32).all(0).nonzero()[0, 0]
    boxes[0, point] = torch.tensor([20.0, 20, 44, 32])
    network = Fixed(boxes.transpose(1, 2).clone(), torch.zeros(2, 1, 84))
    loss = RTMDetLoss(kind)(network, torch.zeros(2, 3, 64, 64), [truth, torch.zeros(0, 4)])
    entropy = np.log(2)
    if kind == "focal":  # alpha .25 and .75, (1 - p)^2 = 1/4
        expected = 0.25 * entropy * (0.25 + 167 * 0.75) + 2 * 0.5
    else:  # |y - .5|^2 is 0 for the positive, 1/4 elsewhere; GIoU is IoU here; all over the sum of u, at least 1
        expected = 167 * 0.25 * entropy + 2 * 0.5 * 0.5
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert network.boxes.grad[1].abs().sum() == 0
    assert network.boxes.grad[0, :, point].abs().sum() > 0


def test_the_focal_part_is_torchvision_s_with_hard_targets():
    logits = torch.linspace(-3, 3, 84).view(1, 1, 84)
    network = Fixed(torch.zeros(1, 4, 84), logits)
    loss = RTMDetLoss("focal")(network, torch.zeros(1, 3, 64, 64), [torch.zeros(0, 4)])
    assert loss.item() == pytest.approx(sigmoid_focal_loss(logits, torch.zeros(1, 1, 84), reduction="sum").item())


def test_paired_overlap_has_right_gradients():
    first = torch.tensor([[0.0, 0, 10, 10], [3, 4, 20, 9]], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([[2.0, 3, 12, 9], [1, 1, 18, 30]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda boxes: paired_iou(boxes, second), first)
    assert paired_iou(first, second)[0].item() == pytest.approx(48 / (100 + 60 - 48))
    inverted = torch.tensor([[5.0, 5, 1, 1]])
    assert paired_iou(inverted, torch.tensor([[0.0, 0, 10, 10]])).item() == 0


def drawn_tiles():
    """Four of the sample stack's crops, a figure in the middle of each."""
    pages = synthetic.stack(4, seed=4)[0]
    return [(page, np.full((1, 2), 63.5)) for page in pages]


def real_tiles():
    """Tiles of 128 px around the first figures of MITOS-ATYPIA 2014's case 03."""
    folder = ROOT.parent / "shared" / "data" / "atypia14_h"
    if not folder.is_dir():
        pytest.skip("the real images are not here")
    tiles = []
    for field in [each.at(0.25) for each in read_fields([f"{folder}:H03"])[:4]]:
        corner = (field.figures[0].astype(int) - 64).clip(0, np.array(field.size) - 128)
        points = field.figures - corner
        points = points[((points >= 0) & (points < 128)).all(1)]
        tiles.append((field.read(*corner, 128, 128), points))
    return tiles


@pytest.mark.parametrize("make", [drawn_tiles, real_tiles])
def test_it_learns_a_few_tiles_by_heart(make):
    """F1 1.0 after some steps: every figure found within 7.5 um, and nothing else."""
    torch.manual_seed(0)
    tiles = make()
    images = torch.stack([torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1) / 255 for pixels, _ in tiles])
    truths = [torch.from_numpy(np.concatenate([points - 25, points + 25], 1)).float() for _, points in tiles]
    network, loss = RTMDet("tiny").to(memory_format=torch.channels_last), RTMDetLoss("focal")
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(network, images, truths).backward()
        optimizer.step()
    found = NetworkDetector(TorchNetwork(network, torch.device("cpu"), "float32"), 0.5, 0.3)(images.numpy())
    for (boxes, _), (_, points) in zip(found, tiles, strict=True):
        assert len(boxes) == len(points)
        assert (match(points, (boxes[:, :2] + boxes[:, 2:]) / 2, 30) >= 0).all()


def test_one_weight_average_is_a_system_by_one_command(data, tmp_path, capsys):
    """Of a run's members the second, which sees each tile once, with its own operating point."""
    recipe = read_system(ROOT / "resources/systems/rtmdet_s.yaml")
    folder = tmp_path / "run/rtmdet_s"
    folder.mkdir(parents=True)
    members = []
    for number in range(3):
        torch.manual_seed(number)
        name = f"member{number}.safetensors"
        members.append(Weights(weights=name, sha256=save_weights(RTMDet("tiny").state_dict(), folder / name)))
    changes = {"options": {"size": "tiny"}, "tile": (256, 256), "score_threshold": 0.001, "members": tuple(members)}
    write_model(folder, replace(recipe, detector=replace(recipe.detector, **changes), training={}))
    said = ["--model", str(tmp_path / "run"), "--system", "rtmdet_s", "--validation", f"{data}/fields:case1"]
    assert ablation.main([*said, "--only", "member2", "--out", str(tmp_path / "alone"), "--device", "cpu"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["variant", "member2"]
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["member2"]
    alone = load_system(tmp_path / "alone/member2")
    assert [each.sha256 for each in alone.detector.members] == [members[2].sha256]
    assert alone.detector.views == 1
    found = SystemDetector(alone, TorchEngine("cpu"))(read_fields([f"{data}/fields:case1"])[0])
    assert ((found.probabilities >= 0) & (found.probabilities <= 1)).all()
