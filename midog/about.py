"""about.json: which image, system and weights made a result. `predict` leaves one beside each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midog.errors import UserError
from midog.files import read_json, write_json

NAME = "about.json"


@dataclass(frozen=True)
class About:
    """What a result was made from and by, as far as its reader needs it.

    Attributes:
        image: the image's name.
        um_per_px_given: of both axes, which the user gave whatever the file says, or None.
        system, version: of the weights.
    """

    image: str
    um_per_px_given: float | None
    system: str
    version: str

    def __str__(self) -> str:
        return f"{self.system}, weights {self.version}"


def write_about(folder: Path, content: dict[str, Any]) -> None:
    """Write `folder`/about.json: a mapping with at least what `About` reads."""
    write_json(folder / NAME, content)


def read_about(result: Path) -> About | None:
    """What is said beside a result file, or None where nothing is, or nothing that can be read."""
    try:
        content = read_json(result.parent / NAME, "")
        return About(content["image"]["name"], content["um_per_px_given"], content["system"], content["version"])
    except (UserError, KeyError, TypeError):
        return None
