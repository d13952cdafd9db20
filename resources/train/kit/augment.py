"""Augmentation of a batch of crops, on whole tensors and on any device."""

import math
import zlib
from collections.abc import Iterable
from typing import Annotated

import torch
import torch.nn.functional as F
from msgspec import Meta

from midog.system import Fraction, NotNegative
from resources.train.kit.recipes import Degrees, Strict

# Rows: the optical density of haematoxylin, eosin and DAB in R, G, B
# (Ruifrok and Johnston 2001, as in scikit-image's rgb_from_hed).
RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = torch.linalg.inv(RGB_FROM_HED)
GREY_FROM_RGB = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
MOST_OBLONG = 4 / 3  # width to height of a random crop, or height to width


class Augmentation(Strict, frozen=True):
    """How much a crop may change; 0 switches a part off, of `crop` 1.

    Attributes:
        flip: probability of each of the two mirrorings.
        upside_down: mirrored top to bottom, too; without it left to right alone.
        transpose: probability of swapping rows and columns.
        affine: probability of shift, scale and rotation together.
        rotation: degrees, drawn from -rotation to rotation.
        scale: fraction, drawn from -scale to scale (log-uniform).
        stretch: fraction by which width and height may differ (log-uniform).
        shift: fraction of the result's side.
        crop: a part of so much of the area or more is shown, from anywhere in the crop, up to 4/3 as wide as high or as
            high as wide ("random resized crop", Szegedy et al. 2015).
        stain: standard deviation of the log of each stain's strength, in HED space.
        contrast: standard deviation of the log of brightness and contrast.
        saturation: standard deviation of the log of the saturation.
        blur: probability of a 3x3 mean.
        noise: standard deviation of Gaussian noise, drawn for each crop from 0 to this; colours are from 0 to 1.
    """

    flip: Fraction = 0.0
    upside_down: bool = True
    transpose: Fraction = 0.0
    affine: Fraction = 0.0
    rotation: Degrees = 0.0
    scale: NotNegative = 0.0
    stretch: NotNegative = 0.0
    shift: Fraction = 0.0
    crop: Annotated[float, Meta(gt=0, le=1)] = 1.0
    stain: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    blur: Fraction = 0.0
    noise: NotNegative = 0.0


