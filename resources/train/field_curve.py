"""How well detections of whole fields fit their labels, at every threshold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.evaluation.metrics import best_operating_point, match, stepwise_average_precision

if TYPE_CHECKING:
    from resources.data.fields import Field

MATCH_UM = 7.5


def precision_recall(
    fields: Sequence["Field"], found: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]]
) -> dict[str, float]:
    """Hits of all fields together at every threshold.

    Args:
        fields: of any number.
        found: for each its boxes, float (K, 4), and scores, float (K,), in any order.

    Returns:
        average_precision (area under the stepwise curve), the best f1, and its threshold, which lies between the last
        accepted and the next candidate.
    """
    scores: list[NDArray[np.floating]] = [np.zeros(0)]
    hits: list[NDArray[np.bool_]] = [np.zeros(0, bool)]
    truths = 0
    for field, (boxes, score) in zip(fields, found, strict=True):
        x, y = centres = (boxes[:, :2] + boxes[:, 2:]).T / 2
        # In falling order of score, then of place, each detection takes the nearest figure that is left.
        order = np.lexsort((x, y, -score))
        scores.append(score[order])
        hits.append(match(centres.T[order], field.figures, MATCH_UM / field.um_per_px[0]) >= 0)
        truths += len(field.figures)
    together = np.concatenate(scores), np.concatenate(hits), truths
    f1, threshold = best_operating_point(*together)
    return {"average_precision": stepwise_average_precision(*together), "f1": f1, "threshold": threshold}
