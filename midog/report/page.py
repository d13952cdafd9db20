"""Everything that is written about a Track 1 result: pictures, tables, and one page that shows them.

`report.html` needs no other file and no network, so that it can be sent and archived. What grows with the number of
candidates is bounded (crops) or compact (16 bytes or so a candidate), and of the slide only an overview and the crops
are read.
"""

import base64
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import ATYPICAL, COLOURS, FIGURE, NORMAL, REJECTED, Detections
from midog.files import write_file
from midog.images.resolution import ASSUMED
from midog.images.slide import Slide
from midog.report.canvas import HOTSPOT_COLOUR
from midog.report.density import COLOUR_SCALE, KERNEL_MM, density_map, density_picture, paint, scale_top
from midog.report.export import figures_csv, figures_geojson
from midog.report.gallery import FIELD_UM, cut_crops, gallery
from midog.report.hotspot import NM_PER_MM, Hotspot, find_hotspot, places_nm
from midog.report.overlay import LONGEST_SIDE, RADIUS_UM, area_mm2, outside_warning, overlay
from midog.report.proportion import wilson_interval

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
JPEG_QUALITY = 82
OPERATING_POINT = 0.5  # of what is written to the platform
NAMES = ("overlay.png", "gallery.png", "density.png", "figures.csv", "figures.geojson", "report.html")
DEFINITIONS = {
    "Mitotic figure": "A candidate that the system accepted, from the probability on that it was calibrated for. "
    "Rejected candidates are cells that its detector proposed and its classifier refused.",
    "Image area": "The whole image, glass and tissue without tumour included.",
    "Hotspot": "The window of 2.37 mm² (4:3, 1.778 × 1.333 mm, lying or upright, sides along the image's) with the "
    "most mitotic figures: the largest count of all such windows, not only of those on a grid. Figures on its edge "
    "count. Where the image is smaller than the window, the window is as long as the image, and the density is that "
    "of its real area. All of the window's area counts, glass included.",
    "Density map": f"A Gaussian of {KERNEL_MM:g} mm standard deviation around each figure, corrected where the image "
    "ends.",
    "Coordinates": "x to the right, y down; px of the full resolution with the centre of the first pixel at 0, and mm "
    "as in the result file. The hotspot's are counted from the image's upper left corner. figures.geojson has QuPath's "
    "convention: the centre of the first pixel is at 0.5, and of slides that know their scanned area, its corner at 0.",
}
ATYPICAL_DEFINITION = (
    "Each accepted figure, cut as 32 µm at 0.25 µm/px, went through the system for Track 2. P(atypical) is calibrated "
    "for equal numbers of both classes. The interval (Wilson) knows the number of figures, not the errors of either "
    "system."
)


@dataclass(frozen=True, eq=False)
class _Report:
    """What the page says.

    Attributes:
        found: N candidates, best first, in px of the slide.
        in_hotspot: bool (N,), which lie in the window, accepted or not.
        view: overview, uint8 (height, width, 3).
        density: RGB, as `paint` makes it, and the number at which its colours end.
        crops: of the first candidates.
        system, atypical_system: what found and what classified the figures, as far as known.
        notices: in red.
    """

    slide: Slide
    title: str
    found: Detections
    hotspot: Hotspot | None
    in_hotspot: NDArray[np.bool_]
    view: NDArray[np.uint8]
    density: "tuple[Image.Image, float]"
    crops: list[NDArray[np.uint8]]
    system: str | None
    atypical_system: str | None
    notices: Sequence[str]


