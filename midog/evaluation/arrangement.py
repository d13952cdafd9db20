"""How the places of a count lie on its image: as they are, or with axes that were swapped, mirrored or scaled.

What a count has in common with a system's best candidates tells it: where they meet by chance is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections
from midog.evaluation.metrics import MATCH_UM, match

BEST = 2  # candidates a figure that are looked at: whatever the threshold, most figures are among them
LEAST_FIGURES = 3  # fewer tell nothing
LEAST_BETTER, BETTER = 2, 0.25  # so many figures, and so many of all, have to be met more for another explanation
CHANCE = 0.01  # of so many by chance under any explanation that is tried
LEAST_HITS_MORE, F1_MORE = 3, 0.15  # by another run, beside `BETTER`: it finds partly the same

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arrangement:
    """What is done to places, in this order.

    Attributes:
        factor: they are multiplied by, from the image's corner.
        swapped: x and y change places.
        mirrored_x, mirrored_y: counted from the right, from the bottom.
        said: why that factor, in words; "" for 1.
    """

    factor: float = 1.0
    swapped: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False
    said: str = ""

    def __str__(self) -> str:
        mirrored = " and ".join(["x"] * self.mirrored_x + ["y"] * self.mirrored_y)
        parts = [self.said] * bool(self.said) + ["x and y swapped"] * self.swapped
        return ", ".join(parts + [f"mirrored in {mirrored}"] * bool(mirrored)) or "as they are"

    @property
    def changes(self) -> int:
        """How many things it takes; the simplest explanation has the fewest."""
        return bool(self.said) + self.swapped + self.mirrored_x + self.mirrored_y

    def apply(self, places: Floats, size: Sequence[int]) -> Floats:
        """float64 (N, 2), px of an image of (width, height) px, a pixel's centre at integers."""
        corners = (places + 0.5) * self.factor
        if self.swapped:
            corners = corners[:, ::-1]
        mirrored = np.array([self.mirrored_x, self.mirrored_y])
        return np.where(mirrored, size - corners, corners) - 0.5


@dataclass(frozen=True)
class Fit:
    """What an arrangement of the count gives: figures that one of the best candidates meets."""

    arrangement: Arrangement
    hits: int


@dataclass(frozen=True)
class RunFit:
    """What a run of the system gives.

    Attributes:
        run: its number.
        hits: figures that it finds.
        f1: with all that it finds.
        surely: whether it finds so many more than the first that this is no accident.
    """

    run: int
    hits: int
    f1: float
    surely: bool = False


def arrangements(um_per_px: float) -> list[Arrangement]:
    """All that are tried; the first is none."""
    factors = {1.0: "", 2.0: "of an image of half the size, times 2", 0.5: "of an image of twice the size, times 1/2"}
    if all(abs(math.log2(each * um_per_px)) > 0.3 for each in factors):
        factors[1 / um_per_px] = "in um and not px"
    return [
        Arrangement(factor, swapped, mirrored_x, mirrored_y, said)
        for factor, said in factors.items()
        for swapped, mirrored_x, mirrored_y in product((False, True), repeat=3)
    ]


def fits(places: Floats, runs: Sequence[Detections], size: Sequence[int], tissue_mm2: float) -> tuple[Fit, Fit, bool]:
    """The count as it is, the arrangement that fits best, and whether the latter is clearly better.

    Args:
        places: float64 (N, 2), px.
        runs: of the system on the image, at different um per pixel for one: of each arrangement the best counts.
        size: (width, height), px.
        tissue_mm2: where figures may lie.
    """
    um_per_px, count = np.array(runs[0].um_per_px), len(places)
    ranked = [np.argsort(-run.probabilities, kind="stable")[: BEST * count] for run in runs]
    best = [run.centres[order] * um_per_px for run, order in zip(runs, ranked, strict=True)]

    def fit(arrangement: Arrangement) -> Fit:
        placed = arrangement.apply(places, size) * um_per_px
        return Fit(arrangement, max(int((match(placed, each, MATCH_UM) >= 0).sum()) for each in best))

    found = [fit(each) for each in arrangements(float(um_per_px.mean()))]
    other = max(found, key=lambda each: (each.hits, -each.arrangement.changes))
    chance = chance_of(other.hits, count, BEST * count, tissue_mm2) * len(found) * len(runs)
    more = other.hits - found[0].hits >= max(LEAST_BETTER, BETTER * count)
    return found[0], other, count >= LEAST_FIGURES and chance < CHANCE and more


def run_fits(places: Floats, runs: Sequence[Detections]) -> list[RunFit]:
    """What each run finds of places, float64 (N, 2) px, within the same distance in px."""
    um_per_px = np.array(runs[0].um_per_px)
    found: list[RunFit] = []
    for number, run in enumerate(runs):
        accepted = run.centres[run.accepted]
        hits = int((match(places * um_per_px, accepted * um_per_px, MATCH_UM) >= 0).sum())
        each = RunFit(number, hits, 2 * hits / (len(places) + len(accepted)))
        first = found[0] if found else each
        more = each.hits - first.hits >= max(LEAST_HITS_MORE, BETTER * len(places))
        found.append(replace(each, surely=more and each.f1 - first.f1 >= F1_MORE))
    return found


def chance_of(hits: int, figures: int, candidates: int, tissue_mm2: float) -> float:
    """The probability that so many figures or more meet candidates that are strewn over the tissue."""
    from scipy.stats import binom

    covered = 1 - math.exp(-candidates * math.pi * (MATCH_UM / 1000) ** 2 / max(tissue_mm2, 1e-6))
    return float(binom.sf(hits - 1, figures, covered))
