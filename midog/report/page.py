"""Everything that is written about a Track 1 result: pictures, tables, and one page that shows them.

`report.html` needs no other file and no network, so that it can be sent and archived: the tiles of the places that
matter are in it. `midog view` serves the same page without them, and each tile when it is asked for. Where a reader
corrected the result, pictures and tables show what the reader left, and the page brings both, result and review.
"""

import base64
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midog import __version__
from midog.detections import ATYPICAL, COLOURS, FIGURE, REJECTED, UNSURE, Detections
from midog.files import write_file
from midog.images.resolution import ASSUMED
from midog.images.slide import Slide
from midog.images.tissue import TissueMask, tissue_mask
from midog.report.areas import Areas, whole
from midog.report.canvas import AREA_COLOUR, EXCLUDED_COLOUR, HOTSPOT_COLOUR, NOT_COUNTED, RING_COLOURS
from midog.report.counts import LEAST_FIGURES, Counts, count
from midog.report.density import CELLS, COLOUR_SCALE, density_picture, field_map
from midog.report.export import agreement_csv, candidates_geojson, counts_csv, figures_csv, figures_geojson
from midog.report.gallery import FIELD_UM, cut_crops, gallery
from midog.report.hotspot import NM_PER_MM, places_nm, size_nm
from midog.report.hotspot_picture import hotspot_picture
from midog.report.html import TEMPLATES, rendered
from midog.report.misclassification import Errors
from midog.report.overlay import LONGEST_SIDE, RADIUS_UM, outside_warning, overlay
from midog.report.page_counts import areas_data, protocols_data, tissue_data
from midog.report.protocols import FIELD_DIAMETER_MM, HOTSPOT
from midog.report.pyramid import TILE, embedded, levels
from midog.report.reliability import BINS, Reliability, is_calibrated, name_of, sentence
from midog.report.review import FORMAT, REVIEWED, Corrected, Review, apply, classify_others

logger = logging.getLogger(__name__)

SCRIPTS = (  # each needs those before it
    *("hotspot.js", "counts.js", "density.js", "state.js", "viewer.js", "saving.js", "reader.js"),
)
LEAFLET = files("js_lib_leaflet") / "static" / "js_lib_leaflet"
PIXEL_BYTES = 18_000_000  # of the JPEG in a page, where it takes a third more
GREY_SIDE = 1200  # px of the picture under the density map
OPERATING_POINT = 0.5  # of what is written to the platform
NAMES = (
    *("overlay.png", "gallery.png", "density.png", "counts.csv", "figures.csv", "figures.geojson"),
    *("candidates.geojson", "report.html"),
)
HOTSPOT_PICTURE = "hotspot.png"  # beside them, where there is a figure
DEFINITIONS = {
    "Mitotic figure": "A candidate that the system accepted, from the score on that it was calibrated for, or the "
    "reader. Rejected candidates are cells that its detector proposed and its classifier or the reader refused.",
    "Tissue": "What of the image is neither glass nor ink, with small holes in it, measured on an overview and "
    "outlined in overlay.png. It may hold tissue without tumour. Densities are per mm² of it.",
    "Hotspot": "The window of 2.37 mm² (4:3, 1.778 × 1.333 mm, lying or upright, sides along the image's) with the "
    "most mitotic figures: the largest count of all such windows, not only of those on a grid. Figures on its edge "
    "count. Where the image is smaller than the window, the window is as long as the image, and the table says that "
    "the area was not reached. It is found again after each correction, as all counts are. WHO 2021: the same with "
    "2 mm² (1.633 × 1.225 mm), per mm² of which newer volumes give their limits.",
    "Ten fields": "Round fields that do not overlap, the first with the most figures, each next one with the most that "
    "are left, the nearest to the first of equal ones. Their centres lie on a lattice of a sixteenth of a diameter.",
    "95 %": "Of a count: the exact Poisson interval (Garwood 1936), in which the expected number of figures of such an "
    "area lies. It knows the number, not the errors of system or reader, nor that the fullest place was chosen.",
    "Coordinates": "x to the right, y down; px of the full resolution with the centre of the first pixel at 0, and mm "
    "as in the result file. The hotspot's are counted from the image's upper left corner. GeoJSON files have QuPath's "
    "convention: the centre of the first pixel is at 0.5, and of slides that know their scanned area, its corner at 0.",
    "Review": "System: as the program left it. Reader: with the corrections made here, which change nothing in the "
    "result file. Confirmed are figures that the reader accepted one by one. What is not sure does not count.",
}
AREAS_DEFINITION = (
    "Figures count where an area was drawn, and not where it was excluded; those on an edge count. Others are shown "
    "with a thin ring. A window or field that is cut by an area has the area and the tissue of what is left of it."
)
PROBABILITY_DEFINITION = (
    "Of a candidate to be a mitotic figure, as the system gives it; on validation the share of figures was within "
    "5 percentage points of it, in every tenth."
)
SCORE_DEFINITION = (
    "The system's number for a candidate, from 0 to 1; from 0.5 on it is accepted. It orders candidates and is no "
    "probability. Where it is known, a cell says how many of the candidates with such a score were figures on the "
    "system's validation data, whose tissue and scanner may differ from yours."
)
ATYPICAL_DEFINITION = (
    "Each accepted figure, cut as 32 µm at 0.25 µm/px, went through the system for Track 2. P(atypical) is calibrated "
    "for equal numbers of both classes. The interval (Wilson) knows the number of figures, not the errors of either "
    f"system. Below {LEAST_FIGURES} figures no share is given: it would say next to nothing. "
)
CORRECTED_DEFINITION = (
    "Corrected is the share without the errors that Track 2's system makes on average in domains for which its "
    "operating point was not chosen (Rogan and Gladen 1978). The range goes from the lowest to the highest end of the "
    "interval, corrected by each domain's errors: it holds if this slide is like the one that the system knows least "
    "well. What a reader had a say in is taken as right. Sensitivity and specificity for atypical figures: "
)
UNKNOWN_DEFINITION = "How often Track 2's system errs is not known here, so that the share is not corrected for it."


