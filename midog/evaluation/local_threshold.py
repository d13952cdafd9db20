"""A laboratory's own threshold: 30 to 50 of its verdicts move where a system calls a candidate a figure.

The scores of another scanner or stain are usually in the right order and all too high or too low. So one number is
learned: an offset of their logits, P(figure) = sigmoid(logit(score) + offset), by maximum likelihood with a weak normal
prior around 0, without which verdicts of one kind would move it to infinity. The verdicts may be of any candidates, as
long as these were chosen by their score and not by what they are.

The threshold is where F1 over all candidates is expected to be highest; it is as sure as the offset is: its interval
comes from the bootstrap of the verdicts, which are drawn anew from the fitted probabilities. Drawing the given verdicts
with replacement would give verdicts of one kind an interval of no width.
"""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from midog import __version__
from midog.calibration import between, logit, shift_to_half, sigmoid
from midog.errors import UserError, one_line
from midog.files import read_json

NAME = "local_threshold.json"
LEAST_VERDICTS, ENOUGH_VERDICTS = 30, 50
PRIOR_SD = 3.0  # logits; a threshold that is as wrong as .05 or .95 instead of .5 is no surprise
STEPS = 50  # of Newton's method, which needs about five
BOOTSTRAPS, SEED = 1000, 0
REMEDY = "give --local-threshold what midog check RESULT.json --clicks wrote"

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class LocalThreshold(Struct, frozen=True, forbid_unknown_fields=True):
    """What local_threshold.json holds.

    Attributes:
        threshold: on the system's own scores.
        interval_95: of it.
        shift: of their logits, which puts the threshold at .5.
        expected_f1, expected_f1_before: over all candidates, at this threshold and at the one that the result had.
        verdicts, figures: how many were given, and how many of these say that it is one.
        system, version: whose scores these are; "" where that is not known.
        image: whose candidates were judged.
        result_sha256: of the result that was judged.
        program, date: that found it.
    """

    threshold: float
    interval_95: tuple[float, float]
    shift: float
    expected_f1: float
    expected_f1_before: float
    verdicts: int
    figures: int
    system: str
    version: str
    image: str
    result_sha256: str
    program: str
    date: str

    def check_is_of(self, path: Path, system: str, version: str) -> None:
        """Make sure that it was found on what a system says.

        Raises:
            UserError: on another's scores.
        """
        if self.system and (self.system, self.version) != (system, version):
            found = f"{self.system}, weights {self.version}"
            raise UserError(
                f"{path}: the threshold of {found}; this runs {system}, weights {version}: judge its result"
            )


def read(path: Path) -> LocalThreshold:
    """The local threshold in a file.

    Raises:
        UserError: there is none.
    """
    try:
        found = msgspec.convert(read_json(path, REMEDY), LocalThreshold)
    except msgspec.ValidationError as error:
        raise UserError(one_line(f"{path}: no local threshold ({error}); {REMEDY}")) from None
    if not np.isfinite(found.shift):
        raise UserError(f"{path}: no local threshold (shift is {found.shift}); {REMEDY}")
    return found


def find(
    scores: ArrayLike,
    judged: ArrayLike,
    verdicts: ArrayLike,
    shift: float = 0.0,
    system: str = "",
    version: str = "",
    image: str = "",
    result_sha256: str = "",
) -> LocalThreshold:
    """The threshold by the verdicts on some candidates.

    Args:
        scores: float (N,), of all candidates of a result, as it has them.
        judged: int (K,), indices of the candidates with a verdict.
        verdicts: bool (K,), whether each is a mitotic figure.
        shift: in logits, with which the result was made.
        system, version, image, result_sha256: as in `LocalThreshold`.
    """
    logits = logit(scores)
    seen, said = logits[np.asarray(judged)], np.asarray(verdicts, bool)
    offset = float(offset_of(seen, said))
    random = np.random.default_rng(SEED)
    drawn = random.random((BOOTSTRAPS, len(seen))) < sigmoid(seen + offset)
    threshold = best_threshold(logits, offset)
    drawn_thresholds = [best_threshold(logits, each) for each in offset_of(seen, drawn).tolist()]
    low, high = np.percentile(logit(drawn_thresholds), (2.5, 97.5)) - shift
    own = float(sigmoid(logit(threshold) - shift))
    return LocalThreshold(
        threshold=own,
        interval_95=(float(sigmoid(low)), float(sigmoid(high))),
        shift=shift_to_half(own),
        expected_f1=expected_f1(logits, offset, threshold),
        expected_f1_before=expected_f1(logits, offset, 0.5),
        verdicts=len(said),
        figures=int(said.sum()),
        system=system,
        version=version,
        image=image,
        result_sha256=result_sha256,
        program=__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def offset_of(logits: Floats, verdicts: Mask) -> Floats:
    """The most probable offset of the logits of what was judged, by Newton's method; it has one maximum.

    Args:
        logits: float (K,), of the scores.
        verdicts: bool (..., K), several sets of them at once.

    Returns:
        float64 (...).
    """
    offset = np.zeros(verdicts.shape[:-1])
    for _ in range(STEPS):
        probabilities = sigmoid(logits + offset[..., None])
        slope = (verdicts - probabilities).sum(-1) - offset / PRIOR_SD**2
        step = slope / ((probabilities * (1 - probabilities)).sum(-1) + 1 / PRIOR_SD**2)
        offset = offset + np.clip(step, -1, 1)  # far from the maximum the curvature is no guide
        if (abs(step) < 1e-9).all():
            break
    return offset


def best_threshold(logits: Floats, offset: float) -> float:
    """Where F1 is expected to be highest, between two candidates.

    Args:
        logits: float (N,), of all scores.
        offset: of them.
    """
    falling = np.sort(logits)[::-1]
    values = _expected(falling, offset)
    values[:-1][falling[:-1] == falling[1:]] = 0  # a threshold cannot part equal scores
    best = int(values.argmax())
    below = sigmoid(falling[best + 1]) if best + 1 < len(falling) else None
    return between(float(sigmoid(falling[best])), None if below is None else float(below))


def expected_f1(logits: Floats, offset: float, threshold: float) -> float:
    """Over all candidates; figures that are no candidate are in no expectation.

    Args:
        logits: float (N,), of all scores.
        offset: of them.
        threshold: on the scores.
    """
    accepted = int((logits >= logit(threshold)).sum())
    return float(_expected(np.sort(logits)[::-1], offset)[accepted - 1]) if accepted else 0.0


def _expected(falling: Floats, offset: float) -> Floats:
    """F1 of the first, the first two, ... of float (N,): the quotient of what counts are expected to be."""
    probabilities = sigmoid(falling + offset)
    return 2 * probabilities.cumsum() / (np.arange(1, len(falling) + 1) + probabilities.sum())