def write_report(
    slide: Slide,
    found: Detections,
    folder: Path,
    title: str,
    system: str | None = None,
    classify_figures: Callable[[Slide, Detections], tuple[Detections, str]] | None = None,
    notices: Sequence[str] = (),
) -> Path:
    """Write overlay, gallery, density map, CSV, GeoJSON and the page.

    Args:
        slide: what the candidates were found on.
        found: in any order.
        folder: exists and can be written.
        title: the image's name.
        system: what made the result, where that is known.
        classify_figures: gives P(atypical) to the accepted ones and names its system; or None.
        notices: what limits the result, for the page, a line each.

    Returns:
        The page's path.

    Raises:
        UserError: the slide's pixels cannot be decoded; the disk refuses a file.
    """
    found = found.on_grid(slide.um_per_px, slide.origin_mm).best_first()
    if warning := outside_warning(slide, found, title):
        logger.warning(warning)
    places = places_nm(slide, found.centres)
    size = np.rint(np.array(slide.size) * slide.um_per_px * 1000).astype(np.int64)
    hotspot = find_hotspot(places[found.accepted], size)
    in_hotspot = hotspot.holds(places) if hotspot else np.zeros(len(found), bool)
    atypical_system = None
    if classify_figures:
        found, atypical_system = classify_figures(slide, found)

    view = slide.overview(LONGEST_SIDE)
    density = density_map(places[found.accepted] / NM_PER_MM, size / NM_PER_MM)
    top = scale_top(density)
    painted = paint(density / top)
    crops = cut_crops(slide, found)
    um_per_px = slide.um_per_px[0] * slide.size[0] / view.shape[1]
    density_drawn, systems = (painted, top), (system, atypical_system)
    report = _Report(slide, title, found, hotspot, in_hotspot, view, density_drawn, crops, *systems, notices)

    heading = title + f", {slide.resolution}" * (slide.resolution.source == ASSUMED)
    write_file(folder / "overlay.png", overlay(slide, view, found, hotspot, heading))
    write_file(folder / "gallery.png", gallery(crops, found, heading))
    write_file(folder / "density.png", density_picture(view, um_per_px, painted, top, heading))
    write_file(folder / "figures.csv", figures_csv(found, in_hotspot, bool(classify_figures), slide.resolution))
    write_file(folder / "figures.geojson", figures_geojson(slide, found, hotspot))
    path = write_file(folder / "report.html", _page(report))
    most = f"{hotspot.count} in {hotspot.area_mm2:.3g} mm2" if hotspot else "none"
    logger.info("mitotic figures %d, hotspot %s", found.accepted.sum(), most)
    logger.info("report %s, with %s beside it", path, ", ".join(NAMES[:-1]))
    return path


def _page(report: _Report) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from PIL import Image

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    painted, top = report.density
    shown, count = len(report.crops), len(report.found)
    return environment.get_template("report.html").render(
        title=report.title,
        notices=report.notices,
        facts=_facts(report),
        tiles=_tiles(report),
        definitions=DEFINITIONS | ({"Atypical": ATYPICAL_DEFINITION} if report.atypical_system else {}),
        figure_label=NORMAL if report.atypical_system else FIGURE,
        width=report.view.shape[1],
        height=report.view.shape[0],
        overview=_data_url(Image.fromarray(report.view), "JPEG"),
        density=_data_url(painted, "PNG"),
        density_top=f"{top:g}",
        density_colours=COLOUR_SCALE,
        kernel_mm=f"{KERNEL_MM:g}",
        window=_window_style(report.slide, report.hotspot),
        cards=_cards(report),
        not_shown=f"The {shown} most probable of {count:,} candidates." if count > shown else "",
        field_um=f"{FIELD_UM:g}",
        data=_data(report),
    )


def _facts(report: _Report) -> Iterator[tuple[str, str]]:
    """What the page is about, by name."""
    yield "Image", report.title
    yield "Size", "{} × {} px".format(*report.slide.size)
    (x, y), resolution = report.slide.um_per_px, report.slide.resolution
    where = f", {resolution.where}" * bool(resolution.where)
    yield "Resolution", f"{x:.4g} × {y:.4g} µm/px, {resolution.source}{where}"
    if report.system:
        yield "System", report.system
    if report.atypical_system:
        yield "Subtypes", report.atypical_system


