"""A region or slide in one picture: its mitotic figures and rejected candidates, the hotspot, tissue and areas."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.detections import FIGURE, REJECTED, UNSURE, Detections
from midog.images.slide import Slide
from midog.images.tissue import TissueMask
from midog.report.areas import Areas
from midog.report.canvas import (
    AREA_COLOUR,
    EXCLUDED_COLOUR,
    HOTSPOT_COLOUR,
    MIN_RADIUS,
    NOT_COUNTED,
    RING_COLOURS,
    TEXT_FONT,
    TISSUE_COLOUR,
    LegendEntry,
    below_header,
    enlarged,
    ring,
    ring_entry,
    scale_bar_entry,
)
from midog.report.counts import Counts
from midog.report.hotspot import Hotspot
from midog.report.protocols import AREAS, HOTSPOT, WHOLE, Count
from midog.report.review import Corrected

if TYPE_CHECKING:
    import shapely
    from PIL import Image, ImageDraw

LONGEST_SIDE = 2000  # px of the slide in the picture
MAX_LABELS = 60  # the labels of more figures would hide the tissue
RADIUS_UM = {FIGURE: 12.5, REJECTED: 8.0, UNSURE: 12.5, NOT_COUNTED: 12.5}
HATCHING = 40  # px between the lines of an excluded area


def overlay(
    slide: Slide,
    view: NDArray[np.uint8],
    found: Detections,
    hotspot: Hotspot | None,
    title: str,
    tissue: TissueMask,
    counts: Counts,
    areas: Areas | None = None,
    corrected: Corrected | None = None,
) -> "Image.Image":
    """Draw a slide with its candidates.

    Args:
        slide: none of its pixels are read.
        view: its overview, uint8 (height, width, 3).
        found: in px of the slide.
        hotspot: None without mitotic figures.
        title: one line on top.
        tissue: of the slide; it is outlined.
        counts: of the figures.
        areas: that a reader drew, or None.
        corrected: what a reader said of them, or None.

    Returns:
        RGB: the view below a header of `canvas.HEADER` px.
    """
    from PIL import Image

    picture = Image.fromarray(view)
    scale = np.array(picture.size) / slide.size  # px of the view a px of the slide
    um_per_px = slide.um_per_px / scale
    _draw_tissue(picture, tissue)
    if areas:
        _draw_areas(picture, areas)
    if hotspot:
        _draw_window(picture, hotspot.box_px(slide) * np.tile(scale, 2))
    names = np.where(found.accepted, np.where(counts.counted, FIGURE, NOT_COUNTED), REJECTED)
    labels = [f"{score:.2f}" for score in found.probabilities]
    if corrected:
        names[corrected.unsure] = UNSURE
        labels = [
            number if added else label
            for number, added, label in zip(corrected.numbers, corrected.added, labels, strict=True)
        ]
    draw_candidates(picture, (found.centres + 0.5) * scale - 0.5, names, labels, float(um_per_px.mean()))
    figures = names == FIGURE
    labelled = ", with score" * bool(0 < figures.sum() <= MAX_LABELS)
    whole = counts.of(WHOLE)
    legend = [
        ring_entry(f"mitotic figures: {figures.sum()}{labelled}", FIGURE),
        ring_entry(f"rejected candidates: {(names == REJECTED).sum()}", REJECTED),
        *([ring_entry(f"not sure: {corrected.unsure.sum()}", UNSURE)] if corrected else []),
        *([ring_entry(f"not counted: {(names == NOT_COUNTED).sum()}", NOT_COUNTED)] if areas else []),
        *([_window_entry(hotspot, counts.of(HOTSPOT))] if hotspot else []),
        _line_entry(f"tissue {whole.tissue_mm2:.3g} of {whole.area_mm2:.3g} mm2{_rate(whole)}", TISSUE_COLOUR),
    ]
    if areas and areas.counted:
        given = counts.of(AREAS)
        legend.append(_line_entry(f"counted in {given.tissue_mm2:.3g} mm2 of tissue{_rate(given)}", AREA_COLOUR))
    if areas and not areas.excluded.is_empty:
        legend.append(_line_entry("excluded", EXCLUDED_COLOUR))
    return below_header(picture, title, [*legend, scale_bar_entry(picture.width, float(um_per_px[0]))])


def _rate(count: Count) -> str:
    return f": {count.per_mm2_tissue:.3g} figures per mm2" if count.figures and count.per_mm2_tissue else ""


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


def _draw_tissue(picture: "Image.Image", tissue: TissueMask) -> None:
    """Its edge, where it is not the image's."""
    from PIL import ImageChops, ImageFilter

    within = enlarged(tissue.mask, picture.size)
    edge = ImageChops.subtract(within, within.filter(ImageFilter.MinFilter(5)))
    picture.paste(TISSUE_COLOUR, mask=edge)


def _draw_areas(picture: "Image.Image", areas: Areas) -> None:
    """Those to count in with their names, and what is excluded, hatched."""
    import shapely
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_FONT)
    px_per_nm = np.array(picture.size) / areas.size

    def in_px(area: "shapely.Geometry") -> "shapely.Geometry":
        return shapely.transform(area, lambda places: places * px_per_nm - 0.5)

    def lines(parts: "shapely.Geometry", colour: str, width: int = 3) -> None:
        for line in shapely.get_parts(parts):
            draw.line(shapely.get_coordinates(line).ravel().tolist(), colour, width)

    excluded, (width, height) = in_px(areas.excluded), picture.size
    hatching = [[(start, 0), (start - height, height)] for start in range(0, width + height, HATCHING)]
    lines(shapely.MultiLineString(hatching).intersection(excluded), EXCLUDED_COLOUR, 2)
    lines(excluded.boundary, EXCLUDED_COLOUR)
    for name, area in zip(areas.names, map(in_px, areas.counted), strict=True):
        lines(area.boundary, AREA_COLOUR)
        left, top, _, _ = area.bounds
        draw.text((left + 6, top + 6), name, "black", font, stroke_width=2, stroke_fill=AREA_COLOUR)


def draw_candidates(
    picture: "Image.Image",
    centres: NDArray[np.float64],
    names: NDArray[np.str_],
    labels: Sequence[str],
    um_per_px: float,
) -> None:
    """Draw a ring around each candidate, and labels beside the figures where these are few.

    Args:
        picture: RGB; drawn on.
        centres: float64 (N, 2), px of the picture, a pixel's centre at integers.
        names: (N,), keys of `RADIUS_UM`; those of any other name are left out.
        labels: N.
        um_per_px: of the picture.
    """
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_FONT)
    radii = {name: max(RADIUS_UM[name] / um_per_px, MIN_RADIUS[name]) for name in RADIUS_UM}
    for name in (REJECTED, NOT_COUNTED, UNSURE, FIGURE):  # the last on top
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
        draw.text(place, label, "black", font, anchor, stroke_width=2, stroke_fill=RING_COLOURS[FIGURE])


def _window_entry(hotspot: Hotspot, count: Count) -> LegendEntry:
    def window(draw: "ImageDraw.ImageDraw", left: float, middle: float) -> None:
        draw.rectangle((left, middle - 7, left + 18, middle + 7), outline=HOTSPOT_COLOUR, width=3)

    asked = "" if count.reached else f" of {count.asked_mm2:.3g}"
    return LegendEntry(f"hotspot: {hotspot.count} in {count.area_mm2:.3g}{asked} mm2", 26, window)


def _line_entry(text: str, colour: str) -> LegendEntry:
    return LegendEntry(text, 24, lambda draw, left, middle: draw.line((left, middle, left + 18, middle), colour, 3))