@dataclass(frozen=True, eq=False)
class _Page:
    """What the page says.

    Attributes:
        found: the system's N candidates, best first, in px of the slide.
        tissue: of the slide; None before it was read.
        areas: to count in.
        field_diameter_mm: of a high-power field.
        reliability: what scores meant on validation.
        subtype_errors: of the system that told the subtypes.
        system, atypical_system: what found and what classified the figures, as far as known.
        notices: in red.
        image, result: what they were found on, by `identity` and name, and the sha256 of the result's file, or None.
        review: as the page's script takes it: `start`, a review to begin with; `url` and `revision` where it is saved.
        pixels: JPEG tiles by "level/x/y", or None where they are served.
        not_sharp: of how many candidates the page has no pixels of the full resolution.
    """

    slide: Slide
    title: str
    found: Detections
    tissue: TissueMask | None
    areas: Areas
    field_diameter_mm: float
    reliability: Reliability
    subtype_errors: Errors
    system: str | None
    atypical_system: str | None
    notices: Sequence[str]
    image: dict[str, Any] | None
    result: str | None
    review: dict[str, Any]
    pixels: dict[str, bytes] | None
    not_sharp: int = 0


def write_report(
    slide: Slide,
    found: Detections,
    folder: Path,
    title: str,
    system: str | None = None,
    classify_figures: Callable[[Slide, Detections], tuple[Detections, str]] | None = None,
    notices: Sequence[str] = (),
    review: Review | None = None,
    identity: dict[str, Any] | None = None,
    result_sha256: str | None = None,
    areas: Areas | None = None,
    field_diameter_mm: float = FIELD_DIAMETER_MM,
    reliability: Reliability = (),
    subtype_errors: Errors = (),
) -> Counts:
    """Write overlay, gallery, density map, hotspot, CSV, GeoJSON and the page.

    Args:
        slide: what the candidates were found on.
        found: in any order.
        folder: exists and can be written.
        title: the image's name.
        system: what made the result, where that is known.
        classify_figures: gives P(atypical) to the accepted ones and names its system; or None.
        notices: what limits the result, for the page, a line each.
        review: a reader's corrections, of the candidates best first; or None.
        identity: `midog.about.identity` of the image, by which a review of the page knows it; None: not known.
        result_sha256: of the result's file, likewise.
        areas: to count in; None: the whole image.
        field_diameter_mm: of a high-power field.
        reliability: what the system's scores meant on validation.
        subtype_errors: of the system that told the subtypes.

    Returns:
        What was counted, as corrected.

    Raises:
        UserError: the slide's pixels cannot be decoded; the disk refuses a file.
    """
    found = found.on_grid(slide.um_per_px, slide.origin_mm).best_first()
    if warning := outside_warning(slide, found, title):
        logger.warning(warning)
    corrected = apply(slide, found, review, areas) if review else None
    final, atypical_system = corrected.found if corrected else found, None
    if classify_figures:
        classify = classify_others(classify_figures) if corrected else classify_figures
        final, atypical_system = classify(slide, final)
    view = slide.overview(LONGEST_SIDE)
    tissue = tissue_mask(slide, view)
    reviewed = corrected.reviewed if corrected else None
    counts = count(slide, final, tissue, areas, field_diameter_mm, subtype_errors, reviewed)
    places, size = places_nm(slide, final.centres), size_nm(slide)
    hotspot = counts.of(HOTSPOT).box
    in_hotspot = hotspot.holds(places) & counts.counted if hotspot else np.zeros(len(final), bool)

    field = field_map(places[final.accepted & counts.counted] / NM_PER_MM, size / NM_PER_MM, field_diameter_mm)
    um_per_px = slide.um_per_px[0] * slide.size[0] / view.shape[1]
    with_atypical = bool(classify_figures) or not np.isnan(final.atypical).all()
    in_areas = counts.counted if areas else None
    table = figures_csv(final, in_hotspot, with_atypical, slide.resolution, corrected, in_areas, reliability)
    heading = title + f", {slide.resolution}" * (slide.resolution.source == ASSUMED)
    density = density_picture(view, um_per_px, field, field_diameter_mm, heading, tissue.mask)
    cards = gallery(cut_crops(slide, final), final, heading, counts.counted, corrected, reliability)
    overview = overlay(slide, view, final, hotspot, heading, tissue, counts, areas, corrected)
    write_file(folder / "overlay.png", overview)
    write_file(folder / "gallery.png", cards)
    write_file(folder / "density.png", density)
    if hotspot:
        picture = hotspot_picture(slide, final, hotspot, heading, counts.counted, corrected)
        write_file(folder / HOTSPOT_PICTURE, picture)
    else:
        (folder / HOTSPOT_PICTURE).unlink(missing_ok=True)  # of an earlier report
    write_file(folder / "counts.csv", counts_csv(counts, slide))
    write_file(folder / "figures.csv", table)
    write_file(folder / "figures.geojson", figures_geojson(slide, final, hotspot, corrected))
    write_file(folder / "candidates.geojson", candidates_geojson(slide, final, corrected))
    if corrected:
        write_file(folder / "agreement.csv", agreement_csv(corrected.agreement))
        logger.info("agreement: %s", corrected.agreement)

    image = {"name": title, "bytes": identity["bytes"], "sha256": identity["sha256"]} if identity else None
    start = _start(final, corrected, found.accepted, image, result_sha256) if corrected else None
    asked = final.atypical if not corrected else np.where(corrected.by_reader, np.nan, final.atypical)
    shown = replace(found, atypical=asked[: len(found)].astype(np.float32))
    pixels, not_sharp = embedded(slide, hotspot, final.centres, final.accepted, PIXEL_BYTES)
    counting = tissue, areas or whole(size), field_diameter_mm, reliability, subtype_errors
    known = *counting, system, atypical_system, notices, image, result_sha256
    page = _Page(slide, title, shown, *known, {"start": start}, pixels, not_sharp)
    path = write_file(folder / "report.html", _render(page))
    most = f"{hotspot.count} in {counts.of(HOTSPOT).area_mm2:.3g} mm2" if hotspot else "none"
    of_tissue = f"{counts.tissue_mm2:.3g} of {counts.image_mm2:.3g} mm2"
    logger.info("mitotic figures %d, hotspot %s, tissue %s", final.accepted.sum(), most, of_tissue)
    beside = [*NAMES[:-1], *[HOTSPOT_PICTURE] * bool(hotspot), *["agreement.csv"] * bool(corrected)]
    logger.info("report %s, with %s beside it", path, ", ".join(beside))
    return counts


