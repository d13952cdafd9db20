"""The hotspot as a 10x objective shows it, with its mitotic figures, for a record or a second reader."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.detections import FIGURE, UNSURE, Detections
from midog.images.slide import Slide
from midog.report.canvas import LegendEntry, below_header, ring_entry, scale_bar_entry
from midog.report.hotspot import NM_PER_MM, Hotspot, places_nm
from midog.report.overlay import draw_candidates
from midog.report.review import Corrected

if TYPE_CHECKING:
    from PIL import Image

UM_PER_PX = 1.0  # of a scan at 10x


def hotspot_picture(
    slide: Slide,
    found: Detections,
    hotspot: Hotspot,
    title: str,
    counted: NDArray[np.bool_],
    corrected: Corrected | None = None,
) -> "Image.Image":
    """Draw the hotspot with the figures that are counted in it, numbered as in figures.csv.

    Args:
        slide: of which the hotspot alone is read.
        found: N candidates, best first, in px of the slide.
        hotspot: of the accepted ones that are counted.
        title: one line on top.
        counted: bool (N,), which of them lie where it is counted.
        corrected: what a reader said of them, or None.

    Returns:
        RGB, 1 um a px, below a header of `canvas.HEADER` px.

    Raises:
        UserError: the slide's pixels cannot be decoded.
    """
    places = places_nm(slide, found.centres)
    shown = counted & hotspot.holds(places)
    names = np.where(found.accepted & shown, FIGURE, "")
    numbers = [str(row) for row in range(1, len(found) + 1)]
    if corrected:
        names[corrected.unsure & shown] = UNSURE
        numbers = corrected.numbers
    picture = _cut(slide, hotspot)
    centres = (places - (hotspot.left, hotspot.top)) / (UM_PER_PX * 1000) - 0.5
    draw_candidates(picture, centres, names, numbers, UM_PER_PX)
    sides = f"{hotspot.width / NM_PER_MM:.3f} x {hotspot.height / NM_PER_MM:.3f} mm"
    legend = [
        ring_entry(f"mitotic figures: {hotspot.count} in a window of {sides}", FIGURE),
        *([ring_entry(f"not sure: {(names == UNSURE).sum()}", UNSURE)] if corrected else []),
        LegendEntry("numbers as in figures.csv"),
        scale_bar_entry(picture.width, UM_PER_PX),
    ]
    return below_header(picture, f"Hotspot of {title}", legend)


def _cut(slide: Slide, hotspot: Hotspot) -> "Image.Image":
    """The window at `UM_PER_PX`, of the coarsest pixels that are no coarser."""
    from PIL import Image

    left, top, right, bottom = hotspot.box_px(slide).tolist()
    x, y = math.floor(left), math.floor(top)
    factor = max(1, int(UM_PER_PX / max(slide.um_per_px)))
    view = slide.shrunk(x, y, math.ceil(right) - x, math.ceil(bottom) - y, factor)
    sides = [max(1, round(side / (UM_PER_PX * 1000))) for side in (hotspot.width, hotspot.height)]
    box = (left - x) / factor, (top - y) / factor, (right - x) / factor, (bottom - y) / factor
    return Image.fromarray(view).resize((sides[0], sides[1]), Image.Resampling.BICUBIC, box)
