"""Files in the folder that a data set was unpacked to, wherever its archives put them."""

import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath

from midog.errors import UserError


def check_folder(folder: Path) -> None:
    """Make sure that a folder is there.

    Raises:
        UserError: else.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that the set was unpacked to")


def one_file(folder: Path, pattern: str, option: str) -> Path:
    """The only file in a folder, or below it, that a pattern fits.

    Args:
        folder: where to look.
        pattern: with * for any text.
        option: of the command line that names such a file, for the message.

    Raises:
        UserError: none or several fit.
    """
    check_folder(folder)
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise UserError(f"{folder}: one file {pattern} expected, found {names}; name it with {option}")
    return found[0]


def files_by_stem(folder: Path, suffixes: Collection[str], stem: str = ".*") -> dict[str, Path]:
    """Files in a folder, and below it, by their names without suffix.

    Args:
        folder: where to look.
        suffixes: in lower case, as ".png"; other files do not count.
        stem: what their names are, a regular expression; others do not count.

    Raises:
        UserError: no such folder, or two files of one name.
    """
    check_folder(folder)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and re.fullmatch(stem, path.stem) and path.is_file():
            if path.stem in found:
                raise UserError(f"{path}: {found[path.stem]} has this name, too; leave one copy in {folder}")
            found[path.stem] = path
    return found


def located(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Where files are: at their place in the folder, or anywhere below it.

    Args:
        folder: where to look.
        names: file names, or the last parts of paths.

    Returns:
        a path for each name; FOLDER/NAME for those that are nowhere.

    Raises:
        UserError: two files of one name.
    """
    found = {name: folder / name for name in names}
    below: dict[str, list[Path]] = {PurePath(name).name: [] for name, path in found.items() if not path.is_file()}
    if not below:
        return found
    for root, _, files in os.walk(folder):
        for name in below.keys() & set(files):
            below[name].append(Path(root, name))
    for name, path in found.items():
        parts = PurePath(name).parts
        fits = [each for each in below.get(parts[-1], []) if each.parts[-len(parts) :] == parts]
        if not path.is_file() and fits:
            if len(fits) > 1:
                raise UserError(f"{fits[0]}: {fits[1]} has this name, too; leave one copy in {folder}")
            found[name] = fits[0]
    return found


def split_of(path: Path, folder: Path) -> str:
    """`train` or `test` by the directories between a folder and a file in it; "" where their names say neither."""
    for part in path.relative_to(folder).parts[-2::-1]:
        name = part.lower()
        if "train" in name:
            return "train"
        if "test" in name or "eval" in name:
            return "test"
    return ""
