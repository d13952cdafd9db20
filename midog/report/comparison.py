"""Several results of one image beside each other: who found what, how far they agree, and where they do not."""

import base64
import io
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.detections import Detections
from midog.errors import UserError, one_line
from midog.files import read_json, write_file
from midog.images.folder import identity_of
from midog.images.resolution import ASSUMED_UM_PER_PX, GIVEN, Resolution, format_spacing
from midog.images.slide import Slide, open_slide
from midog.images.tissue import tissue_mask
from midog.job import POINT_NAMES, check_detection_result
from midog.report.agreement import Overlap, Places, Result, overlaps, overlaps_csv, places_of
from midog.report.binding import bind
from midog.report.comparison_picture import AGREED, ALONE, FIELD_UM, comparison_picture
from midog.report.counts import Counts, count
from midog.report.draw import notices
from midog.report.export import RESOLUTION, csv_text, resolution_cells
from midog.report.gallery import FIELD_UM as CROP_UM
from midog.report.gallery import cut_crops
from midog.report.html import rendered
from midog.report.overlay import LONGEST_SIDE
from midog.report.review import FIGURES, MATCH_UM, read_review

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

READER = "reader"
REMEDY = "give each result's mitotic-figures.json, or a reader's reviewed.geojson"
OVERVIEW = 1200  # px, the longest side of the page's map
MAX_ROWS = 400  # of the page; the table has all
SOME = "#ffe11a"  # between the picture's colours
JPEG_QUALITY = 88


def compare(
    image: Path,
    results: Sequence[Path],
    out: Path,
    mpp: float | None = None,
    any_image: bool = False,
    model: str | None = None,
) -> Path:
    """Write comparison.html, comparison.png, comparison.csv and pairs.csv.

    Args:
        image: what the results were made from.
        results: Track 1's JSON each, or a reader's GeoJSON as `midog.report.review` reads it.
        out: folder; exists and can be written.
        mpp: um per pixel as given now, or None.
        any_image: whether results of another image are a doubt and not an error.
        model: folder of the systems' folders, or None.

    Returns:
        The page's path.

    Raises:
        UserError: the image or a result cannot be read, or they do not belong together; the disk refuses a file.
    """
    twice = [path for path, times in Counter(path.resolve() for path in results).items() if times > 1]
    if twice:
        raise UserError(f"{twice[0]}: given twice; give each result once")
    bound = {path: bind(path, image, mpp, any_image, model) for path in results if not is_review(path)}
    contents = {path: _read_result(path) for path in bound}
    known = next((each.resolution for each in bound.values() if each.resolution), None)
    if known is None and mpp is not None:
        known = Resolution((mpp, mpp), GIVEN, "--mpp")
    default = next((each.default_um_per_px for each in bound.values()), ASSUMED_UM_PER_PX)
    with open_slide(image, known.um_per_px[0] if known else None, default) as slide:
        if known:
            slide.um_per_px, slide.resolution = known.um_per_px, known
        title = image.name or image.resolve().name
        read, doubts = [], []
        for path in results:
            if path not in bound:
                read.append(_of_reader(path, slide, image, any_image))
                continue
            made_with = bound[path].resolution or slide.resolution
            found = Detections.from_json(contents[path], made_with.in_file or made_with.um_per_px, slide.origin_mm)
            found = replace(found, um_per_px=slide.um_per_px).best_first()
            made_by = bound[path].system or ""
            name = made_by.partition(",")[0] or path.stem
            read.append(Result(name, path, made_by, found, found.class_names, found.probabilities))
            doubts += [f"{path}: {doubt}" for doubt in bound[path].doubts]
            if made_with.um_per_px != slide.um_per_px:
                spacings = format_spacing(made_with.um_per_px), format_spacing(slide.um_per_px)
                doubts.append("{}: made with {} um/px, and shown with {}.".format(path, *spacings))
        read = _numbered(read)
        return _write(slide, title, read, notices(doubts, slide.resolution), out)


