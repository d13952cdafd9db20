"""Everything that is written about a Track 1 result: pictures, tables, and one page that shows them.

`report.html` needs no other file and no network, so that it can be sent and archived. What grows with the number of
candidates is bounded (crops) or compact (16 bytes or so a candidate), and of the slide only an overview and the crops
are read.
"""

import base64
import html
import io
import json
import string
from pathlib import Path

import numpy as np

from midog.report.density import COLOURS as DENSITY_COLOURS
from midog.report.density import KERNEL_MM, density_map, density_picture, paint, scale_top
from midog.report.export import (
    COLOURS,
    HOTSPOT_COLOUR,
    REJECTED,
    candidate_table,
    class_name,
    figures_csv,
    figures_geojson,
    write_file,
)
from midog.report.gallery import FIELD_UM, cut_crops, gallery
from midog.report.hotspot import NM_PER_MM, find_hotspot, places_nm
from midog.report.overlay import LONGEST_SIDE, RADIUS_UM, area_mm2, outside_warning, overlay

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
    "convention, where the centre of the first pixel is at 0.5.",
}
ATYPICAL_DEFINITION = (
    "Each accepted figure, cut as 32 µm at 0.25 µm/px, went through the system for Track 2. P(atypical) is calibrated "
    "for equal numbers of both classes. The interval (Wilson) knows the number of figures, not the errors of either "
    "system."
)


class _Page(string.Template):
    delimiter = "%%"


def write_report(slide, result, folder, title, warn, log, system=None, classify_figures=None):
    """Write overlay, gallery, density map, CSV, GeoJSON and the page.

    Args:
        slide: `midog.slide.Slide` that the result belongs to.
        result: Track 1's, already checked.
        folder: exists and can be written.
        title: the image's name.
        warn, log: called with one line each.
        system: what made the result, where that is known.
        classify_figures: `midog.atypical.classify_figures`, or None; its module needs PyTorch, the rest does not.

    Returns:
        The page's path.

    Raises:
        UserError: the slide's pixels cannot be decoded; the disk refuses a file.
    """
    table = candidate_table(slide, result)
    if warning := outside_warning(slide, table, title):
        warn(warning)
    places = places_nm(slide, table["place"])
    size = np.rint(np.array(slide.size) * slide.um_per_px * 1000).astype(np.int64)
    accepted = table["accepted"]
    hotspot = find_hotspot(places[accepted], size)
    if hotspot:
        table["in_hotspot"] = hotspot.holds(places)
    atypical_system = None
    if classify_figures:
        table["atypical"][accepted], atypical_system = classify_figures(slide, table["place"][accepted], warn, log)

    view = slide.overview(LONGEST_SIDE)
    density = density_map(places[accepted] / NM_PER_MM, size / NM_PER_MM)
    top = scale_top(density)
    painted = paint(density / top)
    crops = cut_crops(slide, table)
    um_per_px = slide.um_per_px[0] * slide.size[0] / view.shape[1]

    write_file(folder / "overlay.png", overlay(slide, view, table, hotspot, title))
    write_file(folder / "gallery.png", gallery(crops, table, title))
    write_file(folder / "density.png", density_picture(view, um_per_px, painted, top, title))
    write_file(folder / "figures.csv", figures_csv(table, bool(classify_figures)))
    write_file(folder / "figures.geojson", figures_geojson(slide, table, hotspot))
    page = _page(slide, view, table, hotspot, painted, top, crops, title, system, atypical_system)
    path = write_file(folder / "report.html", page)
    found = f"{hotspot.count} in {hotspot.area_mm2:.3g} mm2" if hotspot else "none"
    log(f"mitotic figures {accepted.sum()}, hotspot {found}")
    log(f"report {path}, with {', '.join(NAMES[:-1])} beside it")
    return path


