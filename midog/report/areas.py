"""Areas that a reader drew: what to count in, and what to leave out, as QuPath exports it.

A place on the edge of an area to count in counts; so does one on the edge of an excluded area. Corners are whole nm
from the outer corner of the image's first pixel, as places are, so that nothing is rounded when they are compared.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, one_line, quoted
from midog.images.slide import Slide
from midog.report.geojson import Feature, read_geojson
from midog.report.hotspot import NM_PER_MM, size_nm

if TYPE_CHECKING:
    import shapely

EXCLUDED = ("exclude", "excluded", "exclusion")  # classes, in any case, and QuPath's own that begin with "Ignore"
POLYGONS = ("Polygon", "MultiPolygon")
REMEDY = "draw areas as polygons and export them from QuPath as GeoJSON"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Areas:
    """Where figures count.

    Attributes:
        names: of each area to count in, no two the same; "area 1" and so on without one.
        counted: of each its geometry, nm, as it was drawn; empty: the whole image.
        excluded: what does not count, wherever it lies; may be empty.
        size: (width, height) of the image, nm.
    """

    names: tuple[str, ...]
    counted: "tuple[shapely.Geometry, ...]"
    excluded: "shapely.Geometry"
    size: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        """Whether all of the image counts."""
        return not self.counted and self.excluded.is_empty

    @cached_property
    def union(self) -> "shapely.Geometry":
        """What counts: the areas, or the image, without what is excluded, and clipped to the image."""
        import shapely

        image = shapely.box(0, 0, *self.size)
        areas = shapely.union_all(self.counted).intersection(image) if self.counted else image
        return areas.difference(self.excluded)

    @property
    def area_mm2(self) -> float:
        return float(self.union.area) / NM_PER_MM**2

    def holds(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (N,): which of int64 (N, 2) nm lie where it is counted, edges included."""
        import shapely

        inside = np.asarray(((places >= 0) & (places <= self.size)).all(axis=1))
        if self.is_whole or not inside.any():
            return inside
        x, y = places[inside].T
        held = ~shapely.contains_xy(self.excluded, x, y)
        if self.counted:
            held &= np.any([shapely.intersects_xy(area, x, y) for area in self.counted], axis=0)
        inside[inside] = held
        return inside

    def only(self, number: int) -> "Areas":
        """With one of the areas to count in alone."""
        return Areas(self.names[number : number + 1], self.counted[number : number + 1], self.excluded, self.size)

    def without_areas(self) -> "Areas":
        """The image without what is excluded."""
        return Areas((), (), self.excluded, self.size)


def whole(size: Sequence[int] | NDArray[np.int64]) -> Areas:
    """All of an image of (width, height) nm."""
    import shapely

    width, height = (int(side) for side in size)
    return Areas((), (), shapely.Polygon(), (width, height))


def read_areas(path: Path, slide: Slide) -> Areas:
    """Read the polygons of a GeoJSON file; what is no polygon is passed over with a line in the log.

    Polygons of the classes "exclude", "excluded", "exclusion" and those that begin with "Ignore" (in any case) are left
    out of every count; those of any other class or none are counted in.

    Args:
        path: GeoJSON as QuPath exports it: px from `slide.corner_px`, the outer corner of the first pixel at 0.
        slide: the areas are on.

    Raises:
        UserError: it cannot be read or is no GeoJSON; it has no polygon; a polygon has fewer than three corners, is
            open, crosses itself or lies outside the slide; nothing is left to count in.
    """
    import shapely

    _, features = read_geojson(path, REMEDY)
    polygons = [feature for feature in features if feature.kind in POLYGONS]
    others = Counter(feature.kind for feature in features if feature.kind not in POLYGONS)
    if not polygons:
        raise UserError(one_line(f"{path}: no polygon in it; {REMEDY}"))
    if others:
        passed_over = ", ".join(f"{kind} ({count})" for kind, count in others.items())
        logger.info(one_line(f"{path}: passed over, as no areas: {passed_over}"))
    size = size_nm(slide)
    image = shapely.box(0, 0, *size)
    drawn = [(feature, _geometry(path, feature, slide)) for feature in polygons]
    outside = [feature for feature, area in drawn if not area.intersects(image)]
    if outside:
        remedy = f"the image has {slide.size[0]} x {slide.size[1]} px; give the areas of this image"
        raise UserError(one_line(f"{path}: {_called(outside[0])} lies outside the image: {remedy}"))
    clipped = sum(not image.covers(area) for _, area in drawn)
    if clipped:
        logger.warning(one_line(f"{path}: {clipped} of {len(drawn)} areas reach beyond the image and end at its edge"))
    counted = [(feature, area) for feature, area in drawn if not _is_excluded(feature)]
    left_out = [area for feature, area in drawn if _is_excluded(feature)]
    excluded = shapely.set_precision(shapely.union_all(left_out), 1)  # where two cross, a corner is new
    width, height = size.tolist()
    names = _names([feature for feature, _ in counted])
    areas = Areas(names, tuple(area for _, area in counted), excluded, (width, height))
    if areas.union.area == 0:
        raise UserError(one_line(f"{path}: the excluded areas leave nothing to count in; draw them smaller"))
    return areas


