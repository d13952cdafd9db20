"""The pages of a stack on one sheet, each with its class and confidence."""

from itertools import islice

import numpy as np

COLUMNS = 8
MARGIN = 8  # px around a page
CAPTION = 34  # px under a page
SHEET_PAGES = 400  # a longer stack is drawn on several sheets
COLOURS = {"atypical": "#c2410c", "normal": "#1d4ed8"}


def contact_sheets(pages, result, title):
    """Draw a stack with its result, a sheet for every 400 pages.

    Args:
        pages: iterable of uint8 (H, W, 3), all of one size.
        result: Track 2's result, one `{"class", "confidence"}` a page.
        title: one line on top.

    Yields:
        PIL images.

    Raises:
        ValueError: more or fewer pages than entries.
    """
    numbered = zip(range(1, len(result) + 1), pages, result, strict=True)
    while sheet := list(islice(numbered, SHEET_PAGES)):
        yield _sheet(sheet, title)


def _sheet(entries, title):
    from PIL import Image, ImageDraw, ImageFont

    height, width = np.shape(entries[0][1])[:2]
    cell_x, cell_y = width + 2 * MARGIN, height + 2 * MARGIN + CAPTION
    columns = min(COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    sheet = Image.new("RGB", (columns * cell_x, rows * cell_y + 2 * CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    font, large = ImageFont.load_default(14), ImageFont.load_default(18)
    atypical = sum(verdict["class"] == "atypical" for _, _, verdict in entries)
    draw.text((MARGIN, MARGIN), title, "black", large)
    draw.text((MARGIN, MARGIN + 26), f"{len(entries)} figures, {atypical} called atypical", "#555555", font)
    for place, (number, page, verdict) in enumerate(entries):
        left = place % columns * cell_x + MARGIN
        top = place // columns * cell_y + MARGIN + 2 * CAPTION
        colour = COLOURS[verdict["class"]]
        draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), fill=colour)
        sheet.paste(Image.fromarray(page), (left, top))
        draw.text((left, top + height + 5), f"{number}  {verdict['class']}", colour, font)
        draw.text((left, top + height + 20), f"P(atypical) {verdict['confidence']:.3f}", "#555555", font)
    return sheet


def write_contact_sheets(stack, result, folder, title):
    """Draw and write `contact-sheet.png` (then `contact-sheet-2.png`, ...); returns the paths."""
    paths = []
    for number, sheet in enumerate(contact_sheets(stack, result, title), start=1):
        paths.append(folder / ("contact-sheet.png" if number == 1 else f"contact-sheet-{number}.png"))
        sheet.save(paths[-1])
    return paths
