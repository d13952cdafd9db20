"""A reader's corrections of a Track 1 result: `reviewed.geojson` as the page or QuPath writes it, read and applied.

The page names the result and numbers its candidates, best first. QuPath (0.4 and later: the package `qupath.lib.io`)
loses the one and lets the reader change the other, and rounds places to .01 px: what it exported is the nearest
candidate within `MATCH_UM`. A candidate that was accepted and is not in the file was deleted by the reader.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog import __version__
from midog.detections import ATYPICAL, FIGURE, NORMAL, REJECTED, UNSURE, Detections
from midog.errors import UserError, one_line, quoted
from midog.images.slide import Slide
from midog.report.areas import Areas
from midog.report.geojson import Feature, converted, read_geojson
from midog.report.hotspot import find_hotspot, places_nm, size_nm

FORMAT = 1
FIGURES = (FIGURE, ATYPICAL, NORMAL)  # the verdicts that count
VERDICTS = (*FIGURES, REJECTED, UNSURE)
HOTSPOT = "hotspot"  # the window's class; it is found anew
MATCH_UM = 7.5  # the challenge's distance of a match
REVIEWED = "yes"  # a point's metadata "reviewed", where the reader had a say, if only to confirm it
ROUNDING_PX = 0.01  # nearer to a candidate's place than this was not moved
DESCRIPTION = "ANNOTATION_DESCRIPTION"  # the metadata of an annotation's description in QuPath
REMEDY = "give the page's reviewed.geojson, or QuPath's export of these points"


@dataclass(frozen=True, eq=False)
class Review:
    """What a reader said of N points.

    Attributes:
        points: float64 (N, 2), level-0 px, a pixel's centre at integers; of what was not moved the system's own.
        names: their verdicts, of `VERDICTS`.
        notes: the reader's, "" without.
        candidates: int64 (N,), index of the system's candidate, best first, or -1 for what the reader added.
        atypical: float32 (N,), the P(atypical) behind a subtype that the reader left as it was, else NaN.
        reviewed: bool (N,), on which the page says that the reader had a say.
        bound: whether the file says that it is of this very result.
    """

    points: NDArray[np.float64]
    names: list[str]
    notes: list[str]
    candidates: NDArray[np.int64]
    atypical: NDArray[np.float32]
    reviewed: NDArray[np.bool_]
    bound: bool


@dataclass(frozen=True)
class Agreement:
    """Mitotic figures before and after a review, where it is counted.

    Attributes:
        system, reader: how many each has.
        both: candidates that both call so.
        refused: the system's that the reader calls none.
        added: the reader's that the system had refused or not found.
        moved: the reader's that lie elsewhere than the system's candidate.
        not_sure: that the reader left open; they do not count.
        hotspot_system, hotspot_reader: figures in the hotspot.
    """

    system: int
    reader: int
    both: int
    refused: int
    added: int
    moved: int
    not_sure: int
    hotspot_system: int
    hotspot_reader: int

    def __str__(self) -> str:
        return (
            f"{self.system} by the system, {self.reader} by the reader, {self.both} both; refused {self.refused}, "
            f"added {self.added}, moved {self.moved}, not sure {self.not_sure}; "
            f"hotspot {self.hotspot_system} -> {self.hotspot_reader}"
        )


@dataclass(frozen=True, eq=False)
class Corrected:
    """A result as its reader left it.

    Attributes:
        found: the system's candidates in their order, then what the reader added, whose score means nothing (1).
        added: bool (N,), which those are.
        unsure: bool (N,), what the reader left open; not accepted.
        by_reader: bool (N,), whose subtype is the reader's word: 0 or 1 stand for P(atypical).
        reviewed: bool (N,), in which the reader had a say: as in `Review`, or other than the system left it.
        notes: N, "" without.
        agreement: of system and reader.
    """

    found: Detections
    added: NDArray[np.bool_]
    unsure: NDArray[np.bool_]
    by_reader: NDArray[np.bool_]
    reviewed: NDArray[np.bool_]
    notes: list[str]
    agreement: Agreement

    def names_of(self, found: Detections) -> list[str]:
        """What each is called; `found` is its own, or the same with subtypes."""
        return [UNSURE if unsure else name for name, unsure in zip(found.class_names, self.unsure, strict=True)]

    @cached_property
    def numbers(self) -> list[str]:
        """From 1, and from a1 what was added."""
        system = int((~self.added).sum())
        return [f"a{row - system}" if row > system else str(row) for row in range(1, len(self.found) + 1)]

    @cached_property
    def origins(self) -> list[str]:
        """Who found each: "system" or "reader"."""
        return ["reader" if added else "system" for added in self.added]


@dataclass(frozen=True)
class _Image:
    name: str | None = None
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class _About:
    """The collection's `midog_review`."""

    format: int
    program: str = ""
    image: _Image | None = None
    result: str | None = None
    counted_from_px: tuple[float, float] = (0.0, 0.0)


