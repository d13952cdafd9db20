"""The crops of a stack on one sheet, each with its class and P(atypical)."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.files import write_file
from midog.report.canvas import DOUBT, MARGIN, SOFT, TEXT_FONT, TITLE_FONT

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 8
CAPTION = 34  # px under a crop
LINE, LETTER = 18, 8  # px of text that is wrapped
SHEET_CROPS = 400  # a longer stack is drawn on several sheets
COLOURS = {"atypical": "#c2410c", "normal": "#1d4ed8"}


def contact_sheets(
    crops: Iterable[NDArray[np.uint8]], result: list[dict[str, Any]], title: str, notices: Sequence[str] = ()
) -> "Iterator[Image.Image]":
    """Draw a stack with its result, a sheet for every 400 crops.

    Args:
        crops: uint8 (H, W, 3), all of one size.
        result: Track 2's result, one `{"class", "confidence"}` a crop.
        title: one line on top.
        notices: lines below it, in red.

    Yields:
        RGB.

    Raises:
        ValueError: more or fewer crops than entries.
    """
    numbered = zip(range(1, len(result) + 1), crops, result, strict=True)
    while sheet := list(islice(numbered, SHEET_CROPS)):
        yield _sheet(sheet, title, notices)


def _sheet(
    entries: list[tuple[int, NDArray[np.uint8], dict[str, Any]]], title: str, notices: Sequence[str]
) -> "Image.Image":
    from PIL import Image, ImageDraw, ImageFont

    height, width = entries[0][1].shape[:2]
    cell_x, cell_y = width + 2 * MARGIN, height + 2 * MARGIN + CAPTION
    columns = min(COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    lines = [line for notice in notices for line in textwrap.wrap(notice, columns * cell_x // LETTER)]
    header = 2 * CAPTION + len(lines) * LINE
    sheet = Image.new("RGB", (columns * cell_x, rows * cell_y + header), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_FONT)
    atypical = sum(verdict["class"] == "atypical" for _, _, verdict in entries)
    draw.text((MARGIN, MARGIN), title, "black", ImageFont.load_default(TITLE_FONT))
    draw.text((MARGIN, MARGIN + 26), f"{len(entries)} figures, {atypical} called atypical", SOFT, font)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 26 + (number + 1) * LINE), line, DOUBT, font)
    for place, (number, crop, verdict) in enumerate(entries):
        left = place % columns * cell_x + MARGIN
        top = place // columns * cell_y + MARGIN + header
        colour = COLOURS[verdict["class"]]
        draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), fill=colour)
        sheet.paste(Image.fromarray(crop), (left, top))
        draw.text((left, top + height + 5), f"{number}  {verdict['class']}", colour, font)
        draw.text((left, top + height + 20), f"P(atypical) {verdict['confidence']:.3f}", SOFT, font)
    return sheet


def write_contact_sheets(
    crops: Iterable[NDArray[np.uint8]],
    result: list[dict[str, Any]],
    folder: Path,
    title: str,
    notices: Sequence[str] = (),
) -> list[Path]:
    """Draw and write `contact-sheet.png` (then `contact-sheet-2.png`, ...); returns the paths.

    Raises:
        ValueError: more or fewer crops than entries.
        UserError: a crop cannot be decoded; the disk refuses a file.
    """
    paths = []
    for number, sheet in enumerate(contact_sheets(crops, result, title, notices), start=1):
        name = "contact-sheet.png" if number == 1 else f"contact-sheet-{number}.png"
        paths.append(write_file(folder / name, sheet))
    return paths
