"""evaluation.html: the figures, the plots and the worst errors of an evaluation on one page that needs nothing else."""

import base64
import html
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError
from midog.evaluation.curves import write_plots
from midog.evaluation.metrics import MATCH_MM, Case, DetectionCase, StackCase
from midog.files import write_file

if TYPE_CHECKING:
    from midog.images.slide import Slide

logger = logging.getLogger(__name__)

PAGE_NAME = "evaluation.html"
CROP = 64  # px of the image around an error
SHOWN = 128  # px of a crop on the page
MAX_ERRORS = 24  # of a kind
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #f6f7f9; margin: 0 }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px }
h1, .warning { overflow-wrap: anywhere }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 34px 0 10px }
p { margin: 4px 0 } .note { color: #5b6673; font-size: 13px; overflow-wrap: anywhere }
.warning { background: #fff4e0; border-left: 4px solid #c2410c; padding: 8px 12px; margin: 12px 0 }
section { background: white; border: 1px solid #e2e6eb; border-radius: 8px; padding: 14px; overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 5px 9px; border-bottom: 1px solid #edf0f3; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600; color: #5b6673 }
tr.overall td { font-weight: 600; background: #eef4fb } tr:last-child td { border-bottom: 0 }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px }
figure { margin: 0; background: white; border: 1px solid #e2e6eb; border-radius: 8px; padding: 10px }
.plots img { width: 100%; height: auto } figcaption { font-size: 13px; color: #5b6673; overflow-wrap: anywhere }
.crops { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 12px }
.crops img { width: 128px; height: 128px; display: block; margin: 0 auto 6px } figcaption b { color: #1f2933 }
"""


@dataclass(frozen=True)
class ErrorCrop:
    """One error for the gallery.

    Attributes:
        image: its name.
        place: x and y in mm (Track 1), or the crop's number in the stack from 0 on (Track 2).
        probability: of the prediction, or None where there is none.
    """

    image: str
    place: tuple[float, float] | int
    probability: float | None


@dataclass(frozen=True, eq=False)
class Shown:
    """An `ErrorCrop` as the page shows it: uint8 (H, W, 3), and the lines below, the first in bold."""

    pixels: NDArray[np.uint8]
    lines: list[str]


def write_page(
    track: int,
    cases: Sequence[Case],
    title: str,
    table: list[list[str]],
    notes: list[str],
    warnings: list[str],
    folder: Path,
    images: Path | None = None,
    spacings: Mapping[str, float | None] | None = None,
) -> Path:
    """Write the plots and the page that holds them.

    Args:
        track: 1 or 2.
        cases: `DetectionCase`s or `StackCase`s.
        title: one line.
        table: list of lists of str, the column names first.
        notes, warnings: lists of str.
        folder: exists.
        images: folder of the images, for the gallery, or None.
        spacings: dict from an image's name to the um/px that its prediction was made with, whatever the file says.

    Returns:
        the page's path.

    Raises:
        UserError: an image cannot be read; the disk refuses a file.
    """
    path = folder / PAGE_NAME
    galleries = _galleries(track, cases, images, spacings or {}) if images else {}
    try:
        plots = write_plots(track, cases, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free the disk or choose another") from None
    return write_file(path, _page(title, table, notes, warnings, plots, galleries))


def _page(
    title: str,
    table: list[list[str]],
    notes: list[str],
    warnings: list[str],
    plots: list[tuple[Path, str, str]],
    galleries: Mapping[str, list[Shown]],
) -> str:
    escape = html.escape
    head, *rows = table
    lines = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8">', f"<title>{escape(title)}</title>"]
    lines += [f"<style>{STYLE}</style></head><body><main>", f"<h1>Evaluation</h1><p class=note>{escape(title)}</p>"]
    lines += [f"<p class=warning>{escape(text)}</p>" for text in warnings]
    lines += ["<h2>Figures</h2><section><table><tr>", *(f"<th>{escape(text)}</th>" for text in head), "</tr>"]
    for row in rows:
        kind = " class=overall" if row[0] == "overall" else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>")
    lines += ["</table></section>", *(f"<p class=note>{escape(text)}</p>" for text in notes)]
    lines.append("<h2>Plots</h2><div class=plots>")
    for path, heading, shown in plots:
        lines.append(_figure(path.read_bytes(), heading, [shown]))
    lines.append("</div>")
    for heading, crops in galleries.items():
        lines.append(f"<h2>{escape(heading)}</h2><div class=crops>")
        lines += [_figure(_png(crop.pixels), crop.lines[0], crop.lines[1:]) for crop in crops]
        lines.append("</div>")
    return "\n".join([*lines, "</main></body></html>", ""])


def _figure(png: bytes, heading: str, texts: list[str]) -> str:
    caption = "<br>".join([f"<b>{html.escape(heading)}</b>", *map(html.escape, texts)])
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return f'<figure><img src="{source}" alt="{html.escape(heading)}"><figcaption>{caption}</figcaption></figure>'


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


# --- the worst errors ---------------------------------------------------------


def worst_detections(cases: Sequence[DetectionCase]) -> tuple[list[ErrorCrop], list[ErrorCrop]]:
    """The false positives of highest, and the missed figures of lowest or no probability (Track 1).

    Args:
        cases: of any number.

    Returns:
        two lists of at most `MAX_ERRORS`, worst first. A missed figure's probability is that of the best point within
        the radius that was not accepted.
    """
    false, missed = [], []
    for case in cases:
        unmatched = case.accepted & ~case.matched(case.accepted)
        false += [
            ErrorCrop(case.image, (x, y), float(score))
            for (x, y, _), score in zip(case.points[unmatched].tolist(), case.scores[unmatched], strict=True)
        ]
        for number in case.missed:
            x, y, _ = case.truths[number].tolist()
            near = np.hypot(*(case.points[:, :2] - (x, y)).T) <= MATCH_MM
            rejected = case.scores[near & ~case.accepted]
            missed.append(ErrorCrop(case.image, (x, y), float(rejected.max()) if len(rejected) else None))
    return _worst(false, missed)


def worst_crops(stacks: Sequence[StackCase]) -> tuple[list[ErrorCrop], list[ErrorCrop]]:
    """The normal crops of highest probability that were called atypical, and the other way round (Track 2)."""
    false: list[ErrorCrop] = []
    missed: list[ErrorCrop] = []
    for stack in stacks:
        for errors, wrong in ((false, stack.called & ~stack.labels), (missed, stack.labels & ~stack.called)):
            errors += [ErrorCrop(stack.image, int(crop), float(stack.scores[crop])) for crop in np.flatnonzero(wrong)]
    return _worst(false, missed)


def _worst(false: list[ErrorCrop], missed: list[ErrorCrop]) -> tuple[list[ErrorCrop], list[ErrorCrop]]:
    def probability(error: ErrorCrop) -> float:
        return -1.0 if error.probability is None else error.probability

    false = sorted(false, key=probability, reverse=True)
    return false[:MAX_ERRORS], sorted(missed, key=probability)[:MAX_ERRORS]


def _galleries(
    track: int, cases: Sequence[Case], folder: Path, spacings: Mapping[str, float | None]
) -> dict[str, list[Shown]]:
    """Crops by their heading."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder; give --images the folder of the images that the ground truth names")
    if track == 1:
        headings = "Worst false positives", "Worst missed figures"
        errors = worst_detections(cast("Sequence[DetectionCase]", cases))
    else:
        headings = "Worst normal crops called atypical", "Worst atypical crops called normal"
        errors = worst_crops(cast("Sequence[StackCase]", cases))
    wanted = {error.image for group in errors for error in group}
    absent = sorted(image for image in wanted if not (folder / image).exists())
    if absent:
        logger.warning(
            f"{folder}: {len(absent)} of {len(wanted)} images of the gallery are not there, {absent[0]} for one"
        )
    cut: dict[ErrorCrop, Shown] = {}
    for image in sorted(wanted - set(absent)):
        mine = [error for group in errors for error in group if error.image == image]
        if track == 1:
            cut |= _cut_from_slide(folder / image, mine, spacings.get(image))
        else:
            cut |= _cut_from_stack(folder / image, mine)
    return {
        heading: [cut[error] for error in group if error in cut]
        for heading, group in zip(headings, errors, strict=True)
    }


def _cut_from_slide(path: Path, errors: list[ErrorCrop], um_per_px: float | None) -> dict[ErrorCrop, Shown]:
    from midog.images.slide import open_slide

    with open_slide(path, um_per_px) as slide:
        return {error: _cut_from(slide, error) for error in errors}


def _cut_from(slide: "Slide", error: ErrorCrop) -> Shown:
    x_mm, y_mm = cast("tuple[float, float]", error.place)
    x, y = (np.array([x_mm, y_mm]) - slide.origin_mm) / (np.array(slide.um_per_px) / 1000)
    left, top = (int(np.rint(middle - CROP / 2)) for middle in (x, y))
    px = f"{math.floor(x + 0.5)}, {math.floor(y + 0.5)} px"
    lines = [_said(error), error.image, px, f"{x_mm:.4f}, {y_mm:.4f} mm"]
    return Shown(slide.read_padded(left, top, CROP, CROP), lines)


def _cut_from_stack(path: Path, errors: list[ErrorCrop]) -> dict[ErrorCrop, Shown]:
    from midog.images.stack import Stack

    by_number = {error.place: error for error in errors}
    return {
        by_number[number]: Shown(crop, [_said(by_number[number]), path.name, f"page {number + 1}"])
        for number, crop in enumerate(Stack(path))
        if number in by_number
    }


def _said(error: ErrorCrop) -> str:
    return "no candidate" if error.probability is None else f"p = {error.probability:.3f}"
