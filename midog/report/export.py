"""Results as files for other programs: CSV of candidates and of crops, and GeoJSON of candidates for QuPath."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections, feature
from midog.images.resolution import Resolution, format_spacing
from midog.images.slide import Slide
from midog.report.canvas import HOTSPOT_COLOUR
from midog.report.hotspot import Hotspot

CSV_FORMATS = {  # by column, in their order
    "number": "d",
    "name": "s",
    "probability": ".6f",
    "x_px": ".2f",
    "y_px": ".2f",
    "x_mm": ".6f",
    "y_mm": ".6f",
    "in_hotspot": "d",
    "p_atypical": ".6f",
}
RESOLUTION = "um_per_px", "um_per_px_source"  # the last columns of every table


def figures_csv(found: Detections, in_hotspot: NDArray[np.bool_], with_atypical: bool, resolution: Resolution) -> str:
    """All candidates as CSV text, numbered from 1 in their order; P(atypical) is empty where it was not asked.

    Args:
        found: N candidates.
        in_hotspot: bool (N,), accepted or not.
        with_atypical: whether the column for P(atypical) is there.
        resolution: of their image.
    """
    columns = found.to_table() | {"number": range(1, len(found) + 1), "in_hotspot": in_hotspot.astype(int)}
    formats = {name: CSV_FORMATS[name] for name in CSV_FORMATS if with_atypical or name != "p_atypical"}
    rows = zip(*(columns[name] for name in formats), strict=True)
    cells = ([format(value, form) for value, form in zip(row, formats.values(), strict=True)] for row in rows)
    taken = _resolution(resolution)
    return _csv([*formats, *RESOLUTION], ([*("" if cell == "nan" else cell for cell in row), *taken] for row in cells))


def crops_csv(files: Sequence[str], result: list[dict[str, Any]], resolutions: Sequence[Resolution]) -> str:
    """Crops in files of their own with their verdicts, as CSV text in the order of the result.

    Args:
        files: their names.
        result: Track 2's, an entry a crop.
        resolutions: of each.
    """
    rows = zip(files, result, resolutions, strict=True)
    return _csv(
        ["file", "class", "p_atypical", *RESOLUTION],
        ([file, crop["class"], f"{crop['confidence']:.6f}", *_resolution(each)] for file, crop, each in rows),
    )


def _resolution(resolution: Resolution) -> tuple[str, str]:
    return format_spacing(resolution.um_per_px), resolution.source


def _csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def figures_geojson(slide: Slide, found: Detections, hotspot: Hotspot | None) -> str:
    """All candidates as point detections and the hotspot as an annotation, as `Detections.to_geojson` explains them.

    Args:
        slide: for its um/px and the corner of its scanned area.
        found: numbered from 1 in their order.
        hotspot: None without mitotic figures.

    Returns:
        GeoJSON text, a feature a line.
    """
    collection = found.to_geojson(slide.corner_px)
    features = collection.pop("features")
    if hotspot:
        box = hotspot.box_px(slide) - np.tile(slide.corner_px, 2)
        left, top, right, bottom = box.round(2).tolist()
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        measurements = {"figures": hotspot.count, "figures per mm2": round(hotspot.density, 4)}
        features.append(feature(geometry, "annotation", "hotspot", "hotspot", HOTSPOT_COLOUR, measurements))
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)}, " for key, value in collection.items())
    lines = ",\n".join(json.dumps(each, allow_nan=False) for each in features)
    return f'{{{head}"features": [\n{lines}\n]}}\n'
