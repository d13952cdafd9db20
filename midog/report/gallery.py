"""The candidates with the highest scores, cut out and laid side by side."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.detections import ATYPICAL, COLOURS, REJECTED, UNSURE, Detections
from midog.images.slide import Slide
from midog.report.canvas import HEADER, MARGIN, NOT_COUNTED, SMALL_FONT, SOFT, TEXT_FONT, TITLE_FONT
from midog.report.reliability import Reliability, is_calibrated
from midog.report.review import Corrected

if TYPE_CHECKING:
    from PIL import Image

FIELD_UM = 24.0  # side of a crop: the cell and its neighbours, as a whole figure in metaphase takes up to 20 um
CROP = 96  # px, FIELD_UM at .25 um/px
MAX_CROPS = 400
COLUMNS = 10
CAPTION = 52  # px under a crop
# Colours of frames and captions; the others are green.
ON_WHITE = {REJECTED: "#64748b", ATYPICAL: "#c2410c", UNSURE: COLOURS[UNSURE]}
ACCEPTED_ON_WHITE = "#15803d"


def cut_crops(slide: Slide, found: Detections) -> list[NDArray[np.uint8]]:
    """Cut the first `MAX_CROPS` candidates out of a slide, of which nothing else is read.

    Returns:
        uint8 (CROP, CROP, 3) each, in their order; white outside the slide.
    """
    centres = found.centres[:MAX_CROPS]
    neighbours_together = np.lexsort((centres[:, 0], centres[:, 1] // 512)).tolist()  # for the reader's cache
    crops = {number: _cut(slide, centres[number]) for number in neighbours_together}
    return [crops[number] for number in range(len(centres))]


def _cut(slide: Slide, centre: NDArray[np.float64]) -> NDArray[np.uint8]:
    from PIL import Image

    sides = np.maximum(np.rint(FIELD_UM / np.array(slide.um_per_px)), 1).astype(int)
    x, y = np.rint(centre + 0.5 - sides / 2).astype(int).tolist()
    field = slide.read_padded(x, y, *sides.tolist())
    return np.asarray(Image.fromarray(field).resize((CROP, CROP), Image.Resampling.BICUBIC))


def gallery(
    crops: list[NDArray[np.uint8]],
    found: Detections,
    title: str,
    counted: NDArray[np.bool_],
    corrected: Corrected | None = None,
    reliability: Reliability = (),
) -> "Image.Image":
    """Draw the crops with their captions.

    Args:
        crops: as `cut_crops` returns them.
        found: of those without a crop only the number is said.
        title: one line on top.
        counted: bool (N,), which of them lie where it is counted.
        corrected: what a reader said of them, or None.
        reliability: what scores meant on validation: where they are no probabilities, they are not called so.

    Returns:
        RGB, `COLUMNS` crops wide.
    """
    from PIL import Image, ImageDraw, ImageFont

    cell_x, cell_y = CROP + 2 * MARGIN, CROP + 2 * MARGIN + CAPTION
    rows = -(-len(crops) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell_x, HEADER + rows * cell_y), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(SMALL_FONT)
    draw.text((MARGIN, MARGIN), title, "black", ImageFont.load_default(TITLE_FONT))
    accepted, figures = int(found.accepted.sum()), int((found.accepted & counted).sum())
    unsure = int(corrected.unsure.sum()) if corrected else 0
    summary = f"{figures} mitotic figures, {len(found) - accepted - unsure} rejected candidates"
    if figures < accepted:
        summary += f", {accepted - figures} figures where it is not counted"
    summary += ", highest score first"
    if corrected:
        summary += f", the reader's last; not sure: {unsure}"
    if len(found) > len(crops):
        summary += f"; the first {len(crops)} are shown"
    summary += f". A crop shows {FIELD_UM:g} um."
    draw.text((MARGIN, MARGIN + 28), summary, SOFT, ImageFont.load_default(TEXT_FONT))
    names = corrected.names_of(found) if corrected else found.class_names
    score = "P" if is_calibrated(reliability) else "score"
    for number, (crop, name) in enumerate(zip(crops, names[: len(crops)], strict=True)):
        left = number % COLUMNS * cell_x + MARGIN
        top = number // COLUMNS * cell_y + MARGIN + HEADER
        is_left_out = found.accepted[number] and not counted[number]
        colour = SOFT if is_left_out else ON_WHITE.get(name, ACCEPTED_ON_WHITE)
        draw.rectangle((left - 3, top - 3, left + CROP + 2, top + CROP + 2), fill=colour)
        sheet.paste(Image.fromarray(crop), (left, top))
        heading = f"{number + 1}  {score} {found.probabilities[number]:.3f}"
        verdict = {REJECTED: "rejected", UNSURE: UNSURE}.get(name, "accepted")
        if not np.isnan(found.atypical[number]):
            verdict = f"P(atypical) {found.atypical[number]:.2f}"
        if corrected and corrected.added[number]:
            heading = f"{corrected.numbers[number]}  by the reader"
        if corrected and corrected.by_reader[number]:
            verdict = name.split()[0]
        if is_left_out:
            verdict = NOT_COUNTED
        below = top + CROP + 4
        x, y = found.centres[number]
        draw.text((left, below), heading, "black", font)
        draw.text((left, below + 15), verdict, colour, font)
        draw.text((left, below + 30), f"{x:.0f}, {y:.0f} px", SOFT, font)
    return sheet