def _is_excluded(feature: Feature) -> bool:
    name = feature.class_name.lower()
    return name in EXCLUDED or name.startswith("ignore")


def _names(features: Sequence[Feature]) -> tuple[str, ...]:
    """The reader's names, or "area 1" and so on; " (2)" and so on behind one that comes again."""
    names: list[str] = []
    for number, feature in enumerate(features, 1):
        name = given = feature.said.name or f"area {number}"
        times = 1
        while name in names:
            times += 1
            name = f"{given} ({times})"
        names.append(name)
    return tuple(names)


def _called(feature: Feature) -> str:
    """A polygon, for a message."""
    name = feature.said.name or feature.class_name
    return f"the area {quoted(name)}" if name else "an area"


def _geometry(path: Path, feature: Feature, slide: Slide) -> "shapely.Geometry":
    """A polygon, or several as one geometry, in nm; valid."""
    import shapely

    polygons: Any = [feature.coordinates] if feature.kind == "Polygon" else feature.coordinates
    try:
        drawn = [[np.array([(float(x), float(y)) for x, y, *_ in ring]) for ring in polygon] for polygon in polygons]
        outlines = [(outer, holes) for outer, *holes in drawn]
    except (TypeError, ValueError, OverflowError):
        raise UserError(one_line(f"{path}: {_called(feature)} has corners that are no x and y; {REMEDY}")) from None
    nm_per_px = np.array(slide.um_per_px) * 1000

    def in_nm(ring: NDArray[np.float64]) -> NDArray[np.float64]:
        _check_ring(path, feature, ring)
        return np.rint((ring + slide.corner_px) * nm_per_px)

    shapes = [shapely.Polygon(in_nm(outer), [in_nm(hole) for hole in holes]) for outer, holes in outlines]
    area = shapes[0] if feature.kind == "Polygon" else shapely.MultiPolygon(shapes)
    if not area.is_valid:
        what, _, place = shapely.is_valid_reason(area).rstrip("]").partition("[")
        column, row = np.array(place.split(), float) / nm_per_px - slide.corner_px
        found = f"{what.lower()} at {column:.0f}, {row:.0f} px"
        raise UserError(one_line(f"{path}: {_called(feature)} crosses or covers itself ({found}); draw it without"))
    return area


def _check_ring(path: Path, feature: Feature, ring: NDArray[np.float64]) -> None:
    """A ring, float64 (N, 2) px, is closed and has three corners at least."""
    if not np.isfinite(ring).all():
        raise UserError(one_line(f"{path}: {_called(feature)} has a corner without an end; {REMEDY}"))
    if len(ring) < 4 and (len(ring) < 3 or (ring[0] == ring[-1]).all()):
        raise UserError(one_line(f"{path}: {_called(feature)} has fewer than three corners; {REMEDY}"))
    if (ring[0] != ring[-1]).any():
        first, last = (f"{x:g}, {y:g}" for x, y in ring[[0, -1]])
        raise UserError(one_line(f"{path}: {_called(feature)} is open: from {first} to {last} px; close it"))