def view_page(
    slide: Slide,
    found: Detections,
    title: str,
    system: str | None,
    notices: Sequence[str],
    reliability: Reliability,
    identity: dict[str, Any] | None,
    result_sha256: str | None,
    review: dict[str, Any],
) -> str:
    """The page for `midog view`, without pixels; it asks for the tissue, `page_counts.measured_json`.

    Args:
        slide: what the candidates were found on; none of its pixels are read.
        found: best first, in px of the slide.
        title: the image's name.
        system: what made the result, where that is known.
        notices: what limits the result, a line each.
        reliability: what the system's scores meant on validation.
        identity: `name`, `bytes` and `sha256` of the image, or None.
        result_sha256: of the result's file, or None.
        review: `url` where the review is saved, its `revision`, and `start`, the review's GeoJSON or None.

    Returns:
        HTML.
    """
    counting = None, whole(size_nm(slide)), FIELD_DIAMETER_MM, reliability, ()
    known = *counting, system, None, notices, identity, result_sha256
    return _render(_Page(slide, title, found, *known, review, None))


def _start(
    final: Detections,
    corrected: Corrected,
    accepted: NDArray[np.bool_],
    image: dict[str, Any] | None,
    result: str | None,
) -> dict[str, Any]:
    """What a reader left of a result as the page's script reads it, without what only other readers need.

    Args:
        final: N, with subtypes where they are known.
        corrected: of which they are.
        accepted: bool, which of them the system had accepted; those that the reader added are behind.
        image, result: of `_Page`.
    """
    said = final.accepted | corrected.reviewed
    said[: len(accepted)] |= accepted
    names, numbers, origins = corrected.names_of(final), corrected.numbers, corrected.origins
    places = (final.centres + 0.5).tolist()
    features = [
        {
            "geometry": {"type": "Point", "coordinates": places[row]},
            "properties": {
                "name": numbers[row],
                "classification": {"name": names[row]},
                "metadata": {"origin": origins[row], "note": corrected.notes[row]}
                | ({"reviewed": REVIEWED} if corrected.reviewed[row] else {}),
            },
        }
        for row in np.flatnonzero(said).tolist()
    ]
    head = {"format": FORMAT, "program": __version__, "image": image, "result": result, "counted_from_px": [0, 0]}
    return {"type": "FeatureCollection", "midog_review": head, "features": features}


