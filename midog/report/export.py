"""Results as files for other programs: CSV of candidates, counts, crops and agreement, and GeoJSON for QuPath."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import COLOURS, Detections, feature
from midog.images.resolution import Resolution, format_spacing
from midog.images.slide import Slide
from midog.report.canvas import HOTSPOT_COLOUR
from midog.report.counts import SHARE_COLUMNS, Counts
from midog.report.hotspot import Hotspot
from midog.report.protocols import AREAS, WHOLE, Count
from midog.report.reliability import Reliability, share_at
from midog.report.review import Agreement, Corrected

CSV_FORMATS = {  # by column, in their order
    "number": "",
    "name": "s",
    "score": ".6f",
    "share_on_validation": ".4f",
    "x_px": ".2f",
    "y_px": ".2f",
    "x_mm": ".6f",
    "y_mm": ".6f",
    "in_hotspot": "d",
    "counted": "d",
    "p_atypical": ".6f",
    "origin": "s",
    "note": "s",
}
OF_REVIEWS = {"origin", "note"}
COUNTS_COLUMNS = (
    *("protocol", "figures", "low_95", "high_95", "area_mm2", "asked_mm2", "reached"),
    *("tissue_mm2", "per_mm2", "per_mm2_tissue", "left_px", "top_px", "right_px", "bottom_px"),
    *SHARE_COLUMNS,
)
FORMULA = tuple("=+-@\t\r")  # what a spreadsheet would compute
RESOLUTION = "um_per_px", "um_per_px_source"  # the last columns of every table


def figures_csv(
    found: Detections,
    in_hotspot: NDArray[np.bool_],
    with_atypical: bool,
    resolution: Resolution,
    corrected: Corrected | None = None,
    counted: NDArray[np.bool_] | None = None,
    reliability: Reliability = (),
) -> str:
    """All candidates as CSV text, numbered from 1 in their order; a number is empty where there is none.

    Args:
        found: N candidates.
        in_hotspot: bool (N,), accepted or not.
        with_atypical: whether the column for P(atypical) is there.
        resolution: of their image.
        corrected: what a reader said of them, for the columns `OF_REVIEWS`; or None.
        counted: bool (N,), which of them lie where it is counted, for the column of that name; or None.
        reliability: what scores meant on validation.
    """
    scores = np.where(corrected.added, np.nan, found.probabilities) if corrected else found.probabilities
    columns = found.to_table() | {
        "number": range(1, len(found) + 1),
        "score": scores,
        "share_on_validation": [_share(reliability, score) for score in scores.tolist()],
        "in_hotspot": in_hotspot.astype(int),
        "counted": None if counted is None else counted.astype(int),
    }
    left_out = (set() if with_atypical else {"p_atypical"}) | ({"counted"} if counted is None else set())
    if corrected:
        columns |= {
            "number": corrected.numbers,
            "name": corrected.names_of(found),
            "p_atypical": np.where(corrected.by_reader, np.nan, found.atypical),
            "origin": corrected.origins,
            "note": [_harmless(note) for note in corrected.notes],
        }
    else:
        left_out |= OF_REVIEWS
    formats = {name: CSV_FORMATS[name] for name in CSV_FORMATS if name not in left_out}
    rows = zip(*(columns[name] for name in formats), strict=True)
    cells = ([_cell(value, form) for value, form in zip(row, formats.values(), strict=True)] for row in rows)
    taken = resolution_cells(resolution)
    return csv_text([*formats, *RESOLUTION], ([*row, *taken] for row in cells))


def _share(reliability: Reliability, score: float) -> float:
    known = None if math.isnan(score) else share_at(reliability, score)
    return known[0] if known else math.nan


def _cell(value: Any, form: str) -> str:
    return "" if value != value else format(value, form)  # only NaN differs from itself


def counts_csv(counts: Counts, slide: Slide) -> str:
    """A row a protocol as CSV text; where one has a window, its place in px from the image's upper left corner.

    What is not known of a count is empty: the area that was asked for, or the density where there is no area. The share
    of atypical figures, where that was asked, stands with the count of all that it is of.
    """
    keys = {each.key for each in counts.protocols}
    of_all = AREAS if AREAS in keys else WHOLE
    shares = {of_all: list(counts.share.cells.values())} if counts.share else {}
    nothing = [""] * len(SHARE_COLUMNS)
    rows = ([*_count_cells(each, slide), *shares.get(each.key, nothing)] for each in counts.protocols)
    return csv_text(COUNTS_COLUMNS, rows)


def _count_cells(count: Count, slide: Slide) -> list[str]:
    low, high = count.interval
    return [
        *(_harmless(count.name), str(count.figures), f"{low:.3f}", f"{high:.3f}", f"{count.area_mm2:.6f}"),
        *(_known(count.asked_mm2), str(int(count.reached)), f"{count.tissue_mm2:.6f}"),
        *(_known(count.per_mm2), _known(count.per_mm2_tissue)),
        *([f"{side:.2f}" for side in count.box.box_px(slide)] if count.box else [""] * 4),
    ]


def _known(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _harmless(text: str) -> str:
    """A reader's words, which a spreadsheet does not compute."""
    return f"'{text}" if text.startswith(FORMULA) else text