def is_review(path: Path) -> bool:
    """Whether a file is a reader's, by its name."""
    return path.suffix.lower() == ".geojson"


def _read_result(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path, REMEDY)
    try:
        check_detection_result(content)
    except ValueError as error:
        raise UserError(one_line(f"{path}: not a result of Track 1 ({error}); {REMEDY}")) from None
    return content


def _of_reader(path: Path, slide: Slide, image: Path, any_image: bool) -> Result:
    """The points that the file has, whichever result it corrects: what a reader deleted is no candidate of theirs."""
    none = Detections.of([], [], slide.um_per_px, slide.origin_mm)
    review = read_review(path, slide, none, identity_of(image), any_image=any_image)
    accepted = np.isin(review.names, FIGURES)
    boxes = np.tile(review.points, 2)
    found = Detections.of(boxes, accepted.astype(float), slide.um_per_px, slide.origin_mm, accepted=accepted)
    return Result(READER, path, "", found, review.names, np.full(len(found), np.nan))


def _numbered(results: Sequence[Result]) -> list[Result]:
    """Those of one name numbered in their order."""
    times, seen, numbered = Counter(each.name for each in results), Counter[str](), []
    for each in results:
        seen[each.name] += 1
        name = f"{each.name} {seen[each.name]}" if times[each.name] > 1 else each.name
        numbered.append(replace(each, name=name))
    return numbered


def _write(slide: Slide, title: str, results: Sequence[Result], said: Sequence[str], out: Path) -> Path:
    view = slide.overview(LONGEST_SIDE)
    tissue = tissue_mask(slide, view)
    counts = [count(slide, each.found, tissue) for each in results]
    places = places_of(results, slide.um_per_px)
    agreed = overlaps([each.name for each in results], places.figures)
    picture = comparison_picture(slide, results, places, title)
    page = _render(slide, title, results, places, agreed, counts, view, picture, said)
    write_file(out / "comparison.png", picture)
    write_file(out / "comparison.csv", comparison_csv(slide, results, places))
    write_file(out / "pairs.csv", overlaps_csv(agreed))
    path = write_file(out / "comparison.html", page)
    for each in agreed:
        logger.info("%s: %d places, of which %d in common", ", ".join(each.names), each.places, each.common)
    logger.info("comparison %s, with comparison.png, comparison.csv, pairs.csv beside it", path)
    return path


def comparison_csv(slide: Slide, results: Sequence[Result], places: Places) -> str:
    """CSV text, a row a place: where it is, how many have it, and of each result class and score, empty without."""
    columns = ["place", "x_px", "y_px", "x_mm", "y_mm", "found_by"]
    columns += [f"{each.name} {kind}" for each in results for kind in ("class", "score")]
    where = np.column_stack([places.centres, slide.points_mm(places.centres)]).tolist()
    taken = resolution_cells(slide.resolution)
    rows = [
        [
            str(number + 1),
            *(f"{side:.2f}" for side in where[number][:2]),
            *(f"{side:.6f}" for side in where[number][2:]),
            str(places.found_by[number]),
            *(text for result, row in zip(results, chosen, strict=True) for text in _class_and_score(result, row)),
            *taken,
        ]
        for number, chosen in enumerate(places.rows.tolist())
    ]
    return csv_text([*columns, *RESOLUTION], rows)


def _class_and_score(result: Result, row: int) -> tuple[str, str]:
    """Of a candidate, as text; empty where there is none."""
    if row < 0:
        return "", ""
    return result.names[row], "" if np.isnan(result.scores[row]) else f"{result.scores[row]:.6f}"


