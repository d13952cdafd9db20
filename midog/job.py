"""The platform's contract: which image a job holds and which file answers it.

A job is a folder with `inputs.json` and one image. Of `inputs.json` only
`interface.slug`, `interface.relative_path` and `image.name` are read, because
the platform adds keys without notice (Grand Challenge, "Runtime Environment").
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midog.errors import UserError
from midog.files import read_json

POINT_NAMES = ("mitotic figure", "non-mitotic figure")
VERSION = {"major": 1, "minor": 0}
EVALUATED_MM = (-0.0075, 10)
IMAGE_SUFFIXES = (".tif", ".tiff", ".mha")


@dataclass(frozen=True)
class Socket:
    """What one kind of job asks for: the track and the name of its result file."""

    track: int
    result_name: str


SOCKETS = {
    "histopathology-region-of-interest-cropout": Socket(1, "mitotic-figures.json"),
    "stacked-histopathology-roi-cropouts": Socket(2, "multiple-mitotic-figure-classification.json"),
}


RESULT_NAMES = {socket.track: socket.result_name for socket in SOCKETS.values()}  # by track


@dataclass(frozen=True)
class PlatformJob:
    """One case: the socket, the image file on disk, and the name its owner gave it."""

    socket: Socket
    image_path: Path
    image_name: str


def read_job(input_dir: str | Path) -> PlatformJob:
    """Read the job in a folder.

    Args:
        input_dir: folder with `inputs.json` and the image's folder.

    Returns:
        The `PlatformJob`.

    Raises:
        UserError: no, broken or unknown `inputs.json`; no image or several.
    """
    inputs_path = Path(input_dir) / "inputs.json"
    if not inputs_path.exists():
        raise UserError(f"{inputs_path}: not found; give --input a folder that holds inputs.json")
    entries = read_json(inputs_path, "start the job again, or copy its folder again")
    try:
        wanted = [
            (entry["interface"]["slug"], entry["interface"]["relative_path"], entry["image"]["name"])
            for entry in entries
        ]
        if not wanted or not all(isinstance(text, str) for entry in wanted for text in entry):
            raise TypeError
    except (KeyError, TypeError):
        raise UserError(
            f"{inputs_path}: not a list of inputs with interface.slug, interface.relative_path and image.name; "
            "see test/input for an example"
        ) from None
    slugs = tuple(sorted(slug for slug, _, _ in wanted))
    if len(slugs) != 1 or slugs[0] not in SOCKETS:
        raise UserError(
            f"{inputs_path}: no handler for {', '.join(slugs)}; supported, one a job: {', '.join(sorted(SOCKETS))}"
        )
    slug, relative_path, name = wanted[0]
    return PlatformJob(SOCKETS[slug], _only_image(Path(input_dir), relative_path), name)


def _only_image(input_dir: Path, relative_path: str) -> Path:
    folder = input_dir / relative_path
    if input_dir.resolve() not in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{input_dir / 'inputs.json'}: relative_path {relative_path} leads out of the input folder")
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise UserError(f"{folder}: one image ({', '.join(IMAGE_SUFFIXES)}) expected, found {len(found)}: {names}")
    return found[0]


def atypical_result(probabilities: Iterable[float]) -> list[dict[str, Any]]:
    """Turn P(atypical) a page into Track 2's result.

    Args:
        probabilities: one number in [0, 1] a page, in page order.

    Returns:
        A list of `{"class", "confidence"}`; confidence is always P(atypical), as a float.
    """
    result = []
    for probability in map(float, probabilities):
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"not a probability: {probability}")
        result.append({"class": "atypical" if probability >= 0.5 else "normal", "confidence": probability})
    return result


def check_detection_result(result: object) -> None:
    """Make sure that the platform's schema and the evaluation accept a Track 1 result, whatever its coordinates.

    Raises:
        ValueError: with the first breach. (Grand Challenge, definitions MPOI, point-object and version-object.)
    """
    if not isinstance(result, dict) or set(result) - {"name"} != {"type", "points", "version"}:
        raise ValueError("type, points and version are required, name is optional, nothing else is allowed")
    if result["type"] != "Multiple points" or not isinstance(result["points"], list):
        raise ValueError('type is "Multiple points" and points is a list')
    if not isinstance(result.get("name", ""), str):
        raise ValueError("name is a text")
    version = result["version"]
    if (
        not isinstance(version, dict)
        or set(version) != {"major", "minor"}
        or not all(type(part) is int and part >= 0 for part in version.values())
    ):
        raise ValueError("version holds major and minor, both integers from 0 on")
    for number, point in enumerate(result["points"]):
        if not isinstance(point, dict) or not {"name", "point", "probability"} <= set(point):
            raise ValueError(f"points[{number}]: name, point and probability are required")
        if set(point) - {"name", "type", "point", "probability"} or point.get("type", "Point") != "Point":
            raise ValueError(f"points[{number}]: only name, type, point and probability are allowed")
        if point["name"] not in POINT_NAMES:
            raise ValueError(f"points[{number}]: name is {point['name']!r}; {' or '.join(POINT_NAMES)} expected")
        place = point["point"]
        if not isinstance(place, list) or len(place) != 3 or not all(map(is_finite, place)):
            raise ValueError(f"points[{number}]: point is {place!r}; three finite numbers expected")
        if not is_finite(point["probability"]) or not 0 <= point["probability"] <= 1:
            raise ValueError(f"points[{number}]: probability is {point['probability']!r}; a number in [0, 1] expected")


def is_finite(value: object) -> bool:
    """Whether a value out of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def detection_warning(result: dict[str, Any]) -> str | None:
    """One line about coordinates that make the challenge's evaluation refuse the submission, or None."""
    low, high = EVALUATED_MM
    outside = sum(not all(low <= value <= high for value in point["point"][:2]) for point in result["points"])
    if not outside:
        return None
    return (
        f"{outside} of {len(result['points'])} points lie outside {low} to {high} mm; "
        "written, but the challenge's evaluation refuses such a result (it takes regions, not whole slides)"
    )
