"""The registry of networks, ConvNeXt V2 and EfficientNet-Lite against timm's, and timm's networks of every make."""

import re
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from conftest import ROOT
from test_yolo11 import with_drawn_norms
from torch import nn

from midog.engine.torch_engine import WithoutRandomStart, fold_batch_norms
from midog.models import CLASSIFIERS, DETECTORS, Registry, build, classifier_options, normalisation
from midog.models.classifiers import Block, ConvNeXtV2, GlobalResponseNorm, timm_classifier
from midog.models.efficientnet_lite import (
    Conv2d,
    EfficientNetLite,
    EfficientNetLiteMaps,
    InvertedResidual,
    scaled_channels,
)
from midog.models.rtmdet import RTMDet


def randomise(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.2
    return network


def test_base_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = ConvNeXtV2((128, 256, 512, 1024), (3, 3, 27, 3), "patch")
    assert sum(parameter.numel() for parameter in network.parameters()) == 87_693_825


def test_the_same_function_as_timms() -> None:
    from timm.models.convnext import ConvNeXt

    theirs = (
        ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 8, 16, 32), num_classes=3, use_grn=True, ls_init_value=None)
        .double()
        .eval()
    )
    ours = ConvNeXtV2((8, 8, 16, 32), (1, 1, 2, 1), "patch", num_classes=3).double().eval()
    ours.load_state_dict(randomise(theirs).state_dict())
    crops = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(crops), theirs(crops), atol=1e-9, rtol=1e-9)
    assert ours(crops).std() > 1e-3


def test_global_response_norm_by_hand() -> None:
    norm = GlobalResponseNorm(2)
    x = torch.tensor([[[[3.0, 1.0], [4.0, 0.0]]]])  # channel norms 5 and 1, their mean 3
    torch.testing.assert_close(norm(x), x)  # gamma and beta start at 0
    torch.nn.init.ones_(norm.weight)
    torch.testing.assert_close(norm(x), x * (1 + torch.tensor([5 / 3, 1 / 3])))


def test_a_silent_channel_has_a_gradient() -> None:
    norm = GlobalResponseNorm(2)
    torch.nn.init.ones_(norm.weight)
    x = torch.tensor([[[[3.0, 0.0], [4.0, 0.0]]]], requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_gradients_of_a_block() -> None:
    block = randomise(Block(4, drop_path_rate=0.0).double())
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x)


def test_drop_path_skips_whole_images_in_training_only() -> None:
    block = randomise(Block(4, drop_path_rate=0.5))
    x = torch.randn(64, 4, 5, 5)
    torch.manual_seed(0)
    skipped = (block.train()(x) == x).flatten(1).all(1)
    assert 10 < skipped.sum() < 54
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_stage_maps_of_the_early_stem() -> None:
    network = ConvNeXtV2((16, 32, 64), (1, 1, 1), "early")
    assert [tuple(each.shape) for each in network.stage_maps(torch.zeros(2, 3, 64, 64))] == [
        (2, 16, 16, 16),
        (2, 32, 8, 8),
        (2, 64, 4, 4),
    ]
    with pytest.raises(ValueError, match="patch, early"):
        ConvNeXtV2((16,), (1,), "none")


def timm_maps(name: str) -> Any:
    """timm's network of that name as an encoder: maps of strides 2 to 16."""
    return timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(0, 1, 2, 3))


