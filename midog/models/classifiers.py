"""Classifiers of crops: ConvNeXt V2, and any network of timm by name.

ConvNeXt V2: Woo et al., "ConvNeXt V2: Co-designing and Scaling ConvNets with
Masked Autoencoders", arXiv 2301.00808. Parameter names are timm's, so that
timm's weights load strictly; written here, from the paper, because timm's
import alone costs more than the forward of a small ensemble.

Original code: facebookresearch/ConvNeXt-V2, MIT; its published weights (FCMAE
and fine-tuned) are CC BY-NC 4.0, also where timm serves them. timm
(huggingface/pytorch-image-models): code Apache-2.0; each of its weights has a
licence of its own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an (N, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Global response normalisation over (N, H, W, C) (arXiv 2301.00808, section 3.2, equations 1 to 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # At least float32, because half precision overflows on squares; clamped, because the root of 0 has no gradient.
        # torch.linalg.vector_norm does both and takes four times as long.
        wide = torch.promote_types(x.dtype, torch.float32)
        squares = x.to(wide).square().sum(dim=(1, 2), keepdim=True)
        response = squares.clamp_min(1e-12).sqrt()  # equation 1
        relative = response / (response.mean(dim=-1, keepdim=True) + 1e-6)  # equation 2
        return x * (1 + self.weight * relative).to(x.dtype) + self.bias.to(x.dtype)  # equation 3, with the residual


class MLP(nn.Module):
    """Two pixel-wise linear layers with GELU and global response normalisation between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.grn = GlobalResponseNorm(4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.grn(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """Depth-wise 7x7, norm, MLP, residual; a fraction of the images skips it in training (stochastic depth)."""

    def __init__(self, channels: int, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLP(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        if self.training and self.drop_path_rate:
            kept = torch.rand(len(y), 1, 1, 1, device=y.device) >= self.drop_path_rate
            y = y * (kept / (1 - self.drop_path_rate)).to(y.dtype)
        return x + y


class Stage(nn.Module):
    """Norm and 2x2 stride-2 convolution (not before the first stage), then blocks."""

    def __init__(self, channels_in: int, channels: int, drop_path_rates: Sequence[float], downsample: bool) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if downsample:
            self.downsample = nn.Sequential(ChannelNorm(channels_in), nn.Conv2d(channels_in, channels, 2, stride=2))
        self.blocks = nn.Sequential(*(Block(channels, rate) for rate in drop_path_rates))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class Head(nn.Module):
    """Global average pooling, norm, linear."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x.mean(dim=(2, 3), keepdim=True)).flatten(1))


def patch_stem(channels: int) -> nn.Sequential:
    """The paper's: one 4x4 convolution of stride 4."""
    return nn.Sequential(nn.Conv2d(3, channels, 4, stride=4), ChannelNorm(channels))


def early_stem(channels: int) -> nn.Sequential:
    """Four 3x3 convolutions of stride 2, 1, 2, 1, each with batch norm and ReLU (arXiv 2106.14881, section 4)."""
    layers: list[nn.Module] = []
    for channels_in, channels_out, stride in (
        (3, channels // 2, 2),
        (channels // 2, channels // 2, 1),
        (channels // 2, channels, 2),
        (channels, channels, 1),
    ):
        layers += [
            nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


STEMS = {"patch": patch_stem, "early": early_stem}


class ConvNeXtV2(nn.Module):
    """ConvNeXt V2.

    Args:
        widths: channels a stage, e.g. (128, 256, 512, 1024) for Base.
        depths: blocks a stage, e.g. (3, 3, 27, 3) for Base.
        stem: "patch", the paper's 4x4 convolution of stride 4, or "early", four
            3x3 convolutions with batch norm, which networks without pretraining
            need: Xiao et al., "Early Convolutions Help Transformers See
            Better", arXiv 2106.14881.
        num_classes: outputs.
        drop_path_rate: fraction of the images that skip the last block in training, growing linearly from 0.

    Forward: float (N, 3, H, W), normalised -> logits (N, num_classes).

    Raises:
        ValueError: unknown stem.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        stem: str = "patch",
        num_classes: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(f"stem {stem!r} is not one of {', '.join(STEMS)}")
        self.stem = STEMS[stem](widths[0])
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        self.stages = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], widths[i], rates[i].tolist(), downsample=i > 0) for i in range(len(depths))
        )
        self.head = Head(widths[-1], num_classes)
        self.widths = tuple(widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stage_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The output of every stage, float (N, widths[i], H / 2^(2 + i), W / 2^(2 + i)), from fine to coarse."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stage_maps(x)[-1])


def timm_classifier(
    name: str,
    num_classes: int = 1,
    drop_path_rate: float = 0.0,
    drop_rate: float = 0.0,
    img_size: int | None = None,
) -> nn.Module:
    """Any classifier of timm by its name, without weights.

    Args:
        name: timm's, with or without the tag of its weights; the tag decides `midog.models.normalisation`.
        num_classes: outputs.
        drop_path_rate, drop_rate: stochastic depth, and dropout before the last layer, for networks that have them.
        img_size: side of the input, px; heeded by networks that are made for one size (vision transformers), needless
            for all others.

    Forward: float (N, 3, H, W), normalised -> logits (N, num_classes).

    Raises:
        RuntimeError: timm has no such network.
        TypeError: the network has no stochastic depth, or no dropout.
    """
    import timm
    from timm.models import resolve_model_input_args

    options = {"num_classes": num_classes, "drop_path_rate": drop_path_rate or None, "drop_rate": drop_rate or None}
    return timm.create_model(**resolve_model_input_args(name, {"img_size": img_size}, **options))
