"""How well detections of whole fields fit their labels, at every threshold."""

import numpy as np

from midog.boxes import match

MATCH_UM = 7.5


def precision_recall(fields, found):
    """Hits of all fields together at every threshold.

    Args:
        fields: list of `Field`.
        found: for each its boxes (K, 4) and scores (K,).

    Returns:
        dict: average_precision (area under the stepwise curve), the best f1 and its threshold.
    """
    scores, hits, truths = [], [], 0
    for field, (boxes, score) in zip(fields, found, strict=True):
        order = np.argsort(-score, kind="stable")
        centres = (boxes[order, :2] + boxes[order, 2:]) / 2
        # Each detection in falling order of score takes the nearest figure that is left.
        scores.append(score[order])
        hits.append(match(centres, field.figures, MATCH_UM / field.um_per_px[0]) >= 0)
        truths += len(field.figures)
    scores, hits = np.concatenate(scores), np.concatenate(hits)
    if not len(scores) or not truths:
        return {"average_precision": 0.0, "f1": 0.0, "threshold": 0.5}
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], np.cumsum(hits[order])
    precision, recall = true / np.arange(1, len(order) + 1), true / truths
    f1 = 2 * true / (np.arange(1, len(order) + 1) + truths)
    best = int(np.argmax(f1))
    smooth = np.maximum.accumulate(precision[::-1])[::-1]
    area = float((np.diff(recall, prepend=0.0) * smooth).sum())
    return {"average_precision": area, "f1": float(f1[best]), "threshold": float(scores[best])}
