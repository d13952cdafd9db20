"""Candidates as one table, and the table as files for other programs: CSV, and GeoJSON for QuPath."""

import csv
import io
import json
import os

import numpy as np

from midog.errors import UserError
from midog.job import POINT_NAMES

FIGURE, REJECTED = POINT_NAMES
ATYPICAL, NORMAL = "atypical mitotic figure", "normal mitotic figure"
# Yellow and blue are apart for every kind of colour vision; in grey, lightness and size tell them apart.
COLOURS = {FIGURE: "#ffe11a", NORMAL: "#ffe11a", ATYPICAL: "#ff5a1f", REJECTED: "#1747c9"}
HOTSPOT_COLOUR = "#00a878"

CANDIDATE = np.dtype(
    [
        ("accepted", bool),
        ("probability", np.float64),
        ("place", np.float64, 2),  # level-0 px, a pixel's centre at integers
        ("place_mm", np.float64, 2),
        ("in_hotspot", bool),  # lies in the window; accepted or not
        ("atypical", np.float64),  # P(atypical), NaN where it was not asked
    ]
)


def candidate_table(slide, result):
    """A Track 1 result -> `CANDIDATE` (N,), in falling order of probability, then from top to bottom.

    Args:
        slide: `midog.slide.Slide` that the result belongs to.
        result: the platform's "Multiple points", in mm.
    """
    points = result["points"]
    table = np.zeros(len(points), CANDIDATE)
    table["accepted"] = [point["name"] == FIGURE for point in points]
    table["probability"] = [point["probability"] for point in points]
    table["place_mm"] = np.array([point["point"][:2] for point in points], np.float64).reshape(-1, 2)
    table["place"] = (table["place_mm"] - slide.origin_mm) / (np.array(slide.um_per_px) / 1000)
    table["atypical"] = np.nan
    x, y = table["place"].T
    return table[np.lexsort((x, y, -table["probability"]))]


def class_name(row):
    """What a candidate is called: by its subtype where that is known."""
    if not row["accepted"]:
        return REJECTED
    if np.isnan(row["atypical"]):
        return FIGURE
    return ATYPICAL if row["atypical"] >= 0.5 else NORMAL


def figures_csv(table, with_atypical):
    """All candidates as CSV text, numbered from 1 in the table's order; P(atypical) is empty for rejected ones."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["number", "name", "probability", "x_px", "y_px", "x_mm", "y_mm", "in_hotspot"]
    writer.writerow(header + ["p_atypical"] * with_atypical)
    for number, row in enumerate(table, start=1):
        cells = [number, class_name(row), f"{row['probability']:.6f}"]
        cells += [f"{value:.2f}" for value in row["place"]] + [f"{value:.6f}" for value in row["place_mm"]]
        cells.append(int(row["in_hotspot"]))
        if with_atypical:
            cells.append("" if np.isnan(row["atypical"]) else f"{row['atypical']:.6f}")
        writer.writerow(cells)
    return text.getvalue()


def figures_geojson(slide, table, hotspot):
    """All candidates as point detections and the hotspot as an annotation, for QuPath's "Import objects".

    QuPath (0.4 and later: `qupath.lib.io.PathObjectTypeAdapters`) reads `objectType`, `name`, `classification` with
    `name` and `color`, and `measurements` from a feature's properties. Its coordinates are level-0 px from the outer
    corner of the first pixel, whose centre is at .5; ours is at 0, hence the half pixel.

    Args:
        slide: for its um/px.
        table: `CANDIDATE` (N,).
        hotspot: `midog.report.hotspot.Hotspot`, or None.

    Returns:
        GeoJSON text, a feature a line.
    """
    features = []
    for number, row in enumerate(table, start=1):
        name = class_name(row)
        measurements = {"probability": round(float(row["probability"]), 6)}
        if not np.isnan(row["atypical"]):
            measurements["P(atypical)"] = round(float(row["atypical"]), 6)
        geometry = {"type": "Point", "coordinates": [round(float(value) + 0.5, 2) for value in row["place"]]}
        features.append(_feature(geometry, "detection", str(number), name, COLOURS[name], measurements))
    if hotspot:
        left, top, right, bottom = hotspot.box_px(slide).round(2).tolist()
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        measurements = {"figures": hotspot.count, "figures per mm2": round(hotspot.density, 4)}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append(_feature(geometry, "annotation", "hotspot", "hotspot", HOTSPOT_COLOUR, measurements))
    lines = ",\n".join(json.dumps(feature, allow_nan=False) for feature in features)
    return f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n'


def _feature(geometry, object_type, name, class_name, colour, measurements):
    properties = {
        "objectType": object_type,
        "name": name,
        "classification": {"name": class_name, "color": list(bytes.fromhex(colour[1:]))},
        "measurements": measurements,
    }
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write_file(path, content):
    """Write text (as UTF-8), bytes or a PIL image (as PNG) whole or not at all; returns the path.

    Raises:
        UserError: the disk refuses the file.
    """
    if isinstance(content, str):
        content = content.encode()
    elif not isinstance(content, bytes):
        buffer = io.BytesIO()
        content.save(buffer, "PNG")
        content = buffer.getvalue()
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk or use another folder") from None
    return path
