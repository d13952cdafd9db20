"""Stain normalisation: a slide whose stains are brought to a reference's as it is read.

Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009: the two stains'
directions in optical density (`midog.images.appearance.stain_vectors`), and each one's 99th percentile concentration.
Both are measured once a slide, so that a window looks as the same part of the whole does.

Optical density is -log10 of grey levels over those of the light, which is what shines through glass, where the slide
shows some, and else 255. So glass becomes white and never takes a stain's colour.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midog.images.appearance import LEAST_GLASS, MIN_DENSITY, glass_in, stain_vectors
from midog.images.slide import Made, Read, Slide

# The stains that the usual implementations normalise to: mitkovetta/staining-normalization, as in torchstain. Their
# densities are natural logarithms.
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])  # haematoxylin and eosin in R, G, B
REFERENCE_STRENGTH = np.array([1.9705, 1.0308]) / np.log(10)
STRENGTH_PERCENTILE = 99
WINDOWS, WINDOW = 12, 32  # along the longer side, evenly spread; px
LEAST_PIXELS = 2000  # of tissue, two windows; of fewer a percentile says little
LEAST_ANGLE = 5.0  # degrees between the stains; the reference's are 22 apart, and less is one stain with noise

logger = logging.getLogger(__name__)


class Change(NamedTuple):
    """What brings a slide's stains to the reference's.

    Attributes:
        light: float64 (3,), grey levels of R, G and B where nothing absorbs.
        matrix: float64 (3, 3), from optical densities in R, G and B to those wanted.
    """

    light: NDArray[np.float64]
    matrix: NDArray[np.float64]


def stain_normalised(slide: Slide, name: str = "image") -> Slide:
    """A slide with the reference's stains; itself, with a warning, where it shows too little tissue to measure its own.

    Args:
        slide: read at `WINDOWS` x `WINDOWS` places at most; closing the result closes it.
        name: of it, for the warning.
    """
    change = change_of(sample_of(slide))
    if change is None:
        width, height = slide.size
        logger.warning(
            "%s, %d x %d px: too little stained tissue to measure its stains on; its colours stay", name, width, height
        )
        return slide
    return StainNormalised(slide, change)


class StainNormalised(Slide):
    """A slide whose optical densities are changed as they are read.

    Args:
        source: `Slide`; closing this one closes it.
        change: of them.
    """

    def __init__(self, source: Slide, change: Change) -> None:
        super().__init__(source.size, source.um_per_px, source.origin_mm, source.resolution)
        self.source, self.segment, self.corner_px = source, source.segment, source.corner_px
        densities = densities_of(np.arange(256)[:, None].repeat(3, 1), change.light)
        # What each level of R, of G and of B adds to the three densities wanted, (3, 256, 3), as natural logarithms.
        # Sums of what is looked up are the same in every window, which a product of matrices is not to the last bit.
        self.parts = (np.log(10) * densities.T[:, :, None] * change.matrix.T[:, None]).astype(np.float32)

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return self._changed(self.source.read(x, y, width, height))

    def overview(self, longest_side: int) -> NDArray[np.uint8]:
        return self._changed(self.source.overview(longest_side))

    def of_level(self, size: tuple[int, int], make: Callable[[tuple[int, int], Read], Made]) -> Made:
        return self.source.of_level(
            size, lambda level_size, read: make(level_size, lambda *place: self._changed(read(*place)))
        )

    def close(self) -> None:
        self.source.close()

    def _changed(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        red, green, blue = (part.take(pixels[..., channel], axis=0) for channel, part in enumerate(self.parts))
        return (255 * np.exp(-(red + green + blue)) + 0.5).clip(0, 255).astype(np.uint8)


def densities_of(pixels: NDArray[np.integer], light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Optical densities of grey levels, (..., 3), at least 0: float64 of that shape."""
    return (-np.log10(np.maximum(pixels, 1) / light)).clip(0)


def sample_of(slide: Slide) -> NDArray[np.uint8]:
    """Pixels of windows that are spread over a slide, always the same: uint8 (N, 3)."""
    longest = max(slide.size)
    counts = [max(1, min(round(WINDOWS * side / longest), side // WINDOW)) for side in slide.size]
    sides = [min(WINDOW, side) for side in slide.size]
    columns, rows = (
        # in the middle of even parts
        ((np.arange(count) + 0.5) / count * side - window / 2).clip(0, side - window).astype(int).tolist()
        for count, side, window in zip(counts, slide.size, sides, strict=True)
    )
    windows = [slide.read(left, top, *sides).reshape(-1, 3) for top in rows for left in columns]
    return np.concatenate(windows)


def change_of(pixels: NDArray[np.uint8]) -> Change | None:
    """What brings the stains of a slide to the reference's.

    Args:
        pixels: uint8 (N, 3), a sample of it.

    Returns:
        None where too little is stained, or with one stain alone.
    """
    glass = glass_in(pixels)
    light = np.median(pixels[glass], 0) if glass.mean() >= LEAST_GLASS else np.full(3, 255.0)
    densities = densities_of(pixels[~glass], light)
    stained = densities[np.linalg.norm(densities, axis=1) >= MIN_DENSITY]
    if len(stained) < LEAST_PIXELS:
        return None
    stains = np.stack(stain_vectors(stained), 1)
    if np.linalg.norm(np.cross(*stains.T)) < np.sin(np.deg2rad(LEAST_ANGLE)):
        return None
    to_amounts = np.linalg.pinv(stains)
    strengths = np.percentile(stained @ to_amounts.T, STRENGTH_PERCENTILE, axis=0)
    return Change(light, REFERENCE.T @ np.diag(REFERENCE_STRENGTH / strengths) @ to_amounts)
