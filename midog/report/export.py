"""Candidates as files for other programs: CSV, and GeoJSON for QuPath."""

import csv
import io
import json

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections, feature
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


def figures_csv(found: Detections, in_hotspot: NDArray[np.bool_], with_atypical: bool) -> str:
    """All candidates as CSV text, numbered from 1 in their order; P(atypical) is empty where it was not asked.

    Args:
        found: N candidates.
        in_hotspot: bool (N,), accepted or not.
        with_atypical: whether the column for P(atypical) is there.
    """
    columns = found.to_table() | {"number": range(1, len(found) + 1), "in_hotspot": in_hotspot.astype(int)}
    formats = {name: CSV_FORMATS[name] for name in CSV_FORMATS if with_atypical or name != "p_atypical"}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(formats)
    for row in zip(*(columns[name] for name in formats), strict=True):
        cells = (format(value, form) for value, form in zip(row, formats.values(), strict=True))
        writer.writerow("" if cell == "nan" else cell for cell in cells)
    return text.getvalue()


def figures_geojson(slide: Slide, found: Detections, hotspot: Hotspot | None) -> str:
    """All candidates as point detections and the hotspot as an annotation, as `Detections.to_geojson` explains them.

    Args:
        slide: for its um/px.
        found: numbered from 1 in their order.
        hotspot: None without mitotic figures.

    Returns:
        GeoJSON text, a feature a line.
    """
    features = found.to_geojson()["features"]
    if hotspot:
        left, top, right, bottom = hotspot.box_px(slide).round(2).tolist()
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        measurements = {"figures": hotspot.count, "figures per mm2": round(hotspot.density, 4)}
        features.append(feature(geometry, "annotation", "hotspot", "hotspot", HOTSPOT_COLOUR, measurements))
    lines = ",\n".join(json.dumps(each, allow_nan=False) for each in features)
    return f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n'
