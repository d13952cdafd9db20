"""M_det of FoCasNet: a one-stage detector with anchor-based and anchor-free outputs on one feature pyramid.

Wang et al., "A novel dataset and a two-stage mitosis nuclei detection method
based on hybrid anchor branch", arXiv 2301.07627, section 3.1. The backbone is
ResNet (He et al., arXiv 1512.03385) with timm's parameter names, so that timm's
ImageNet weights load; the pyramid FPN (Lin et al., arXiv 1612.03144); the
anchor-based branch RetinaNet (Lin et al., arXiv 1708.02002); the anchor-free
one FSAF (Zhu et al., arXiv 1903.00621).

Where the paper leaves a choice open:

- CBAM is "between the convolutional layers": here in every residual block, after its last norm and before the
  addition, which is the place of CBAM's own paper (figure 3) and of the authors' code. Equations 1 and 2 print the
  mean twice; the text below them has mean and maximum, and so does `CBAM`.
- Weight standardisation and group norm are in the backbone only; pyramid and head have no norm in either source.
- The anchor-based branch has "3 convolutional layers" in one sentence and four and an output in another, of "C = 2"
  kernels: here four of the pyramid's width, as in RetinaNet, which it describes.
- The anchor-free branch shares these four convolutions and adds one for the class and one for the box (FSAF, figure 4).
- No sizes of anchors are given: here 3 strides instead of RetinaNet's 4, because figures of 20 to 70 px are small.

The authors' code differs from the paper: its backbone is ResNeXt-50 (Xie et al., arXiv 1611.05431), and it has the
anchor-free branch alone: `backbone: resnext50, anchor_based: false`.

Written here from the papers. Original code: antifen/mitosis-nuclei-detection,
licence not checked; none of its weights are used. timm's code is Apache-2.0, each of
its ImageNet weights, from which a training may start, has a licence of its own.

The paper's numbers are not ours to compare with: its F1 (printed upside down in equation 6) counts a figure as found
within 5 um, and the authors' matching lets two figures share one prediction.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from midog.models import IMAGENET_MEAN, IMAGENET_STD
from midog.models.attention import CBAM

FINEST_STRIDE = 8
ANCHOR_SIDE = 3  # of the smallest square anchor, in strides
ANCHOR_SCALES = (1, 2 ** (1 / 3), 2 ** (2 / 3))
ANCHOR_RATIOS = (0.5, 1, 2)  # height over width
ANCHORS = len(ANCHOR_SCALES) * len(ANCHOR_RATIOS)  # a grid point
MAX_LOG_GROWTH = math.log(1000 / 16)  # of an anchor's side: exp must not overflow
DISTANCE_UNIT = 4  # strides (FSAF, section 3.2: S)
MIN_DISTANCE = 1e-4  # units
PRIOR = 0.01  # probability of a figure that an untrained network gives (RetinaNet, section 4.1)


class AnchorBased(NamedTuple):
    """What the anchor-based branch gives for A anchors: of all levels, fine to coarse, row by row.

    Attributes:
        logits: float32 (N, A).
        deltas: float32 (N, A, 4), see `decode_deltas`.
        anchors: float32 (A, 4), px.
    """

    logits: torch.Tensor
    deltas: torch.Tensor
    anchors: torch.Tensor


class AnchorFree(NamedTuple):
    """What the anchor-free branch gives for F grid points: of all levels, fine to coarse, row by row.

    Attributes:
        logits: float32 (N, F).
        distances: float32 (N, F, 4), see `decode_distances`.
        points: float32 (F, 2), x and y, px.
        levels: int64 (F,), 0 is the finest.
    """

    logits: torch.Tensor
    distances: torch.Tensor
    points: torch.Tensor
    levels: torch.Tensor


def kaiming_init(convolution: nn.Conv2d) -> nn.Conv2d:
    """Initialise a convolution as He et al. do before a ReLU (arXiv 1502.01852), and return it."""
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose filters are brought to mean 0 and standard deviation 1 (Qiao et al., arXiv 1903.10520)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (deviation + 1e-5), self.bias)


Conv = Callable[..., nn.Conv2d]  # (channels in, channels, kernel, stride=1, groups=1)
Norm = Callable[[int], nn.Module]
Attention = Callable[[int], nn.Module]


class Residual(nn.Module):
    """relu(attention(residual(x)) + shortcut(x)); the shortcut is a 1x1 where the shape changes."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, conv: Conv, norm: Norm, attention: Attention
    ) -> None:
        super().__init__()
        self.attention = attention(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            self.downsample = nn.Sequential(conv(channels_in, channels, 1, stride), norm(channels))

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.attention(self.residual(x)) + self.downsample(x))


