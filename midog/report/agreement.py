"""Which places several results of one image have in common, and how far they agree.

Candidates of different results are one place where any two of them lie within `MATCH_UM`, one of each result at most,
the nearest first; what results call figures is joined before what they refused, so that no refused candidate comes
between two figures. A place counts where at least one result has a figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections
from midog.report.export import csv_text
from midog.report.intervals import wilson_interval
from midog.report.review import MATCH_UM

EDGE_UM = 1e-9  # that rounding takes from a distance


@dataclass(frozen=True, eq=False)
class Result:
    """What one result says of the image.

    Attributes:
        name: the system's, or "reader"; numbered where several have the same.
        path: of its file.
        made_by: system and weights, "" where that is not known.
        found: N candidates, in px of the slide.
        names: N, what each is called, a class of `Detections` or a reader's verdict.
        scores: float64 (N,), NaN of a reader.
    """

    name: str
    path: Path
    made_by: str
    found: Detections
    names: list[str]
    scores: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Places:
    """P places where at least one of R results has a figure, those that fewest have first, then by the highest score.

    Attributes:
        rows: int64 (P, R), each result's candidate there, or -1.
        figures: bool (P, R), whether that is a figure.
        centres: float64 (P, 2), px, the mean of the figures' own.
    """

    rows: NDArray[np.int64]
    figures: NDArray[np.bool_]
    centres: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def found_by(self) -> NDArray[np.int64]:
        """(P,): how many results have a figure there."""
        return np.asarray(self.figures.sum(axis=1))

    @cached_property
    def disputed(self) -> NDArray[np.bool_]:
        """(P,): where not all results have a figure."""
        return self.found_by < self.figures.shape[1]


@dataclass(frozen=True)
class Overlap:
    """How far two results agree, or all.

    Attributes:
        names: of the results.
        figures: of each.
        common: places that all of them call figures.
        places: that at least one of them does.
    """

    names: tuple[str, ...]
    figures: tuple[int, ...]
    common: int
    places: int

    @property
    def share(self) -> tuple[float, float, float] | None:
        """Of the places, those that all have, with the 95 % interval (Wilson); None without places."""
        return (self.common / self.places, *wilson_interval(self.common, self.places)) if self.places else None

    @property
    def dice(self) -> tuple[float, float, float] | None:
        """2 common / (first + second) of a pair, which is F1 if either is the truth, with the share's interval."""
        if not self.share or len(self.names) != 2:
            return None
        middle, low, high = (2 * share / (1 + share) for share in self.share)
        return middle, low, high


def match(centres: Sequence[NDArray[np.float64]], figures: Sequence[NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Which candidates of R results are one place.

    Args:
        centres: of each result float64 (N, 2), um.
        figures: of each bool (N,), whether it calls them so.

    Returns:
        int64 (P, R): the candidates of each place with a figure, or -1 where a result has none there; in no order.
    """
    from scipy.spatial import cKDTree

    points, is_figure = np.concatenate(centres), np.concatenate(figures)
    owners = np.repeat(np.arange(len(centres)), [len(each) for each in centres])
    firsts = np.searchsorted(owners, owners)  # the first point of each one's result
    reach = MATCH_UM + EDGE_UM
    pairs = cKDTree(points).query_pairs(reach, output_type="ndarray") if len(points) else np.empty((0, 2), np.int64)
    pairs = pairs[(owners[pairs[:, 0]] != owners[pairs[:, 1]]) & is_figure[pairs].any(axis=1)]
    away = np.hypot(*(points[pairs[:, 0]] - points[pairs[:, 1]]).T)
    refused = (~is_figure[pairs]).sum(axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], away, refused))
    owner = owners.tolist()
    place = {point: {owner[point]: point} for point in np.union1d(np.flatnonzero(is_figure), pairs).tolist()}
    for one, other in pairs[order].tolist():
        first, second = place[one], place[other]
        if first.keys() & second.keys():
            continue
        across = points[list(first.values())][:, None] - points[list(second.values())]
        if (np.hypot(across[..., 0], across[..., 1]) > reach).any():
            continue
        first |= second
        place.update(dict.fromkeys(second.values(), first))
    groups = {id(group): group for group in place.values() if is_figure[list(group.values())].any()}
    rows = np.full((len(groups), len(centres)), -1, np.int64)
    for number, group in enumerate(groups.values()):
        rows[number, list(group)] = [point - firsts[point] for point in group.values()]
    return rows


def places_of(results: Sequence[Result], um_per_px: Sequence[float]) -> Places:
    """The places of results, of an image of (x, y) um per px."""
    centres = [each.found.centres for each in results]
    rows = match([each * um_per_px for each in centres], [each.found.accepted for each in results])
    figures, best = np.zeros(rows.shape, bool), np.zeros(len(rows))
    total = np.zeros((len(rows), 2))
    for column, result in enumerate(results):
        there = rows[:, column] >= 0
        chosen = rows[there, column]
        figures[there, column] = accepted = result.found.accepted[chosen]
        total[there] += centres[column][chosen] * accepted[:, None]
        best[there] = np.fmax(best[there], result.scores[chosen])
    middle = total / figures.sum(axis=1, keepdims=True)
    order = np.lexsort((middle[:, 0], middle[:, 1], -best, figures.sum(axis=1)))
    return Places(rows[order], figures[order], middle[order])


def overlaps(names: Sequence[str], figures: NDArray[np.bool_]) -> list[Overlap]:
    """Of each pair of R results, and of all where there are more than two; figures: bool (P, R)."""
    groups = [*combinations(range(len(names)), 2), *[tuple(range(len(names)))] * (len(names) > 2)]
    return [
        Overlap(
            tuple(names[column] for column in group),
            tuple(figures[:, group].sum(axis=0).tolist()),
            int(figures[:, group].all(axis=1).sum()),
            int(figures[:, group].any(axis=1).sum()),
        )
        for group in groups
    ]


def overlaps_csv(agreed: Sequence[Overlap]) -> str:
    """CSV text, a row a pair; the last one, "all", of more than two: without what only a pair has."""
    columns = ["first", "second", "first_figures", "second_figures", "both", "only_first", "only_second", "places"]
    columns += [f"{name}{end}" for name in ("share", "dice") for end in ("", "_low_95", "_high_95")]
    rows = []
    for each in agreed:
        numbers = ["", "", str(each.common), "", ""]
        if len(each.names) == 2:
            first, second = each.figures
            numbers = [str(value) for value in (first, second, each.common, first - each.common, second - each.common)]
        names = each.names if len(each.names) == 2 else ("all", "")
        figures = [*(each.share or ("",) * 3), *(each.dice or ("",) * 3)]
        texts = [text if isinstance(text, str) else f"{text:.4f}" for text in figures]
        rows.append([*names, *numbers, str(each.places), *texts])
    return csv_text(columns, rows)