def _page(slide, view, table, hotspot, painted, top, crops, title, system, atypical_system):
    from PIL import Image

    facts = [("Image", title), ("Size", "{} × {} px".format(*slide.size))]
    facts.append(("Resolution", "{:.4g} × {:.4g} µm/px".format(*slide.um_per_px)))
    facts += [("System", system)] * bool(system) + [("Subtypes", atypical_system)] * bool(atypical_system)
    definitions = DEFINITIONS | ({"Atypical": ATYPICAL_DEFINITION} if atypical_system else {})
    template = _Page((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title),
        facts="".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts),
        tiles="".join(_tile(*tile) for tile in _headline(slide, table, hotspot, atypical_system)),
        definitions="".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in definitions.items()),
        figure_label="normal mitotic figure" if atypical_system else "mitotic figure",
        width=view.shape[1],
        height=view.shape[0],
        overview=_data_url(Image.fromarray(view), "JPEG"),
        density=_data_url(painted, "PNG"),
        density_top=f"{top:g}",
        kernel_mm=f"{KERNEL_MM:g}",
        window=_window(slide, hotspot),
        density_gradient=", ".join(DENSITY_COLOURS),
        cards="".join(_card(number, crop, row) for number, (crop, row) in enumerate(zip(crops, table, strict=False))),
        not_shown=f"The {len(crops)} most probable of {len(table):,} candidates." if len(table) > len(crops) else "",
        field_um=f"{FIELD_UM:g}",
        data=json.dumps(_data(slide, table, hotspot), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _headline(slide, table, hotspot, atypical_system):
    """(name, number, what it means) of every figure on top of the page."""
    accepted, area = int(table["accepted"].sum()), area_mm2(slide)
    yield "Mitotic figures", f"{accepted:,}", f"accepted, of {len(table):,} candidates"
    yield "Per mm², whole image", _short(accepted / area), f"{area:.3g} mm², glass included"
    if hotspot:
        width, height = hotspot.width / NM_PER_MM, hotspot.height / NM_PER_MM
        left, upper = hotspot.left / NM_PER_MM, hotspot.top / NM_PER_MM
        yield "Hotspot", f"{hotspot.count:,}", f"in {hotspot.area_mm2:.3g} mm² ({width:.3f} × {height:.3f}\u00a0mm)"
        corner = "{:.0f}, {:.0f}\u00a0px".format(*hotspot.box_px(slide)[:2])
        yield "Per mm², hotspot", _short(hotspot.density), f"starts at {left:.3f}, {upper:.3f} mm ({corner})"
    else:
        yield "Hotspot", "none", "no mitotic figure was accepted"
    if atypical_system and accepted:
        from midog.atypical import wilson_interval

        atypical = int((table["atypical"] >= OPERATING_POINT).sum())
        low, high = wilson_interval(atypical, accepted)
        said = f"{atypical:,} of {accepted:,}; 95 % interval {100 * low:.0f} to {100 * high:.0f}\u00a0%"
        yield "Atypical", f"{100 * atypical / accepted:.0f} %", said


def _short(number):
    """Three significant digits, never an exponent."""
    return f"{float(f'{number:.3g}'):,g}"


def _window(slide, hotspot):
    """The hotspot as an element that lies over a picture of the slide."""
    if not hotspot:
        return ""
    left, top, right, bottom = 100 * hotspot.box_px(slide) / np.tile(slide.size, 2)
    place = f"left:{left:.3f}%;top:{top:.3f}%;width:{right - left:.3f}%;height:{bottom - top:.3f}%"
    return f'<div class="window" style="{place}"></div>'


def _tile(name, number, meaning):
    return f'<div class="tile"><h3>{name}</h3><p class="number">{number}</p><p>{meaning}</p></div>'


def _card(number, crop, row):
    """A candidate of the gallery; `number` from 0, as in the page's data."""
    from PIL import Image

    subtype = ""
    if not np.isnan(row["atypical"]):
        name = class_name(row).split()[0]
        subtype = f'<span class="subtype {name}">P(atypical) {row["atypical"]:.2f}</span>'
    x, y = row["place"]
    label = "rejected" if class_name(row) == REJECTED else "accepted"
    return (
        f'<figure class="card {label}" data-number="{number}" tabindex="0">'
        f'<img src="{_data_url(Image.fromarray(crop), "JPEG")}" alt="candidate {number + 1}" '
        'loading="lazy" decoding="async">'
        f'<figcaption><b>{number + 1}</b><span class="p">{row["probability"]:.3f}</span>{subtype}'
        f'<span class="verdict">{label}</span><span class="place">{x:.0f}, {y:.0f} px</span></figcaption></figure>\n'
    )


def _data(slide, table, hotspot):
    """What the page's script draws and counts, a list a column."""
    accepted, probability = table["accepted"], table["probability"]
    columns = {
        "x": table["place"][:, 0].round(1).tolist(),
        "y": table["place"][:, 1].round(1).tolist(),
        "xmm": table["place_mm"][:, 0].round(4).tolist(),
        "ymm": table["place_mm"][:, 1].round(4).tolist(),
        "p": probability.round(6).tolist(),
        "accepted": accepted.astype(int).tolist(),
        "hot": table["in_hotspot"].astype(int).tolist(),
        "atypical": [None if np.isnan(value) else round(float(value), 3) for value in table["atypical"]],
    }
    um_per_px = float(np.mean(slide.um_per_px))
    return columns | {
        "size": slide.size,
        "umPerPx": slide.um_per_px,
        "threshold": _threshold(table),
        "areaMm2": area_mm2(slide),
        "hotspot": hotspot and hotspot.box_px(slide).round(1).tolist(),
        "hotspotMm2": hotspot and hotspot.area_mm2,
        "radii": {"accepted": RADIUS_UM["mitotic figure"] / um_per_px, "rejected": RADIUS_UM[REJECTED] / um_per_px},
        "colours": {
            "accepted": COLOURS["mitotic figure"],
            "rejected": COLOURS[REJECTED],
            "atypical": COLOURS["atypical mitotic figure"],
            "hotspot": HOTSPOT_COLOUR,
        },
    }


def _threshold(table):
    """The probability from which on candidates were accepted, as far as the result tells."""
    accepted, probability = table["accepted"], table["probability"]
    lowest = probability[accepted].min(initial=1.0)
    highest = probability[~accepted].max(initial=0.0)
    return OPERATING_POINT if highest < OPERATING_POINT <= lowest else float(lowest)


def _data_url(picture, kind):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