def crops_csv(files: Sequence[str], result: list[dict[str, Any]], resolutions: Sequence[Resolution]) -> str:
    """Crops in files of their own with their verdicts, as CSV text in the order of the result.

    Args:
        files: their names.
        result: Track 2's, an entry a crop.
        resolutions: of each.
    """
    rows = zip(files, result, resolutions, strict=True)
    return csv_text(
        ["file", "class", "p_atypical", *RESOLUTION],
        ([file, crop["class"], f"{crop['confidence']:.6f}", *resolution_cells(each)] for file, crop, each in rows),
    )


def resolution_cells(resolution: Resolution) -> tuple[str, str]:
    """What stands below `RESOLUTION`."""
    return format_spacing(resolution.um_per_px), resolution.source


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with its head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def agreement_csv(agreement: Agreement) -> str:
    """CSV text of one row."""
    counts = asdict(agreement)
    return csv_text(list(counts), [[str(count) for count in counts.values()]])


def figures_geojson(
    slide: Slide, found: Detections, hotspot: Hotspot | None, corrected: Corrected | None = None
) -> str:
    """The mitotic figures as point detections and the hotspot as an annotation: what QuPath counts are figures.

    Args:
        slide: for its um/px and the corner of its scanned area.
        found: numbered from 1 in their order, the refused ones too.
        hotspot: None without mitotic figures.
        corrected: what a reader said of them, or None.

    Returns:
        GeoJSON text, a feature a line, as `Detections.to_geojson` explains it.
    """
    collection = _collection(slide, found, found.accepted, corrected)
    if hotspot:
        box = hotspot.box_px(slide) - np.tile(slide.corner_px, 2)
        left, top, right, bottom = box.round(2).tolist()
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        measurements = {"figures": hotspot.count, "figures per mm2": round(hotspot.density, 4)}
        collection["features"].append(
            feature(geometry, "annotation", "hotspot", "hotspot", HOTSPOT_COLOUR, measurements)
        )
    return _text(collection)


def candidates_geojson(slide: Slide, found: Detections, corrected: Corrected | None = None) -> str:
    """The candidates that are no mitotic figures, as `figures_geojson` has those that are."""
    return _text(_collection(slide, found, ~found.accepted, corrected))


def _collection(
    slide: Slide, found: Detections, chosen: NDArray[np.bool_], corrected: Corrected | None
) -> dict[str, Any]:
    """Those that are chosen, bool (N,), with the numbers that they have among all."""
    collection = found.to_geojson(slide.corner_px)
    features = collection["features"]
    rows = np.flatnonzero(chosen).tolist()
    if corrected:
        names = corrected.names_of(found)
        for row in rows:
            _say(features[row]["properties"], row, corrected, names[row])
    return collection | {"features": [features[row] for row in rows]}


def _say(properties: dict[str, Any], row: int, corrected: Corrected, name: str) -> None:
    """What a reader said of a candidate, in its feature."""
    note = corrected.notes[row]
    properties["name"] = corrected.numbers[row]
    properties["classification"] = {"name": name, "color": list(bytes.fromhex(COLOURS[name][1:]))}
    properties["metadata"] = {"origin": corrected.origins[row]} | ({"note": note} if note else {})
    if corrected.added[row]:
        del properties["measurements"]["score"]
    if corrected.by_reader[row]:
        del properties["measurements"]["P(atypical)"]


def _text(collection: dict[str, Any]) -> str:
    features = collection.pop("features")
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)}, " for key, value in collection.items())
    lines = ",\n".join(json.dumps(each, allow_nan=False) for each in features)
    return f'{{{head}"features": [\n{lines}\n]}}\n'
