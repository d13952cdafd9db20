"""Compare a result of Track 2 with the expected one: same classes, confidences within a tolerance.

python test/compare.py EXPECTED_DIR RESULT_DIR [TOLERANCE]
"""

import json
import sys
from pathlib import Path

TOLERANCE = 1e-3  # other processors round differently; a GPU's half precision needs .02
NAME = "multiple-mitotic-figure-classification.json"


def differences(expected, result, tolerance=TOLERANCE):
    """Lines that say where two results differ; none if they agree."""
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


def main(expected_dir, result_dir, tolerance=TOLERANCE):
    expected, result = (json.loads((Path(folder) / NAME).read_text()) for folder in (expected_dir, result_dir))
    lines = differences(expected, result, float(tolerance))
    print("\n".join(lines) or f"{result_dir}: {len(result)} pages as expected within {tolerance}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
