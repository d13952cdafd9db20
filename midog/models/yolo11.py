"""YOLO11 and its improved form with LSConv and EMA attention, in plain PyTorch.

YOLO11: Khanam and Hussain, arXiv 2410.17725; the graph and the parameter names
are Ultralytics' stock `yolo11`, so that what its trainer makes loads strictly.
The improved form: Xiao, Lyu and Liu, "A Two-Stage Strategy for Mitosis
Detection Using Improved YOLO11x Proposals and ConvNeXt Classification",
arXiv 2509.02627: the three output blocks of the neck are C3k2_LSConv, the
attention of C2PSA is EMA attention, and EMA attention stands before each input
of the detection head. Written here, from the papers, because importing
Ultralytics costs more than the forward of a small network.

Original code: ultralytics/ultralytics, AGPL-3.0, and so are its published
weights; xxiao0304/MIDOG-2025-Track-1-of-SZTU for the improved form, licence
not stated.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import nn

from midog.models.attention import EMAAttention, LSConv

SCALES = {  # depth, width, largest number of channels
    "n": (0.50, 0.25, 1024),
    "s": (0.50, 0.50, 1024),
    "m": (0.50, 1.00, 512),
    "l": (1.00, 1.00, 512),
    "x": (1.00, 1.50, 512),
}
STRIDES = (8, 16, 32)
OUTPUT_BLOCKS = (16, 19, 22)  # the neck's layers that feed the detection head, from fine to coarse
BINS = 16  # of the distance from an anchor point to each side of a box, in strides


class Conv(nn.Module):
    """Convolution without bias, batch norm, SiLU."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions and the input added; with `lsconv`, the second one is an LSConv."""

    def __init__(self, channels: int, expansion: float, lsconv: bool = False) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.cv1 = Conv(channels, hidden, 3)
        self.cv2 = LSConv(channels) if lsconv else Conv(hidden, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.cv2(self.cv1(x))


class C3k(nn.Module):
    """Two 1x1 branches, one of them through two bottlenecks, joined by a 1x1."""

    def __init__(self, channels: int, lsconv: bool = False) -> None:
        super().__init__()
        hidden = channels // 2
        self.cv1 = Conv(channels, hidden)
        self.cv2 = Conv(channels, hidden)
        self.cv3 = Conv(2 * hidden, channels)
        self.m = nn.Sequential(*(Bottleneck(hidden, 1.0, lsconv) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class C3k2(nn.Module):
    """A 1x1 split in two, a chain of blocks on one half, every part joined by a 1x1.

    Args:
        block: makes a block from its width: `Bottleneck` or `C3k`.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        depth: int,
        block: Callable[[int], nn.Module],
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.cv1 = Conv(channels_in, 2 * hidden)
        self.cv2 = Conv((2 + depth) * hidden, channels)
        self.m = nn.ModuleList(block(hidden) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    """Three 5x5 max-pools in a chain.

    `act` is the SiLU of the first 1x1. YOLO11 has it; Ultralytics 8.4 makes the block without, and puts it back only
    where it builds YOLO11 from its own YAML.
    """

    def __init__(self, channels: int, act: bool) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels // 2, act=act)
        self.cv2 = Conv(2 * channels, channels)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Attention(nn.Module):
    """Multi-head self-attention over all positions of a map, with a depth-wise 3x3 for position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.value_width = channels // self.heads
        self.key_width = self.value_width // 2
        self.qkv = Conv(channels, channels + 2 * self.heads * self.key_width, act=False)
        self.proj = Conv(channels, channels, act=False)
        self.pe = Conv(channels, channels, 3, groups=channels, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        qkv = self.qkv(x).view(n, self.heads, 2 * self.key_width + self.value_width, height * width)
        query, key, value = qkv.split([self.key_width, self.key_width, self.value_width], 2)
        weights = (query.transpose(2, 3) @ key * self.key_width**-0.5).softmax(3)
        attended = (value @ weights.transpose(2, 3)).view_as(x)
        return self.proj(attended + self.pe(value.reshape(n, channels, height, width)))


class PSABlock(nn.Module):
    """x + attention(x), then x + two 1x1 convolutions of x; with `ema`, the attention is EMA attention."""

    def __init__(self, channels: int, ema: bool) -> None:
        super().__init__()
        self.attn = EMAAttention(channels) if ema else Attention(channels)
        self.ffn = nn.Sequential(Conv(channels, 2 * channels), Conv(2 * channels, channels, act=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """A 1x1 split in two, attention blocks on one half, joined by a 1x1."""

    def __init__(self, channels: int, depth: int, ema: bool) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels)
        self.cv2 = Conv(channels, channels)
        self.m = nn.Sequential(*(PSABlock(channels // 2, ema) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat([first, self.m(second)], 1))


class DistanceExpectation(nn.Module):
    """Softmax over the bins of each side, and its expectation; the weights are the bins' numbers.

    Forward: float (N, 4 BINS, P) -> float32 (N, 4, P), strides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BINS, 1, 1, bias=False)
        self.conv.weight = nn.Parameter(torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1), False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, points = x.shape
        # In the weights' type, because half precision cannot tell a pixel from its neighbour across a tile; as a sum,
        # because runtimes that choose a precision themselves take half of it for every convolution.
        bins = x.to(self.conv.weight.dtype).view(n, 4, BINS, points).softmax(2)
        return (bins * self.conv.weight.view(BINS, 1)).sum(2)


class Detect(nn.Module):
    """Box and class branches on three maps.

    Forward: three maps -> boxes float32 (N, 4, P) as x0, y0, x1, y1 in px, class logits (N, num_classes, P), where P
    counts the points of `grid_points`.
    """

    def __init__(self, num_classes: int, channels: Sequence[int]) -> None:
        super().__init__()
        box_width = max(16, channels[0] // 4, 4 * BINS)
        class_width = max(channels[0], min(num_classes, 100))
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(c, box_width, 3), Conv(box_width, box_width, 3), nn.Conv2d(box_width, 4 * BINS, 1))
            for c in channels
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(
                nn.Sequential(Conv(c, c, 3, groups=c), Conv(c, class_width)),
                nn.Sequential(Conv(class_width, class_width, 3, groups=class_width), Conv(class_width, class_width)),
                nn.Conv2d(class_width, num_classes, 1),
            )
            for c in channels
        )
        self.dfl = DistanceExpectation()

    def branches(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the branches give before it is decoded: bins of the distances (N, 4 BINS, P), class logits."""
        distances = torch.cat([branch(x).flatten(2) for branch, x in zip(self.cv2, maps, strict=True)], 2)
        logits = torch.cat([branch(x).flatten(2) for branch, x in zip(self.cv3, maps, strict=True)], 2)
        return distances, logits

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        distances, logits = self.branches(maps)
        points, strides = grid_points(maps)
        left_top, right_bottom = self.dfl(distances).chunk(2, 1)
        return torch.cat([points - left_top, points + right_bottom], 1) * strides, logits


def grid_points(maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each prediction of three maps stands: x and y in strides, half a cell in, and the stride in px.

    Returns:
        float32 (2, P) and (P,): of all maps, from fine to coarse, row by row.
    """
    points, strides = [], []
    for each, stride in zip(maps, STRIDES, strict=True):
        rows, columns = (torch.arange(side, device=each.device) + 0.5 for side in each.shape[2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()]))
        strides.append(torch.full((x.numel(),), float(stride), device=each.device))
    return torch.cat(points, 1), torch.cat(strides)


class YOLO11(nn.Module):
    """YOLO11 at any scale, plain or improved.

    Args:
        scale: "n", "s", "m", "l" or "x".
        num_classes: outputs.
        lsconv: layers among `OUTPUT_BLOCKS` that are C3k2_LSConv. All three are the paper's text; (22,) is
            the authors' YAML as it builds.
        ema: EMA attention inside C2PSA and before each input of the head.
        sppf_act: see `SPPF`.

    Forward: float (N, 3, H, W) RGB in [0, 1], H and W multiples of 32 -> boxes float32 (N, 4, P) px, logits
    (N, num_classes, P), see `Detect`.

    Raises:
        ValueError: unknown scale, or a layer that cannot be C3k2_LSConv.
    """

    def __init__(
        self,
        scale: str,
        num_classes: int = 1,
        lsconv: Collection[int] = (),
        ema: bool = False,
        sppf_act: bool = True,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale {scale!r} is not one of {', '.join(SCALES)}")
        if not set(lsconv) <= set(OUTPUT_BLOCKS):
            raise ValueError(f"lsconv layers {list(lsconv)} are not among {', '.join(map(str, OUTPUT_BLOCKS))}")
        depth_factor, width_factor, max_channels = SCALES[scale]
        depth = max(round(2 * depth_factor), 1)
        always_c3k = scale in "mlx"  # Ultralytics' builder does so, whatever its YAML says
        plain = partial(Bottleneck, expansion=0.5)

        def width(channels: int) -> int:
            return -(-int(min(channels, max_channels) * width_factor) // 8) * 8

        def c3k2(channels_in: int, channels: int, c3k: bool, expansion: float = 0.5) -> C3k2:
            return C3k2(channels_in, width(channels), depth, C3k if c3k or always_c3k else plain, expansion)

        def output_block(layer: int, channels_in: int, channels: int, c3k: bool) -> nn.Module:
            if layer in lsconv:
                block = C3k2(channels_in, width(channels), depth, partial(C3k, lsconv=True))
            elif lsconv:  # as the authors' YAML builds: a renamed block escapes the builder's rule above
                block = C3k2(channels_in, width(channels), depth, C3k if c3k else plain)
            else:
                block = c3k2(channels_in, channels, c3k)
            return nn.Sequential(block, EMAAttention(width(channels))) if ema else block

        w64, w128, w256, w512, w1024 = map(width, (64, 128, 256, 512, 1024))
        self.model = nn.ModuleList(
            [
                Conv(3, w64, 3, 2),  # 0
                Conv(w64, w128, 3, 2),
                c3k2(w128, 256, False, 0.25),
                Conv(w256, w256, 3, 2),  # 3, stride 8
                c3k2(w256, 512, False, 0.25),
                Conv(w512, w512, 3, 2),  # 5, stride 16
                c3k2(w512, 512, True),
                Conv(w512, w1024, 3, 2),  # 7, stride 32
                c3k2(w1024, 1024, True),
                SPPF(w1024, sppf_act),
                C2PSA(w1024, depth, ema),  # 10
                nn.Upsample(scale_factor=2),
                nn.Identity(),  # 12: joins 11 and 6
                c3k2(w1024 + w512, 512, False),
                nn.Upsample(scale_factor=2),
                nn.Identity(),  # 15: joins 14 and 4
                output_block(16, w512 + w512, 256, False),
                Conv(w256, w256, 3, 2),
                nn.Identity(),  # 18: joins 17 and 13
                output_block(19, w256 + w512, 512, False),
                Conv(w512, w512, 3, 2),
                nn.Identity(),  # 21: joins 20 and 10
                output_block(22, w512 + w1024, 1024, True),
                Detect(num_classes, (w256, w512, w1024)),
            ]
        )

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The head's three inputs, from fine to coarse."""
        layer = self.model
        for i in range(5):
            x = layer[i](x)
        fine = x
        middle = layer[6](layer[5](fine))
        coarse = layer[10](layer[9](layer[8](layer[7](middle))))
        neck_middle = layer[13](torch.cat([layer[11](coarse), middle], 1))
        out_fine = layer[16](torch.cat([layer[14](neck_middle), fine], 1))
        out_middle = layer[19](torch.cat([layer[17](out_fine), neck_middle], 1))
        out_coarse = layer[22](torch.cat([layer[20](out_middle), coarse], 1))
        return [out_fine, out_middle, out_coarse]

    def branches(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """For the loss: what `Detect.branches` gives, and the maps that it comes from."""
        maps = self.maps(x)
        detect = self.model[23]
        assert isinstance(detect, Detect)
        return *detect.branches(maps), maps

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model[23](self.maps(x))
