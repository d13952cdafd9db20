"""A region or slide in one picture, with its mitotic figures, the rejected candidates, and the hotspot."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.detections import COLOURS, FIGURE, REJECTED, UNSURE, Detections
from midog.images.slide import Slide
from midog.report.canvas import HOTSPOT_COLOUR, TEXT_FONT, LegendEntry, below_header, ring, scale_bar_entry
from midog.report.hotspot import Hotspot
from midog.report.review import Corrected

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

LONGEST_SIDE = 2000  # px of the slide in the picture
MAX_LABELS = 60  # the probabilities of more figures would hide the tissue
RADIUS_UM = {FIGURE: 12.5, REJECTED: 8.0, UNSURE: 12.5}
MIN_RADIUS = {FIGURE: 6, REJECTED: 3, UNSURE: 6}  # px


def overlay(
    slide: Slide,
    view: NDArray[np.uint8],
    found: Detections,
    hotspot: Hotspot | None,
    title: str,
    corrected: Corrected | None = None,
) -> "Image.Image":
    """Draw a slide with its candidates.

    Args:
        slide: none of its pixels are read.
        view: its overview, uint8 (height, width, 3).
        found: in px of the slide.
        hotspot: None without mitotic figures.
        title: one line on top.
        corrected: what a reader said of them, or None.

    Returns:
        RGB: the view below a header of `canvas.HEADER` px.
    """
    from PIL import Image

    picture = Image.fromarray(view)
    scale = np.array(picture.size) / slide.size  # px of the view a px of the slide
    um_per_px = slide.um_per_px / scale
    if hotspot:
        _draw_window(picture, hotspot.box_px(slide) * np.tile(scale, 2))
    names = np.where(found.accepted, FIGURE, REJECTED)
    labels = [f"{probability:.2f}" for probability in found.probabilities]
    if corrected:
        names[corrected.unsure] = UNSURE
        labels = [
            number if added else label
            for number, added, label in zip(corrected.numbers, corrected.added, labels, strict=True)
        ]
    _draw_candidates(picture, (found.centres + 0.5) * scale - 0.5, names, labels, float(um_per_px.mean()))
    legend = [
        _ring_entry(f"mitotic figures: {(names == FIGURE).sum()}", FIGURE),
        _ring_entry(f"rejected candidates: {(names == REJECTED).sum()}", REJECTED),
        *([_ring_entry(f"not sure: {corrected.unsure.sum()}", UNSURE)] if corrected else []),
        LegendEntry(f"area: {area_mm2(slide):.3g} mm2"),
        scale_bar_entry(picture.width, float(um_per_px[0])),
    ]
    if hotspot:
        legend.append(LegendEntry(f"hotspot: {hotspot.count} in {hotspot.area_mm2:.3g} mm2", 26, _window_symbol))
    return below_header(picture, title, legend)


def area_mm2(slide: Slide) -> float:
    """Of the whole image, glass included."""
    return math.prod(side * step / 1000 for side, step in zip(slide.size, slide.um_per_px, strict=True))


def outside_warning(slide: Slide, found: Detections, title: str) -> str | None:
    """One line if candidates lie outside the image, or None."""
    reach = RADIUS_UM[FIGURE] / np.array(slide.um_per_px)  # a cell that the edge cuts may have its centre outside
    outside = ((found.centres < -reach) | (found.centres > slide.size + reach)).any(axis=1).sum()
    if not outside:
        return None
    return f"{title}: {outside} of {len(found)} points lie outside the image; is this result its own?"


def _draw_window(picture: "Image.Image", box: NDArray[np.float64]) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = np.rint(box).tolist()
    right, bottom = min(right, picture.width) - 1, min(bottom, picture.height) - 1
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=6)
    draw.rectangle((left, top, right, bottom), outline=HOTSPOT_COLOUR, width=4)


def _draw_candidates(
    picture: "Image.Image",
    centres: NDArray[np.float64],
    names: NDArray[np.str_],
    labels: Sequence[str],
    um_per_px: float,
) -> None:
    """`centres` and `um_per_px` are the picture's; `labels` are drawn beside the figures."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_FONT)
    radii = {name: max(RADIUS_UM[name] / um_per_px, MIN_RADIUS[name]) for name in RADIUS_UM}
    for name in (REJECTED, UNSURE, FIGURE):  # the last on top
        for centre in centres[names == name]:
            ring(draw, centre, radii[name], name)
    figures = np.flatnonzero(names == FIGURE).tolist()
    if len(figures) > MAX_LABELS:
        return
    reach = radii[FIGURE] + 4
    for row in figures:
        (x, y), label = centres[row], labels[row]
        fits = x + reach + font.getlength(label) < picture.width
        place, anchor = ((x + reach, y), "lm") if fits else ((x - reach, y), "rm")
        draw.text(place, label, "black", font, anchor, stroke_width=2, stroke_fill=COLOURS[FIGURE])


def _ring_entry(text: str, name: str) -> LegendEntry:
    return LegendEntry(text, 20, lambda draw, left, middle: ring(draw, (left + 7, middle), MIN_RADIUS[name], name))


def _window_symbol(draw: "ImageDraw.ImageDraw", left: float, middle: float) -> None:
    draw.rectangle((left, middle - 7, left + 18, middle + 7), outline=HOTSPOT_COLOUR, width=3)
