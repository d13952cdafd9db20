"""Files that are written whole or not at all, and read with the remedy in the message."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def check_writable(folder: str | Path, option: str = "--out") -> None:
    """Create a folder and make sure that a file can be written there.

    Args:
        folder: the folder.
        option: of the command line that names it, for the message.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give {option} another folder") from None


def write_with(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file beside the path, and put it there when it is whole; returns the path.

    Raises:
        UserError: the disk refuses the file; what was there stays.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk or use another folder") from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def write_file(path: str | Path, content: "str | bytes | Image") -> Path:
    """Write text (as UTF-8), bytes or a PIL image (as PNG); see `write_with`."""
    if isinstance(content, str):
        data = content.encode(errors="backslashreplace")  # names of files may hold bytes that are no text
    elif isinstance(content, bytes):
        data = content
    else:
        buffer = io.BytesIO()
        content.save(buffer, "PNG")
        data = buffer.getvalue()
    return write_with(path, lambda part: part.write_bytes(data))


def append_line(path: str | Path, text: str) -> None:
    """Add a line to a text file (as UTF-8), which is made where there is none. A kill may leave a part of it.

    Raises:
        UserError: the disk refuses it.
    """
    try:
        with Path(path).open("ab") as file:
            file.write(f"{text}\n".encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk or use another folder") from None


def write_json(path: str | Path, value: object) -> Path:
    """Write JSON without NaN or Infinity; see `write_with`."""
    return write_file(path, json.dumps(value, allow_nan=False, indent=1) + "\n")


def write_yaml(path: str | Path, value: object) -> Path:
    """Write YAML with the keys in their order; see `write_with`."""
    import yaml

    return write_file(path, yaml.safe_dump(value, sort_keys=False))


def sha256_of(*paths: str | Path) -> str:
    """The sha256 of a file, or of several one behind the other, in hexadecimal; OSError where one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def read_json(path: str | Path, remedy: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, or is no JSON; the line ends with the remedy.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: it cannot be read, or is no YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as YAML ({reason}); train or unpack the system again") from None
