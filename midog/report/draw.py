"""The pictures of a result of either track."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.detections import Detections
from midog.errors import UserError
from midog.images.folder import identity_of, open_stack, resolution_of
from midog.images.resolution import ASSUMED, ASSUMED_UM_PER_PX, Resolution
from midog.report.misclassification import Errors
from midog.report.protocols import FIELD_DIAMETER_MM
from midog.report.reliability import Reliability

if TYPE_CHECKING:
    from midog.images.slide import Slide
    from midog.report.counts import Counts

logger = logging.getLogger(__name__)


def draw(
    track: int,
    image: Path,
    result: Any,
    out: Path,
    resolution: Resolution | None = None,
    doubts: Sequence[str] = (),
    system: str | None = None,
    classify_figures: "Callable[[Slide, Detections], tuple[Detections, str]] | None" = None,
    default_um_per_px: float = ASSUMED_UM_PER_PX,
    result_sha256: str | None = None,
    figures: Path | None = None,
    any_image: bool = False,
    areas: Path | None = None,
    field_diameter_mm: float = FIELD_DIAMETER_MM,
    reliability: Reliability = (),
    subtype_errors: Errors = (),
) -> "Counts | None":
    """Write the report of a Track 1 result, or the contact sheets of a Track 2 result.

    Args:
        track: 1 or 2.
        image: what the result was made from.
        result: the platform's JSON, checked.
        out: folder; exists and can be written.
        resolution: with which the image was read for the result, whatever its file says; None is what that says now.
        doubts: whether the result is the image's, a line each, shown in red with where its um per pixel are from; a
            resolution that was assumed is shown so in any case.
        system: what made the result, where that is known.
        classify_figures: gives P(atypical) to a Track 1 result's mitotic figures, and names its system; or None.
        default_um_per_px: of both axes, without `resolution` where the file says nothing plausible.
        result_sha256: of the result's file, to which a review of the page is bound; None where there is none.
        figures: a reader's corrections of a Track 1 result, as `midog.report.review` reads them; or None.
        any_image: whether those may be of another image.
        areas: polygons to count a Track 1 result in, as `midog.report.areas` reads them; None: the whole image.
        field_diameter_mm: of a high-power field.
        reliability: what the system's scores meant on validation.
        subtype_errors: of the system that told the subtypes of a Track 1 result's figures.

    Returns:
        What was counted of a Track 1 result.

    Raises:
        UserError: the image cannot be read or does not fit the result; the corrections or areas are no such; the disk
            refuses a file.
    """
    name = image.name or image.resolve().name
    if track == 1:
        from midog.images.slide import open_slide
        from midog.report.areas import read_areas
        from midog.report.page import write_report
        from midog.report.review import read_review

        with open_slide(image, resolution.um_per_px[0] if resolution else None, default_um_per_px) as slide:
            if resolution:
                slide.um_per_px, slide.resolution = resolution.um_per_px, resolution
            found = found_on(slide, result).best_first()
            whole, review = identity_of(image), None
            identity = {"name": name, "bytes": whole["bytes"], "sha256": whole["sha256"]}
            if figures:
                review = read_review(figures, slide, found, identity, result_sha256, any_image)
            known = notices(doubts, slide.resolution), review, identity, result_sha256
            counting = read_areas(areas, slide) if areas else None, field_diameter_mm, reliability, subtype_errors
            return write_report(slide, found, out, name, system, classify_figures, *known, *counting)
    if figures:
        raise UserError(f"{figures}: corrects a result of Track 1, and this is one of Track 2; leave --figures out")
    if areas:
        raise UserError(f"{areas}: is for a result of Track 1, and this is one of Track 2; leave --areas out")
    if classify_figures:
        raise UserError(f"{image}: a stack's figures are classified already; leave --atypical out")
    from midog.report.contact_sheet import write_contact_sheets

    stack = open_stack(image)
    try:
        said = notices(doubts, resolution or resolution_of(stack))
        paths = write_contact_sheets(stack, result, out, name, said)
    except ValueError:
        raise UserError(f"{image}: not as many pages as the result has entries; give this result's own stack") from None
    for path in paths:
        logger.info("contact sheet %s", path)
    return None


def found_on(slide: "Slide", result: dict[str, Any]) -> Detections:
    """A Track 1 result in px of its slide; its mm are by the file's own spacing, even where that cannot be right."""
    found = Detections.from_json(result, slide.resolution.in_file or slide.um_per_px, slide.origin_mm)
    return replace(found, um_per_px=slide.um_per_px)


def notices(doubts: Sequence[str], resolution: Resolution) -> list[str]:
    """The lines of a report in red."""
    if resolution.source == ASSUMED or resolution.conflict or doubts:
        return [*doubts, f"Resolution: {resolution}."]
    return []
