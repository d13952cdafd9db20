"""YOLO11 and its attention blocks against the published numbers, Ultralytics' own graph and hand-made cases."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

from midog.engine.torch_engine import fold_batch_norms
from midog.models.attention import EMAAttention, LSConv, small_kernel_aggregation
from midog.models.yolo11 import OUTPUT_BLOCKS, YOLO11, Detect
from resources.train.kit.yolo11_loss import YOLO11Loss

AS_BUILT = {"lsconv": (22,), "ema": True}
AS_WRITTEN = {"lsconv": OUTPUT_BLOCKS, "ema": True}


@pytest.fixture(autouse=True)
def _same_draws_every_time():
    torch.manual_seed(0)


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def with_drawn_norms(network):
    """Every batch norm as after a training, because in a new network the signal dies and mistakes do not show."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
    with torch.no_grad():
        network.train()(torch.rand(2, 3, 128, 128))
    return network.eval()


@pytest.mark.parametrize(
    ("scale", "num_classes", "options", "expected"),
    [
        ("n", 80, {}, 2_624_080),
        ("s", 80, {}, 9_458_752),
        ("m", 80, {}, 20_114_688),
        ("l", 80, {}, 25_372_160),
        ("x", 80, {}, 56_966_176),
        ("x", 1, {}, 56_874_931),
        ("x", 80, AS_BUILT, 54_231_664),
        ("x", 1, AS_BUILT, 54_140_419),
        ("x", 80, {"ema": True}, 56_084_560),
        ("x", 1, {"ema": True}, 55_993_315),
        ("x", 80, AS_WRITTEN, 53_593_312),
        ("x", 1, AS_WRITTEN, 53_502_067),
    ],
)
def test_number_of_parameters(scale, num_classes, options, expected):
    with torch.device("meta"):
        assert parameters(YOLO11(scale, num_classes, **options)) == expected


def test_number_of_parameters_of_the_blocks():
    assert [parameters(LSConv(channels)) for channels in (64, 96, 192)] == [7_480, 15_252, 54_696]
    assert [parameters(EMAAttention(channels)) for channels in (384, 768)] == [1_488, 5_856]


def test_options_that_cannot_be_built():
    for build, words in (
        (lambda: YOLO11("q"), "n, s, m, l, x"),
        (lambda: YOLO11("n", lsconv=(10,)), "16, 19, 22"),
        (lambda: LSConv(12), "12"),
        (lambda: EMAAttention(40), "32 groups"),
    ):
        with pytest.raises(ValueError, match=words):
            build()


def test_small_kernel_aggregation_is_a_filter_a_pixel_shared_by_every_eighth_channel():
    x, filters = torch.randn(2, 16, 4, 5), torch.randn(2, 2, 9, 4, 5)
    got = small_kernel_aggregation(x, filters)
    windows = F.unfold(x, 3, padding=1).view(2, 16, 9, 4, 5)
    expected = torch.stack([(windows[:, c] * filters[:, c % 2]).sum(1) for c in range(16)], 1)
    torch.testing.assert_close(got, expected)

    centre = torch.zeros(2, 2, 9, 4, 5).index_fill_(2, torch.tensor(4), 1)
    torch.testing.assert_close(small_kernel_aggregation(x, centre), x)
    box = F.avg_pool2d(x, 3, 1, 1, divisor_override=1)
    torch.testing.assert_close(small_kernel_aggregation(x, torch.ones(2, 2, 9, 4, 5)), box)


def test_lsconv_without_its_last_norm_is_the_identity():
    block, x = LSConv(16), torch.randn(2, 16, 5, 4)
    nn.init.zeros_(block.bn.weight)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("size", [(2, 2), (2, 7), (5, 3)])
def test_ema_attention_only_weakens(size):
    block, x = EMAAttention(64), torch.randn(2, 64, *size)
    y = block(x)
    assert y.shape == x.shape
    assert (y * x >= 0).all()
    assert (y.abs() < x.abs()).all()
    assert 0.1 < (y / x).std() / (y / x).mean() < 1  # it looks at the map


