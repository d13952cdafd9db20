"""index.html beside summary.csv: the same rows to look at, each with a picture and its report, in one page.

The page needs no network and nothing but the folder that it lies in: pictures and reports are the files of each image.
"""

import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from midog import __version__
from midog.files import write_file, write_with
from midog.report.canvas import HEADER
from midog.report.counts import LEAST_FIGURES
from midog.report.html import rendered
from midog.report.summary import NAME, Row

INDEX, THUMBNAIL = "index.html", "thumbnail.jpg"
THUMBNAIL_SIDE = 320  # px at most
QUALITY = 80  # of its JPEG
HEADINGS = {  # by column, in their order; those of numbers are sorted as such
    "image": "Image",
    "status": "Status",
    "figures": "Figures",
    "tissue_mm2": "Tissue, mm²",
    "figures_per_mm2": "per mm² of tissue",
    "hotspot_count": "In the hotspot",
    "hotspot_x_px": "Hotspot at, px",
    "atypical": "Atypical",
    "size": "Size, px",
    "um_per_px": "µm per px",
    "system": "System",
    "seconds": "Seconds",
}
WORDS = {"image", "status", "system"}


def write_thumbnail(picture: Path) -> None:
    """Write `THUMBNAIL` beside a picture of a report: the same in small, without its header."""
    from PIL import Image

    with Image.open(picture) as whole:
        small = whole.convert("RGB").crop((0, HEADER, *whole.size))
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    write_with(picture.with_name(THUMBNAIL), lambda part: small.save(part, "JPEG", quality=QUALITY))


def write_index(folder: Path, rows: Sequence[Row], reports: Sequence[str], running: str = "") -> None:
    """Write the page.

    Args:
        folder: that the images' folders lie in.
        rows: of any number.
        reports: names of files in an image's folder, to which the first that is there is linked.
        running: how far a command is that will write the page again; empty at its end.

    Raises:
        UserError: the disk refuses it.
    """
    page = rendered(
        INDEX,
        title=folder.resolve().name,
        summary=NAME,
        program=__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        running=running,
        totals=list(totals(rows)),
        headings=HEADINGS,
        words=WORDS,
        least=LEAST_FIGURES,
        rows=[_shown(row, folder, reports) for row in rows],
    )
    write_file(folder / INDEX, page)


def totals(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """What all images have together, by name; a rate is that of all figures and all tissue."""
    done = [row for row in rows if not row.failed]
    yield "Images", f"{len(rows):,}"
    yield "Done", f"{len(done):,}"
    yield "Failed", f"{len(rows) - len(done):,}"
    yield "Resolution assumed", f"{sum(row.guessed for row in rows):,}"
    regions = [row for row in done if row.tissue_mm2]
    if regions:
        figures, tissue = sum(int(row.figures) for row in regions), sum(float(row.tissue_mm2) for row in regions)
        yield "Mitotic figures", f"{figures:,}"
        yield "Tissue", f"{tissue:,.2f} mm²"
        if tissue:
            yield "per mm² of tissue", f"{figures / tissue:.2f}"


def _shown(row: Row, folder: Path, reports: Sequence[str]) -> dict[str, Any]:
    """A row as the template takes it: what is shown, by what it is sorted and its title, a column, and addresses."""
    here = folder / _file_name(row.image)
    files = {name for name in (*reports, THUMBNAIL) if (here / name).exists()}
    place = f"{row.hotspot_x_px}, {row.hotspot_y_px}" * bool(row.hotspot_x_px)
    shown = {
        "status": ": ".join(filter(None, (row.status, row.message))),
        "hotspot_count": f"{row.hotspot_count} in {row.hotspot_mm2} mm²" * bool(row.hotspot_count),
        "hotspot_x_px": place,
        "atypical": _share(row),
        "um_per_px": f"{row.um_per_px} {row.um_per_px_source}".strip(),
    }
    sorted_by = {
        "atypical": row.atypical,
        "size": row.size and str(_area(row.size)),
        "um_per_px": row.um_per_px.partition(" ")[0],
    }
    titles = {"atypical": _corrected(row)}
    report = next((name for name in reports if name in files), None)
    return {
        "failed": row.failed,
        "guessed": row.guessed,
        "report": _address(here, folder, report) if report else None,
        "picture": _address(here, folder, THUMBNAIL) if THUMBNAIL in files else None,
        "cells": [
            (name, shown.get(name, getattr(row, name)), sorted_by.get(name, getattr(row, name)), titles.get(name, ""))
            for name in HEADINGS
        ],
    }


def _share(row: Row) -> str:
    if not row.atypical:
        return f"{row.atypical_count} of {row.figures}" if row.atypical_count else ""
    share = _percent(row.atypical, row.atypical_low, row.atypical_high)
    return f"{share}, {row.atypical_count} of {row.figures}"


def _corrected(row: Row) -> str:
    if not row.atypical:
        return ""
    if not row.atypical_corrected:
        return "Not corrected: the system's errors are unknown, or too many"
    values = row.atypical_corrected, row.atypical_corrected_low, row.atypical_corrected_high
    return f"Corrected for the system's errors: {_percent(*values)}"


def _percent(*values: str) -> str:
    return "{:.0f} % ({:.0f} to {:.0f} %)".format(*(100 * float(value) for value in values))


def _area(size: str) -> int:
    width, height = size.split(" x ")
    return int(width) * int(height)


def _file_name(image: str) -> str:
    """A name on the disk, whose bytes that are no text stand in the table as backslash and number."""
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda match: chr(int(match[1], 16)), image)


def _address(here: Path, folder: Path, name: str) -> str:
    """Of a file, from the page."""
    return quote(os.fsencode((here / name).relative_to(folder).as_posix()))
