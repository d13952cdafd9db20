"""RTMDet in plain PyTorch, from tiny to x.

Lyu et al., "RTMDet: An Empirical Study of Designing Real-Time Object
Detectors", arXiv 2212.07784: CSPNeXt backbone, CSPNeXt-PAFPN, and a head whose
convolutions are shared over levels while its batch norms are not. Layers,
widths and parameter names are those of mmdetection 3.3 (configs/rtmdet), so
that the tensors of its public checkpoints load strictly. Written here from the
paper and those configurations.

In place of CSPNeXt may stand a network of timm, ConvNeXt or Swin, as in
mmdetection's rtmdet_l_convnext_b and rtmdet_l_swin_b: neck and head are those of
the size, but for the neck's widths, which are the backbone's. Theirs have group
norm in neck and head and, as they are theirs, norms behind the backbone's maps;
ours has batch norm, as the other sizes, and no norm between the two.

Original code: open-mmlab/mmdetection, Apache-2.0, and so are its published weights.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {  # depth, width, blocks of each neck layer, whether the head's distances are exponentials
    "tiny": (0.167, 0.375, 1, False),
    "s": (0.33, 0.5, 1, False),
    "m": (0.67, 0.75, 2, True),
    "l": (1.0, 1.0, 3, True),
    "x": (1.33, 1.25, 4, True),
}
STRIDES = (8, 16, 32)
STAGES = ((64, 128, 3), (128, 256, 6), (256, 512, 6), (512, 1024, 3))  # channels in, channels, blocks at size l
BGR_MEAN = (103.53, 116.28, 123.675)
BGR_STD = (57.375, 57.12, 58.395)
HEAD_CONVOLUTIONS = 2
PRIOR = 0.01  # probability of a figure at every point before training (Lin et al., arXiv 1708.02002, section 4.1)


class Conv(nn.Module):
    """Convolution without bias, batch norm, SiLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class SeparableConv(nn.Module):
    """Depth-wise 5x5, then 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise_conv = Conv(channels, channels, 5, groups=channels)
        self.pointwise_conv = Conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class CSPNeXtBlock(nn.Module):
    """3x3, depth-wise 5x5, 1x1; with `identity`, the input is added (paper, figure 3b)."""

    def __init__(self, channels: int, identity: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3)
        self.conv2 = SeparableConv(channels)
        self.identity = identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        return out + x if self.identity else out


class ChannelAttention(nn.Module):
    """Each channel is scaled by a hard sigmoid of a linear map of all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class CSPLayer(nn.Module):
    """Two 1x1 branches, one of them through blocks, joined by a 1x1; in the backbone, channel attention before it."""

    def __init__(self, channels_in: int, channels: int, blocks: int, identity: bool, attention: bool) -> None:
        super().__init__()
        half = channels // 2
        self.main_conv = Conv(channels_in, half)
        self.short_conv = Conv(channels_in, half)
        self.final_conv = Conv(2 * half, channels)
        self.blocks = nn.Sequential(*(CSPNeXtBlock(half, identity) for _ in range(blocks)))
        self.attention = ChannelAttention(2 * half) if attention else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], 1)
        return self.final_conv(self.attention(joined))


