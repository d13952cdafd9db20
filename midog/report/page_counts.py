"""What the page's scripts count with, as counts.js and density.js take it: protocols, areas and tissue."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections
from midog.images.slide import Slide
from midog.images.tissue import TissueMask, tissue_mask
from midog.report.areas import Areas, whole
from midog.report.counts import count
from midog.report.hotspot import LONG_NM, NM_PER_MM, SHORT_NM, size_nm
from midog.report.overlay import LONGEST_SIDE
from midog.report.protocols import (
    FIELD_DIAMETER_MM,
    FIELDS,
    HOTSPOT,
    TEN_FIELDS,
    WHO,
    WHO_LONG_NM,
    WHO_SHORT_NM,
    field_centres,
)

if TYPE_CHECKING:
    import shapely

SIDES = {HOTSPOT: (LONG_NM, SHORT_NM), WHO: (WHO_LONG_NM, WHO_SHORT_NM)}  # of windows, by protocol


def measured_json(slide: Slide) -> str:
    """What the page of `midog view` counts with once the slide was read, as JSON.

    Raises:
        UserError: the slide's pixels cannot be decoded.
    """
    tissue = tissue_mask(slide, slide.overview(LONGEST_SIDE))
    areas = whole(size_nm(slide))
    return json.dumps({"tissue": tissue_data(tissue, areas), "protocols": protocols_data(slide, tissue, areas)})


def protocols_data(
    slide: Slide, tissue: TissueMask | None, areas: Areas, field_diameter_mm: float = FIELD_DIAMETER_MM
) -> list[dict[str, Any]]:
    """The protocols with their areas as they are without figures; `tissue` is None before the slide was read."""
    tissue = tissue or TissueMask(np.zeros((1, 1), bool), (1.0, 1.0))  # its areas are not shown then
    nothing = Detections.of([], [], slide.um_per_px)
    diameter = round(field_diameter_mm * NM_PER_MM)
    centres = None if areas.is_whole else runs_of(field_centres(areas, diameter))
    fields = {"diameter": diameter, "number": FIELDS, "centres": centres}
    return [
        {
            "key": each.key,
            "name": each.name.replace("mm2", "mm²"),
            "askedMm2": each.asked_mm2,
            "areaMm2": each.area_mm2,
            "tissueMm2": each.tissue_mm2,
            **({"sides": SIDES[each.key]} if each.key in SIDES else {}),
            **(fields if each.key == TEN_FIELDS else {}),
        }
        for each in count(slide, nothing, tissue, areas, field_diameter_mm).protocols
    ]


def tissue_data(tissue: TissueMask, areas: Areas) -> dict[str, Any]:
    """Where tissue is, and where of that it counts."""
    rows, columns = tissue.mask.shape
    counted = None if areas.is_whole else runs_of(tissue.within(areas.union))
    known = {"sizeUm": tissue.size_um, "mm2": tissue.area_mm2, "counted": counted}
    return {"columns": columns, "rows": rows, "runs": runs_of(tissue.mask), **known}


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """How long the runs of False and True are, by turns, row by row."""
    values = np.concatenate([[False], mask.ravel()])  # the first run may have no length
    ends = np.flatnonzero(np.diff(values))
    return np.diff(ends, prepend=0, append=mask.size).tolist()


def areas_data(areas: Areas) -> dict[str, Any]:
    """Where it is counted."""
    return {
        "excluded": [ring for polygon in _polygons(areas.excluded) for ring in polygon],
        "counted": [[ring for polygon in _polygons(area) for ring in polygon] for area in areas.counted],
        "union": None if areas.is_whole else _polygons(areas.union),
    }


def _polygons(area: "shapely.Geometry") -> list[list[list[list[float]]]]:
    """Of each polygon its closed rings, the outer one first, nm."""
    import shapely

    return [
        [shapely.get_coordinates(ring).tolist() for ring in shapely.get_rings(part)]
        for part in shapely.get_parts(area)
        if part.geom_type == "Polygon"
    ]