def _render(page: _Page) -> str:
    from markupsafe import Markup

    scripts = [LEAFLET / "leaflet.js", *(TEMPLATES / name for name in SCRIPTS)]
    pixels, size, resolution = page.pixels, page.slide.size, page.slide.resolution
    lost = f"{page.not_sharp:,} of {len(page.found):,} are coarse here, as the page would be too large: "
    return rendered(
        "report.html",
        title=page.title,
        served=pixels is None,
        leaflet_css=Markup((LEAFLET / "leaflet.css").read_text("utf-8")),
        scripts=[Markup(script.read_text("utf-8")) for script in scripts],
        notices=page.notices,
        facts=_facts(page),
        score_name=name_of(page.reliability),
        with_areas=not page.areas.is_whole,
        resolution="{:.4g} × {:.4g} µm/px, ".format(*page.slide.um_per_px) + resolution.source,
        is_assumed=resolution.source == ASSUMED,
        definitions=_definitions(page),
        size=size,
        grey_size=[max(1, round(side * min(1, GREY_SIDE / max(size)))) for side in size],
        hotspot_colour=HOTSPOT_COLOUR,
        density_colours=COLOUR_SCALE,
        field=_field(page.field_diameter_mm),
        field_um=f"{FIELD_UM:g}",
        not_sharp=f"{lost}midog view shows them down to the cell." if page.not_sharp else "",
        data=_data(page),
        pixels=None if pixels is None else {key: base64.b64encode(tile).decode() for key, tile in pixels.items()},
    )


def _definitions(page: _Page) -> dict[str, str]:
    name = name_of(page.reliability)
    is_probability = is_calibrated(page.reliability)
    more = {
        name: PROBABILITY_DEFINITION if is_probability else SCORE_DEFINITION,
        "Density map": f"How many mitotic figures {_field(page.field_diameter_mm)} around each place has; glass is not "
        "painted.",
    }
    if not page.areas.is_whole:
        more["Areas"] = AREAS_DEFINITION
    if page.atypical_system or not np.isnan(page.found.atypical).all():
        by_domain = (f"{name} {100 * hits:.0f} and {100 * rest:.0f} %" for name, hits, rest in page.subtype_errors)
        said = f"{CORRECTED_DEFINITION}{', '.join(by_domain)}." if page.subtype_errors else UNKNOWN_DEFINITION
        more["Atypical"] = ATYPICAL_DEFINITION + said
    return DEFINITIONS | more