def read_review(
    path: Path,
    slide: Slide,
    found: Detections,
    identity: dict[str, Any] | None = None,
    result_sha256: str | None = None,
    any_image: bool = False,
) -> Review:
    """Read a reader's GeoJSON of a slide and its result.

    Args:
        path: of the page's `reviewed.geojson` or of QuPath's export.
        slide: which the result is of.
        found: its candidates, best first, in px of the slide.
        identity: `midog.about.identity` of the image; None where it is not known, and nothing is compared.
        result_sha256: of the result's file, likewise.
        any_image: whether a review of another image is taken all the same.

    Raises:
        UserError: it cannot be read, is of another image or result, or has what is no verdict on a point of the slide.
    """
    head, features = read_geojson(path, REMEDY)
    said = head.get("midog_review")
    about = None if said is None else converted(path, said, _About, REMEDY)
    if about:
        _check_is_of(path, about, identity, result_sha256, any_image)
    marks = [each for each in features if each.class_name != HOTSPOT]
    _check_marks(path, marks)
    placed = [(mark, place) for mark in marks for place in _places(path, mark)]
    marks = [mark for mark, _ in placed]
    corner = about.counted_from_px if about else slide.corner_px
    points = np.array([place for _, place in placed]).reshape(-1, 2) - 0.5 + corner
    bound = bool(about and about.result and result_sha256)
    if bound:
        candidates = _numbered(path, marks, len(found))
    else:
        candidates = _nearest(points * slide.um_per_px, found.centres * slide.um_per_px)
    own = candidates >= 0
    centres = points.copy()
    centres[own] = found.centres[candidates[own]]
    stayed = own & (abs(points - centres) <= ROUNDING_PX).all(axis=1)
    points[stayed] = centres[stayed]
    _check_places(path, slide, points, ~stayed)
    names, notes = [mark.class_name for mark in marks], [_note(mark) for mark in marks]
    atypical = np.array([_atypical(mark) for mark in marks], np.float32)
    reviewed = np.array([mark.said.metadata.get("reviewed") == REVIEWED for mark in marks], bool)
    return Review(points, names, notes, candidates, atypical, reviewed, bound)


def _check_is_of(
    path: Path, about: _About, identity: dict[str, Any] | None, result_sha256: str | None, any_image: bool
) -> None:
    if about.format > FORMAT:
        made = f"of format {about.format}, made by midog {about.program}"
        raise UserError(one_line(f"{path}: a review {made}; install that one, this is {__version__}"))
    image, own = about.image, identity and (identity["bytes"], identity["sha256"])
    if image and image.sha256 and own and own != (image.bytes, image.sha256) and not any_image:
        other = f"{image.name}, {image.bytes or 0:,} bytes"
        remedy = "give that one, or --any-image to draw it on this one"
        raise UserError(one_line(f"{path}: a review of another image, {other}; {remedy}"))
    if about.result and result_sha256 and about.result != result_sha256:
        raise UserError(f"{path}: a review of another result, of sha256 {about.result[:16]}...; give that RESULT.json")


