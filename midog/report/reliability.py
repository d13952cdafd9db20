"""What a score says of a point: on validation, in how many of the points with such a score there was a figure.

Scores are binned by tenths, as `midog tune` measured them (`made.reliability` of model.yaml). Where each bin's score is
its share of figures, a score may be called a probability; else it orders points and is no more.
"""

from collections.abc import Sequence

Reliability = Sequence[tuple[float, float, int]]  # of each bin: mean score, share of figures, number of points

BINS = 10
LEAST_POINTS = 50  # of a bin that is judged: of fewer, the share itself is uncertain by more than the tolerance
TOLERANCE = 0.05  # between score and share


def is_calibrated(bins: Reliability) -> bool:
    """Whether scores are probabilities: of every bin of at least 50 points, score and share are within .05."""
    judged = [abs(score - share) <= TOLERANCE for score, share, points in bins if points >= LEAST_POINTS]
    return bool(judged) and all(judged)


def share_at(bins: Reliability, score: float) -> tuple[float, int] | None:
    """The share of figures and the number of points in the bin of a score, or None where validation had none there."""
    return next(((share, points) for mean, share, points in bins if _tenth(mean) == _tenth(score)), None)


def _tenth(score: float) -> int:
    return min(int(score * BINS), BINS - 1)


def name_of(bins: Reliability) -> str:
    """What a report calls a score."""
    return "Probability" if is_calibrated(bins) else "Score"


def sentence(bins: Reliability, score: float) -> str:
    """What a score says of its point, or "" where validation had none with such a score."""
    if not (found := share_at(bins, score)):
        return ""
    share, points = found
    return f"{100 * share:.0f} % of such points were figures on validation ({points})"
