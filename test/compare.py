"""Compare a result with the expected one, within tolerances; the track follows from the file in EXPECTED_DIR.

python test/compare.py EXPECTED_DIR RESULT_DIR [TOLERANCE]
"""

import json
import math
import sys
from pathlib import Path

TOLERANCES = {  # of a probability in float32: other processors round differently
    "mitotic-figures.json": 5e-3,
    "multiple-mitotic-figure-classification.json": 1e-3,
}
HALF_PRECISION = 0.02  # of a probability where the device's own precision is taken
SAME_PLACE_MM = 0.003  # of the 0.0075 that the challenge allows
FAINT_SHARE = 0.05  # of rejected candidates that may come or go, as their scores pass the detector's threshold


def differences(expected, result, tolerance):
    """Lines that say where two results of a track differ; none if they agree."""
    compare = point_differences if isinstance(expected, dict) else page_differences
    return compare(expected, result, tolerance)


def page_differences(expected, result, tolerance):
    """Track 2: same classes, confidences within the tolerance."""
    if len(expected) != len(result):
        return [f"{len(result)} pages instead of {len(expected)}"]
    lines = []
    for page, (wanted, got) in enumerate(zip(expected, result, strict=True), start=1):
        near_the_cut = abs(wanted["confidence"] - 0.5) <= tolerance
        if abs(wanted["confidence"] - got["confidence"]) > tolerance:
            lines.append(f"page {page}: confidence {got['confidence']:.4f} instead of {wanted['confidence']:.4f}")
        elif wanted["class"] != got["class"] and not near_the_cut:
            lines.append(f"page {page}: {got['class']} instead of {wanted['class']}")
    return lines


def point_differences(expected, result, tolerance):
    """Track 1: same figures at the same places, probabilities within the tolerance, about the same rejected ones.

    Points are paired with their nearest, best first. A point whose probability is within the tolerance of the
    operating point may bear either name.
    """
    lines, alone, free = [], [], list(result["points"])
    for wanted in expected["points"]:
        got = min(free, key=lambda point: distance_mm(wanted, point), default=None)
        if got is None or distance_mm(wanted, got) > SAME_PLACE_MM:
            alone.append(("missing", wanted))
            continue
        free.remove(got)
        if abs(wanted["probability"] - got["probability"]) > tolerance:
            lines.append(f"{described(wanted)}: probability {got['probability']:.4f}")
        elif wanted["name"] != got["name"] and abs(wanted["probability"] - 0.5) > tolerance:
            lines.append(f"{described(wanted)}: named {got['name']}")
    alone += [("unexpected", point) for point in free]
    lines += [f"{described(point)}: {how}" for how, point in alone if point["probability"] > 0.5 + tolerance]
    faint = sum(point["probability"] <= 0.5 + tolerance for _, point in alone)
    if faint > 1 + FAINT_SHARE * len(expected["points"]):
        lines.append(f"{faint} rejected candidates came or went, of {len(expected['points'])} points")
    return lines


def distance_mm(first, second):
    return math.dist(first["point"], second["point"])


def described(point):
    x, y, _ = point["point"]
    return f"{point['name']} at {x:.4f}, {y:.4f} mm with probability {point['probability']:.4f}"


def main(expected_dir, result_dir, tolerance=None):
    expected_path = next(path for path in Path(expected_dir).glob("*.json") if path.name in TOLERANCES)
    tolerance = TOLERANCES[expected_path.name] if tolerance is None else float(tolerance)
    expected, result = (json.loads(path.read_text()) for path in (expected_path, Path(result_dir) / expected_path.name))
    lines = differences(expected, result, tolerance)
    print("\n".join(lines) or f"{result_dir}: as expected within {tolerance}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
