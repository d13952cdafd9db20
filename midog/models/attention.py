"""Small attention blocks that several networks share, each written from its paper.

- EMA attention: arXiv 2305.13563; original code YOLOonly/EMA-attention-module, licence not checked.
- LSConv: arXiv 2503.23135; original code jameslahm/lsnet, Apache-2.0.
- CBAM: arXiv 1807.06521; original code Jongchan/attention-module, MIT.

No published weights are used.
"""

import torch
import torch.nn.functional as F
from torch import nn


class EMAAttention(nn.Module):
    """Efficient multi-scale attention with cross-spatial learning (Ouyang et al., arXiv 2305.13563).

    Not to be confused with an exponential moving average of weights.

    Args:
        channels: a multiple of `groups`.
        groups: each is attended on its own, as if it were an image.

    Forward: float (N, channels, H, W) -> the same shape; each value is scaled by a factor in (0, 1).
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels do not fall into {groups} groups")
        self.groups = groups
        width = channels // groups
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        group = x.reshape(n * self.groups, channels // self.groups, height, width)
        rows = group.mean(3, keepdim=True)  # section 3.2: one-dimensional pooling along each direction
        columns = group.mean(2, keepdim=True).transpose(2, 3)
        rows, columns = self.conv1x1(torch.cat([rows, columns], 2)).split([height, width], 2)
        gated = self.norm(group * rows.sigmoid() * columns.transpose(2, 3).sigmoid())
        local = self.conv3x3(group)
        # Cross-spatial learning (section 3.3): each branch's pooled channels weigh the other branch's map.
        weights = self._pooled(gated, local) + self._pooled(local, gated)
        return (group * weights.sigmoid()).view_as(x)

    @staticmethod
    def _pooled(pooled: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Softmax over channels of one branch's global mean, times the other branch, summed over channels."""
        weights = pooled.mean((2, 3), keepdim=True).softmax(1)
        return (weights * spread).sum(1, keepdim=True)


def small_kernel_aggregation(x: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """The 3x3 dynamic convolution of LSConv (Wang et al., arXiv 2503.23135, "small-kernel aggregation").

    Args:
        x: (N, C, H, W), zero outside.
        filters: (N, C / 8, 9, H, W), one 3x3 filter a pixel; channels c, c + C/8, c + 2C/8, ... share one.

    Returns:
        (N, C, H, W).
    """
    n, channels, height, width = x.shape
    shared = filters.shape[1]
    padded = F.pad(x, (1, 1, 1, 1)).view(n, channels // shared, shared, height + 2, width + 2)
    total = x.new_zeros(())
    for tap in range(9):  # nine shifted products need a ninth of unfold's memory
        top, left = divmod(tap, 3)
        total = total + padded[..., top : top + height, left : left + width] * filters[:, None, :, tap]
    return total.view(n, channels, height, width)


class LSConv(nn.Module):
    """ "See large, focus small": a large-kernel branch predicts the filters of a small one (arXiv 2503.23135).

    LSConv(x) = BN(SKA(x, LKP(x))) + x.

    Args:
        channels: a multiple of 8.

    Forward: float (N, channels, H, W) -> the same shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 8:
            raise ValueError(f"LSConv shares each filter between 8 channels, {channels} cannot be shared")
        half, shared = channels // 2, channels // 8
        self.reduce = nn.Sequential(nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.large = nn.Sequential(nn.Conv2d(half, half, 7, padding=3, groups=half, bias=False), nn.BatchNorm2d(half))
        self.mix = nn.Sequential(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.filters = nn.Sequential(nn.Conv2d(half, 9 * shared, 1), nn.GroupNorm(shared, 9 * shared))
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filters = self.filters(self.mix(self.large(self.reduce(x))))
        filters = filters.view(x.shape[0], -1, 9, *x.shape[2:])
        return self.bn(small_kernel_aggregation(x, filters)) + x


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al., arXiv 1807.06521): first which channels, then which places.

    Args:
        channels: at least `reduction`.
        reduction: factor between them and the hidden layer of the channel attention.

    Forward: float (N, channels, H, W) -> the same shape; each value is scaled by a factor in (0, 1).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = channels // reduction
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * (self.channel(mean) + self.channel(largest)).sigmoid()  # equation 2
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.spatial(pooled).sigmoid()  # equation 3
