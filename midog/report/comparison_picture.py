"""The same fields of an image in a row a result, where the results differ most, with their figures in boxes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import ATYPICAL, COLOURS
from midog.images.slide import Slide
from midog.report.agreement import Places, Result
from midog.report.canvas import MARGIN, SOFT, TEXT_FONT, TITLE_FONT, LegendEntry, below_header, scale_bar_entry

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

FIELD_UM = 128.0  # side of a field
FIELD = 320  # px, its side in the picture
MAX_FIELDS = 5
BOX_UM = 25.0  # side of a box: the width of the overlay's rings
LABELS = 210  # px left of the fields
CAPTION = 22  # px above them
AGREED, ALONE = "#22c55e", COLOURS[ATYPICAL]


def fields(centres: NDArray[np.float64], disputed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The middles of at most `MAX_FIELDS` fields with most places in turn, of the disputed ones first.

    Args:
        centres: float64 (P, 2), um.
        disputed: bool (P,).

    Returns:
        float64 (F, 2), um.
    """
    from scipy.spatial import cKDTree

    middles: list[NDArray[np.float64]] = []
    for rest in (centres[disputed], centres[~disputed]):
        while len(rest) and len(middles) < MAX_FIELDS:
            tree = cKDTree(rest)
            inside = (FIELD_UM - BOX_UM) / 2  # of the first one's sides, so that all boxes are whole
            counts = tree.query_ball_point(rest, inside, p=np.inf, return_length=True)
            shown = rest[tree.query_ball_point(rest[np.argmax(counts)], inside, p=np.inf)]
            middle = (shown.min(axis=0) + shown.max(axis=0)) / 2
            middles.append(middle)
            rest = rest[(abs(rest - middle) > inside).any(axis=1)]
    return np.array(middles).reshape(-1, 2)


def comparison_picture(slide: Slide, results: Sequence[Result], places: Places, title: str) -> "Image.Image":
    """The same fields in a row a result, with its figures: green where another has it, too, else orange.

    Returns:
        RGB: the fields below a header.
    """
    from PIL import Image, ImageDraw, ImageFont

    um_per_px = np.array(slide.um_per_px)
    middles = fields(places.centres * um_per_px, places.disputed) / um_per_px
    sides = np.maximum(np.rint(FIELD_UM / um_per_px), 1).astype(int)
    scale = FIELD / sides  # px of the picture a px of the slide
    corners = np.rint(middles + 0.5 - sides / 2).astype(int)
    corners = np.maximum(np.minimum(corners, np.array(slide.size) - sides), 0)
    cell = FIELD + MARGIN
    view = Image.new("RGB", (LABELS + cell * len(middles), CAPTION + cell * len(results)), "white")
    draw = ImageDraw.Draw(view)
    font, large = ImageFont.load_default(TEXT_FONT), ImageFont.load_default(TITLE_FONT)
    for column, corner in enumerate(corners):
        field = Image.fromarray(slide.read_padded(*corner.tolist(), *sides.tolist()))
        field = field.resize((FIELD, FIELD), Image.Resampling.BICUBIC)
        x, y = np.rint(middles[column]).astype(int).tolist()
        draw.text((LABELS + column * cell, 2), f"{x}, {y} px", SOFT, font)
        for row, result in enumerate(results):
            marked = field.copy()
            _mark(marked, result, places, row, corner, scale)
            view.paste(marked, (LABELS + column * cell, CAPTION + row * cell))
    for row, result in enumerate(results):
        top = CAPTION + row * cell
        draw.text((MARGIN, top), _shortened(result.name, large, LABELS - 2 * MARGIN), "black", large)
        only = int((places.figures[:, row] & (places.found_by == 1)).sum())
        text = f"{int(places.figures[:, row].sum())} mitotic figures,\n{only} of them no other has"
        draw.text((MARGIN, top + 26), text, SOFT, font)
    legend = [
        LegendEntry("also by another", 26, lambda draw, left, middle: _box(draw, left + 9, middle, 8, AGREED)),
        LegendEntry("by this one alone", 26, lambda draw, left, middle: _box(draw, left + 9, middle, 8, ALONE)),
        LegendEntry("only by others", 26, lambda draw, left, middle: _brackets(draw, left + 9, middle, 8)),
        LegendEntry(f"numbers are scores; a field is {FIELD_UM:g} um"),
        scale_bar_entry(FIELD, FIELD_UM / FIELD),
    ]
    return below_header(view, title, legend)


def _shortened(text: str, font: Any, width: int) -> str:
    """A text that fits, px, with an end that says so."""
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _mark(
    field: "Image.Image",
    result: Result,
    places: Places,
    column: int,
    corner: NDArray[np.int64],
    scale: NDArray[np.float64],
) -> None:
    """Draw what one result says in a field; `corner` and `scale` as in `comparison_picture`."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(field), ImageFont.load_default(TEXT_FONT)
    reach = BOX_UM / FIELD_UM * FIELD / 2
    for number, row in enumerate(places.rows[:, column].tolist()):
        x, y = ((places.centres[number] + 0.5 - corner) * scale).tolist()
        if not (-reach < x < FIELD + reach and -reach < y < FIELD + reach):
            continue
        colour = "white"
        if places.figures[number, column]:
            colour = AGREED if places.found_by[number] > 1 else ALONE
            _box(draw, x, y, reach, colour)
        else:
            _brackets(draw, x, y, reach)
        score = result.scores[row] if row >= 0 else np.nan
        if not np.isnan(score):
            place, anchor = ((x, y - reach - 3), "mb") if y > reach + TEXT_FONT else ((x, y + reach + 3), "mt")
            draw.text(place, f"{score:.2f}", "black", font, anchor, stroke_width=2, stroke_fill=colour)


def _box(draw: "ImageDraw.ImageDraw", x: float, y: float, reach: float, colour: str) -> None:
    """Around a place, with an edge on either side."""
    draw.rectangle((x - reach - 1, y - reach - 1, x + reach + 1, y + reach + 1), outline="black", width=5)
    draw.rectangle((x - reach, y - reach, x + reach, y + reach), outline=colour, width=3)


def _brackets(draw: "ImageDraw.ImageDraw", x: float, y: float, reach: float) -> None:
    """The corners of a box."""
    for colour, width in (("black", 4), ("white", 2)):
        for right, down in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            at_x, at_y = x + right * reach, y + down * reach
            draw.line((at_x - right * reach / 2, at_y, at_x, at_y, at_x, at_y - down * reach / 2), colour, width)
