"""Probabilities as logits: calibrations, how they are fitted and composed, and where a threshold lies."""

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

LOGIT_LIMIT = 1e-6  # probabilities nearer to 0 or 1 count as this far
BEYOND = 0.1  # logit; a threshold that lets every candidate in, or none, lies so far beyond the last one


def logit(probabilities: ArrayLike) -> NDArray[np.float64]:
    """log(p / (1 - p)), finite for 0 and 1 as well."""
    clipped = np.clip(np.asarray(probabilities, np.float64), LOGIT_LIMIT, 1 - LOGIT_LIMIT)
    return np.log(clipped / (1 - clipped))


def sigmoid(values: ArrayLike) -> NDArray[np.float64]:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # what is too large for exp makes 0, as it should
        return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


class Calibration(Struct, frozen=True, forbid_unknown_fields=True):
    """P = sigmoid(scale x logit(p) + shift), so that .5 is the operating point."""

    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0 and np.isfinite(self.shift)):
            raise ValueError("a scale above 0 and a finite shift expected")

    @property
    def is_identity(self) -> bool:
        return (self.scale, self.shift) == (1, 0)

    def then(self, after: "Calibration") -> "Calibration":
        """This calibration, followed by another one."""
        return Calibration(after.scale * self.scale, after.scale * self.shift + after.shift)

    def apply(self, probabilities: ArrayLike) -> NDArray[np.float64]:
        """float (N,) in [0, 1] -> float64 (N,) in [0, 1]."""
        return sigmoid(self.scale * logit(probabilities) + self.shift)


def shift_to_half(threshold: float) -> float:
    """The shift of a `Calibration` of scale 1 that puts a threshold at .5; not rounded, so that it stays where it is.

    The threshold has to lie between two candidates, see `between`: one that is a candidate's own score may reject it.
    """
    return -float(logit(threshold))


def between(accepted: float | None, refused: float | None) -> float:
    """The threshold midway, in logits, between the last candidate that it lets in and the next one.

    Args:
        accepted: the lower of the scores from the threshold on; None lets nothing in.
        refused: the highest score below; None lets everything in.
    """
    if accepted is None:
        return 0.5 if refused is None else float(sigmoid(logit(refused) + BEYOND))
    if refused is None:
        return float(sigmoid(logit(accepted) - BEYOND))
    return float(sigmoid((logit(accepted) + logit(refused)) / 2))


def platt(
    probabilities: ArrayLike, positive: ArrayLike, strength: float = 1.0, weights: ArrayLike | None = None
) -> Calibration:
    """Platt's scaling with balanced classes (Platt, 1999): .5 is where balanced accuracy is expected to peak.

    Args:
        probabilities: float (N,), before.
        positive: bool (N,), both kinds.
        strength: inverse of the regularisation; mild (1), so that a few figures that happen to be separable do not
            make it a step; thousands of crops need none (1e6).
        weights: float (N,), instead of those that balance the classes.

    Returns:
        Its scale may be 0 or less where the probabilities say nothing: `ValueError` then.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced" if weights is None else None, C=strength)
    model.fit(logit(probabilities)[:, None], np.asarray(positive).astype(int), weights)
    return Calibration(float(model.coef_[0, 0]), float(model.intercept_[0]))