def _tiles(report: _Report) -> Iterator[tuple[str, str, str]]:
    """(name, number, what it means) of every figure on top of the page."""
    accepted, area, hotspot = int(report.found.accepted.sum()), area_mm2(report.slide), report.hotspot
    yield "Mitotic figures", f"{accepted:,}", f"accepted, of {len(report.found):,} candidates"
    yield "Per mm², whole image", _short(accepted / area), f"{area:.3g} mm², glass included"
    if hotspot:
        width, height = hotspot.width / NM_PER_MM, hotspot.height / NM_PER_MM
        left, upper = hotspot.left / NM_PER_MM, hotspot.top / NM_PER_MM
        yield "Hotspot", f"{hotspot.count:,}", f"in {hotspot.area_mm2:.3g} mm² ({width:.3f} × {height:.3f}\u00a0mm)"
        corner = "{:.0f}, {:.0f}\u00a0px".format(*hotspot.box_px(report.slide)[:2])
        yield "Per mm², hotspot", _short(hotspot.density), f"starts at {left:.3f}, {upper:.3f} mm ({corner})"
    else:
        yield "Hotspot", "none", "no mitotic figure was accepted"
    if report.atypical_system and accepted:
        atypical = report.found.class_names.count(ATYPICAL)
        low, high = wilson_interval(atypical, accepted)
        meaning = f"{atypical:,} of {accepted:,}; 95 % interval {100 * low:.0f} to {100 * high:.0f}\u00a0%"
        yield "Atypical", f"{100 * atypical / accepted:.0f} %", meaning


def _short(number: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{float(f'{number:.3g}'):,g}"


def _window_style(slide: Slide, hotspot: Hotspot | None) -> str:
    """Where the hotspot lies over any picture of the slide, as CSS; empty without one."""
    if not hotspot:
        return ""
    left, top, right, bottom = 100 * hotspot.box_px(slide) / np.tile(slide.size, 2)
    return f"left:{left:.3f}%;top:{top:.3f}%;width:{right - left:.3f}%;height:{bottom - top:.3f}%"


def _cards(report: _Report) -> Iterator[dict[str, object]]:
    """The candidates of the gallery; `number` from 0, as in the page's data."""
    from PIL import Image

    found = report.found[: len(report.crops)]
    for number, (crop, name) in enumerate(zip(report.crops, found.class_names, strict=True)):
        x, y = found.centres[number].tolist()
        yield {
            "number": number,
            "crop": _data_url(Image.fromarray(crop), "JPEG"),
            "verdict": "rejected" if name == REJECTED else "accepted",
            "probability": found.probabilities[number],
            "subtype": {ATYPICAL: "atypical", NORMAL: "normal"}.get(name),
            "atypical": found.atypical[number],
            "x": x,
            "y": y,
        }


def _data(report: _Report) -> dict[str, Any]:
    """What the page's script draws and counts, a list a column."""
    slide, found, hotspot = report.slide, report.found, report.hotspot
    (x, y), (x_mm, y_mm) = found.centres.T.round(1), found.points_mm.T.round(4)
    um_per_px = float(np.mean(slide.um_per_px))
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "xmm": x_mm.tolist(),
        "ymm": y_mm.tolist(),
        "p": found.probabilities.round(6).tolist(),
        "accepted": found.accepted.astype(int).tolist(),
        "hot": report.in_hotspot.astype(int).tolist(),
        "atypical": [None if np.isnan(value) else round(value, 3) for value in found.atypical.tolist()],
        "size": slide.size,
        "umPerPx": slide.um_per_px,
        "threshold": _threshold(found),
        "areaMm2": area_mm2(slide),
        "hotspot": hotspot and hotspot.box_px(slide).round(1).tolist(),
        "hotspotMm2": hotspot and hotspot.area_mm2,
        "radii": {"accepted": RADIUS_UM[FIGURE] / um_per_px, "rejected": RADIUS_UM[REJECTED] / um_per_px},
        "colours": {
            "accepted": COLOURS[FIGURE],
            "rejected": COLOURS[REJECTED],
            "atypical": COLOURS[ATYPICAL],
            "hotspot": HOTSPOT_COLOUR,
        },
    }


def _threshold(found: Detections) -> float:
    """The probability from which on candidates were accepted, as far as the result tells."""
    lowest = found.probabilities[found.accepted].min(initial=1.0)
    highest = found.probabilities[~found.accepted].max(initial=0.0)
    return OPERATING_POINT if highest < OPERATING_POINT <= lowest else float(lowest)


def _data_url(picture: "Image.Image", kind: str) -> str:
    buffer = io.BytesIO()
    if kind == "JPEG":
        picture.save(buffer, kind, quality=JPEG_QUALITY)
    else:
        picture.save(buffer, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
