"""What the tissue of labelled fields looks like, for model.yaml: later a laboratory's own slide is compared with it."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from midog.images.appearance import appearance_of, pooled
from midog.system import Tissue
from resources.data.fields import WINDOW, Field

FIELDS = 150  # a tenth of a second each, most of it for reading
SEED = 0
PERCENTILES = 10, 50, 90


def tissue_of(fields: Sequence[Field]) -> Tissue | None:
    """Measure a sample of fields, a window of each; the same sample whenever it is asked for.

    Args:
        fields: of any number; as evenly as they allow, the sample is taken from their sources.

    Returns:
        None where no window holds tissue.

    Raises:
        UserError: an image cannot be read.
    """
    random = np.random.default_rng(SEED)
    found = pooled(appearance_of(_window(each, random), each.um_per_px) for each in _sample(fields, random))
    if not found:
        return None
    diameters = np.percentile(found.nuclei_um, PERCENTILES).round(2).tolist() if len(found.nuclei_um) else None
    return Tissue(
        nucleus_um=diameters and tuple(diameters),
        haematoxylin=_rounded(found.haematoxylin),
        eosin=_rounded(found.eosin),
        white_level=None if found.white_level is None else round(found.white_level, 1),
        brightness=round(found.brightness, 1),
        images=found.images,
        area_mm2=round(found.area_mm2, 4),
    )


def _sample(fields: Sequence[Field], random: np.random.Generator) -> Iterator[Field]:
    """One field of each source after the other, until there are enough."""
    turns, taken = [], Counter[str]()
    for number in random.permutation(len(fields)):
        source = fields[number].source
        turns.append((taken[source], number))
        taken[source] += 1
    turns.sort(key=lambda turn: turn[0])
    return (fields[number] for _, number in turns[:FIELDS])


def _window(field: Field, random: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), anywhere in the field."""
    width, height = (min(side, WINDOW) for side in field.size)
    left, top = (int(random.integers(side - part + 1)) for side, part in zip(field.size, (width, height), strict=True))
    return field.read(left, top, width, height)


def _rounded(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = vector.round(4).tolist()
    return red, green, blue
