"""check.html: what a control region says about a system, on one page that needs nothing else."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections
from midog.files import write_file
from midog.images.slide import Slide
from midog.report.gallery import FIELD_UM, cut_crops
from midog.report.html import rendered

NAME = "check.html"
OVERVIEW_PX = 2000  # longest side; tissue is measured on it, too
RING_UM = 14.0
SMALLEST_RING = 7.0  # px of the overview
MOST_CROPS = 60  # of a kind
JPEG_QUALITY = 85
KINDS = {  # apart for every kind of colour vision, and by their dashes
    "hit": ("counted and found", "#00a878"),
    "missed": ("counted, not found", "#ff5a1f"),
    "false": ("found, not counted", "#2563eb"),
}

Places = NDArray[np.float64]


def write_check_page(
    folder: Path,
    slide: Slide,
    view: NDArray[np.uint8],
    verdict: str,
    findings: Sequence[Any],
    facts: Mapping[str, str],
    note: str,
    marks: Mapping[str, Places],
) -> Path:
    """Write the page.

    Args:
        folder: exists.
        slide: the region.
        view: its overview, uint8 (height, width, 3).
        verdict: of the whole.
        findings: `midog.check.Finding`s.
        facts: what was checked, by its name.
        note: how region and count had to be taken so that they fit; "" for as they are.
        marks: by `KINDS` float64 (N, 2), px of the region.

    Returns:
        The page's path.

    Raises:
        UserError: the region cannot be read, or the disk refuses the page.
    """
    scale = np.array(view.shape[1::-1]) / slide.size
    page = rendered(
        NAME,
        title=facts["region"],
        verdict=verdict,
        findings=findings,
        facts=facts,
        note=note,
        picture=_jpeg(view),
        size=view.shape[1::-1],
        radius=max(RING_UM / float(np.mean(slide.um_per_px)) * float(scale.mean()), SMALLEST_RING),
        kinds=[
            {"name": name, "said": said, "colour": colour, "count": len(marks[name])}
            | {"rings": ((marks[name] + 0.5) * scale).round(1).tolist(), "crops": list(_crops(slide, marks[name]))}
            for name, (said, colour) in KINDS.items()
        ],
        field_um=FIELD_UM,
        most=MOST_CROPS,
    )
    return write_file(folder / NAME, page)


def _crops(slide: Slide, places: Places) -> Iterator[tuple[str, str]]:
    """Of the first `MOST_CROPS` places the picture and where it is."""
    shown = places[:MOST_CROPS]
    found = Detections.of(np.tile(shown, 2), np.ones(len(shown)), slide.um_per_px)
    for pixels, (x, y) in zip(cut_crops(slide, found), shown.tolist(), strict=True):
        yield _jpeg(pixels), f"{x:.0f}, {y:.0f} px"


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