def _field(diameter_mm: float) -> str:
    return f"a round field of {diameter_mm:g} mm ({math.pi * diameter_mm**2 / 4:.3g} mm²)"


def _facts(page: _Page) -> Iterator[tuple[str, str]]:
    """What the page is about, by name."""
    yield "Image", page.title
    yield "Size", "{} × {} px, {:.3g} mm²".format(*page.slide.size, math.prod(size_nm(page.slide) / NM_PER_MM))
    yield "Tissue", f"{page.tissue.area_mm2:.3g} mm²" if page.tissue else "being measured"
    if not page.areas.is_whole:
        yield "Counted in", f"{page.areas.area_mm2:.3g} mm²"
    (x, y), resolution = page.slide.um_per_px, page.slide.resolution
    where = f", {resolution.where}" * bool(resolution.where)
    yield "Resolution", f"{x:.4g} × {y:.4g} µm/px, {resolution.source}{where}"
    if page.system:
        yield "System", page.system
    if page.atypical_system:
        yield "Subtypes", page.atypical_system


def _data(page: _Page) -> dict[str, Any]:
    """What the page's scripts draw and count, a list a column, full precision."""
    slide, found = page.slide, page.found
    x, y = found.centres.T
    um_per_px = float(np.mean(slide.um_per_px))
    columns = {
        "x": x.tolist(),
        "y": y.tolist(),
        "p": found.probabilities.tolist(),
        "accepted": found.accepted.astype(int).tolist(),
        "atypical": [None if np.isnan(value) else round(value, 6) for value in found.atypical.tolist()],
    }
    start = None if page.pixels is None else page.review["start"]  # where it is served, that changes as it is saved
    content = json.dumps([columns, page.image, page.result, start])
    return {
        "image": page.image,
        "result": page.result,
        "review": page.review,
        "key": hashlib.sha256(content.encode()).hexdigest(),  # by which the browser finds what it kept of this page
        "program": __version__,
        **columns,
        "size": slide.size,
        "umPerPx": slide.um_per_px,
        "originMm": slide.origin_mm,
        "corner": [int(side) for side in slide.corner_px],
        "threshold": _threshold(found),
        "protocols": protocols_data(slide, page.tissue, page.areas, page.field_diameter_mm),
        "areas": areas_data(page.areas),
        "tissue": page.tissue and tissue_data(page.tissue, page.areas),
        "tissueUrl": "tissue" if page.pixels is None else None,
        "leastFigures": LEAST_FIGURES,
        "subtypeErrors": page.subtype_errors,
        "scoreName": name_of(page.reliability),
        "sentences": [sentence(page.reliability, (tenth + 0.5) / BINS) for tenth in range(BINS)],
        "radii": {"accepted": RADIUS_UM[FIGURE] / um_per_px, "rejected": RADIUS_UM[REJECTED] / um_per_px},
        "colours": {
            "accepted": COLOURS[FIGURE],
            "rejected": COLOURS[REJECTED],
            "refused": COLOURS[REJECTED],
            "outside": RING_COLOURS[NOT_COUNTED],
            "unsure": COLOURS[UNSURE],
            "atypical": COLOURS[ATYPICAL],
            "hotspot": HOTSPOT_COLOUR,
            "area": AREA_COLOUR,
            "excluded": EXCLUDED_COLOUR,
        },
        "density": {"diameterMm": page.field_diameter_mm, "cells": CELLS, "colours": COLOUR_SCALE},
        "tiles": {
            "size": TILE,
            "levels": levels(slide.size),
            "urls": "tile/{z}/{x}/{y}" if page.pixels is None else None,
        },
    }


def _threshold(found: Detections) -> float:
    """The score from which on candidates were accepted, as far as the result tells."""
    lowest = found.probabilities[found.accepted].min(initial=1.0)
    highest = found.probabilities[~found.accepted].max(initial=0.0)
    return OPERATING_POINT if highest < OPERATING_POINT <= lowest else float(lowest)
