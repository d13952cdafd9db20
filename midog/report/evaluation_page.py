"""evaluation.html: the figures, the plots and the worst errors of an evaluation on one page that needs nothing else."""

import base64
import html
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midog import metrics
from midog.errors import UserError
from midog.report.curves import write_plots
from midog.report.export import write_file

PAGE_NAME = "evaluation.html"
CROP = 64  # px of the image around an error
SHOWN = 128  # px of a crop on the page
MOST_ERRORS = 24  # of a kind
WHITE = 255
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
class Wrong:
    """One error for the gallery.

    Attributes:
        image: its name.
        place: x and y in mm (Track 1), or the page's number from 0 on (Track 2).
        probability: of the prediction, or None where there is none.
    """

    image: str
    place: object
    probability: float | None


def write_page(track, cases, title, table, notes, warnings, folder, warn, images=None, spacings=None):
    """Write the plots and the page that holds them.

    Args:
        track: 1 or 2.
        cases: `midog.metrics.DetectionCase`s or `StackCase`s.
        title: one line.
        table: list of lists of str, the column names first.
        notes, warnings: lists of str.
        folder: exists.
        warn: called with one line for images that are missing or were read with an assumption.
        images: folder of the images, for the gallery, or None.
        spacings: dict from an image's name to the um/px that its prediction was made with, whatever the file says.

    Returns:
        the page's path.

    Raises:
        UserError: an image cannot be read; the disk refuses a file.
    """
    path = folder / PAGE_NAME
    galleries = _galleries(track, cases, Path(images), spacings or {}, warn) if images else {}
    try:
        plots = write_plots(track, cases, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free the disk or choose another") from None
    return write_file(path, _page(title, table, notes, warnings, plots, galleries))


def _page(title, table, notes, warnings, plots, galleries):
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
        lines += [_figure(_png(pixels), first, others) for pixels, first, *others in crops]
        lines.append("</div>")
    return "\n".join([*lines, "</main></body></html>", ""])


def _figure(png, heading, texts):
    caption = "<br>".join([f"<b>{html.escape(heading)}</b>", *map(html.escape, texts)])
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return f'<figure><img src="{source}" alt="{html.escape(heading)}"><figcaption>{caption}</figcaption></figure>'


def _png(pixels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


# --- the worst errors ---------------------------------------------------------


def worst_detections(cases):
    """The false positives of highest, and the missed figures of lowest or no probability (Track 1).

    Args:
        cases: `midog.metrics.DetectionCase`s.

    Returns:
        two lists of at most `MOST_ERRORS` `Wrong`, worst first. A missed figure's probability is that of the best point
        within the radius that was not accepted.
    """
    false, missed = [], []
    for case in cases:
        unmatched = case.accepted & ~case.matched(case.accepted)
        false += [
            Wrong(case.image, tuple(place), float(score))
            for place, score in zip(case.points[unmatched, :2].tolist(), case.scores[unmatched], strict=True)
        ]
        for number in case.missed:
            near = np.hypot(*(case.points[:, :2] - case.truths[number, :2]).T) <= metrics.MATCH_MM
            rejected = case.scores[near & ~case.accepted]
            probability = float(rejected.max()) if len(rejected) else None
            missed.append(Wrong(case.image, tuple(case.truths[number, :2].tolist()), probability))
    return _worst(false, missed)


def worst_crops(cases):
    """The normal crops of highest probability that were called atypical, and the other way round (Track 2)."""
    false, missed = [], []
    for case in cases:
        for errors, wrong in ((false, case.called & ~case.labels), (missed, case.labels & ~case.called)):
            errors += [Wrong(case.image, int(page), float(case.scores[page])) for page in np.flatnonzero(wrong)]
    return _worst(false, missed)


def _worst(false, missed):
    false = sorted(false, key=lambda error: -error.probability)
    missed = sorted(missed, key=lambda error: -1 if error.probability is None else error.probability)
    return false[:MOST_ERRORS], missed[:MOST_ERRORS]


def _galleries(track, cases, folder, spacings, warn):
    """Headings with their crops: (uint8 (H, W, 3), line of text, ...)."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder; give --images the folder of the images that the ground truth names")
    headings = {
        1: ("Worst false positives", "Worst missed figures"),
        2: ("Worst normal crops called atypical", "Worst atypical crops called normal"),
    }[track]
    groups = dict(zip(headings, (worst_detections if track == 1 else worst_crops)(cases), strict=True))
    wanted = {error.image for errors in groups.values() for error in errors}
    absent = sorted(image for image in wanted if not (folder / image).exists())
    if absent:
        warn(f"{folder}: {len(absent)} of {len(wanted)} images of the gallery are not there, {absent[0]} for one")
    cut, remarks = {}, []
    for image in sorted(wanted - set(absent)):
        mine = [error for errors in groups.values() for error in errors if error.image == image]
        if track == 1:
            cut |= _cut_places(folder / image, mine, spacings.get(image), remarks.append)
        else:
            cut |= _cut_pages(folder / image, mine, remarks.append)
    if remarks:
        warn(f"gallery: {remarks[0]}" + f" (and {len(remarks) - 1} more like this)" * (len(remarks) > 1))
    return {heading: [cut[error] for error in errors if error in cut] for heading, errors in groups.items()}


def _cut_places(path, errors, um_per_px, warn):
    from midog.slide import open_slide

    with open_slide(path, warn, um_per_px) as slide:
        step = np.array(slide.um_per_px) / 1000
        return {error: _cut_place(slide, (np.array(error.place) - slide.origin_mm) / step, error) for error in errors}


def _cut_place(slide, place, error):
    start = np.rint(place - CROP / 2).astype(int)
    inside_start, inside_stop = np.maximum(start, 0), np.minimum(start + CROP, slide.size)
    crop = np.full((CROP, CROP, 3), WHITE, np.uint8)
    if (inside_stop > inside_start).all():
        (left, top), (right, bottom) = inside_start - start, inside_stop - start
        crop[top:bottom, left:right] = slide.read(*inside_start, *(inside_stop - inside_start))
    x, y = error.place
    return (
        *(crop, _said(error), error.image),
        f"{math.floor(place[0] + 0.5)}, {math.floor(place[1] + 0.5)} px",
        f"{x:.4f}, {y:.4f} mm",
    )


def _cut_pages(path, errors, warn):
    from midog.stack import Stack

    pages = {error.place: error for error in errors}
    return {
        pages[number]: (page, _said(pages[number]), path.name, f"page {number + 1}")
        for number, page in enumerate(Stack(path, warn))
        if number in pages
    }


def _said(error):
    return "no candidate" if error.probability is None else f"p = {error.probability:.3f}"