def lites(version: int, **options: float) -> tuple[nn.Module, EfficientNetLite]:
    """timm's and ours, not yet with the same weights."""
    torch.manual_seed(0)
    with WithoutRandomStart():
        ours = EfficientNetLite(version, num_classes=2, **options)
    return timm_classifier(f"tf_efficientnet_lite{version}", num_classes=2, **options), ours


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("version", "sides"), [(0, [(96, 96), (128, 128), (75, 75)]), (2, [(66, 67)])])
def test_lite_is_the_same_function_as_timms(version: int, sides: list[tuple[int, int]]) -> None:
    theirs, ours = lites(version)
    ours.load_state_dict(with_drawn_norms(theirs).state_dict())
    ours.eval()
    with torch.inference_mode():
        for side in sides:
            crops = torch.rand(2, 3, *side)
            expected = theirs(crops)
            torch.testing.assert_close(ours(crops), expected)
            assert (expected[0] - expected[1]).abs().max() > 1e-2
        folded = fold_batch_norms(ours)(crops)
    torch.testing.assert_close(folded, expected, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("version", [0, 4])
def test_lites_maps_are_those_of_timms(version: int) -> None:
    theirs = with_drawn_norms(timm_maps(f"tf_efficientnet_lite{version}")).eval()
    with WithoutRandomStart():
        ours = EfficientNetLiteMaps(version).eval()
    ours.load_state_dict(theirs.state_dict())
    assert (list(ours.strides), ours.widths) == (theirs.feature_info.reduction(), theirs.feature_info.channels())
    images = torch.rand(1, 3, 48, 33)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_lite_trains_as_timms() -> None:
    networks = lites(0, drop_rate=0.2, drop_path_rate=0.4)
    networks[1].load_state_dict(networks[0].state_dict())
    crops, answers = torch.rand(4, 3, 32, 32), []
    for network in networks:
        torch.manual_seed(1)  # both draw the same images to be skipped, at the same rates
        answers.append(network.train()(crops))
        answers[-1].square().sum().backward()
    torch.testing.assert_close(answers[1], answers[0])
    for theirs, ours in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)
    for theirs, ours in zip(*(network.buffers() for network in networks), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_stochastic_depth_of_lite_grows_linearly_and_skips_whole_images() -> None:
    with torch.device("meta"):
        network = EfficientNetLite(drop_path_rate=0.32)
    rates = [block.drop_path_rate for block in network.modules() if isinstance(block, InvertedResidual)]
    torch.testing.assert_close(rates, [0.02 * number for number in range(1, 16)])  # the first block has none
    block = randomise(InvertedResidual(8, 8, 3, 1, 6, drop_path_rate=0.25))
    x = torch.randn(400, 8, 2, 2)
    torch.manual_seed(0)
    y = block.train()(x) - x
    skipped = (y == 0).flatten(1).all(1)
    assert 75 < skipped.sum() < 125
    block.drop_path_rate = 0.0
    torch.testing.assert_close(y[~skipped], (block(x) - x)[~skipped] / 0.75, atol=1e-5, rtol=1e-5)


def test_every_lite_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        networks = [EfficientNetLite(version, num_classes=1000) for version in range(5)]
    assert [sum(parameter.numel() for parameter in network.parameters()) for network in networks] == [
        *(4_652_008, 5_416_680, 6_092_072, 8_197_096, 13_006_568)
    ]


def test_lite_by_hand() -> None:
    ones = Conv2d(1, 1, 3, stride=2)
    nn.init.ones_(ones.weight)
    assert ones(torch.ones(1, 1, 4, 4)).tolist() == [[[[9, 6], [6, 4]]]]  # nothing before, one row behind
    assert ones(torch.ones(1, 1, 3, 3)).tolist() == [[[[4, 4], [4, 4]]]]  # a row on both sides
    assert [scaled_channels(24, scale) for scale in (1.1, 1.2, 1.4)] == [24, 32, 32]  # 26.4, 28.8, 33.6
    assert scaled_channels(10, 1.0) == 16  # 8 would be below .9 of it
    with pytest.raises(ValueError, match="version 5 is not one of 0 to 4"):
        EfficientNetLite(5)


def test_lite_starts_with_a_spread_by_fan_out() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite()
    block = network.blocks[5][1]
    for weight, fan_out in ((network.conv_head.weight, 1280), (block.conv_dw.weight, 25), (block.conv_pw.weight, 1152)):
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


def test_a_name_builds_a_network() -> None:
    for registry, name, options in (
        (DETECTORS, "yolo11", {"scale": "n"}),
        (DETECTORS, "rtmdet", {"size": "tiny"}),
        (DETECTORS, "focasnet", {"backbone": 18, "levels": 2, "width": 32}),
        (DETECTORS, "torchvision_detector", {"name": "ssd300_vgg16"}),
        (CLASSIFIERS, "convnextv2", {"widths": [8], "depths": [1], "num_classes": 2}),
        (CLASSIFIERS, "efficientnet_lite", {"version": 2}),
        (CLASSIFIERS, "timm", {"name": "resnet10t"}),
    ):
        with torch.device("meta"):
            assert isinstance(build(registry, name, options), nn.Module)
    with pytest.raises(ValueError, match="'yolo9' is not one of yolo11, rtmdet, focasnet"):
        build(DETECTORS, "yolo9", {})


def test_a_network_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, "linear", nn.Linear)
    assert build(DETECTORS, "linear", {"in_features": 2, "out_features": 3}).weight.shape == (3, 2)


