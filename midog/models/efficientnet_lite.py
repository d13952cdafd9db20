"""EfficientNet-Lite: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv
1905.11946, as its authors simplified it for small devices.

The changes of Lite: no squeeze-and-excitation, ReLU6 for SiLU, and a stem, a head, and numbers of blocks in the first
and the last stage that stay as they are when the rest is scaled. Parameter names are those of timm's
`tf_efficientnet_lite0` to `4`, so that timm's weights load strictly; written here, because timm's import alone costs
more than the forward of a small ensemble.

Original code and weights: tensorflow/tpu, models/official/efficientnet/lite, Apache-2.0.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from midog.models import Colour

STEM, HEAD = 32, 1280  # channels
STAGES = (  # kernel, stride, expansion, channels, blocks: the paper's table 1, stages 2 to 8
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
LAST_OF_STRIDE = {2: 0, 4: 1, 8: 2, 16: 4}  # the last stage at each stride
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))  # of channels and blocks, by version


class Conv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: (N, C, H, W) -> (N, ., ceil(H / s), ceil(W / s))."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels_in, channels, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride[0] == 2:  # an even side has one less before it than behind it
            behind = self.kernel_size[0] // 2
            top, left = (behind - 1 + side % 2 for side in x.shape[2:])
            x = F.pad(x, (left, behind, top, behind))
        return super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm with TensorFlow's epsilon."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)


def relu6(x: torch.Tensor) -> torch.Tensor:
    """ReLU6 in place: nothing else needs the output of a norm, or of a convolution that one is folded into."""
    return F.relu6(x, inplace=True)


class DepthwiseSeparable(nn.Module):
    """Depth-wise convolution and linear 1x1: the inverted residual block where the expansion is 1."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = Conv2d(channels_in, channels_in, kernel, stride, channels_in), BatchNorm2d(channels_in)
        self.conv_pw, self.bn2 = Conv2d(channels_in, channels), BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv_pw(relu6(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """1x1 that widens, depth-wise convolution, linear 1x1 (Sandler et al., arXiv 1801.04381).

    Where input and output have the same shape, they are added; in training a fraction of the images skips the block
    (stochastic depth).
    """

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int, expansion: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        wide = expansion * channels_in
        self.conv_pw, self.bn1 = Conv2d(channels_in, wide), BatchNorm2d(wide)
        self.conv_dw, self.bn2 = Conv2d(wide, wide, kernel, stride, wide), BatchNorm2d(wide)
        self.conv_pwl, self.bn3 = Conv2d(wide, channels), BatchNorm2d(channels)
        self.residual = stride == 1 and channels_in == channels
        self.drop_path_rate = drop_path_rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = relu6(self.bn1(self.conv_pw(x)))
        y = relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        if not self.residual:
            return y
        # What dropout3d drops are the channels of (N, C, D, H, W), which here are images; the gradient of [0] would
        # lose channels_last.
        return x + F.dropout3d(y.unsqueeze(0), self.drop_path_rate, self.training).squeeze(0)


def scaled_channels(channels: int, scale: float) -> int:
    """The nearest multiple of 8, but never below .9 of what was asked for."""
    wanted = channels * scale
    nearest = int(wanted + 4) // 8 * 8
    return nearest if nearest >= 0.9 * wanted else nearest + 8


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 to Lite4.

    Args:
        version: 0 to 4.
        num_classes: outputs.
        drop_rate: dropout before the last layer.
        drop_path_rate: fraction of the images that would skip the block behind the last one in training, growing
            linearly from 0.

    Attributes:
        mean, std: what the published weights were trained with, of RGB in [0, 1].

    Forward: float (N, 3, H, W), normalised -> logits (N, num_classes).

    Raises:
        ValueError: unknown version.
    """

    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.5, 0.5, 0.5)

    def __init__(
        self, version: int = 0, num_classes: int = 1, drop_rate: float = 0.0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        if version not in range(len(SCALES)):
            raise ValueError(f"version {version} is not one of 0 to {len(SCALES) - 1}")
        width, depth = SCALES[version]
        counts = [1, *(math.ceil(blocks * depth) for *_, blocks in STAGES[1:-1]), 1]
        self.conv_stem, self.bn1 = Conv2d(3, STEM, 3, 2), BatchNorm2d(STEM)
        self.blocks = nn.Sequential()
        channels_in, number = STEM, 0
        for (kernel, stride, expansion, channels, _), count in zip(STAGES, counts, strict=True):
            channels, stage = scaled_channels(channels, width), nn.Sequential()
            for block in range(count):
                shape = (channels_in, channels, kernel, 1 if block else stride)
                rate = drop_path_rate * number / sum(counts)
                stage.append(
                    DepthwiseSeparable(*shape) if expansion == 1 else InvertedResidual(*shape, expansion, rate)
                )
                channels_in, number = channels, number + 1
            self.blocks.append(stage)
        self.conv_head, self.bn2 = Conv2d(channels_in, HEAD), BatchNorm2d(HEAD)
        self.drop_rate = drop_rate
        self.classifier = nn.Linear(HEAD, num_classes)
        for module in self.modules():
            if isinstance(module, Conv2d):  # nn.init counts a depth-wise kernel's fan-out for all channels together
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(self.classifier.bias)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """What the stages begin with: half the image's resolution."""
        return relu6(self.bn1(self.conv_stem(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x))
        x = relu6(self.bn2(self.conv_head(x))).mean(dim=(2, 3))
        return self.classifier(F.dropout(x, self.drop_rate, self.training))


class EfficientNetLiteMaps(nn.Module):
    """EfficientNet-Lite0 to Lite4 as an encoder, without the layers behind its map of stride 16.

    Args:
        version: 0 to 4.

    Attributes:
        model: the network, cut off.
        strides, widths: of its maps, from fine to coarse; widths in channels.

    Forward: float (N, 3, H, W), normalised -> its maps.
    """

    strides = tuple(LAST_OF_STRIDE)

    def __init__(self, version: int) -> None:
        super().__init__()
        self.model = EfficientNetLite(version)
        self.stages = tuple(LAST_OF_STRIDE.values())
        del self.model.blocks[self.stages[-1] + 1 :], self.model.conv_head, self.model.bn2, self.model.classifier
        self.widths = [scaled_channels(STAGES[stage][3], SCALES[version][0]) for stage in self.stages]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.model.stem(x)
        maps = []
        for number, stage in enumerate(self.model.blocks):
            x = stage(x)
            if number in self.stages:
                maps.append(x)
        return maps
