"""Hard negatives: what a detector takes for mitotic figures where there are none."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from midog.detections import Detections
from midog.engine.two_stages import SystemDetector
from midog.evaluation.tables import CLASSES
from midog.files import write_file
from resources.data.fields import MINED_COLUMNS, Field

MinedRow = tuple[str, str, float, float, str, float]


def mined_from(field: Field, found: Detections, box_um: float) -> list[MinedRow]:
    """The detections (px of the field) that are no labelled mitotic figure: the values of `MINED_COLUMNS` of each."""
    rows: list[MinedRow] = []
    cells = np.concatenate([field.figures, field.unclear])
    for centre, score in zip(found.centres, found.scores, strict=True):
        if (np.hypot(*((cells - centre) * field.um_per_px).T) > box_um).all():
            x, y = (round(float(each), 2) for each in field.in_file(centre))
            rows.append((field.source, field.name, x, y, CLASSES[1], round(float(score), 4)))
    return rows


def mine_fields(
    detector: SystemDetector, fields: Sequence[Field], threshold: float, box_um: float
) -> tuple[list[MinedRow], int]:
    """What a detector takes for mitotic figures in fields where there are none.

    Args:
        detector: of one stage.
        fields: labelled.
        threshold: the least score.
        box_um: what lies farther from every figure counts as mined.

    Returns:
        `mined_from` all fields; the number of all detections.
    """
    rows: list[MinedRow] = []
    detections = 0
    for field in tqdm(fields, "mining", disable=None):
        found = detector(field)
        found = found[found.scores >= threshold]
        detections += len(found)
        rows += mined_from(field, found, box_um)
    return rows, detections


def write_mined(path: Path, rows: Sequence[MinedRow], fields: Sequence[Field], detections: int) -> None:
    """Write a list of hard negatives, whole or not at all, and print what it holds."""
    write_file(path, pd.DataFrame(rows, columns=MINED_COLUMNS).to_csv(index=False))
    area = sum(field.area_mm2 for field in fields)
    print(
        f"{path}: {len(fields)} images, {area:.2f} mm2, {detections} detections, {len(rows)} hard negatives "
        f"({len(rows) / area:.1f} a mm2)"
    )