class BasicBlock(Residual):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int, conv: Conv, norm: Norm, attention: Attention) -> None:
        super().__init__(channels_in, width, stride, conv, norm, attention)
        self.conv1, self.bn1 = conv(channels_in, width, 3, stride), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3), norm(width)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Residual):
    """A 3x3 convolution between two 1x1; it has the stride, as in timm."""

    expansion, inner, groups = 4, 1, 1  # widths of the block's output and of its inside; groups of the 3x3

    def __init__(self, channels_in: int, width: int, stride: int, conv: Conv, norm: Norm, attention: Attention) -> None:
        super().__init__(channels_in, 4 * width, stride, conv, norm, attention)
        inner = self.inner * width
        self.conv1, self.bn1 = conv(channels_in, inner, 1), norm(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride, self.groups), norm(inner)
        self.conv3, self.bn3 = conv(inner, 4 * width, 1), norm(4 * width)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))


class GroupedBottleneck(Bottleneck):
    """ResNeXt's, 32x4d: 32 groups of 4 channels and on (arXiv 1611.05431, table 1)."""

    inner, groups = 2, 32


BACKBONES: dict[int | str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    "resnext50": (GroupedBottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """ResNet without its classifier.

    Args:
        name: a key of `BACKBONES`.
        stages: how many of the four are built.
        cbam: CBAM in every residual block.
        group_norm: group norm with 32 groups and standardised filters instead of batch norm.

    Forward: float (N, 3, H, W), normalised -> a map each of stage 2 and on, with `channels`, at strides 8, 16, 32.
    """

    def __init__(self, name: int | str, stages: int, cbam: bool, group_norm: bool) -> None:
        super().__init__()
        convolution = StandardisedConv2d if group_norm else nn.Conv2d
        norm: Norm = partial(nn.GroupNorm, 32) if group_norm else nn.BatchNorm2d
        attention: Attention = CBAM if cbam else nn.Identity

        def conv(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
            made = convolution(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
            return kaiming_init(made)

        block, counts = BACKBONES[name]
        self.conv1, self.bn1 = conv(3, 64, 7, 2), norm(64)
        self.stages, channels_in = stages, 64
        for stage in range(stages):
            width, blocks = 64 << stage, list[nn.Module]()
            for number in range(counts[stage]):
                stride = 2 if stage and not number else 1
                blocks.append(block(channels_in, width, stride, conv, norm, attention))
                channels_in = block.expansion * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = [block.expansion * (64 << stage) for stage in range(1, stages)]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps[1:]


class FPN(nn.Module):
    """Feature pyramid; levels coarser than the backbone's are stride-2 convolutions of its last map (RetinaNet).

    Forward: maps from fine to coarse -> `levels` maps of `width` channels, each at half the one before's resolution.
    """

    def __init__(self, channels: Sequence[int], width: int, levels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(kaiming_init(nn.Conv2d(c, width, 1)) for c in channels)
        self.output = nn.ModuleList(kaiming_init(nn.Conv2d(width, width, 3, padding=1)) for _ in channels)
        inputs = (channels[-1], *[width] * levels)[: levels - len(channels)]
        self.coarser = nn.ModuleList(kaiming_init(nn.Conv2d(c, width, 3, stride=2, padding=1)) for c in inputs)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[2:])
        levels = [output(x) for output, x in zip(self.output, merged, strict=True)]
        x = maps[-1]
        for coarser in self.coarser:
            x = coarser(F.relu(x))
            levels.append(x)
        return levels


class Head(nn.Module):
    """Class and box outputs of the branches on one level; the same weights serve every level.

    Forward: (N, width, H, W) -> float32, of the anchor-based branch logits (N, 9 H W) and deltas (N, 9 H W, 4), and of
    the anchor-free one, if hybrid, logits (N, H W) and distances (N, H W, 4).
    """

    def __init__(self, width: int, depth: int, hybrid: bool, anchor_based: bool = True) -> None:
        super().__init__()

        def tower() -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [kaiming_init(nn.Conv2d(width, width, 3, padding=1)), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        def output(channels: int, bias: float) -> nn.Conv2d:
            convolution = nn.Conv2d(width, channels, 3, padding=1)
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.constant_(cast(torch.Tensor, convolution.bias), bias)
            return convolution

        rare = -math.log((1 - PRIOR) / PRIOR)
        self.class_tower, self.box_tower = tower(), tower()
        self.hybrid, self.anchor_based = hybrid, anchor_based
        if anchor_based:
            self.anchor_class, self.anchor_box = output(ANCHORS, rare), output(4 * ANCHORS, 0)
        if hybrid:
            self.free_class, self.free_box = output(1, rare), output(4, 1 / DISTANCE_UNIT)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        of_class, of_box = self.class_tower(x), self.box_tower(x)
        outputs: list[torch.Tensor] = []
        if self.anchor_based:
            outputs += [self.anchor_class(of_class), self.anchor_box(of_box)]
        if self.hybrid:
            outputs += [self.free_class(of_class), self.free_box(of_box)]
        # float32, because half precision cannot tell a pixel from its neighbour across a tile
        by_point = [each.permute(0, 2, 3, 1).flatten(1).float() for each in outputs]
        return [each.unflatten(1, (-1, 4)) if i % 2 else each for i, each in enumerate(by_point)]


def grid_points(height: int, width: int, stride: int, device: torch.device | str) -> torch.Tensor:
    """Where each prediction of a map stands: float32 (H W, 2) x and y in px, row by row.

    Point i of a ResNet's map looks at the pixels around i x stride: each stride-2 kernel is centred on an even pixel.
    """
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1).float() * stride


def anchors_at(points: torch.Tensor, stride: int) -> torch.Tensor:
    """The nine anchors at every point: float32 (K, 2) -> (9 K, 4); by ratio, then by scale."""
    sides = [(scale / math.sqrt(ratio), scale * math.sqrt(ratio)) for ratio in ANCHOR_RATIOS for scale in ANCHOR_SCALES]
    half = points.new_tensor(sides) * ANCHOR_SIDE * stride / 2
    return torch.cat([points[:, None] - half, points[:, None] + half], 2).flatten(0, 1)


def decode_deltas(deltas: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Boxes from anchors and deltas (Ren et al., "Faster R-CNN", arXiv 1506.01497, equation 2).

    Args:
        deltas: float (..., 4): shift of the centre in the anchor's sides, logarithm of the sides' growth.
        anchors: float (..., 4) px.

    Returns:
        float (..., 4) px.
    """
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + sides / 2 + deltas[..., :2] * sides
    half = sides * deltas[..., 2:].clamp(max=MAX_LOG_GROWTH).exp() / 2
    return torch.cat([centres - half, centres + half], -1)


def decode_distances(distances: torch.Tensor, points: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Boxes from points and the distances to the left, top, right and bottom side (FSAF, section 3.2).

    Args:
        distances: float (..., 4), in units of 4 strides; below 1e-4 counts as 1e-4.
        points: float (..., 2) px.
        levels: int (...).

    Returns:
        float (..., 4) px.
    """
    reach = distances.clamp_min(MIN_DISTANCE) * (DISTANCE_UNIT * FINEST_STRIDE * 2**levels)[..., None]
    return torch.cat([points - reach[..., :2], points + reach[..., 2:]], -1)


class FoCasNet(nn.Module):
    """M_det.

    Args:
        backbone: depth of the ResNet, 18 or 50, or "resnext50"; the paper's is 50, the published code's ResNeXt-50.
        cbam: attention in the backbone (table 1).
        group_norm: group norm and weight standardisation in the backbone instead of batch norm (table 1).
        hybrid: the anchor-free branch beside the anchor-based one (table 1; without it, the table's first row).
        levels: of the pyramid, at strides 8, 16, 32 and on; stages of the backbone that no level needs are not built.
            5 are the published code's; figures of 20 to 70 px need 2, whose anchors are 24 to 76 px.
        width: channels of the pyramid and the head.
        depth: convolutions of the head before its outputs.
        anchor_based: without it, the anchor-free branch alone, which is FSAF (published code; tables 5 and 8).

    Forward: float (N, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> boxes float32 (N, 4, P) as x0, y0, x1, y1
    in px, logits (N, 1, P): the anchors, then the grid points of the anchor-free branch, each from fine to coarse.

    Raises:
        ValueError: unknown backbone, no level, no branch.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: int | str = 50,
        cbam: bool = True,
        group_norm: bool = True,
        hybrid: bool = True,
        levels: int = 5,
        width: int = 256,
        depth: int = 4,
        anchor_based: bool = True,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is not one of {', '.join(map(str, BACKBONES))}")
        if levels < 1:
            raise ValueError(f"at least one level expected, got {levels}")
        if not (hybrid or anchor_based):
            raise ValueError("no branch: hybrid or anchor_based expected")
        self.backbone = ResNet(backbone, 1 + min(levels, 3), cbam, group_norm)
        self.fpn = FPN(self.backbone.channels, width, levels)
        self.head = Head(width, depth, hybrid, anchor_based)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def branches(self, x: torch.Tensor) -> tuple[AnchorBased | None, AnchorFree | None]:
        """Raw outputs for the loss; None for a branch that is not there."""
        maps = self.fpn(self.backbone((x - self.mean) / self.std))
        outputs = [torch.cat(each, 1) for each in zip(*map(self.head, maps), strict=True)]
        points, anchors, levels = [], [], []
        for level, each in enumerate(maps):
            stride = FINEST_STRIDE << level
            points.append(grid_points(each.shape[2], each.shape[3], stride, x.device))
            anchors.append(anchors_at(points[-1], stride))
            levels.append(torch.full(points[-1].shape[:1], level, device=x.device))
        based = AnchorBased(outputs[0], outputs[1], torch.cat(anchors)) if self.head.anchor_based else None
        free = AnchorFree(outputs[-2], outputs[-1], torch.cat(points), torch.cat(levels)) if self.head.hybrid else None
        return based, free

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        based, free = self.branches(x)
        boxes, logits = [], []
        if based:
            boxes.append(decode_deltas(based.deltas, based.anchors))
            logits.append(based.logits)
        if free:
            boxes.append(decode_distances(free.distances, free.points, free.levels))
            logits.append(free.logits)
        return torch.cat(boxes, 1).transpose(1, 2), torch.cat(logits, 1)[:, None]
