"""The numbers that a report may carry: counts by protocol, areas, and the share of atypical figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections
from midog.images.slide import Slide
from midog.images.tissue import TissueMask
from midog.report.areas import Areas, whole
from midog.report.hotspot import NM_PER_MM, places_nm, size_nm
from midog.report.intervals import wilson_interval
from midog.report.misclassification import Errors, corrected_share
from midog.report.protocols import FIELD_DIAMETER_MM, Count, protocols

LEAST_FIGURES = 20  # of a share: of fewer, even none atypical leaves up to 17 % possible
SHARE_COLUMNS = (  # of every table that has a share
    *("atypical", "atypical_low", "atypical_high"),
    *("atypical_corrected", "atypical_corrected_low", "atypical_corrected_high", "atypical_count"),
)


@dataclass(frozen=True)
class Share:
    """Atypical figures among those that have a subtype.

    Attributes:
        atypical, of: how many, of how many.
        reviewed: of how many of these a reader had a say in it.
        errors: of the system that told the others; empty where they are not known.
    """

    atypical: int
    of: int
    reviewed: int = 0
    errors: Errors = ()

    @property
    def given(self) -> bool:
        """Whether there are enough figures to give a share."""
        return self.of >= LEAST_FIGURES

    @property
    def fraction(self) -> float:
        """In [0, 1]; 0 without figures."""
        return self.atypical / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % (Wilson), in [0, 1]."""
        return wilson_interval(self.atypical, self.of) if self.of else (0.0, 1.0)

    @property
    def corrected(self) -> tuple[float, float, float] | None:
        """Without the system's errors, and from where to where, in [0, 1]; None where there are none to go by."""
        return corrected_share(self.atypical, self.of, self.reviewed, self.errors) if self.of else None

    @property
    def cells(self) -> dict[str, str]:
        """By `SHARE_COLUMNS`; what is not given or not known is empty."""
        known = (self.fraction, *self.interval, *(self.corrected or ())) if self.given else ()
        values = dict(zip(SHARE_COLUMNS, (f"{value:.4f}" for value in known), strict=False))
        return dict.fromkeys(SHARE_COLUMNS, "") | values | {"atypical_count": str(self.atypical)}


@dataclass(frozen=True, eq=False)
class Counts:
    """Of one image.

    Attributes:
        image_mm2: area, glass included.
        tissue_mm2: of that.
        protocols: in the order in which they are shown.
        share: of atypical figures; None where that was not asked.
        counted: bool (N,), which candidates, accepted or not, lie where it is counted.
    """

    image_mm2: float
    tissue_mm2: float
    protocols: tuple[Count, ...]
    share: Share | None
    counted: NDArray[np.bool_]

    def of(self, key: str) -> Count:
        """By a protocol's key."""
        return next(count for count in self.protocols if count.key == key)

    def to_builtins(self) -> dict[str, Any]:
        """For JSON; lengths in nm from the outer corner of the first pixel, areas in mm2."""
        return {
            "image_mm2": self.image_mm2,
            "tissue_mm2": self.tissue_mm2,
            "protocols": [_of_protocol(count) for count in self.protocols],
            "share": self.share and _of_share(self.share),
        }


def _of_protocol(count: Count) -> dict[str, Any]:
    box = count.box and [count.box.left, count.box.top, count.box.width, count.box.height]
    return {
        "key": count.key,
        "name": count.name,
        "figures": count.figures,
        "interval": list(count.interval),
        "asked_mm2": count.asked_mm2,
        "area_mm2": count.area_mm2,
        "reached": count.reached,
        "tissue_mm2": count.tissue_mm2,
        "per_mm2": count.per_mm2,
        "per_mm2_tissue": count.per_mm2_tissue,
        "box_nm": box,
        "circles_nm": [list(circle) for circle in count.circles],
    }


def _of_share(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {
        "atypical": share.atypical,
        "of": share.of,
        "given": share.given,
        "fraction": share.fraction,
        "interval": [low, high],
        "corrected": share.corrected,
    }


def count(
    slide: Slide,
    found: Detections,
    tissue: TissueMask,
    areas: Areas | None = None,
    field_diameter_mm: float = FIELD_DIAMETER_MM,
    errors: Errors = (),
    reviewed: NDArray[np.bool_] | None = None,
) -> Counts:
    """Count the mitotic figures of an image.

    Args:
        slide: for its size and scale; none of its pixels are read.
        found: candidates in px of the slide, in any order; with P(atypical) where that was asked.
        tissue: of the slide.
        areas: to count in; None: the whole image.
        field_diameter_mm: of a high-power field.
        errors: of the system that told the subtypes.
        reviewed: bool (N,), in which of the candidates a reader had a say; None: in none.
    """
    size, places = size_nm(slide), places_nm(slide, found.centres)
    areas = areas or whole(size)
    counted = areas.holds(places)
    known = ~np.isnan(found.atypical)
    judged = known & found.accepted & counted
    by_reader = 0 if reviewed is None else int((judged & reviewed).sum())
    is_atypical = found.atypical[judged] >= 0.5
    share = Share(int(is_atypical.sum()), int(judged.sum()), by_reader, errors) if known.any() else None
    by_protocol = protocols(places[found.accepted], size, areas, tissue, field_diameter_mm)
    image_mm2 = float(np.prod(size / NM_PER_MM))
    return Counts(image_mm2, tissue.area_mm2, by_protocol, share, counted)
