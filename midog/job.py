"""The platform's contract: which image a job holds and which file answers it.

A job is a folder with `inputs.json` and one image. Of `inputs.json` only
`socket.slug`, `socket.relative_path` and `image.name` are read, because the
platform adds keys without notice (Grand Challenge, "Runtime Environment"). Its
older files have `interface` for `socket`, and some have both.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midog.errors import UserError, brief, one_line, quoted
from midog.files import read_json

POINT_NAMES = ("mitotic figure", "non-mitotic figure")
VERSION = {"major": 1, "minor": 0}
EVALUATED_MM = (-0.0075, 10)
IMAGE_SUFFIXES = (".tif", ".tiff", ".mha")
LARGEST = sys.float_info.max


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
        places = [(socket["slug"], socket["relative_path"]) for socket in map(socket_of, entries)]
        if not places or not all(isinstance(text, str) for place in places for text in place):
            raise TypeError
        slugs = sorted(slug for slug, _ in places)
        unknown = [slug for slug in slugs if slug not in SOCKETS]
        if unknown or len(slugs) > 1:
            said = f"no handler for {', '.join(unknown or slugs)}; supported, one a job: {', '.join(sorted(SOCKETS))}"
            raise UserError(one_line(f"{inputs_path}: {said}"))
        name = entries[0]["image"]["name"]
        if not isinstance(name, str):
            raise TypeError
    except (KeyError, TypeError):
        raise UserError(
            f"{inputs_path}: not a list of inputs with socket.slug, socket.relative_path and image.name; "
            "see test/input for an example"
        ) from None
    ((slug, relative_path),) = places
    return PlatformJob(SOCKETS[slug], _only_image(Path(input_dir), relative_path), name)


def socket_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What an input or output of the platform's JSON is for: its `socket`, or the `interface` of older files.

    Raises:
        KeyError or TypeError: it has neither.
    """
    found: dict[str, Any] = entry["socket"] if "socket" in entry and entry["socket"] else entry["interface"]
    return found


def _only_image(input_dir: Path, relative_path: str) -> Path:
    folder, remedy = input_dir / relative_path, "start the job again, or copy its folder again"
    try:
        inside = input_dir.resolve() in (folder.resolve(), *folder.resolve().parents)
        names = sorted(path.name for path in folder.glob("*"))
    except (OSError, ValueError) as error:
        said = f"relative_path {quoted(relative_path)} is no folder ({brief(error)})"
        raise UserError(f"{input_dir / 'inputs.json'}: {said}; {remedy}") from None
    if not inside:
        said = f"relative_path {quoted(relative_path)} leads out of the input folder"
        raise UserError(f"{input_dir / 'inputs.json'}: {said}; {remedy}")
    found = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")]
    if len(found) != 1:
        said = f"one image ({', '.join(IMAGE_SUFFIXES)}) expected, found {len(found)}: {', '.join(found[:5]) or 'none'}"
        raise UserError(one_line(f"{folder}: {said}; {remedy}"))
    return folder / found[0]


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


def schema_breaches(result: object) -> Iterator[str]:
    """What the platform's schema refuses in a Track 1 result before the evaluation sees it, a line each.

    (Grand Challenge, components/schemas.py: definitions MPOI, point-object and version-object. NaN and Infinity become
    null while it reads the file.)
    """
    if not isinstance(result, dict):
        yield f"{quoted(result)} is no dictionary; type, points and version are required"
        return
    for key in ("type", "points", "version"):
        if key not in result:
            yield f"{key} is missing"
    for key in result:
        if key not in ("name", "type", "points", "version"):
            yield f"{quoted(key)} is not allowed"
    if result.get("type", "Multiple points") != "Multiple points":
        yield f'type is {quoted(result["type"])}; "Multiple points" expected'
    if not isinstance(result.get("name", ""), str):
        yield f"name is {quoted(result['name'])}; a text expected"
    if "version" in result and not _is_version(result["version"]):
        yield f"version is {quoted(result['version'])}; major and minor expected, both integers from 0 on"
    points = result.get("points", [])
    if not isinstance(points, list):
        yield f"points is {quoted(points)}; a list expected"
        return
    for number, point in enumerate(points):
        for breach in _point_breaches(point):
            yield f"points[{number}]: {breach}"


def _is_version(version: object) -> bool:
    return (
        isinstance(version, dict)
        and set(version) == {"major", "minor"}
        and all(is_finite(part) and part >= 0 and part == int(part) for part in version.values())
    )


def _point_breaches(point: object) -> Iterator[str]:
    if not isinstance(point, dict):
        yield f"{quoted(point)} is no dictionary"
        return
    for key in point:
        if key not in ("name", "type", "point", "probability"):
            yield f"{quoted(key)} is not allowed"
    if point.get("type", "Point") != "Point":
        yield f'type is {quoted(point["type"])}; "Point" expected'
    if not isinstance(point.get("name", ""), str):
        yield f"name is {quoted(point['name'])}; a text expected"
    place = point.get("point")
    if not isinstance(place, list) or len(place) != 3 or not all(map(is_finite, place)):
        yield f"point is {quoted(place)}; three finite numbers expected"
    probability = point.get("probability", 0)
    if not is_finite(probability) or not 0 <= probability <= 1:
        yield f"probability is {quoted(probability)}; a number in [0, 1] expected"


def check_detection_result(result: object) -> None:
    """Make sure that the platform's schema and the evaluation accept a Track 1 result, whatever its coordinates.

    Raises:
        ValueError: with the first breach.
    """
    for breach in schema_breaches(result):
        raise ValueError(breach)
    assert isinstance(result, dict)
    for number, point in enumerate(result["points"]):
        if not {"name", "probability"} <= set(point):
            raise ValueError(f"points[{number}]: name, point and probability are required")
        if point["name"] not in POINT_NAMES:
            raise ValueError(f"points[{number}]: name is {quoted(point['name'])}; {' or '.join(POINT_NAMES)} expected")


def is_finite(value: object) -> bool:
    """Whether a value out of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


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
