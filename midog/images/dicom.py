"""DICOM whole slides: which files of a folder make one, which are levels of its pyramid, and how large a pixel is.

Read here, not by OpenSlide or wsidicom: both refuse what common converters write, or show it in false colours, and
wsidicom takes twice as long to start and to read.
"""

import logging
import math
import warnings
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from midog.errors import UserError, brief
from midog.images.dicom_file import NEEDED, Instance, first_item, numbers, read_instance
from midog.images.dicom_level import DicomLevel
from midog.images.level import Cache, Image
from midog.images.resolution import Spacing, of_axes

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"  # the class of such files: VL Whole Slide Microscopy Image
OTHER_VIEWS = {"THUMBNAIL", "LABEL", "OVERVIEW", "LOCALIZER"}  # what they show besides levels
SAME_FIELD = 0.01  # of its sides

# The library's complaint about a file is one line of ours, not a log record on stderr.
logging.getLogger("pydicom").addHandler(logging.NullHandler())


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_of(folder: Path) -> list[Path]:
    """The slides in a folder, each as the file that has its largest level (or a part of that), sorted by name."""
    return sorted(slide[0].path for slide in _slides(_instances(folder)[0]))


def open_dicom(path: Path, cache: Cache) -> Image:
    """The slide that a file belongs to, with what else of it is in its folder; or the only one of a folder.

    Raises:
        UserError: there is none, there are several, or files of it are missing.
    """
    instances, remarks = _instances(path if path.is_dir() else path.parent)
    if not path.is_dir():
        if not is_dicom(path):
            raise ValueError("no DICOM file")
        series = read_instance(path).series
        instances = [each for each in instances if each.series == series]
    slides = _slides(instances)
    if not slides:
        why = f" ({remarks[0]})" if remarks else ""
        raise UserError(f"{path}: no DICOM file with the pixels of a slide (VOLUME){why}; name the folder that has it")
    if len(slides) > 1:
        names = ", ".join(sorted(slide[0].path.name for slide in slides))
        raise UserError(f"{path}: {len(slides)} slides are in this folder; name one of its files: {names}")
    named = next((each for each in slides[0] if each.path == path), slides[0][0])
    return _open(slides[0], named, remarks, cache)


def _instances(folder: Path) -> tuple[list[Instance], list[str]]:
    """The files of a folder with pixels of slides, and a remark on each that should be one and cannot be read."""
    found, remarks = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            if not is_dicom(path):
                if path.suffix.lower() == ".dcm":
                    raise ValueError("no DICOM file")
                continue
            with warnings.catch_warnings(action="ignore"):
                instance = read_instance(path)
                if _shows_the_slide(instance):
                    found.append(instance)
        except Exception as error:  # a damaged file can make the library raise anything
            remarks.append(f"{path.name} cannot be read ({brief(error)}) and is left out")
    return found, remarks


def _shows_the_slide(instance: Instance) -> bool:
    header = instance.header
    if header.get("SOPClassUID") != WHOLE_SLIDE or OTHER_VIEWS & set(header.get("ImageType") or ()):
        return False
    needed = (*NEEDED, "TotalPixelMatrixColumns", "TotalPixelMatrixRows") if instance.frames > 1 else NEEDED
    missing = [name for name in needed if not header.get(name)]
    if missing or "TransferSyntaxUID" not in header.file_meta:
        raise ValueError(f"{' '.join(missing) or 'TransferSyntaxUID'} is missing")
    return True


def _slides(instances: list[Instance]) -> list[list[Instance]]:
    """The instances of each slide, the largest first; of copies one."""
    slides: dict[str, dict[object, Instance]] = defaultdict(dict)
    for each in instances:
        slides[each.series].setdefault((each.header.get("SOPInstanceUID", each.path), each.size, each.order), each)
    return [sorted(slide.values(), key=lambda each: -math.prod(each.size)) for slide in slides.values()]


def _open(slide: list[Instance], named: Instance, remarks: list[str], cache: Cache) -> Image:
    """The pyramid that shows the same field as an instance of the slide."""
    levels: dict[object, list[Instance]] = defaultdict(list)
    elsewhere = []
    for each in sorted(slide, key=lambda each: (-math.prod(each.size), each is not named)):
        if _same_field(each, named):
            levels[each.size, each.segment].append(each)
        else:
            elsewhere.append(each.path.name)
    if elsewhere:
        remarks.append(f"{', '.join(elsewhere)}: another field of the slide, left out")
    pyramid: list[DicomLevel] = []
    with ExitStack() as files:
        for instances in levels.values():
            try:
                pyramid.append(DicomLevel(instances, cache, files, pyramid[0].depth if pyramid else None))
            except Exception as error:
                if not pyramid:
                    raise
                width, height = instances[0].size
                remarks.append(f"the level of {width} x {height} px cannot be read ({brief(error)}) and is left out")
        remarks += dict.fromkeys(remark for level in pyramid for remark in level.remarks)
        base = next(iter(levels.values()))[0]
        spacings = _spacings(base, pyramid[0].files[0].spacing)
        close = files.pop_all().close
    powers = numbers(first_item(base.header, "OpticalPathSequence"), "ObjectiveLensPower")
    objective = next((f"{power:g}x" for power in powers if power > 0), "")
    return Image(pyramid, spacings, remarks=remarks, objective=objective, close=close)


def _same_field(one: Instance, other: Instance) -> bool:
    """Whether two show the same area: their sides have one ratio in px, and the same length where that is known."""
    x, y = (a / b for a, b in zip(one.size, other.size, strict=True))
    tolerance = SAME_FIELD + 1 / min(*one.size, *other.size)
    length, other_length = (
        next((each.size[0] * spacing.um_per_px[0] for spacing in _of_pixels(_shared(each))), math.nan)
        for each in (one, other)
    )
    return abs(x / y - 1) <= tolerance and not abs(length / other_length - 1) > tolerance  # of NaN neither holds


def _spacings(instance: Instance, of_first_frame: list[float]) -> list[Spacing]:
    """By PixelSpacing, which may stand in three places; then by the size of the whole."""
    spacings = []
    for found in (_shared(instance), of_first_frame, numbers(instance.header, "PixelSpacing")):
        spacings += _of_pixels(found)
    sides = [instance.header.get(f"ImagedVolume{side}") for side in ("Width", "Height")]
    if all(sides):
        x, y = (mm * 1000 / px for mm, px in zip(sides, instance.size, strict=True))
        spacings += of_axes(x, y, "ImagedVolumeWidth and Height")
    return spacings


def _shared(instance: Instance) -> list[float]:
    """PixelSpacing of all frames, mm between rows and between columns, where the file has it."""
    measures = first_item(instance.header, "SharedFunctionalGroupsSequence", "PixelMeasuresSequence")
    return numbers(measures, "PixelSpacing")


def _of_pixels(pixel_spacing: list[float]) -> list[Spacing]:
    if not pixel_spacing:
        return []
    return of_axes(pixel_spacing[-1] * 1000, pixel_spacing[0] * 1000, "PixelSpacing")
