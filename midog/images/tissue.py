"""Where the tissue of an image is, measured on its overview.

Haematoxylin and eosin both absorb green most, so in tissue red and blue are brighter than green. Glass has no colour,
however dim it is, nor has black ink; where glass is yellow, blue or green, and in blue, green or red ink, green is not
the darkest, or one of the others is about as dark. So one measure tells tissue from all of them: by how much red and
blue are each brighter than green, in the mean of a cell of 8 um.

Small parts are left out, and small holes belong to the tissue. Fat does not, nor do wide lumina and tears: no figure
can be there. Nor does what opaque ink hides; where tissue shows through thin ink, it may count. What has the colours
of the stains cannot be told from them: violet ink, and thin crimson ink over glass, which are taken for tissue.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.images.slide import Slide

if TYPE_CHECKING:
    import shapely

UM_PER_PX = 8.0  # of the mask, where the overview is finer; else the overview's own
LEAST_COLOUR = 18  # grey levels; glass of the scanners of public sets has up to 14, pale stroma 20
# How many times the one of red and blue is brighter than green, at most, by as much as the other is: eosin 2 to 5,
# haematoxylin 3, red ink 5 to 20; in blue ink red is hardly brighter than green. The slack, in grey levels, keeps what
# is pale: eosin of few grey levels, and nuclei that some cameras show with as little red as green.
GREATEST_RATIO, SLACK = 4, 6
LEAST_UM2 = 2500.0  # 50 x 50 um: smaller parts are dust and floating cells
LEAST_HOLE_UM2 = 1000.0  # a circle of 36 um: smaller holes are clefts, capillaries, vacuoles; most fat cells are larger
NM_PER_UM = 1000
UM2_PER_MM2 = 1e6


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Where tissue is.

    Attributes:
        mask: bool (rows, columns), cells that cover the whole image.
        size_um: (width, height) of the image.
    """

    mask: NDArray[np.bool_]
    size_um: tuple[float, float]

    @property
    def area_mm2(self) -> float:
        return float(self.mask.mean()) * self.size_um[0] * self.size_um[1] / UM2_PER_MM2

    @property
    def cell_nm(self) -> NDArray[np.float64]:
        """(width, height) of a cell, float64 (2,)."""
        return np.array(self.size_um) * NM_PER_UM / self.mask.shape[::-1]

    @property
    def _cell_mm2(self) -> float:
        return self.size_um[0] * self.size_um[1] / self.mask.size / UM2_PER_MM2

    def at(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool (N,): which of int64 (N, 2) nm from the outer corner of the first pixel lie on tissue."""
        limits = np.array(self.mask.shape[::-1])
        inside = ((places >= 0) & (places <= np.array(self.size_um) * NM_PER_UM)).all(axis=1)
        columns, rows = np.clip((places / self.cell_nm).astype(int), 0, limits - 1).T
        return np.asarray(inside & self.mask[rows, columns])

    def of_window(self, left: float, top: float, width: float, height: float) -> float:
        """mm2 of tissue in a rectangle, nm; cells that its edge cuts count in part."""
        (cell_width, cell_height), (rows, columns) = self.cell_nm, self.mask.shape
        across = _covered(left / cell_width, (left + width) / cell_width, columns)
        down = _covered(top / cell_height, (top + height) / cell_height, rows)
        return float(down @ self.mask @ across) * self._cell_mm2

    def within(self, area: "shapely.Geometry") -> NDArray[np.bool_]:
        """bool (rows, columns): which cells of tissue have their centres in a geometry in nm, its edge included."""
        import shapely

        shapely.prepare(area)
        within = np.zeros_like(self.mask)
        x, y = self._centres
        rows, columns = np.nonzero(self.mask)
        within[rows, columns] = shapely.intersects_xy(area, x[columns], y[rows])
        return within

    def inside(self, area: "shapely.Geometry") -> float:
        """mm2 of the tissue of `within`."""
        return float(self.within(area).sum()) * self._cell_mm2

    def in_circle(self, x: int, y: int, radius: int) -> float:
        """mm2 of the cells of tissue whose centres lie in a circle, nm, its edge included."""
        across, down = (centres - middle for centres, middle in zip(self._centres, (x, y), strict=True))
        near = across**2 + down[:, None] ** 2 <= radius**2
        return float((self.mask & near).sum()) * self._cell_mm2

    @property
    def _centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x of the columns' centres and y of the rows', nm."""
        width, height = self.cell_nm
        rows, columns = self.mask.shape
        return (np.arange(columns) + 0.5) * width, (np.arange(rows) + 0.5) * height


def _covered(start: float, end: float, count: int) -> NDArray[np.float64]:
    """float64 (count,): the part of each cell of an axis between two places, in cells."""
    edges = np.arange(count + 1)
    covered = np.clip(edges, start, end)
    return np.diff(covered)


def tissue_mask(slide: Slide, view: NDArray[np.uint8]) -> TissueMask:
    """The tissue of a slide.

    Args:
        slide: for its size and scale; none of its pixels are read.
        view: its overview, uint8 (height, width, 3).
    """
    from PIL import Image

    size_um = slide.size[0] * slide.um_per_px[0], slide.size[1] * slide.um_per_px[1]
    columns, rows = (
        min(pixels, max(1, round(side / UM_PER_PX))) for pixels, side in zip(view.shape[1::-1], size_um, strict=True)
    )
    cells = np.asarray(Image.fromarray(view).resize((columns, rows), Image.Resampling.BOX))
    cell_um2 = size_um[0] * size_um[1] / (columns * rows)
    mask = _without_small(_is_stained(cells), LEAST_UM2 / cell_um2)
    return TissueMask(~_without_small(~mask, LEAST_HOLE_UM2 / cell_um2), size_um)


def _is_stained(cells: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of uint8 (..., 3) have a colour of haematoxylin and eosin: bool (...)."""
    red, green, blue = (cells[..., channel].astype(np.int16) for channel in range(3))
    pink, violet = red - green, blue - green
    greater, lesser = np.maximum(pink, violet), np.minimum(pink, violet)
    return np.asarray((greater >= LEAST_COLOUR) & (GREATEST_RATIO * (lesser + SLACK) >= greater))


def _without_small(mask: NDArray[np.bool_], cells: float) -> NDArray[np.bool_]:
    """A mask without its parts of fewer cells."""
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    kept = np.bincount(parts.ravel()) >= cells
    kept[0] = False
    return np.asarray(kept[parts])
