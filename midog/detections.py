"""The one container of results: candidates of an image, with their places, probabilities and verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.job import POINT_NAMES, VERSION

FIGURE, REJECTED = POINT_NAMES
ATYPICAL, NORMAL = "atypical mitotic figure", "normal mitotic figure"
UNSURE = "not sure"  # a reader's verdict alone
# Yellow and blue are apart for every kind of colour vision; in grey, lightness and size tell them apart.
COLOURS = {FIGURE: "#ffe11a", NORMAL: "#ffe11a", ATYPICAL: "#ff5a1f", REJECTED: "#1747c9", UNSURE: "#9333ea"}
MM_PER_PX = (1000.0, 1000.0)  # um/px of a result without its image: a pixel is a millimetre
_DTYPES = {"boxes": np.float64, "scores": np.float32, "probabilities": np.float64, "accepted": bool}
_DTYPES |= {"atypical": np.float32}


@dataclass(frozen=True, eq=False)
class Detections:
    """Candidates of one image, in any order; slicing and joining give new ones.

    Attributes:
        boxes: float64 (N, 4), x0, y0, x1, y1 in level-0 px of the image as it was read, a pixel's centre at integers;
            float64, so that mm come back as they were. What was read from a result's JSON has points: empty boxes.
        scores: float32 (N,), the detector's own, in [0, 1]; NaN where it is not known.
        probabilities: float64 (N,), of a mitotic figure, calibrated, in [0, 1].
        accepted: bool (N,), whether it is called a mitotic figure.
        atypical: float32 (N,), P(atypical); NaN where it was not asked.
        um_per_px: (x, y) of the image.
        origin: (x, y) in mm of the centre of the image's first pixel.

    Raises:
        ValueError: shapes or dtypes differ from these, a coordinate is not finite, a box's sides have changed places,
            a probability lies outside [0, 1], or um_per_px is not above 0.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    atypical: NDArray[np.float32]
    um_per_px: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        count = len(self.boxes)
        for name, dtype in _DTYPES.items():
            array, shape = getattr(self, name), (count, 4) if name == "boxes" else (count,)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
                got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
                raise ValueError(f"{name}: {np.dtype(dtype)} {shape} expected, got {got}")
        if not np.isfinite(self.boxes).all() or (self.boxes[:, 2:] < self.boxes[:, :2]).any():
            raise ValueError("boxes: finite x0 <= x1 and y0 <= y1 expected")
        if not ((self.probabilities >= 0) & (self.probabilities <= 1)).all():
            raise ValueError("probabilities: numbers in [0, 1] expected")
        if not all(np.isfinite(step) and step > 0 for step in self.um_per_px):
            raise ValueError(f"um_per_px: two numbers above 0 expected, got {self.um_per_px}")

    @classmethod
    def of(
        cls,
        boxes: ArrayLike,
        probabilities: ArrayLike,
        um_per_px: Sequence[float],
        origin: Sequence[float] = (0.0, 0.0),
        scores: ArrayLike | None = None,
        accepted: ArrayLike | None = None,
        atypical: ArrayLike | None = None,
    ) -> "Detections":
        """From anything like arrays; without `accepted`, .5 is the operating point."""
        probabilities = np.asarray(probabilities, np.float64).reshape(-1)
        unknown = np.full(len(probabilities), np.nan, np.float32)
        return cls(
            np.asarray(boxes, np.float64).reshape(-1, 4),
            unknown if scores is None else np.asarray(scores, np.float32),
            probabilities,
            probabilities >= 0.5 if accepted is None else np.asarray(accepted, bool),
            unknown if atypical is None else np.asarray(atypical, np.float32),
            (float(um_per_px[0]), float(um_per_px[1])),
            (float(origin[0]), float(origin[1])),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: slice | NDArray[Any]) -> "Detections":
        """Some of them: by a slice, a mask bool (N,), or indices int (K,)."""
        chosen: dict[str, Any] = {name: getattr(self, name)[rows] for name in _DTYPES}
        return replace(self, **chosen)

    @staticmethod
    def concatenate(parts: Sequence["Detections"]) -> "Detections":
        """All candidates of several parts of one image, in their order.

        Raises:
            ValueError: none, or of different um/px or origin.
        """
        if len({(part.um_per_px, part.origin) for part in parts}) != 1:
            raise ValueError("parts of one image expected, with its um_per_px and origin")
        joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DTYPES}
        return replace(parts[0], **joined)

    @property
    def centres(self) -> NDArray[np.float64]:
        """(N, 2), px."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @property
    def points_mm(self) -> NDArray[np.float64]:
        """(N, 2), physical x and y as SimpleITK has them."""
        return self.centres * (np.array(self.um_per_px) / 1000) + self.origin

    @property
    def class_names(self) -> list[str]:
        """What each is called: by its subtype where that is known."""
        subtype = np.where(np.isnan(self.atypical), FIGURE, np.where(self.atypical >= 0.5, ATYPICAL, NORMAL))
        return [str(name) for name in np.where(self.accepted, subtype, REJECTED)]

    def best_first(self) -> "Detections":
        """In falling order of probability, then from top to bottom, then from left to right."""
        x, y = self.points_mm.T
        return self[np.lexsort((x, y, -self.probabilities))]

    def with_probabilities(self, probabilities: ArrayLike) -> "Detections":
        """Other probabilities, float (N,), and who is accepted by them."""
        probabilities = np.asarray(probabilities, np.float64)
        return replace(self, probabilities=probabilities, accepted=probabilities >= 0.5)

    def with_atypical(self, probabilities: ArrayLike) -> "Detections":
        """P(atypical), float (K,), given to the K accepted ones, in their order."""
        atypical = np.full(len(self), np.nan, np.float32)
        atypical[self.accepted] = probabilities
        return replace(self, atypical=atypical)

    def on_grid(self, um_per_px: tuple[float, float], origin: tuple[float, float]) -> "Detections":
        """The same places in px of another grid, such as the file's own where the pixels were resampled."""
        if (um_per_px, origin) == (self.um_per_px, self.origin):
            return self
        mm = self.boxes * np.tile(np.array(self.um_per_px) / 1000, 2) + np.tile(self.origin, 2)
        boxes = (mm - np.tile(origin, 2)) / np.tile(np.array(um_per_px) / 1000, 2)
        return replace(self, boxes=boxes, um_per_px=um_per_px, origin=origin)

    def to_json(self) -> dict[str, Any]:
        """Track 1's result, the platform's "Multiple points", best first.

        The others are named "non-mitotic figure", which raises AP and FROC and costs F1 nothing.
        """
        rows = sorted(
            (-probability, y, x, figure)
            for (x, y), probability, figure in zip(
                self.points_mm.tolist(), self.probabilities.tolist(), self.accepted.tolist(), strict=True
            )
        )
        points = [
            {"name": POINT_NAMES[not figure], "point": [x, y, 0], "probability": -negative}
            for negative, y, x, figure in rows
        ]
        return {"name": "Points of interest", "type": "Multiple points", "points": points, "version": dict(VERSION)}

    @classmethod
    def from_json(
        cls, result: dict[str, Any], um_per_px: Sequence[float] = MM_PER_PX, origin: Sequence[float] = (0.0, 0.0)
    ) -> "Detections":
        """A checked Track 1 result, in the file's order; without its image, a pixel is a millimetre."""
        points = result["points"]
        mm = np.array([point["point"][:2] for point in points], np.float64).reshape(-1, 2)
        centres = (mm - origin) / (np.array(um_per_px, np.float64) / 1000)
        return cls.of(
            np.tile(centres, 2),
            [point["probability"] for point in points],
            um_per_px,
            origin,
            accepted=[point["name"] == FIGURE for point in points],
        )

    def to_table(self) -> dict[str, Any]:
        """Columns by name, each of N values, as CSV writers and pandas.DataFrame take them."""
        (x_px, y_px), (x_mm, y_mm) = self.centres.T, self.points_mm.T
        return {
            "name": self.class_names,
            "probability": self.probabilities,
            "score": self.scores,
            "x_px": x_px,
            "y_px": y_px,
            "x_mm": x_mm,
            "y_mm": y_mm,
            "p_atypical": self.atypical,
        }

    def to_geojson(self, corner: Sequence[int] = (0, 0)) -> dict[str, Any]:
        """A FeatureCollection of point detections, for QuPath's "Import objects".

        QuPath (0.4 and later: `qupath.lib.io.PathObjectTypeAdapters`) reads `objectType`, `name`, `classification` with
        `name` and `color`, and `measurements` from a feature's properties. Its coordinates are level-0 px from the
        outer corner of the first pixel of the scanned area, whose centre is at .5; ours is at 0, hence the half pixel.

        Args:
            corner: (x, y) of the scanned area, px, `Slide.corner_px`; what is not at 0 is noted in `counted_from_px`.
        """
        features = []
        places = (self.centres + 0.5 - corner).round(2).tolist()
        for number, name in enumerate(self.class_names):
            measurements = {"score": round(float(self.probabilities[number]), 6)}
            if not np.isnan(self.atypical[number]):
                measurements["P(atypical)"] = round(float(self.atypical[number]), 6)
            geometry = {"type": "Point", "coordinates": places[number]}
            features.append(feature(geometry, "detection", str(number + 1), name, COLOURS[name], measurements))
        noted = {"counted_from_px": [int(side) for side in corner]} if any(corner) else {}
        return {"type": "FeatureCollection", **noted, "features": features}


def feature(
    geometry: dict[str, Any], object_type: str, name: str, class_name: str, colour: str, measurements: dict[str, Any]
) -> dict[str, Any]:
    """A GeoJSON feature as QuPath reads it; `colour` is "#rrggbb"."""
    properties = {
        "objectType": object_type,
        "name": name,
        "classification": {"name": class_name, "color": list(bytes.fromhex(colour[1:]))},
        "measurements": measurements,
    }
    return {"type": "Feature", "geometry": geometry, "properties": properties}