def test_gradients():
    x = torch.randn(2, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(2, 1, 9, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(small_kernel_aggregation, (x, filters))
    for block in (LSConv(8).eval(), LSConv(8).train(), EMAAttention(8, groups=2)):
        assert torch.autograd.gradcheck(block.double(), x)


@pytest.mark.parametrize("scale", ["n", "m"])  # m and larger have C3k blocks whatever the YAML says
def test_the_same_function_as_ultralytics(scale):
    YOLO11Loss()  # Ultralytics' import, without what it does to others
    from ultralytics.nn.tasks import DetectionModel

    theirs = with_drawn_norms(DetectionModel(f"yolo11{scale}.yaml", nc=1, verbose=False))
    ours = YOLO11(scale).eval()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    tiles = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        expected = theirs(tiles)[0]
        boxes, logits = ours(tiles)
        centres, sides = expected[:, :2], expected[:, 2:4]
        torch.testing.assert_close(boxes, torch.cat([centres - sides / 2, centres + sides / 2], 1), atol=0.01, rtol=0)
        torch.testing.assert_close(logits.sigmoid(), expected[:, 4:], atol=1e-5, rtol=1e-3)
        assert boxes.std(2).min() > 1
        assert logits.std() > 1e-3

        theirs.model[9].cv1.act = nn.Identity()
        without_act = YOLO11(scale, sppf_act=False).eval()
        without_act.load_state_dict(ours.state_dict())
        torch.testing.assert_close(without_act(tiles)[1].sigmoid(), theirs(tiles)[0][:, 4:], atol=1e-5, rtol=1e-3)
        assert (without_act(tiles)[1] - logits).abs().max() > 0.1


def test_fusing_changes_nothing_but_the_norms():
    network = with_drawn_norms(YOLO11("n", **AS_WRITTEN))
    tiles = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = network(tiles)
        for got, expected in zip(fold_batch_norms(network)(tiles), before, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    after_aggregation = [f"{name}.bn" for name, module in network.named_modules() if isinstance(module, LSConv)]
    assert norms == after_aggregation
    assert len(norms) == 6


def test_boxes_by_hand():
    head = Detect(1, (8, 8, 8)).eval()
    for branch in head.cv2:  # distances 1, 2, 3 and 4 strides, the last as the mean of bins 3 and 5
        nn.init.zeros_(branch[-1].weight)
        bins = torch.zeros(4, 16)
        bins[[0, 1, 2, 3, 3], [1, 2, 3, 3, 5]] = 100
        branch[-1].bias.data = bins.flatten()
    boxes, logits = head([torch.zeros(1, 8, 64, 64), torch.zeros(1, 8, 32, 32), torch.zeros(1, 8, 16, 16)])
    assert boxes.shape == (1, 4, 5376)
    assert logits.shape == (1, 1, 5376)
    for point, stride, row, column in ((64 * 5 + 7, 8, 5, 7), (4096, 16, 0, 0), (5120 + 16 * 3 + 15, 32, 3, 15)):
        x, y = column + 0.5, row + 0.5
        expected = torch.tensor([x - 1, y - 2, x + 3, y + 4]) * stride
        torch.testing.assert_close(boxes[0, :, point], expected)


@torch.no_grad()
def test_boxes_are_decoded_in_float32_under_autocast():
    network = YOLO11("n").eval()
    tiles = torch.rand(1, 3, 64, 512)
    expected, _ = network(tiles)
    with torch.autocast("cpu", torch.bfloat16):
        boxes, logits = network(tiles)
    assert boxes.dtype == torch.float32
    assert logits.dtype == torch.bfloat16
    assert expected.max() > 480
    assert (boxes - expected).abs().max() < 0.5  # bfloat16 has steps of 2 px from 256 px on


def test_inference_imports_nothing_of_the_training():
    heavy = "ultralytics", "torchvision", "pandas", "cv2"
    program = (
        "import sys, os, midog.models.yolo11, midog.engine.detector;"
        f"print([name for name in {heavy} if name in sys.modules], os.environ.get('OMP_NUM_THREADS'))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for threads in ({}, {"OMP_NUM_THREADS": "3"}):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, env=environment | threads, capture_output=True, text=True, check=True)
        assert done.stdout.split("] ") == ["[", f"{threads.get('OMP_NUM_THREADS')}\n"]
