"""How many um a pixel is: what a file may say, in whatever place and unit, and what is taken in the end.

Readers of formats give `Spacing`s, one a place in the file, the most trusted first; `resolve` takes the first that a
light microscope's scanner can have. What was taken comes with its source, so that a result can say what it rests on.
A new dialect is a new function here, called by the format's reader.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

PLAUSIBLE_UM_PER_PX = 0.1, 1.1  # of a light microscope's scan, 100x to 10x
GIVEN_UM_PER_PX = 0.05, 5.0  # what --mpp may say
PRINT_UM_PER_PX = 10.0  # from here on it is a screen's or printer's density (72 dpi, "1 mm"), which says nothing
ASSUMED_UM_PER_PX = 0.25  # 40x, as all images of the challenge
AGREEMENT = 0.10  # relative, of two places in a file that say the same
READ, GIVEN, ASSUMED = "read", "given", "assumed"

UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "å": 1e-4, "in": 25400.0}
UM |= {"meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "micron": 1.0, "nanometer": 1e-3}
UM |= {"inch": 25400.0, "inches": 25400.0}
MICRO = "Â?µ|Î¼|μ|\\?|\ufffd"  # two letters look the same; the rest is what other encodings leave of them
UM_PER_RESOLUTION_UNIT = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}  # TIFF's inch and cm; mm and um, which some writers add
WRAPPED_UM_PER_PX = 0.22, 0.275  # of 40x scanners, and of the finest at 20x
JFIF_LIMIT = 1 << 16
_NUMBER = r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Spacing:
    """What one place in a file says.

    Attributes:
        um_per_px: (x, y), unchecked.
        where: the place, for a reader of the log.
    """

    um_per_px: tuple[float, float]
    where: str


@dataclass(frozen=True)
class Resolution:
    """What is taken, and why.

    Attributes:
        um_per_px: (x, y).
        source: READ from the file, GIVEN by the user, or ASSUMED.
        where: the place in the file it was read from, or why it was assumed.
        in_file: (x, y) um/px as the file says, where that cannot be right: physical points keep it, because a reader
            of the result takes them apart by it. Else None.
        conflict: another place in the file that could be right, too, and what it says; empty where all agree.
    """

    um_per_px: tuple[float, float]
    source: str
    where: str
    in_file: tuple[float, float] | None = None
    conflict: str = ""

    def __str__(self) -> str:
        reasons = "; ".join(filter(None, (self.where, self.conflict)))
        return f"{format_spacing(self.um_per_px)} um/px, {self.source}" + (f" ({reasons})" if reasons else "")


def format_spacing(um_per_px: tuple[float, float]) -> str:
    """Two numbers, or one where they are the same."""
    x, y = (f"{step:.4g}" for step in um_per_px)
    return x if x == y else f"{x} x {y}"


def plausible(spacings: Sequence[Spacing]) -> Spacing | None:
    """The first that a light microscope's scan can have, or None."""
    low, high = PLAUSIBLE_UM_PER_PX
    return next((spacing for spacing in spacings if all(low <= step <= high for step in spacing.um_per_px)), None)


def _agree(one: Spacing, other: Spacing) -> bool:
    return all(abs(a / b - 1) <= AGREEMENT for a, b in zip(one.um_per_px, other.um_per_px, strict=True))


def resolve(
    spacings: Sequence[Spacing], given: float | None = None, default: float = ASSUMED_UM_PER_PX, objective: str = ""
) -> Resolution:
    """What to take.

    Args:
        spacings: of a file, the most trusted first.
        given: um/px of both axes, whatever the file says.
        default: um/px of both axes, where it says nothing that can be right.
        objective: its magnification as the file names it, a hint for the user.
    """
    if given is not None:
        return Resolution((given, given), GIVEN, "")
    if found := plausible(spacings):
        others = (each for each in spacings if plausible([each]) and not _agree(each, found))
        conflict = next((f"{other.where} says {format_spacing(other.um_per_px)}" for other in others), "")
        return Resolution(found.um_per_px, READ, found.where, conflict=conflict)
    hint = f" (objective {objective})" if objective else ""
    doubtful = next((each for each in spacings if all(0 < step < PRINT_UM_PER_PX for step in each.um_per_px)), None)
    if doubtful is None:
        said = next((f", only {format_spacing(each.um_per_px)} um/px by {each.where}" for each in spacings), "")
        return Resolution((default, default), ASSUMED, f"no resolution in the file{said}{hint}")
    why = f"the file says {format_spacing(doubtful.um_per_px)} um/px ({doubtful.where}), which no scanner has{hint}"
    return Resolution((default, default), ASSUMED, why, doubtful.um_per_px)


def number(text: object) -> float:
    """A number as people write it ("0,25" too); NaN for anything else."""
    try:
        return float(str(text).strip().replace(",", "."))
    except ValueError:
        return math.nan