def _check_marks(path: Path, marks: Sequence[Feature]) -> None:
    """All are points, and have a verdict."""
    shapes = Counter(each.kind for each in marks if each.kind not in ("Point", "MultiPoint"))
    if shapes:
        raise UserError(one_line(f"{path}: not points: {_counted(shapes)}; mark each figure with a point"))
    classes = Counter(each.class_name for each in marks if each.class_name not in VERDICTS)
    if classes:
        known = ", ".join(VERDICTS)
        raise UserError(one_line(f"{path}: no verdicts: {_counted(classes)}; give each point one of {known}"))


def _counted(counter: "Counter[str]") -> str:
    return ", ".join(f"{quoted(name) if name else 'no class'} ({count})" for name, count in counter.most_common())


def _places(path: Path, mark: Feature) -> list[tuple[float, float]]:
    """(x, y) of each of its points, as the file counts; a z is left out."""
    coordinates: Any = [mark.coordinates] if mark.kind == "Point" else mark.coordinates
    try:
        places = [(float(x), float(y)) for x, y, *_ in coordinates]
    except (TypeError, ValueError, OverflowError):
        places = [(math.nan, math.nan)]
    if not all(math.isfinite(side) for place in places for side in place):
        raise UserError(one_line(f"{path}: coordinates {quoted(mark.coordinates)} are no x and y; {REMEDY}"))
    return places


def _note(mark: Feature) -> str:
    return str(mark.said.metadata.get("note") or mark.said.metadata.get(DESCRIPTION) or "")


def _atypical(mark: Feature) -> float:
    """P(atypical) where it says what the class says, else NaN."""
    measured = mark.said.measurements
    if isinstance(measured, list):
        measured = {each.name: each.value for each in measured}
    value: Any = measured.get("P(atypical)")
    known = isinstance(value, float | int) and 0 <= value <= 1
    return float(value) if known and mark.class_name == (ATYPICAL if value >= 0.5 else NORMAL) else math.nan


def _numbered(path: Path, marks: Sequence[Feature], count: int) -> NDArray[np.int64]:
    """The candidates by the numbers that the page gave them, from 1; -1 for a1 and so on."""
    names = [each.said.name or "" for each in marks]
    numbers = [int(name[:18]) if name.isdecimal() else 0 for name in names]  # more digits than int64 are none of ours
    if max(numbers, default=0) > count:
        raise UserError(f"{path}: candidate {max(numbers)} of a result with {count}; {REMEDY}")
    twice = [name for name, times in Counter(filter(None, names)).items() if times > 1]
    if twice:
        raise UserError(
            one_line(f"{path}: {len(twice)} points occur twice, {twice[0]} first; give one reader's review")
        )
    return np.array(numbers, np.int64) - 1


