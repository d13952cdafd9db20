"""The window of 2.37 mm2 with the most mitotic figures, found exactly.

2.37 mm2 are ten high-power fields of a microscope with a field number of 22 mm and a 40x objective (Meuten, Moore and
George, "Mitotic Count and the Field of View Area", Vet Pathol 2016;53:7-9). The window is a rectangle of 4:3 with its
sides along the image's, lying (1.778 x 1.333 mm) or upright (1.333 x 1.778 mm), because how a section lies on its
slide means nothing.

Places are int64 nm from the outer corner of the image's first pixel, so that nothing is rounded: a figure on the
window's edge counts, and the count is the largest of all windows, not the largest on a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.detections import Detections
from midog.images.slide import Slide

LONG_NM, SHORT_NM = 1_777_639, 1_333_229  # 2.37 mm2
NM_PER_MM = 1_000_000


@dataclass(frozen=True)
class Hotspot:
    """A window and the figures in it.

    Attributes:
        left, top, width, height: int nm, from the outer corner of the image's first pixel.
        count: figures inside, edges included.
    """

    left: int
    top: int
    width: int
    height: int
    count: int

    @property
    def area_mm2(self) -> float:
        return self.width * self.height / NM_PER_MM**2

    @property
    def density(self) -> float:
        """Figures per mm2."""
        return self.count / self.area_mm2

    def holds(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (N,): which of int64 (N, 2) nm lie inside, edges included."""
        start = np.array([self.left, self.top])
        return np.asarray(((places >= start) & (places <= start + (self.width, self.height))).all(axis=1))

    def box_px(self, slide: Slide) -> NDArray[np.float64]:
        """float64 (4,): left, top, right, bottom in px from the outer corner of the slide's first pixel."""
        corners = np.array([self.left, self.top, self.left + self.width, self.top + self.height])
        return corners / np.tile(np.array(slide.um_per_px) * 1000, 2)


def places_nm(slide: Slide, places: ArrayLike) -> NDArray[np.int64]:
    """Level-0 px (N, 2), a pixel's centre at integers -> int64 (N, 2) nm from the outer corner of the first pixel."""
    return np.rint((np.asarray(places) + 0.5) * np.array(slide.um_per_px) * 1000).astype(np.int64)


def size_nm(slide: Slide) -> NDArray[np.int64]:
    """(width, height) of a slide, int64 (2,) nm."""
    return np.rint(np.array(slide.size) * slide.um_per_px * 1000).astype(np.int64)


def hotspot_of(slide: Slide, found: Detections) -> Hotspot | None:
    """`find_hotspot` of the accepted ones."""
    return find_hotspot(places_nm(slide, found.centres)[found.accepted], size_nm(slide))


def find_hotspot(
    places: NDArray[np.int64],
    size: Sequence[int] | NDArray[np.int64],
    sides: tuple[int, int] = (LONG_NM, SHORT_NM),
) -> Hotspot | None:
    """The window with the most figures; of equal ones the larger, then the lying one, then the one furthest left.

    A window that leaves the image can be pushed back inside without losing a figure, because there are none outside:
    so the window lies inside, and where the image is smaller than the window it is as long as the image.

    Args:
        places: int64 (N, 2) nm; those outside the image do not count.
        size: (width, height) of the image, nm.
        sides: of the window, the longer first, nm.

    Returns:
        `Hotspot`, or None without figures.
    """
    limits = np.array(size, np.int64)
    places = places[((places >= 0) & (places <= limits)).all(axis=1)]
    if len(places) == 0:
        return None
    windows = [_fullest(places, limits, np.minimum(shape, limits)) for shape in (sides, sides[::-1])]
    return max(windows, key=lambda window: (window.count, window.area_mm2))


def _fullest(places: NDArray[np.int64], size: NDArray[np.int64], sides: NDArray[np.int64]) -> Hotspot:
    """The `Hotspot` of one shape, with its figures in the middle as far as the image's edges allow."""
    corner = _fullest_corner(places, sides)
    held = places[((places <= corner) & (places >= corner - sides)).all(axis=1)]
    start = (held.min(axis=0) + held.max(axis=0) - sides) // 2
    start = np.clip(start, 0, size - sides)
    (left, top), (width, height) = start.tolist(), sides.tolist()
    window = Hotspot(left, top, width, height, 0)
    return Hotspot(left, top, width, height, int(window.holds(places).sum()))


def _fullest_corner(places: NDArray[np.int64], sides: NDArray[np.int64]) -> NDArray[np.int64]:
    """The right and lower edge, nm, of a window with the most places.

    Any window can be pushed left and up until a figure lies on its right and one on its lower edge, without losing one.
    So the right edge goes from figure to figure, and for each of its places the tree knows the lower edge with most
    figures above: O(n log n) in all.
    """
    width, height = sides.tolist()
    places = places[np.lexsort(places.T[::-1])]
    edges = np.unique(places[:, 1])
    firsts = np.searchsorted(edges, places[:, 1]).tolist()  # the lower edges that have a figure in their window
    ends = np.searchsorted(edges, places[:, 1] + height, side="right").tolist()
    columns = places[:, 0].tolist()  # lists, because one by one Python's own numbers are several times faster
    tree, oldest, most = _PrefixTree(len(edges) + 1), 0, 0
    corner: tuple[int, int] = (0, 0)
    for number, right in enumerate(columns):
        while columns[oldest] < right - width:
            tree.add(firsts[oldest], -1)
            tree.add(ends[oldest], 1)
            oldest += 1
        tree.add(firsts[number], 1)
        tree.add(ends[number], -1)
        if tree.most[1] > most:
            most = tree.most[1]
            corner = right, int(edges[tree.place_of_most()])
    return np.array(corner, np.int64)


class _PrefixTree:
    """Numbers in a row, and the largest sum of a beginning of the row; a change costs O(log n).

    A figure that counts from slot a to slot b is +1 at a and -1 behind b: the sum up to a slot is what counts there.
    """

    def __init__(self, length: int) -> None:
        self.leaves = 1 << max(length - 1, 1).bit_length()
        self.total = [0] * (2 * self.leaves)  # node 1 is the root, 2 n and 2 n + 1 are below node n
        self.most = [0] * (2 * self.leaves)

    def add(self, place: int, amount: int) -> None:
        total, most = self.total, self.most
        node = place + self.leaves
        total[node] += amount
        most[node] += amount
        node >>= 1
        while node:
            total[node] += amount
            left = 2 * node
            in_left, in_right = most[left], total[left] + most[left + 1]
            most[node] = in_left if in_left >= in_right else in_right
            node >>= 1

    def place_of_most(self) -> int:
        """The first place where the sum from the beginning is `most[1]`."""
        node = 1
        while node < self.leaves:
            left = 2 * node
            node = left if self.most[left] >= self.total[left] + self.most[left + 1] else left + 1
        return node - self.leaves