def _render(
    slide: Slide,
    title: str,
    results: Sequence[Result],
    places: Places,
    agreed: Sequence[Overlap],
    counts: Sequence[Counts],
    view: NDArray[np.uint8],
    picture: "Image.Image",
    said: Sequence[str],
) -> str:
    from PIL import Image

    overview = Image.fromarray(view)
    overview.thumbnail((OVERVIEW, OVERVIEW))
    return rendered(
        "comparison.html",
        title=title,
        notices=said,
        size=slide.size,
        resolution="{:.4g} × {:.4g} µm/px, ".format(*slide.um_per_px) + slide.resolution.source,
        image_mm2=f"{counts[0].image_mm2:.3g}",
        tissue_mm2=f"{counts[0].tissue_mm2:.3g}",
        results=list(_summaries(results, places, counts)),
        agreed=list(_spoken(agreed)),
        match_um=f"{MATCH_UM:g}",
        fields_um=f"{FIELD_UM:g}",
        crop_um=f"{CROP_UM:g}",
        picture=_jpeg(picture),
        overview=_jpeg(overview),
        radius=max(slide.size) / 110,
        places=list(_rows(slide, results, places)),
        left_out=max(len(places) - MAX_ROWS, 0),
        total=len(places),
        disputed=int(places.disputed.sum()),
        colours={"agreed": AGREED, "some": SOME, "alone": ALONE},
    )


def _jpeg(picture: "Image.Image") -> str:
    """As base64."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _summaries(results: Sequence[Result], places: Places, counts: Sequence[Counts]) -> Iterator[dict[str, Any]]:
    """A row a result of the page's first table."""
    for column, (result, counted) in enumerate(zip(results, counts, strict=True)):
        whole, hotspot = counted.of("whole"), counted.of("hotspot")
        yield {
            "name": result.name,
            "made_by": result.made_by or ("" if is_review(result.path) else "system not known"),
            "path": str(result.path),
            "figures": whole.figures,
            "interval": "{:.0f} to {:.0f}".format(*whole.interval),
            "per_mm2": "–" if whole.per_mm2_tissue is None else f"{whole.per_mm2_tissue:.3g}",
            "hotspot": hotspot.figures,
            "hotspot_area": f"{hotspot.area_mm2:.3g}",
            "alone": int((places.figures[:, column] & (places.found_by == 1)).sum()),
            "missed": int((~places.figures[:, column]).sum()),
        }


def _spoken(agreed: Sequence[Overlap]) -> Iterator[dict[str, Any]]:
    """A row each of the page's second table."""
    for each in agreed:
        pair = len(each.names) == 2
        yield {
            "name": " and ".join(each.names) if pair else f"all {len(each.names)}",
            "common": each.common,
            "first": each.figures[0] - each.common if pair else "–",
            "second": each.figures[1] - each.common if pair else "–",
            "places": each.places,
            "share": _percent(each.share),
            "dice": _percent(each.dice),
        }


def _percent(share: tuple[float, float, float] | None) -> str:
    return "–" if share is None else "{:.0f} % ({:.0f} to {:.0f})".format(*(100 * part for part in share))


def _rows(slide: Slide, results: Sequence[Result], places: Places) -> Iterator[dict[str, Any]]:
    """A row each of the page's places, the first `MAX_ROWS`."""
    from PIL import Image

    shown = places.centres[:MAX_ROWS]
    crops = cut_crops(slide, Detections.of(np.tile(shown, 2), np.ones(len(shown)), slide.um_per_px))
    for number, crop in enumerate(crops):
        x, y = places.centres[number].tolist()
        has = places.figures[number].tolist()
        yield {
            "number": number + 1,
            "x": x,
            "y": y,
            "crop": _jpeg(Image.fromarray(crop)),
            "kind": "agreed" if all(has) else "alone" if sum(has) == 1 else "some",
            "found_by": sum(has),
            "has": " ".join(str(column) for column, figure in enumerate(has) if figure),
            "said": [_say(result, row) for result, row in zip(results, places.rows[number].tolist(), strict=True)],
        }


def _say(result: Result, row: int) -> tuple[str, str]:
    """What the page says of a result's candidate, or of none, and what kind of it that is."""
    if row < 0:
        return "none", "none"
    name, score = result.names[row], result.scores[row]
    text = name if np.isnan(score) else f"{score:.3f}" + f" {name}" * (name not in POINT_NAMES)
    return text, "figure" if result.found.accepted[row] else "refused"
