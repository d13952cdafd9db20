"""Mitotic counts by the protocols that pathologists use, each with the area that it was really made in.

Hotspots of 2.37 mm2 (`midog.report.hotspot`) and of 2 mm2 (WHO Classification of Tumours: Breast Tumours, 5th ed.,
2019, and later volumes, which count per mm2), ten round high-power fields, the whole image, and what a reader drew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError
from midog.images.tissue import TissueMask
from midog.report.areas import Areas
from midog.report.hotspot import LONG_NM, NM_PER_MM, SHORT_NM, Hotspot, find_hotspot
from midog.report.intervals import poisson_interval

FIELD_DIAMETER_MM = 0.55  # of a field number of 22 mm and a 40x objective: .2376 mm2
FIELDS = 10
DIAMETERS_MM = 0.2, 1.5  # from a 63x objective to a 20x one
STEPS = 16  # of a field's diameter, between the places that are tried
WHO_LONG_NM, WHO_SHORT_NM = 1_632_993, 1_224_745  # 2 mm2, 4:3
HOTSPOT, WHO, TEN_FIELDS, WHOLE, AREAS, AREA = "hotspot", "who", "fields", "whole", "areas", "area:"

Circle = tuple[int, int, int]  # x, y, radius, nm


@dataclass(frozen=True)
class Count:
    """What one protocol gives.

    Attributes:
        key: "hotspot", "who", "fields", "whole", "areas", or "area:" and an area's name.
        name: of the protocol, for a reader.
        figures: counted.
        asked_mm2: the area that the protocol asks for; None: as large as it is.
        area_mm2: that was counted in.
        tissue_mm2: of that.
        box: the window; None without figures, and of other protocols.
        circles: (x, y, radius) of the fields, nm from the outer corner of the image's first pixel; of other protocols
            none.
    """

    key: str
    name: str
    figures: int
    asked_mm2: float | None
    area_mm2: float
    tissue_mm2: float
    box: Hotspot | None = None
    circles: tuple[Circle, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether the area is as large as the protocol asks for."""
        return self.asked_mm2 is None or self.area_mm2 >= self.asked_mm2 * (1 - 1e-9)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the count (Poisson)."""
        return poisson_interval(self.figures)

    @property
    def per_mm2(self) -> float | None:
        return self.figures / self.area_mm2 if self.area_mm2 else None

    @property
    def per_mm2_tissue(self) -> float | None:
        return self.figures / self.tissue_mm2 if self.tissue_mm2 else None


def check_field(diameter_mm: float) -> None:
    """Make sure that a high-power field can be as wide.

    Raises:
        UserError: else.
    """
    low, high = DIAMETERS_MM
    if not low <= diameter_mm <= high:
        raise UserError(
            f"--field-diameter {diameter_mm:g}: no high-power field's; give the diameter in mm, {low:g} to {high:g}"
        )


def protocols(
    places: NDArray[np.int64],
    size: Sequence[int] | NDArray[np.int64],
    areas: Areas,
    tissue: TissueMask,
    field_diameter_mm: float = FIELD_DIAMETER_MM,
) -> tuple[Count, ...]:
    """Count by every protocol.

    Args:
        places: int64 (N, 2) nm, of the figures; those outside the image or the areas do not count.
        size: (width, height) of the image, nm.
        areas: to count in.
        tissue: of the image.
        field_diameter_mm: of a high-power field: the eyepiece's field number, divided by the objective's magnification.
    """
    counted = places[areas.holds(places)]
    parts = [
        _window(HOTSPOT, "Hotspot, 2.37 mm2", (LONG_NM, SHORT_NM), counted, areas, tissue),
        _window(WHO, "Hotspot, 2 mm2 (WHO 2021)", (WHO_LONG_NM, WHO_SHORT_NM), counted, areas, tissue),
        _fields(counted, areas, tissue, round(field_diameter_mm * NM_PER_MM)),
        _all(WHOLE, "Whole image", places, areas.without_areas(), tissue),
    ]
    if areas.counted:
        parts.append(_all(AREAS, "Given areas", places, areas, tissue))
        for number, name in enumerate(areas.names):
            parts.append(_all(AREA + name, name, places, areas.only(number), tissue))
    return tuple(parts)


def _all(key: str, name: str, places: NDArray[np.int64], areas: Areas, tissue: TissueMask) -> Count:
    """Everything in some areas."""
    held = int(areas.holds(places).sum())
    of_tissue = tissue.area_mm2 if areas.is_whole else tissue.inside(areas.union)
    return Count(key, name, held, None, areas.area_mm2, of_tissue)


def _window(
    key: str, name: str, sides: tuple[int, int], counted: NDArray[np.int64], areas: Areas, tissue: TissueMask
) -> Count:
    """The window with the most of the figures that count.

    Without a figure there are windows without one everywhere: the area is the largest that one can have, and none is
    named.
    """
    asked = math.prod(sides) / NM_PER_MM**2
    box = find_hotspot(counted, areas.size, sides)
    if box is None:
        fits = max(math.prod(np.minimum(shape, areas.size).tolist()) for shape in (sides, sides[::-1])) / NM_PER_MM**2
        area = min(fits, areas.area_mm2)
        return Count(key, name, 0, asked, area, min(area, _all(key, name, counted, areas, tissue).tissue_mm2))
    area, of_tissue = _measured(box, areas, tissue)
    return Count(key, name, box.count, asked, area, of_tissue, box)


def _measured(box: Hotspot, areas: Areas, tissue: TissueMask) -> tuple[float, float]:
    """mm2 of a window that count, and of tissue in it."""
    if areas.is_whole:
        return box.area_mm2, tissue.of_window(box.left, box.top, box.width, box.height)
    import shapely

    part = areas.union.intersection(shapely.box(box.left, box.top, box.left + box.width, box.top + box.height))
    return float(part.area) / NM_PER_MM**2, tissue.inside(part)


def field_centres(areas: Areas, diameter: int) -> NDArray[np.bool_]:
    """bool (rows, columns): where round fields are tried, and which of these places lie where it is counted.

    The first one's centre is a radius from the image's upper left corner, the others follow in steps of `STEPS` a
    diameter.

    Args:
        areas: to count in.
        diameter: of a field, nm.
    """
    radius, step = diameter // 2, diameter // STEPS
    columns, rows = (max(0, (side - 2 * radius) // step + 1) for side in areas.size)
    if areas.is_whole:
        return np.ones((rows, columns), bool)
    down, across = np.mgrid[:rows, :columns] * step + radius
    return areas.holds(np.stack([across.ravel(), down.ravel()], axis=1)).reshape(rows, columns)


def _fields(counted: NDArray[np.int64], areas: Areas, tissue: TissueMask, diameter: int) -> Count:
    """Ten round fields that do not overlap, each the one with the most figures that are left; `diameter` in nm.

    Their centres lie on a lattice, where it is counted. Of equal ones the nearest to the first field is taken, as the
    stage is moved on to the next field; of those the uppermost, then the one furthest left.
    """
    radius, step = diameter // 2, diameter // STEPS
    field_mm2 = math.pi * (radius / NM_PER_MM) ** 2
    name = f"Ten high-power fields of {diameter / NM_PER_MM:g} mm"
    free = field_centres(areas, diameter)
    rows, columns = free.shape
    left = counted
    held = _held_around(left, radius, step, rows, columns)
    circles: list[Circle] = []
    figures = 0
    while len(circles) < FIELDS and free.any():
        row, column = _next(held, free, circles, radius, step)
        x, y = radius + column * step, radius + row * step
        circles.append((x, y, radius))
        inside = ((left - (x, y)) ** 2).sum(axis=1) <= radius**2
        figures += int(inside.sum())
        held = held - _held_around(left[inside], radius, step, rows, columns)
        left = left[~inside]
        free &= _squares(rows, columns, row, column) * step**2 >= (2 * radius) ** 2
    area, of_tissue = _of_circles(circles, areas, tissue)
    return Count(TEN_FIELDS, name, figures, FIELDS * field_mm2, area * field_mm2, of_tissue, None, tuple(circles))


def _squares(rows: int, columns: int, row: int, column: int) -> NDArray[np.int64]:
    """int64 (rows, columns): squared distance from one centre, in steps."""
    down, across = np.arange(rows) - row, np.arange(columns) - column
    return np.asarray(down[:, None] ** 2 + across**2)


def _next(
    held: NDArray[np.int64], free: NDArray[np.bool_], circles: Sequence[Circle], radius: int, step: int
) -> tuple[int, int]:
    """Row and column of the next centre."""
    rows, columns = held.shape
    best = free & (held == held[free].max())
    if circles:
        x, y, _ = circles[0]
        away = _squares(rows, columns, (y - radius) // step, (x - radius) // step)
        best &= away == away[best].min()
    return divmod(int(best.argmax()), columns)


def _held_around(places: NDArray[np.int64], radius: int, step: int, rows: int, columns: int) -> NDArray[np.int64]:
    """int64 (rows, columns): figures within the radius of each centre of the lattice, its edge included."""
    held = np.zeros((rows, columns), np.int64)
    if not len(places):
        return held
    first = -((2 * radius - places) // step)  # the column and row of the first centre that can reach a place
    reached = first + np.arange(2 * radius // step + 1)[:, None, None]  # (centres, N, 2)
    away = (reached * step + radius - places) ** 2
    column, across = reached[..., 0], away[..., 0]
    for row, down in zip(reached[..., 1], away[..., 1], strict=True):
        near = (across + down <= radius**2) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        np.add.at(held, (np.broadcast_to(row, near.shape)[near], column[near]), 1)
    return held


def _of_circles(circles: Sequence[Circle], areas: Areas, tissue: TissueMask) -> tuple[float, float]:
    """How many fields' area counts, parts of fields as fractions, and mm2 of tissue in it."""
    if areas.is_whole:
        return len(circles), sum(tissue.in_circle(*circle) for circle in circles)
    import shapely

    discs = [shapely.Point(x, y).buffer(radius, quad_segs=64) for x, y, radius in circles]
    counted = replace(tissue, mask=tissue.within(areas.union))
    fractions = [areas.union.intersection(disc).area / disc.area for disc in discs]
    return sum(fractions), sum(counted.in_circle(*circle) for circle in circles)
