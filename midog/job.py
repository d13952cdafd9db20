"""The platform's contract: which image a job holds and which file answers it.

A job is a folder with `inputs.json` and one image. Of `inputs.json` only
`interface.slug`, `interface.relative_path` and `image.name` are read, because
the platform adds keys without notice (Grand Challenge, "Runtime Environment").
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from midog.errors import UserError

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


@dataclass(frozen=True)
class Job:
    """One case: the socket, the image file on disk, and the name its owner gave it."""

    socket: Socket
    image_path: Path
    image_name: str


def read_job(input_dir):
    """Read the job in a folder.

    Args:
        input_dir: folder with `inputs.json` and the image's folder.

    Returns:
        The `Job`.

    Raises:
        UserError: no, broken or unknown `inputs.json`; no image or several.
    """
    inputs_path = Path(input_dir) / "inputs.json"
    try:
        entries = json.loads(inputs_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{inputs_path}: not found; give --input a folder that holds inputs.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{inputs_path}: cannot be read as JSON ({error}); write the list of inputs again") from None
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
    return Job(SOCKETS[slug], _only_image(Path(input_dir), relative_path), name)


def _only_image(input_dir, relative_path):
    folder = input_dir / relative_path
    if input_dir.resolve() not in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{input_dir / 'inputs.json'}: relative_path {relative_path} leads out of the input folder")
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise UserError(f"{folder}: one image ({', '.join(IMAGE_SUFFIXES)}) expected, found {len(found)}: {names}")
    return found[0]


def check_writable(output_dir):
    """Create the output folder and make sure that a file can be written there.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    output_dir = Path(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise UserError(f"{output_dir}: cannot be written ({error.strerror}); give --output another folder") from None


def atypical_result(probabilities):
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


def write_result(path, result):
    """Write JSON whole or not at all.

    Args:
        path: the result file; its folder exists.
        result: what `json` can write, without NaN or Infinity.

    Raises:
        UserError: the disk refuses the file.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    text = json.dumps(result, allow_nan=False, indent=1)
    try:
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk or use another folder") from None