class SpatialPyramidPooling(nn.Module):
    """Max-pools of 5, 9 and 13 beside the map itself, between two 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels // 2)
        self.conv2 = Conv(2 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(F.max_pool2d(x, side, 1, side // 2) for side in (5, 9, 13))], 1))


class CSPNeXt(nn.Module):
    """The backbone: float (N, 3, H, W) -> maps of stride 8, 16 and 32."""

    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, depth: float, width: float) -> None:
        super().__init__()
        first = int(STAGES[0][0] * width)
        half = int(STAGES[0][0] * width // 2)
        self.stem = nn.Sequential(Conv(3, half, 3, 2), Conv(half, half, 3), Conv(half, first, 3))
        for number, (channels_in, channels, blocks) in enumerate(STAGES, 1):
            channels_in, channels = int(channels_in * width), int(channels * width)
            last = number == len(STAGES)
            layers: list[nn.Module] = [Conv(channels_in, channels, 3, 2)]
            if last:
                layers.append(SpatialPyramidPooling(channels))
            layers.append(CSPLayer(channels, channels, max(round(blocks * depth), 1), not last, attention=True))
            self.add_module(f"stage{number}", nn.Sequential(*layers))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fine = self.stage2(self.stage1(self.stem(x)))
        middle = self.stage3(fine)
        return fine, middle, self.stage4(middle)


def timm_maps(name: str) -> Any:
    """A network of timm without its classifier: float (N, 3, H, W) -> its maps of stride 8, 16 and 32; see `.model`.

    Raises:
        ValueError: it has no such maps, or is none of timm.
    """
    import timm  # here, because it costs more than the forward of a small network that does without

    # Swin is made for one size: its windows and their masks have to follow the tile's.
    sizes = {"strict_img_size": False, "always_partition": True} if name.startswith("swin_") else {}
    try:
        maps = timm.create_model(name, features_only=True, feature_cls="getter", out_indices=(1, 2, 3), **sizes)
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(f"backbone {name!r} is no network of timm with four stages ({error})") from None
    if (strides := maps.feature_info.reduction()) != list(STRIDES):
        raise ValueError(f"backbone {name!r} has maps of strides {strides}, {list(STRIDES)} expected")
    return maps


class CSPNeXtPAFPN(nn.Module):
    """The neck: down the pyramid and up again; three maps of `channels` -> three maps of `width`."""

    def __init__(self, channels: Sequence[int], width: int, blocks: int) -> None:
        super().__init__()
        fine, middle, coarse = channels

        def layer(channels_in: int, channels: int) -> CSPLayer:
            return CSPLayer(channels_in, channels, blocks, identity=False, attention=False)

        self.reduce_layers = nn.ModuleList([Conv(coarse, middle), Conv(middle, fine)])
        self.top_down_blocks = nn.ModuleList([layer(2 * middle, middle), layer(2 * fine, fine)])
        self.downsamples = nn.ModuleList([Conv(fine, fine, 3, 2), Conv(middle, middle, 3, 2)])
        self.bottom_up_blocks = nn.ModuleList([layer(2 * fine, middle), layer(2 * middle, coarse)])
        self.out_convs = nn.ModuleList(Conv(each, width, 3) for each in channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        fine, middle, coarse = maps
        coarse = self.reduce_layers[0](coarse)
        middle = self.top_down_blocks[0](torch.cat([_twice(coarse), middle], 1))
        middle = self.reduce_layers[1](middle)
        fine = self.top_down_blocks[1](torch.cat([_twice(middle), fine], 1))
        middle = self.bottom_up_blocks[0](torch.cat([self.downsamples[0](fine), middle], 1))
        coarse = self.bottom_up_blocks[1](torch.cat([self.downsamples[1](middle), coarse], 1))
        return [conv(each) for conv, each in zip(self.out_convs, (fine, middle, coarse), strict=True)]


def _twice(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class RTMDetSepBNHead(nn.Module):
    """Class and box branches on three maps: shared convolutions, batch norms of each level's own.

    Forward: three maps -> distances float32 (N, 4, P) in px from each point of `grid_points` to the box's left, top,
    right and bottom, logits (N, num_classes, P).
    """

    def __init__(self, channels: int, num_classes: int, exponential: bool) -> None:
        super().__init__()

        def branch() -> nn.Sequential:
            return nn.Sequential(*(Conv(channels, channels, 3) for _ in range(HEAD_CONVOLUTIONS)))

        self.cls_convs = nn.ModuleList(branch() for _ in STRIDES)
        self.reg_convs = nn.ModuleList(branch() for _ in STRIDES)
        for branches in (self.cls_convs, self.reg_convs):
            for level in branches[1:]:
                for shared, conv in zip(branches[0].children(), level.children(), strict=True):
                    conv.conv = shared.conv
        self.rtm_cls = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in STRIDES)
        self.rtm_reg = nn.ModuleList(nn.Conv2d(channels, 4, 1) for _ in STRIDES)
        self.exponential = exponential
        # Boxes of two strides a side: one of no size has no gradient in the IoU loss.
        biases = (self.rtm_cls, math.log(PRIOR / (1 - PRIOR))), (self.rtm_reg, 0.0 if exponential else 1.0)
        for layers, bias in biases:
            for name, parameter in layers.named_parameters():
                if name.endswith("bias"):
                    nn.init.constant_(parameter, bias)
                else:
                    nn.init.normal_(parameter, std=0.01)

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        distances, logits = [], []
        for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            logits.append(self.rtm_cls[level](self.cls_convs[level](x)).flatten(2))
            distance = self.rtm_reg[level](self.reg_convs[level](x)).flatten(2).float()
            distances.append((distance.exp() if self.exponential else distance) * stride)
        return torch.cat(distances, 2), torch.cat(logits, 2)


def grid_points(height: int, width: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each prediction of an image stands: float32 (2, P) x and y in px, and its stride (P,) in px.

    Of all maps, from fine to coarse, row by row. The first is at (0, 0): mmdetection's points have offset 0, not half a
    cell.
    """
    points, strides = [], []
    for stride in STRIDES:
        rows, columns = -(-height // stride), -(-width // stride)
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()]) * stride)
        strides.append(torch.full((rows * columns,), stride, device=device))
    return torch.cat(points, 1).float(), torch.cat(strides).float()


class RTMDet(nn.Module):
    """RTMDet.

    Args:
        size: "tiny", "s", "m", "l" or "x".
        num_classes: outputs.
        backbone: a network of timm in place of CSPNeXt, such as "convnext_tiny" or "swin_tiny_patch4_window7_224".

    Forward: float (N, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> boxes float32 (N, 4, P) as x0, y0, x1, y1 in
    px, logits (N, num_classes, P), where P counts the points of `grid_points`.

    Raises:
        ValueError: unknown size, or a backbone without maps of stride 8, 16 and 32.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, size: str, num_classes: int = 1, backbone: str = "") -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size {size!r} is not one of {', '.join(SIZES)}")
        depth, width, neck_blocks, exponential = SIZES[size]
        channels = [int(each * width) for each in (256, 512, 1024)]
        widths, mean, std = channels, torch.tensor(BGR_MEAN) / 255, torch.tensor(BGR_STD) / 255
        self.blue_first = not backbone
        self.backbone: nn.Module
        if backbone:
            self.backbone = maps = timm_maps(backbone)
            widths = maps.feature_info.channels()
            mean, std = (torch.tensor(maps.pretrained_cfg[each]) for each in ("mean", "std"))
        else:
            self.backbone = CSPNeXt(depth, width)
        self.neck = CSPNeXtPAFPN(widths, channels[0], neck_blocks)
        self.bbox_head = RTMDetSepBNHead(channels[0], num_classes, exponential)
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.flip(1) if self.blue_first else x
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        distances, logits = self.bbox_head(self.neck(self.backbone(x)))
        points, _ = grid_points(x.shape[2], x.shape[3], x.device)
        left_top, right_bottom = distances.chunk(2, 1)
        return torch.cat([points - left_top, points + right_bottom], 1), logits