def test_a_network_imports_no_other() -> None:
    program = """
import sys, midog.models as models
print("torch" in sys.modules)
models.build(models.DETECTORS, "rtmdet", {"size": "tiny"})
models.normalisation(models.build(models.CLASSIFIERS, "efficientnet_lite", {}))
print([name for name in ("timm", "midog.models.yolo11", "midog.models.classifiers") if name in sys.modules])
print([name for name in sys.modules if name.startswith("midog.") and not name.startswith("midog.models")])
from pathlib import Path
from midog.system import DEFAULT_SYSTEMS, read_system
systems = [read_system(Path(f"resources/systems/{name}.yaml")) for name in DEFAULT_SYSTEMS.values()]
before = set(sys.modules)
for system in systems:
    if system.detector:
        models.build(models.DETECTORS, system.detector.network, system.detector.options)
    models.normalisation(models.build(models.CLASSIFIERS, system.classifier.network, system.classifier.options))
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "[]", "[]", "midog.models.centernet"]


SMALL_DETECTORS: dict[str, dict[str, object]] = {
    "rtmdet": {"size": "tiny"},
    "yolo11": {"scale": "n", "lsconv": (16, 19, 22), "ema": True},
    "focasnet": {"backbone": 18, "levels": 2, "width": 32, "depth": 1},
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("registry", "name", "options"),
    [
        *((DETECTORS, name, options) for name, options in SMALL_DETECTORS.items()),
        (DETECTORS, "centernet", {"encoder": "tf_efficientnet_lite0", "channels": 8}),
        (CLASSIFIERS, "convnextv2", {"widths": (8, 16), "depths": (1, 1), "stem": "early"}),
        (CLASSIFIERS, "efficientnet_lite", {}),
    ],
)
def test_a_trace_holds_for_other_batches_and_sides(registry: Registry, name: str, options: dict[str, object]) -> None:
    """As an export to another runtime needs it."""
    torch.manual_seed(0)
    network = build(registry, name, options).eval()
    sides = ((96, 32), (32, 64)) if registry is DETECTORS else ((45, 64), (64, 31))
    with torch.inference_mode():
        trace = torch.jit.trace(network, torch.rand(2, 3, 32, 64), check_trace=False)
        for batch, side in zip((1, 3), sides, strict=True):
            images = torch.rand(batch, 3, *side)
            torch.testing.assert_close(trace(images), network(images))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SMALL_DETECTORS)
def test_boxes_are_decoded_in_float32_where_convolutions_are_not(name: str) -> None:
    """Of a head that gives numbers which half precision holds, far enough from 0 that it would not hold their boxes."""
    torch.manual_seed(0)
    network = build(DETECTORS, name, SMALL_DETECTORS[name]).eval()
    if isinstance(network, RTMDet):
        network.bbox_head.exponential = True  # as of the larger sizes
    last = re.compile(r"bbox_head\.rtm_reg\.\d|head\.(anchor|free)_box|model\.23\.cv2\.\d\.2")
    found = [module for path, module in network.named_modules() if last.fullmatch(path)]
    assert len(found) == (2 if name == "focasnet" else 3)
    for convolution in found:
        nn.init.zeros_(convolution.weight)
        convolution.bias.data = torch.randint(-8, 9, convolution.bias.shape) / 8
    images = torch.rand(1, 3, 32, 640)
    with torch.inference_mode():
        expected, _ = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            boxes, _ = network(images)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, expected)
    assert not torch.equal(boxes, boxes.bfloat16().float())


HALVES = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("densenet121", (0.485, 0.456, 0.406)),  # without stochastic depth
        ("vgg11", (0.485, 0.456, 0.406)),
        ("resnet34", (0.485, 0.456, 0.406)),
        ("convnext_tiny", (0.485, 0.456, 0.406)),
        ("vit_tiny_patch16_224", HALVES),  # made for one size
        ("tf_efficientnetv2_b0.in1k", (0.485, 0.456, 0.406)),
        ("tf_efficientnetv2_b0", (0.485, 0.456, 0.406)),
    ],
)
def test_any_network_of_timm(name: str, mean: tuple[float, ...]) -> None:
    with torch.device("meta"):
        network = build(CLASSIFIERS, "timm", classifier_options("timm", {"name": name, "num_classes": 2}, 64)).eval()
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    assert normalisation(network)[0] == mean


def test_the_tag_of_the_weights_decides_the_normalisation() -> None:
    with torch.device("meta"):
        assert normalisation(timm_classifier("vit_tiny_patch16_224")) == (HALVES, HALVES)
        assert normalisation(timm_classifier("tf_efficientnetv2_s.in21k_ft_in1k")) == (HALVES, HALVES)
        assert normalisation(EfficientNetLite()) == (HALVES, HALVES)
        assert normalisation(ConvNeXtV2((8,), (1,))) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_stochastic_depth_where_there_is_some() -> None:
    with torch.device("meta"):
        timm_classifier("resnet34", drop_path_rate=0.1)
        with pytest.raises(TypeError, match="drop_path_rate"):
            timm_classifier("densenet121", drop_path_rate=0.1)


def test_options_of_our_own_networks_know_no_input_size() -> None:
    assert classifier_options("convnextv2", {"widths": [8]}, 64) == {"widths": [8]}
    assert classifier_options("timm", {"name": "a", "img_size": 32}, 64) == {"name": "a", "img_size": 32}
