"""CenterNet's centre heat map on an encoder of timm: Zhou, Wang and Krähenbühl, "Objects as Points", arXiv 1904.07850.

    map = CenterNet("tf_efficientnet_lite0")(images)    # (N, 3, H, W) in [0, 1] -> logits (N, 1, H / 2, W / 2)

Of the paper there is the map of centres alone (section 3): a mitotic figure's place is what counts, so neither its size
nor an offset is learnt. The encoder is one of timm's, with its maps of strides 2 to 16; the decoder is a light top-down
path (Lin et al., "Feature Pyramid Networks", arXiv 1612.03144) of one width: a 1 x 1 convolution of each of the
encoder's maps, added to what comes from above, and a residual block. EfficientNet-Lite is ours, with timm's parameter
names, because timm's import alone costs more than the forwards of a small image.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from midog.models import Colour
from midog.models.efficientnet_lite import SCALES, EfficientNetLite, EfficientNetLiteMaps

DEEPEST = 16  # stride of the coarsest map that is used: 8 um at .5 um per pixel, a nucleus
PRIOR = 0.01  # probability of a centre before the training (Lin et al., arXiv 1708.02002, section 4.1)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside the identity (He et al., arXiv 1512.03385): (N, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.bn1(self.conv1(x)), inplace=True)  # in place: such maps leave a processor's cache
        return F.silu(self.bn2(self.conv2(y)).add_(x), inplace=True)


class CenterNet(nn.Module):
    """A dense detector: a map of the logit that a cell holds the centre of a mitotic figure.

    Args:
        encoder: a network of timm that gives its maps (`features_only`).
        channels: of the decoder.
        stride: px of the image to a cell of the map; a stride of one of the encoder's maps.

    Attributes:
        stride: see above.

    Forward: float (N, 3, H, W) RGB in [0, 1], H and W multiples of 16 -> float32 logits (N, 1, H / stride, W / stride).

    Raises:
        ValueError: the encoder has no map of that stride.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: str, channels: int = 48, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.encoder, strides, widths, mean, std = encoder_of(encoder)
        if DEEPEST not in strides or stride not in strides or stride >= DEEPEST:
            raise ValueError(f"encoder {encoder} has maps of strides {list(strides)}, {stride} and {DEEPEST} expected")
        self.first = strides.index(stride)
        widths = widths[self.first :]
        self.lateral = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in widths])
        self.blocks = nn.ModuleList([Block(channels) for _ in widths[:-1]])
        self.head = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.head.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.encoder((images - self.mean) / self.std)[self.first :]
        x = self.lateral[-1](maps[-1])
        for number in reversed(range(len(self.blocks))):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = self.blocks[number](self.lateral[number](maps[number]).add_(x))
        return self.head(x).float()


class Encoder(NamedTuple):
    """A network that gives its maps, from fine to coarse.

    Attributes:
        maps: float (N, 3, H, W), normalised -> the maps; its `model` is the network, cut off behind the last of them.
        strides: of the maps; none is coarser than `DEEPEST`, unless that is missing.
        widths: their channels.
        mean, std: what the network's published weights were trained with, of RGB in [0, 1].
    """

    maps: nn.Module
    strides: Sequence[int]
    widths: Sequence[int]
    mean: Colour
    std: Colour


def encoder_of(name: str) -> Encoder:
    """A network by its name in timm, without weights."""
    lites = [f"tf_efficientnet_lite{version}" for version in range(len(SCALES))]
    if name in lites:
        lite = EfficientNetLiteMaps(lites.index(name))
        return Encoder(lite, lite.strides, lite.widths, EfficientNetLite.mean, EfficientNetLite.std)
    import timm

    def maps_of(count: int) -> Any:
        return timm.create_model(name, features_only=True, feature_cls="getter", out_indices=tuple(range(count)))

    maps = maps_of(4)
    strides = maps.feature_info.reduction()
    if DEEPEST in strides[:-1]:
        maps = maps_of(strides.index(DEEPEST) + 1)
    told = timm.models.get_pretrained_cfg(name)
    return Encoder(maps, maps.feature_info.reduction(), maps.feature_info.channels(), told.mean, told.std)