def um_of(unit: str) -> float:
    """um of a length's unit by any of its names, HTML's and Java's escapes undone; NaN for what is none."""
    name = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), html.unescape(unit))
    name = re.sub(f"^(?:{MICRO})m", "um", name.strip().strip("\"'")).lower().replace("metre", "meter")
    return UM.get(name, UM.get(name.removesuffix("s"), math.nan))


def of_axes(x: float, y: float, where: str) -> list[Spacing]:
    """The spacing of both axes, of which one may be missing (NaN) or nonsense: the other then counts for both."""
    good = [step for step in (x, y) if math.isfinite(step) and step > 0]
    if not good:
        return []
    return [Spacing((good[0], good[-1]), where)]


def _unit_over(px: object) -> float:
    """Units a px, of px a unit as a number or (numerator, divisor); NaN for none, or whatever else stands in a tag."""
    match px:
        case (int(numerator), int(divisor)) if numerator:
            return divisor / numerator
        case (int() | float() as number,) | (int() | float() as number) if number:
            return 1 / number
    return math.nan


def of_resolution_tags(unit: object, x: object, y: object) -> list[Spacing]:
    """By TIFF's or EXIF's ResolutionUnit, XResolution and YResolution, the latter px a unit as (numerator, divisor)."""
    um = UM_PER_RESOLUTION_UNIT.get(unit, math.nan) if isinstance(unit, int) else math.nan
    return of_axes(um * _unit_over(x), um * _unit_over(y), "the resolution tags")


def of_imagej(description: str, x: object, y: object) -> list[Spacing]:
    """By the unit in the description that ImageJ and Fiji write, in which TIFF's XResolution counts px.

    A height of a pixel stands in its YResolution; `yunit` only where it differs.
    """
    found: dict[str, str] = dict(re.findall(r"^(unit|yunit)=(.*)$", description, re.MULTILINE))
    if not description.startswith("ImageJ=") or "unit" not in found:
        return []
    units = um_of(found["unit"]), um_of(found.get("yunit", found["unit"]))
    return of_axes(units[0] * _unit_over(x), units[1] * _unit_over(y), "ImageJ's unit")


def of_ome(xml: str) -> list[Spacing]:
    """By OME-XML's largest Pixels (others are macros and labels): PhysicalSizeX and Y, in um where no unit is named."""
    images = [
        dict(re.findall(r"""([\w:]+)\s*=\s*["']([^"']*)["']""", pixels))
        for pixels in re.findall(r"<(?:[\w.-]+:)?Pixels\s([^>]*)>", xml)
    ]
    if not images:
        return []
    largest = max(images, key=lambda pixels: math.prod(number(pixels.get(f"Size{axis}", 0)) for axis in "XY"))
    units = (um_of(largest.get(f"PhysicalSize{axis}Unit") or "um") for axis in "XY")
    x, y = (number(largest.get(f"PhysicalSize{axis}")) * um for axis, um in zip("XY", units, strict=True))
    return of_axes(x, y, "OME-XML")


def of_aperio(description: str) -> list[Spacing]:
    """By "MPP = 0.2500" in a description, whatever wrote it."""
    found = re.search(rf"\bMPP\s*[=:]\s*({_NUMBER})", description)
    return of_axes(number(found[1]), math.nan, "MPP in the description") if found else []


def of_ventana(xmp: str) -> list[Spacing]:
    """By the ScanRes of Ventana's iScan."""
    found = re.search(rf"""\bScanRes\s*=\s*["']({_NUMBER})""", xmp)
    return of_axes(number(found[1]), math.nan, "ScanRes") if found else []


def of_philips(xml: str) -> list[Spacing]:
    """By the finest DICOM_PIXEL_SPACING of Philips' XML (others are of lower levels): mm, rows before columns."""
    found = []
    for text in re.findall(r"""DICOM_PIXEL_SPACING["'][^>]*>([^<]*)<""", xml):
        y, x, *_ = [number(part) * 1000 for part in re.findall(_NUMBER, html.unescape(text))] * 2 or [math.nan] * 2
        found += of_axes(x, y, "DICOM_PIXEL_SPACING")
    return sorted(found, key=lambda spacing: spacing.um_per_px)[:1]


def of_jfif(unit: int, x: int, y: int) -> list[Spacing]:
    """By a JPEG's JFIF header: dots an inch (1) or a cm (2), in 16 bits.

    The 101,600 dpi of .25 um/px do not fit and are written as 36,064, which would be .70: what a 40x scan's may have
    become is not believed.
    """
    um = {1: 25400.0, 2: 1e4}.get(unit)
    if um is None or not x or not y:
        return []
    low, high = WRAPPED_UM_PER_PX
    if any(low <= um / (dots + JFIF_LIMIT) <= high for dots in (x, y)):
        return []
    return [Spacing((um / x, um / y), "JFIF's density")]


def objective_of(text: str) -> str:
    """The objective's magnification in a description ("20x"), or nothing."""
    found = re.search(rf"(?:AppMag|NominalMagnification|\bmag)\s*=\s*[\"']?({_NUMBER})", text)
    return f"{number(found[1]):g}x" if found else ""