class Draws:
    """Random numbers for the images of a batch, each image's from a generator of its own.

    So an image changes alike in whatever process and in however large a forward it is changed.

    Args:
        seeds: of each image, any values, the same on every machine.
    """

    def __init__(self, seeds: Iterable[object]) -> None:
        self.generators = [torch.Generator().manual_seed(zlib.crc32(repr(each).encode())) for each in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def uniform(self, *shape: int) -> torch.Tensor:
        """float32 (N, ...) in [-1, 1)."""
        return torch.stack([torch.rand(shape, generator=each) for each in self.generators]) * 2 - 1

    def normal(self, *shape: int) -> torch.Tensor:
        """float32 (N, ...), of mean 0 and deviation 1."""
        return torch.stack([torch.randn(shape, generator=each) for each in self.generators])

    def chance(self, probability: float, *shape: int) -> torch.Tensor:
        """bool (N, ...)."""
        return torch.stack([torch.rand(shape, generator=each) for each in self.generators]) < probability


def augment(
    crops: torch.Tensor, masks: torch.Tensor, kept: float, size: int, strength: Augmentation, draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one view of every crop: the geometry, the centre crop and the scaling are one resampling.

    Args:
        crops: float (N, 3, H, W) in [0, 1].
        masks: float (N, 1, H, W).
        kept: fraction of the side that the centre crop keeps.
        size: px of the result's side.
        strength: of every change.
        draws: of the N crops.

    Returns:
        crops float (N, 3, size, size) in [0, 1], masks float (N, 1, size, size).
    """
    matrix = _matrices(kept, strength, draws).to(crops.device)
    grid = F.affine_grid(matrix, [len(crops), 1, size, size], align_corners=False)
    crops = F.grid_sample(crops, grid, padding_mode="reflection", align_corners=False)
    masks = F.grid_sample(masks, grid, align_corners=False)
    if strength.stain:
        crops = jitter_stain(crops, strength.stain, draws)
    if strength.contrast:
        crops = jitter_contrast(crops, strength.contrast, draws)
    if strength.saturation:
        crops = jitter_saturation(crops, strength.saturation, draws)
    if strength.blur:
        chosen = draws.chance(strength.blur).to(crops.device)
        crops[chosen] = F.avg_pool2d(F.pad(crops[chosen], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    if strength.noise:
        crops = add_noise(crops, strength.noise, draws)
    return crops, masks


def _matrices(kept: float, strength: Augmentation, draws: Draws) -> torch.Tensor:
    """(N, 2, 3) maps from the result's coordinates in [-1, 1] to the crop's."""
    moved = draws.chance(strength.affine).float()
    angle = torch.deg2rad(draws.uniform() * strength.rotation * moved)
    scale = torch.exp(draws.uniform() * strength.scale * moved) * kept
    stretch = torch.exp(draws.uniform() * strength.stretch * moved / 2)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    linear = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    linear = linear * (scale[:, None, None] * torch.stack([stretch, 1 / stretch], 1)[:, None, :])
    flipped = draws.chance(strength.flip, 1, 2) & torch.tensor([True, strength.upside_down])
    linear = linear * (1 - 2 * flipped.float())
    swapped = draws.chance(strength.transpose)
    linear[swapped] = linear[swapped].flip(2)
    shift = draws.uniform(2) * 2 * strength.shift * kept * moved[:, None]
    if strength.crop < 1:
        sides = _part_sides(strength.crop, draws)
        shift = shift + torch.einsum("nij,nj->ni", linear, draws.uniform(2) * (1 - sides))
        linear = linear * sides[:, None, :]
    return torch.cat([linear, shift[:, :, None]], 2)


def _part_sides(least: float, draws: Draws) -> torch.Tensor:
    """(N, 2) fractions of width and height that parts of at least so much of the area have."""
    area = least + (1 - least) * (draws.uniform() + 1) / 2
    oblong = torch.exp(draws.uniform() * math.log(MOST_OBLONG) / 2)
    return (area.sqrt()[:, None] * torch.stack([oblong, 1 / oblong], 1)).clamp_max(1)


def jitter_stain(crops: torch.Tensor, strength: float, draws: Draws) -> torch.Tensor:
    """Scale and shift the stains' optical density (Tellez et al. 2018, HED jitter).

    Args:
        crops: float (N, 3, H, W) in [0, 1].
        strength: standard deviation of the log of each stain's factor; a tenth of it is the shift's.
        draws: of the N crops.
    """
    to_hed, to_rgb = HED_FROM_RGB.to(crops.device), RGB_FROM_HED.to(crops.device)
    density = -torch.log(crops.clamp_min(1 / 255))
    stains = torch.einsum("nrhw,rs->nshw", density, to_hed)
    factor = torch.exp(draws.normal(3, 1, 1) * strength).to(crops.device)
    offset = (draws.normal(3, 1, 1) * strength / 10).to(crops.device)
    density = torch.einsum("nshw,sr->nrhw", stains * factor + offset, to_rgb)
    return torch.exp(-density).clamp(0, 1)


def jitter_contrast(crops: torch.Tensor, strength: float, draws: Draws) -> torch.Tensor:
    """Draw brightness, offset and contrast of every crop.

    Args:
        crops: float (N, 3, H, W) in [0, 1].
        strength: standard deviation of the log of the contrast's factor; half of it is the brightness's, a fifth the
            offset's.
        draws: of the N crops.
    """
    brightness, offset, contrast = draws.normal(3, 1, 1, 1).to(crops.device).unbind(1)
    crops = crops * torch.exp(brightness * strength / 2) + offset * strength / 5
    mean = crops.mean(dim=(2, 3), keepdim=True)
    return ((crops - mean) * torch.exp(contrast * strength) + mean).clamp(0, 1)


def jitter_saturation(crops: torch.Tensor, strength: float, draws: Draws) -> torch.Tensor:
    """Move every crop's colours towards its grey, or away from it.

    Args:
        crops: float (N, 3, H, W) in [0, 1].
        strength: standard deviation of the log of the factor.
        draws: of the N crops.
    """
    grey = torch.einsum("nchw,c->nhw", crops, GREY_FROM_RGB.to(crops.device))[:, None]
    factor = torch.exp(draws.normal(1, 1, 1) * strength).to(crops.device)
    return ((crops - grey) * factor + grey).clamp(0, 1)


def add_noise(crops: torch.Tensor, strength: float, draws: Draws) -> torch.Tensor:
    """Add Gaussian noise, another one to every pixel and colour.

    Args:
        crops: float (N, 3, H, W) in [0, 1].
        strength: the largest standard deviation; each crop draws its own, even from 0.
        draws: of the N crops.
    """
    deviation = (draws.uniform(1, 1, 1) + 1) / 2 * strength
    return (crops + (deviation * draws.normal(*crops.shape[1:])).to(crops.device)).clamp(0, 1)
