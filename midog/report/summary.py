"""summary.csv: a row an image of a folder, written as soon as the image is done, and kept from run to run.

A new row is one line at the end of the file, so that among thousands each costs no more than the first. Where an image
is run again, its last row counts; `Summary.write`, called now and then, leaves only that one.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

from midog.errors import UserError, one_line
from midog.files import append_line, write_file
from midog.images.resolution import ASSUMED, Resolution, format_spacing
from midog.report.counts import Share
from midog.report.misclassification import Errors

NAME = "summary.csv"
BEFORE = "summary-before-1.9"  # the table of a version up to 1.8, which has other columns
DONE, DONE_BEFORE, FAILED = "done", "done before", "failed"
GUESSED = ", resolution assumed"  # behind the first two


@dataclass(frozen=True)
class Row:
    """What became of an image, as text; empty where there is nothing to say.

    Attributes:
        image: its name, with its path in the folder that was given.
        status: `DONE`, `DONE_BEFORE` or `FAILED`; the former two with `GUESSED` behind, where that is so.
        size: width x height, px; none of a stack.
        um_per_px, um_per_px_source: that was taken, and whether it was read, given or assumed.
        tissue_mm2: area of its tissue.
        figures: mitotic figures (Track 1), crops (Track 2).
        figures_per_mm2: of tissue.
        hotspot_count, hotspot_mm2, hotspot_x_px, hotspot_y_px: figures in the hotspot, its area, and the pixel in its
            middle.
        atypical, atypical_low, atypical_high: share of the figures with its 95 % interval, where there are enough.
        atypical_corrected, atypical_corrected_low, atypical_corrected_high: the same without the errors of the system
            that told the subtypes, and from where to where, where these are known, too.
        atypical_count: how many.
        system: what made the result, and what the subtypes.
        seconds: that it took.
        message: why it failed, in one line.
    """

    image: str
    status: str
    size: str = ""
    um_per_px: str = ""
    um_per_px_source: str = ""
    tissue_mm2: str = ""
    figures: str = ""
    figures_per_mm2: str = ""
    hotspot_count: str = ""
    hotspot_mm2: str = ""
    hotspot_x_px: str = ""
    hotspot_y_px: str = ""
    atypical: str = ""
    atypical_low: str = ""
    atypical_high: str = ""
    atypical_corrected: str = ""
    atypical_corrected_low: str = ""
    atypical_corrected_high: str = ""
    atypical_count: str = ""
    system: str = ""
    seconds: str = ""
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.status == FAILED

    @property
    def guessed(self) -> bool:
        """Whether its resolution was assumed."""
        return self.um_per_px_source == ASSUMED


COLUMNS = tuple(field.name for field in fields(Row))


def failed_row(image: str, message: str) -> Row:
    """Of an image that has no result."""
    return Row(_printable(image), FAILED, message=one_line(message))


def row_of_region(
    image: str,
    status: str,
    size: Sequence[int],
    resolution: Resolution,
    counts: dict[str, Any],
    systems: Sequence[str],
    seconds: float,
    errors: Errors = (),
) -> Row:
    """Of a Track 1 result.

    Args:
        image: its name.
        status: `DONE` or `DONE_BEFORE`.
        size: (width, height), px.
        resolution: that was taken.
        counts: `midog.report.counts.Counts.to_builtins`.
        systems: what made it.
        seconds: that it took.
        errors: of the system that told the subtypes; empty where they are not known.
    """
    protocols = {each["key"]: each for each in counts["protocols"]}
    whole, hotspot = protocols["whole"], protocols["hotspot"]
    places = {}
    if hotspot["box_nm"]:
        left, top, *sides = hotspot["box_nm"]
        for axis, start, side, step in zip("xy", (left, top), sides, resolution.um_per_px, strict=True):
            places[f"hotspot_{axis}_px"] = f"{(start + side / 2) / 1000 / step - 0.5:.0f}"
    share = counts["share"]
    return Row(
        **_of_any(image, status, resolution, systems, seconds),
        **(Share(share["atypical"], share["of"], errors=errors).cells if share else {}),
        **places,
        size=f"{size[0]} x {size[1]}",
        tissue_mm2=f"{counts['tissue_mm2']:.4f}",
        figures=str(whole["figures"]),
        figures_per_mm2="" if whole["per_mm2_tissue"] is None else f"{whole['per_mm2_tissue']:.3f}",
        hotspot_count=str(hotspot["figures"]),
        hotspot_mm2=f"{hotspot['area_mm2']:.3g}",
    )


def row_of_stack(
    image: str,
    status: str,
    resolution: Resolution,
    result: Sequence[dict[str, Any]],
    systems: Sequence[str],
    seconds: float,
    errors: Errors = (),
) -> Row:
    """Of a Track 2 result, the platform's; the rest as `row_of_region`."""
    share = Share(sum(crop["class"] == "atypical" for crop in result), len(result), errors=errors)
    return Row(**_of_any(image, status, resolution, systems, seconds), **share.cells, figures=str(len(result)))


def _of_any(image: str, status: str, resolution: Resolution, systems: Sequence[str], seconds: float) -> dict[str, str]:
    return {
        "image": _printable(image),
        "status": status + GUESSED * (resolution.source == ASSUMED),
        "um_per_px": format_spacing(resolution.um_per_px),
        "um_per_px_source": resolution.source,
        "system": "; ".join(systems),
        "seconds": f"{seconds:.2f}",
    }


def _printable(image: str) -> str:
    """A name as the table has it, which may hold bytes that are no text: by it rows are told apart."""
    return image.encode(errors="backslashreplace").decode()


class Summary:
    """The table of a folder.

    A line that a kill left in part is dropped; the image is run again. A table of other columns is kept beside it.

    Args:
        folder: exists and can be written.

    Raises:
        UserError: the table cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._added: dict[str, Row] = {}
        self.older: Path | None = None
        if self.path.exists():
            if _lines(self.path)[:1] != [list(COLUMNS)]:
                self.older = _set_aside(self.path)
            self.write()

    def add(self, row: Row) -> None:
        """Write the row of an image that is done."""
        if not self.path.exists():
            write_file(self.path, _text([]))
        append_line(self.path, _line(astuple(row)))
        self._added[row.image] = row

    def write(self) -> list[Row]:
        """Leave one row an image, by name, and return them: those that are there, also of another command's images."""
        there = {values[0]: Row(*values) for values in _lines(self.path)[1:] if len(values) == len(COLUMNS)}
        rows = sorted((there | self._added).values(), key=lambda row: row.image)
        write_file(self.path, _text(rows))
        return rows


def _lines(path: Path) -> list[list[str]]:
    """The values of each whole line of a table; none where there is no table."""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from None
    return list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def _set_aside(path: Path) -> Path:
    """Rename a file to what none has yet."""
    names = (f"{BEFORE}{f'-{number}' * (number > 1)}{path.suffix}" for number in count(1))
    return path.rename(next(other for name in names if not (other := path.with_name(name)).exists()))


def _text(rows: Iterable[Row]) -> str:
    return "".join(f"{_line(values)}\n" for values in [COLUMNS, *map(astuple, rows)])


def _line(values: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().removesuffix("\n")
