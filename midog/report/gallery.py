"""The most probable candidates, cut out and laid side by side."""

import numpy as np

from midog.report.export import ATYPICAL, REJECTED, class_name

FIELD_UM = 24.0  # side of a crop: the cell and its neighbours, as a whole figure in metaphase takes up to 20 um
CROP = 96  # px, FIELD_UM at .25 um/px
MOST_CROPS = 400
COLUMNS = 10
MARGIN = 8  # px around a crop
CAPTION = 52  # px under a crop
WHITE = 255
COLOURS = {REJECTED: "#64748b", ATYPICAL: "#c2410c"}  # of frames and captions on white; the others are green
ACCEPTED_COLOUR = "#15803d"


def cut_crops(slide, table):
    """Cut the first `MOST_CROPS` candidates out of a slide.

    Args:
        slide: `midog.slide.Slide`; the crops alone are read.
        table: `midog.report.export.CANDIDATE` (N,).

    Returns:
        list of uint8 (CROP, CROP, 3), in the table's order; white outside the slide.
    """
    places = table["place"][:MOST_CROPS]
    crops = [None] * len(places)
    for number in np.lexsort((places[:, 0], places[:, 1] // 512)):  # neighbours together, for the reader's cache
        crops[number] = _cut(slide, places[number])
    return crops


def _cut(slide, place):
    from PIL import Image

    sides = np.maximum(np.rint(FIELD_UM / np.array(slide.um_per_px)), 1).astype(int)
    start = np.rint(place + 0.5 - sides / 2).astype(int)
    first, last = np.clip(start, 0, slide.size), np.clip(start + sides, 0, slide.size)
    window = np.full((sides[1], sides[0], 3), WHITE, np.uint8)
    if (last > first).all():
        (left, top), (right, bottom) = first - start, last - start
        window[top:bottom, left:right] = slide.read(*first, *(last - first))
    return np.asarray(Image.fromarray(window).resize((CROP, CROP), Image.Resampling.BICUBIC))


def gallery(crops, table, title):
    """Draw the crops with their captions.

    Args:
        crops: as `cut_crops` returns them.
        table: `CANDIDATE` (N,); of those without a crop only the number is said.
        title: one line on top.

    Returns:
        PIL image.
    """
    from PIL import Image, ImageDraw, ImageFont

    cell_x, cell_y, header = CROP + 2 * MARGIN, CROP + 2 * MARGIN + CAPTION, 64
    rows = -(-len(crops) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell_x, header + rows * cell_y), "white")
    draw = ImageDraw.Draw(sheet)
    font, large = ImageFont.load_default(12), ImageFont.load_default(18)
    draw.text((MARGIN, MARGIN), title, "black", large)
    accepted = int(table["accepted"].sum())
    summary = f"{accepted} mitotic figures, {len(table) - accepted} rejected candidates, most probable first"
    if len(table) > len(crops):
        summary += f"; the first {len(crops)} are shown"
    draw.text((MARGIN, MARGIN + 28), f"{summary}. A crop shows {FIELD_UM:g} um.", "#555555", ImageFont.load_default(14))
    for number, (crop, row) in enumerate(zip(crops, table, strict=False), start=1):
        left = (number - 1) % COLUMNS * cell_x + MARGIN
        top = (number - 1) // COLUMNS * cell_y + MARGIN + header
        name = class_name(row)
        colour = COLOURS.get(name, ACCEPTED_COLOUR)
        draw.rectangle((left - 3, top - 3, left + CROP + 2, top + CROP + 2), fill=colour)
        sheet.paste(Image.fromarray(crop), (left, top))
        verdict = "rejected" if name == REJECTED else "accepted"
        if not np.isnan(row["atypical"]):
            verdict = f"P(atypical) {row['atypical']:.2f}"
        below = top + CROP + 4
        draw.text((left, below), f"{number}  P {row['probability']:.3f}", "black", font)
        draw.text((left, below + 15), verdict, colour, font)
        draw.text((left, below + 30), "{:.0f}, {:.0f} px".format(*row["place"]), "#555555", font)
    return sheet
