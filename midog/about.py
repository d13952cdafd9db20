"""about.json: which image, um per pixel, system and weights made a result. `predict` leaves one beside each."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from midog.errors import UserError
from midog.files import read_json, write_json

NAME = "about.json"
END_BYTES = 1 << 20  # at either end of an image that are hashed


@dataclass(frozen=True)
class Image:
    """The image of a result, as far as its reader needs it.

    Attributes:
        name: its file's or folder's.
        bytes, sha256: of `identity`; 0 and "" where a version up to 1.3 wrote the file, which bound results to none.
    """

    name: str
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class About:
    """What a result was made from and by, as far as its reader needs it.

    Attributes:
        image: what it was made from.
        um_per_px_given: of both axes, which the user gave whatever the file says, or None.
        system, version: of the weights.
        resolution: that was taken, the fields of `midog.images.resolution.Resolution`; None of a version up to 1.3.
        image_path: where the image was; None of a version up to 1.6.
        reliability: of the system on validation, as `midog.report.reliability` reads it; empty where it is not known.
        counts: of a Track 1 result, `midog.report.counts.Counts.to_builtins`; None of a version up to 1.7.
        subtype_errors: of the system that told the subtypes, as `midog.report.misclassification` reads them; empty
            where they are not known.
        local_threshold: that was taken instead of the system's own, and how it was found; or None.
    """

    image: Image
    um_per_px_given: float | None
    system: str
    version: str
    resolution: dict[str, Any] | None = None
    image_path: str | None = None
    reliability: tuple[tuple[float, float, int], ...] = ()
    counts: dict[str, Any] | None = None
    subtype_errors: tuple[tuple[str, float, float], ...] = ()
    local_threshold: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.system}, weights {self.version}"


def identity(files: Sequence[Path]) -> dict[str, Any]:
    """What tells an image from all others, whatever its name and age, and however large it is.

    Args:
        files: that hold it, in an order that does not change; several count as one after the other.

    Returns:
        `bytes`, `sha256` of the first and last MiB; of more than that also `modified`, in ns, because the middle may
        have changed.

    Raises:
        UserError: a file cannot be read.
    """
    path = files[0]
    try:
        stats = [path.stat() for path in files]
        total = sum(stat.st_size for stat in stats)
        whole = total <= 2 * END_BYTES
        ends = [(0, total)] if whole else [(0, END_BYTES), (total - END_BYTES, total)]
        digest = hashlib.sha256()
        start = 0
        for path, stat in zip(files, stats, strict=True):
            if len(files) > 1:
                digest.update(f"{stat.st_size} ".encode())
            for part in _parts(path, [(first - start, last - start) for first, last in ends], stat.st_size):
                digest.update(part)
            start += stat.st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    found = {"bytes": total, "sha256": digest.hexdigest()}
    return found if whole else found | {"modified": max(stat.st_mtime_ns for stat in stats)}


def _parts(path: Path, ranges: Sequence[tuple[int, int]], size: int) -> Iterable[bytes]:
    """The bytes of a file in ranges that may reach beyond it."""
    inside = [(max(first, 0), min(last, size)) for first, last in ranges]
    if not any(first < last for first, last in inside):
        return
    with path.open("rb") as file:
        for first, last in inside:
            file.seek(first)
            yield file.read(max(last - first, 0))


def write_about(folder: Path, content: dict[str, Any]) -> None:
    """Write `folder`/about.json: a mapping with at least what `About` reads."""
    write_json(folder / NAME, content)


def read_about(result: Path) -> About | None:
    """What is said beside a result file, or None where nothing is, or nothing that can be read."""
    try:
        return msgspec.convert(read_json(result.parent / NAME, ""), About)
    except (UserError, ValueError):  # msgspec says the latter
        return None