def _nearest(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each point its candidate within `MATCH_UM`, one to one, the nearest pairs first, or -1; both in um."""
    order = np.argsort(centres[:, 0])
    columns = centres[order, 0]
    pairs = []
    for number, point in enumerate(points):
        first, last = np.searchsorted(columns, (point[0] - MATCH_UM, point[0] + MATCH_UM + 1e-9))
        near = order[first:last]
        distances = np.hypot(*(centres[near] - point).T)
        pairs += [
            (away, number, row) for away, row in zip(distances.tolist(), near.tolist(), strict=True) if away <= MATCH_UM
        ]
    candidates = np.full(len(points), -1, np.int64)
    taken = set()
    for _, number, row in sorted(pairs):
        if candidates[number] < 0 and row not in taken:
            candidates[number] = row
            taken.add(row)
    return candidates


def _check_places(path: Path, slide: Slide, points: NDArray[np.float64], placed: NDArray[np.bool_]) -> None:
    """What the reader placed, bool (N,), lies in the slide, and on no other point."""
    outside = placed & ~((points >= -0.5) & (points <= np.array(slide.size) - 0.5)).all(axis=1)
    if outside.any():
        x, y = points[outside][0] + 0.5 - slide.corner_px
        raise UserError(
            f"{path}: {outside.sum()} points lie outside the image, {x:g}, {y:g} first; give the review of this image"
        )
    _, place, count = np.unique(points.round(2), axis=0, return_inverse=True, return_counts=True)
    covered = int((placed & (count[place] > 1)).sum())
    if covered:
        raise UserError(f"{path}: {covered} points lie on another; give one reader's review")


def apply(slide: Slide, found: Detections, review: Review, areas: Areas | None = None) -> Corrected:
    """A result with a reader's corrections.

    Args:
        slide: for its size.
        found: candidates, best first, as for `read_review`.
        review: of them.
        areas: where it is counted, for the agreement alone; None: everywhere.
    """
    is_new = review.candidates < 0
    new = np.tile(review.points[is_new], 2)
    joined = Detections.concatenate([found, Detections.of(new, np.ones(len(new)), found.um_per_px, found.origin)])
    rows = review.candidates.copy()
    rows[is_new] = len(found) + np.arange(len(new))

    names = np.array(review.names, object)
    shift = np.zeros((len(joined), 2))
    shift[rows] = review.points - joined.centres[rows]
    accepted, unsure, by_reader = np.zeros((3, len(joined)), bool)
    accepted[rows] = np.isin(names, FIGURES)
    unsure[rows] = names == UNSURE
    by_reader[rows] = np.isin(names, (ATYPICAL, NORMAL)) & np.isnan(review.atypical)
    atypical = np.full(len(joined), np.nan, np.float32)
    atypical[rows] = np.where(by_reader[rows], names == ATYPICAL, review.atypical)
    notes = [""] * len(joined)
    for row, note in zip(rows.tolist(), review.notes, strict=True):
        notes[row] = note
    corrected = replace(joined, boxes=joined.boxes + np.tile(shift, 2), accepted=accepted, atypical=atypical)

    added = np.arange(len(joined)) >= len(found)
    noted = np.array([bool(note) for note in notes], bool)
    reviewed = added | unsure | noted | by_reader | shift.any(axis=1) | (accepted != joined.accepted)
    reviewed[rows] |= review.reviewed
    was, now = places_nm(slide, joined.centres), places_nm(slide, corrected.centres)
    was_counted, counted = (areas.holds(each) if areas else np.ones(len(joined), bool) for each in (was, now))
    by_system = ~added
    by_system[~added] = found.accepted
    by_system &= was_counted
    of_reader = accepted & counted
    agreement = Agreement(
        system=int(by_system.sum()),
        reader=int(of_reader.sum()),
        both=int((by_system & of_reader).sum()),
        refused=int((by_system & ~of_reader & ~unsure).sum()),
        added=int((~by_system & of_reader).sum()),
        moved=int((shift.any(axis=1) & of_reader).sum()),
        not_sure=int((unsure & counted).sum()),
        hotspot_system=_most(was[by_system], slide),
        hotspot_reader=_most(now[of_reader], slide),
    )
    return Corrected(corrected, added, unsure, by_reader, reviewed, notes, agreement)


def _most(places: NDArray[np.int64], slide: Slide) -> int:
    """Figures in the hotspot."""
    hotspot = find_hotspot(places, size_nm(slide))
    return hotspot.count if hotspot else 0


def classify_others(
    classify_figures: Callable[[Slide, Detections], tuple[Detections, str]],
) -> Callable[[Slide, Detections], tuple[Detections, str]]:
    """Give P(atypical) to the figures without one alone: a subtype that the reader gave or left stays."""

    def classify(slide: Slide, found: Detections) -> tuple[Detections, str]:
        known = ~np.isnan(found.atypical)
        others, system = classify_figures(slide, replace(found, accepted=found.accepted & ~known))
        return replace(found, atypical=np.where(known, found.atypical, others.atypical)), system

    return classify
