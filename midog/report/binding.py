"""Whether a result belongs to an image, and the um per pixel that it was made with: about.json beside it says so."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from midog.about import NAME, About, read_about
from midog.errors import UserError
from midog.images.folder import identity_of
from midog.images.resolution import ASSUMED_UM_PER_PX, GIVEN, GIVEN_UM_PER_PX, Resolution, format_spacing
from midog.report.misclassification import Errors
from midog.report.reliability import Reliability
from midog.system import model_folder, read_system

UNBOUND = f"Not bound to this image: no {NAME} beside the result says which image it was made from."


@dataclass(frozen=True)
class Binding:
    """What a report can rest on; as the arguments of `midog.report.draw.draw`."""

    resolution: Resolution | None
    doubts: tuple[str, ...] = ()
    system: str | None = None
    default_um_per_px: float = ASSUMED_UM_PER_PX
    reliability: Reliability = ()
    subtype_errors: Errors = ()


def bind(result: Path, image: Path, mpp: float | None, any_image: bool, model: str | None) -> Binding:
    """What is known of an image and a result file.

    Args:
        result: the platform's JSON; only what lies beside it is read.
        image: given with it; one that was renamed is the same.
        mpp: um per pixel as given now, or None.
        any_image: whether another image than the result's is a doubt and not an error.
        model: folder of the systems' folders, or None.

    Raises:
        UserError: another image, or one that cannot be read.
    """
    about = read_about(result)
    given = Resolution((mpp, mpp), GIVEN, "--mpp") if mpp is not None else None
    made_with = _resolution(about)
    if about is None or made_with is None:
        return _unbound(about, image, given, model)
    doubts = []
    found = identity_of(image)
    if (found["bytes"], found["sha256"]) != (about.image.bytes, about.image.sha256):
        other = f"made from {about.image.name}, {about.image.bytes:,} bytes, of other content"
        if not any_image:
            raise UserError(
                f"{image}: not the image of {result}, which was {other}; give that one, or --any-image to draw it on "
                "this one"
            )
        doubts.append(f"Not the result's own image: it was {other}.")
    if given and given.um_per_px != made_with.um_per_px:
        spacing = format_spacing(made_with.um_per_px)
        doubts.append(f"The result was made with {spacing} um/px, and is drawn with another.")
    return Binding(
        given or made_with,
        tuple(doubts),
        str(about),
        reliability=about.reliability,
        subtype_errors=about.subtype_errors,
    )


def _resolution(about: About | None) -> Resolution | None:
    """That a result was made with; None where it is not known, or nonsense."""
    if about is None or not about.image.sha256:
        return None
    try:
        found = msgspec.convert(about.resolution, Resolution)
    except msgspec.ValidationError:
        return None
    low, high = GIVEN_UM_PER_PX
    return found if all(low <= step <= high for step in found.um_per_px) else None


def _unbound(about: About | None, image: Path, given: Resolution | None, model: str | None) -> Binding:
    """As versions up to 1.3 went by an image's name, where they left an about.json."""
    if about is None or about.image.name != image.name:
        return Binding(given, (UNBOUND,))
    if given is None and about.um_per_px_given is not None:
        given = Resolution((about.um_per_px_given, about.um_per_px_given), GIVEN, "noted beside the result")
    return Binding(given, (UNBOUND,), str(about), _worked_at(model, about.system))


def _worked_at(model: str | None, system: str) -> float:
    """um per pixel of a system, which they took for an image without; the usual where it is not there any more."""
    try:
        part = read_system(model_folder(model) / system / "model.yaml").detector
    except (UserError, ValueError):
        part = None
    return part.um_per_px if part else ASSUMED_UM_PER_PX
