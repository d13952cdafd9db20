"""What the tissue of an image looks like: its stains, its nuclei, how bright it and the glass beside it are.

Measured at one spacing, whatever the image's own, so that scans of different resolution can be compared. The stains are
those of Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009; optical
density is -log10 of grey levels / 255, without a correction for the glass, because networks see none either.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midog.images.tiles import has_tissue

UM_PER_PX = 0.5  # a nucleus is 10 to 30 px wide, and a quarter of the pixels of a 40x scan are left
MIN_DENSITY = 0.15  # Macenko's beta: the length of a pixel's density, below which it is too pale to have a stain
EXTREMES = 1, 99  # percentiles of the angle between stains
LEAST_TISSUE = 0.1  # share of the pixels

# Glass has no colour and is bright: 220 to 250 on the scanners of public sets, as dim as 180 is taken for it.
GLASS_LEVEL, GLASS_COLOUR = 180, 16  # grey levels: the darkest channel at least, and between channels at most
LEAST_GLASS = 0.01  # share of the pixels; less may be the edges of pale cells

SMOOTHING_UM = 0.75  # joins the chromatin of a nucleus
NARROWEST_UM = 4.0  # narrower parts are cut off: bridges between nuclei, fibres
NUCLEUS_UM = 5.0, 20.0  # smaller are fragments, larger are several
LEAST_FILLED = 0.95  # of the ellipse with the same second moments; of two touching discs it is .89

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Appearance(NamedTuple):
    """Of one image or several.

    Attributes:
        nuclei_um: float64 (N,), diameters of circles of the nuclei's areas; of nuclei of any cell that lie whole in the
            image and touch no other, figures included.
        haematoxylin, eosin: float64 (3,), optical density in R, G and B as unit vectors.
        white_level: mean grey level of glass, 0 to 255, or None where no glass shows.
        brightness: mean grey level of tissue, 0 to 255.
        images: how many it was measured on.
        area_mm2: of these, glass included.
    """

    nuclei_um: Floats
    haematoxylin: Floats
    eosin: Floats
    white_level: float | None
    brightness: float
    images: int
    area_mm2: float


def appearance_of(pixels: NDArray[np.uint8], um_per_px: tuple[float, float]) -> Appearance | None:
    """Measure an image, or a window of one; it is held in memory several times.

    Args:
        pixels: uint8 (H, W, 3) RGB, at least 16 px a side.
        um_per_px: (x, y).

    Returns:
        None where less than a tenth of it is tissue.
    """
    height, width = pixels.shape[:2]
    if not has_tissue(pixels):
        return None
    resampled = _resampled(pixels, um_per_px)
    glass = glass_in(resampled)
    density = -np.log10(np.maximum(resampled, 1) / 255)
    tissue = (np.linalg.norm(density, axis=2) >= MIN_DENSITY) & ~glass
    if tissue.mean() < LEAST_TISSUE:
        return None
    haematoxylin, eosin = stain_vectors(density[tissue])
    amounts = np.linalg.pinv(np.stack([haematoxylin, eosin], 1)) @ density.reshape(-1, 3).T
    areas = np.bincount(nuclei(amounts[0].reshape(tissue.shape), tissue).ravel())[1:]
    return Appearance(
        nuclei_um=2 * np.sqrt(areas[areas > 0] / np.pi) * UM_PER_PX,
        haematoxylin=haematoxylin,
        eosin=eosin,
        white_level=float(resampled[glass].mean()) if glass.mean() >= LEAST_GLASS else None,
        brightness=float(resampled[tissue].mean()),
        images=1,
        area_mm2=width * um_per_px[0] * height * um_per_px[1] / 1e6,
    )


def pooled(measured: Iterable[Appearance | None]) -> Appearance | None:
    """Several images as one: all their nuclei, and of everything else the median image's.

    A crop shows too few nuclei for percentiles of its own.

    Args:
        measured: as `appearance_of` gives them; those without tissue are left out.

    Returns:
        None where all are without tissue.
    """
    known = [each for each in measured if each]
    if not known:
        return None
    white_levels = [each.white_level for each in known if each.white_level is not None]
    return Appearance(
        nuclei_um=np.concatenate([each.nuclei_um for each in known]),
        haematoxylin=_unit(np.median([each.haematoxylin for each in known], 0)),
        eosin=_unit(np.median([each.eosin for each in known], 0)),
        white_level=float(np.median(white_levels)) if white_levels else None,
        brightness=float(np.median([each.brightness for each in known])),
        images=sum(each.images for each in known),
        area_mm2=sum(each.area_mm2 for each in known),
    )


def glass_in(pixels: NDArray[np.uint8]) -> Mask:
    """Which pixels, uint8 (..., 3), are glass: bool (...)."""
    return (pixels.min(-1) >= GLASS_LEVEL) & (np.ptp(pixels, -1) < GLASS_COLOUR)


def stain_vectors(density: Floats) -> tuple[Floats, Floats]:
    """Macenko's two stains: the extreme directions in the plane in which most of the densities lie.

    Args:
        density: float64 (N, 3), optical density of tissue in R, G and B.

    Returns:
        Haematoxylin and eosin, float64 (3,) unit vectors without negative parts. Haematoxylin, which is blue, is the
        one with the larger red part: it absorbs red, and eosin hardly does.
    """
    plane = np.linalg.eigh(np.cov(density.T))[1][:, :0:-1]
    plane *= np.where(plane.sum(0) < 0, -1, 1)  # angles around that of a grey pixel, far from where they jump
    along, across = (density @ plane).T
    angles = np.percentile(np.arctan2(across, along), EXTREMES)
    one, other = (_unit(np.maximum(plane @ (np.cos(angle), np.sin(angle)), 0)) for angle in angles)
    return (one, other) if one[0] > other[0] else (other, one)


def nuclei(haematoxylin: Floats, tissue: Mask) -> NDArray[np.int32]:
    """The nuclei that stand alone, by Otsu's threshold of the haematoxylin.

    Args:
        haematoxylin: float64 (H, W), its amount at `UM_PER_PX`.
        tissue: bool (H, W), where the threshold is chosen.

    Returns:
        int32 (H, W), a number a nucleus, 0 elsewhere.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(haematoxylin, SMOOTHING_UM / UM_PER_PX)
    filled = ndimage.binary_fill_holes(smooth > otsu(smooth[tissue]))  # chromatin may be at the rim alone
    labels, _ = ndimage.label(ndimage.binary_opening(filled, _disc(NARROWEST_UM / UM_PER_PX)))
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        cut = any(part.start == 0 or part.stop == side for part, side in zip(place, labels.shape, strict=True))
        if cut or not _is_nucleus(labels[place] == number):
            labels[place][labels[place] == number] = 0
    return labels.astype(np.int32, copy=False)


