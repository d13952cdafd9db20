"""What in a folder, and below it, is one image: a file, a DICOM series, or the crops that lie side by side."""

import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midog import about
from midog.errors import UserError
from midog.images.dicom import is_dicom, series_of
from midog.images.resolution import ASSUMED, Resolution
from midog.images.slide import SUFFIXES, Slide
from midog.images.stack import Crops, Stack
from midog.images.track import PICTURES, is_crop

SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}  # of operating systems: copies and thumbnails
INDEXES = {".vms", ".vmu"}  # of slides whose pixels are in files that they name
DICOM = ".dcm"


@dataclass(frozen=True)
class Found:
    """One image.

    Attributes:
        path: what is opened: its file, or the folder of a DICOM series or of crops.
        name: its path from the folder that was searched.
        crops: of a folder of crops, how many; else 0.
    """

    path: Path
    name: str
    crops: int = 0


def find_images(folder: Path, out: Path, group_crops: bool = True) -> list[Found]:
    """The images in a folder and below, each folder once whatever links to it.

    Hidden files, results of earlier runs and the parts of other images are none. A folder that cannot be read is among
    the images, because opening it says why.

    Args:
        folder: is searched.
        out: is not, where it lies inside.
        group_crops: whether the crops of a folder are one image; else each is one.
    """
    found: list[Found] = []
    closed = {out.resolve(), *folder.resolve().parents}  # links to the latter would lead out of the folder
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = here.resolve()
        if real in seen:
            continue
        seen.add(real)
        name = real.name if here == folder else here.relative_to(folder).as_posix()
        try:
            entries = visible(here)
            parts = _parts(entries, entries)
            folders = [each for each in entries if each.is_dir() and each not in parts]
        except OSError:
            found.append(Found(here, name))
            continue
        waiting += [each for each in reversed(folders) if not _is_apart(each, closed)]
        others = parts.union(folders)
        files = [each for each in entries if each not in others]
        found += _images(here, name, folder, files, group_crops)
    return found


def visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden entries, macOS's "._" companions among them.

    Raises:
        OSError: it cannot be read.
    """
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def crop_files(path: Path) -> list[Path]:
    """The files of one crop each that a path stands for: those in a folder, by name, or itself; none for a stack."""
    if path.is_dir():
        return [each for each in visible(path) if is_crop(each)]
    return [path] if path.suffix.lower() in PICTURES else []


def open_stack(path: Path) -> Stack | Crops:
    """A stack in one file, or what `crop_files` has, opened as one.

    Raises:
        UserError: it cannot be read.
    """
    files = crop_files(path)
    return Crops(files) if files else Stack(path)


def resolution_of(image: Slide | Stack | Crops) -> Resolution:
    """What was taken for an open image; of crops, which are read for it if they were not, the first that is a guess."""
    if isinstance(image, Slide):
        return image.resolution
    if not image.resolutions:
        deque(image, maxlen=0)
    assumed = (each for each in image.resolutions if each.source == ASSUMED)
    return next(assumed, image.resolutions[0])


def identity_of(path: Path) -> dict[str, Any]:
    """`midog.about.identity` of the files that hold an image.

    Raises:
        UserError: one cannot be read.
    """
    try:
        files = _files_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if not files:
        raise UserError(f"{path}: no image in this folder; check the path")
    return about.identity(files)


def _files_of(path: Path) -> list[Path]:
    """In an order that does not change."""
    if path.is_dir():
        return crop_files(path) or _dicom_files(visible(path))
    if path.suffix.lower() not in {".mrxs", *INDEXES}:
        return [path]
    parts = sorted(_parts([path], visible(path.parent)))
    return [path, *(file for part in parts for file in (visible(part) if part.is_dir() else [part]))]


def _is_apart(folder: Path, closed: Collection[Path]) -> bool:
    """Whether a folder below the searched one is not looked into: closed, a system's, or one of a result."""
    return folder.name in SYSTEM_FOLDERS or folder.resolve() in closed or os.path.exists(folder / about.NAME)


def _parts(images: Collection[Path], beside: Collection[Path]) -> set[Path]:
    """The files and folders of `beside` that are part of one of the images."""
    folders = {each.stem for each in images if each.suffix.lower() == ".mrxs"}
    files: set[str] = set()
    for index in (each for each in images if each.suffix.lower() in INDEXES and each.is_file()):
        files |= {line.partition("=")[2].strip() for line in index.read_text("latin-1").splitlines()}
    return {each for each in beside if each.name in (folders if each.is_dir() else files)}


def _images(here: Path, name: str, folder: Path, files: Sequence[Path], group_crops: bool) -> Iterator[Found]:
    """Of the files of one folder, `name` by its path from the searched one."""
    slides = _dicom_slides(here, files)
    others = [each for each in files if each.suffix.lower() in SUFFIXES - {DICOM}]
    if len(slides) == 1 and not others:
        yield Found(here, name)
        return
    crops = 0
    for each in (*slides, *others):
        if group_crops and is_crop(each):
            crops += 1
        else:
            yield Found(each, name if each == here else each.relative_to(folder).as_posix())
    if crops:
        yield Found(here, name, crops)


def _dicom_slides(folder: Path, files: Sequence[Path]) -> list[Path]:
    """A file of each series; the folder itself where they cannot be told apart, which opening it explains."""
    try:
        slides = series_of(folder) if _dicom_files(files) else []
    except Exception:  # a damaged file can make the library raise anything
        slides = []
    return slides or [folder] * any(each.suffix.lower() == DICOM for each in files)


def _dicom_files(files: Sequence[Path]) -> list[Path]:
    """Those of DICOM, which need no suffix."""
    return [
        each
        for each in files
        if each.suffix.lower() == DICOM or (each.suffix.lower() not in SUFFIXES and is_dicom(each))
    ]
