"""The pictures of a result of either track."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midog.detections import Detections
from midog.errors import UserError

if TYPE_CHECKING:
    from midog.images.slide import Slide

logger = logging.getLogger(__name__)


def draw(
    track: int,
    image: Path,
    result: Any,
    out: Path,
    um_per_px: float | None = None,
    default_um_per_px: float = 0.25,
    system: str | None = None,
    classify_figures: "Callable[[Slide, Detections], tuple[Detections, str]] | None" = None,
) -> None:
    """Write the report of a Track 1 result, or the contact sheets of a Track 2 result.

    Args:
        track: 1 or 2.
        image: what the result was made from.
        result: the platform's JSON, checked.
        out: folder; exists and can be written.
        um_per_px: of both axes, with which the image was read for the result whatever its file says, or None.
        default_um_per_px: of both axes, where the file says nothing plausible; what the system works at.
        system: what made the result, where that is known.
        classify_figures: gives P(atypical) to a Track 1 result's mitotic figures, and names its system; or None.

    Raises:
        UserError: the image cannot be read or does not fit the result; the disk refuses a file.
    """
    if track == 1:
        from midog.images.slide import open_slide
        from midog.report.page import write_report

        with open_slide(image, um_per_px, default_um_per_px) as slide:
            found = Detections.from_json(result, slide.um_per_px, slide.origin_mm)
            write_report(slide, found, out, image.name, system, classify_figures)
        return
    if classify_figures:
        raise UserError(f"{image}: a stack's figures are classified already; leave --atypical out")
    from midog.images.stack import Stack
    from midog.report.contact_sheet import write_contact_sheets

    try:
        paths = write_contact_sheets(Stack(image), result, out, image.name)
    except ValueError:
        raise UserError(f"{image}: not as many pages as the result has entries; give this result's own stack") from None
    for path in paths:
        logger.info("contact sheet %s", path)
