"""Augmentation of a batch of crops, on whole tensors and on any device."""

import zlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from midog.system import Fraction, NotNegative
from resources.train.kit.recipes import Degrees, Strict

# Rows: the optical density of haematoxylin, eosin and DAB in R, G, B
# (Ruifrok and Johnston 2001, as in scikit-image's rgb_from_hed).
RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = torch.linalg.inv(RGB_FROM_HED)


class Augmentation(Strict, frozen=True):
    """How much a crop may change; 0 switches a part off.

    Attributes:
        flip: probability of each of the two mirrorings.
        transpose: probability of swapping rows and columns.
        affine: probability of shift, scale and rotation together.
        rotation: degrees, drawn from -rotation to rotation.
        scale: fraction, drawn from -scale to scale (log-uniform).
        stretch: fraction by which width and height may differ (log-uniform).
        shift: fraction of the result's side.
        stain: standard deviation of the log of each stain's strength, in HED space.
        contrast: standard deviation of the log of brightness and contrast.
        blur: probability of a 3x3 mean.
    """

    flip: Fraction = 0.0
    transpose: Fraction = 0.0
    affine: Fraction = 0.0
    rotation: Degrees = 0.0
    scale: NotNegative = 0.0
    stretch: NotNegative = 0.0
    shift: Fraction = 0.0
    stain: NotNegative = 0.0
    contrast: NotNegative = 0.0
    blur: Fraction = 0.0


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
    if strength.blur:
        blurred = F.avg_pool2d(F.pad(crops, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        crops = torch.where(draws.chance(strength.blur, 1, 1, 1).to(crops.device), blurred, crops)
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
    linear = linear * (1 - 2 * draws.chance(strength.flip, 1, 2).float())
    swapped = draws.chance(strength.transpose)
    linear[swapped] = linear[swapped].flip(2)
    shift = draws.uniform(2) * 2 * strength.shift * kept * moved[:, None]
    return torch.cat([linear, shift[:, :, None]], 2)


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