def _is_nucleus(shape: Mask) -> bool:
    """Whether a component has the size of a nucleus, and nearly the form of an ellipse."""
    smallest, largest = (np.pi * (diameter / UM_PER_PX / 2) ** 2 for diameter in NUCLEUS_UM)
    area = np.count_nonzero(shape)
    if not smallest <= area <= largest:
        return False
    ellipse = 4 * np.pi * np.sqrt(np.linalg.det(np.cov(np.nonzero(shape))))
    return bool(area >= LEAST_FILLED * ellipse)


def otsu(values: Floats) -> float:
    """Otsu's threshold of float (N,), from a histogram of 256 bins: between the classes of the largest variance."""
    counts, edges = np.histogram(values, 256)
    below = counts.cumsum()[:-1]  # the last bin has none above it
    means = (edges[:-1] + edges[1:]) / 2
    sums = (counts * means).cumsum()
    mean, above = sums[-1] / len(values), len(values) - below
    variance = (mean * below - sums[:-1]) ** 2 / (below * above)
    return float(edges[1 + np.argmax(variance)])


def _resampled(pixels: NDArray[np.uint8], um_per_px: tuple[float, float]) -> NDArray[np.uint8]:
    from PIL import Image

    width, height = (
        max(1, round(side * spacing / UM_PER_PX)) for side, spacing in zip(pixels.shape[1::-1], um_per_px, strict=True)
    )
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _disc(diameter: float) -> Mask:
    """The pixels whose centres lie in a circle around the middle one's."""
    reach = int(diameter / 2)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    return rows**2 + columns**2 <= (diameter / 2) ** 2


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector)
