"""A region or slide in one picture, with its mitotic figures, the rejected candidates, and the hotspot."""

import math

import numpy as np

from midog.report.export import COLOURS, FIGURE, HOTSPOT_COLOUR, REJECTED

LONGEST_SIDE = 2000  # px of the slide in the picture
MARGIN = 8  # px
HEADER = 64  # px above the slide
GAP = 28  # px between the header's entries
MOST_LABELS = 60  # the probabilities of more figures would hide the tissue
BAR_SHARE = 0.15  # of the slide's width that the scale bar takes at most
RADIUS_UM = {FIGURE: 12.5, REJECTED: 8.0}
LEAST_RADIUS = {FIGURE: 6, REJECTED: 3}  # px


def overlay(slide, view, table, hotspot, title):
    """Draw a slide with its candidates.

    Args:
        slide: `midog.slide.Slide`; none of its pixels are read.
        view: its overview, uint8 (height, width, 3).
        table: `midog.report.export.CANDIDATE` (N,).
        hotspot: `midog.report.hotspot.Hotspot`, or None.
        title: one line on top.

    Returns:
        PIL image: the view below a header of `HEADER` px.
    """
    from PIL import Image

    view = Image.fromarray(view)
    scale = np.array(view.size) / slide.size  # px of the view a px of the slide
    um_per_px = slide.um_per_px / scale
    if hotspot:
        _draw_window(view, hotspot.box_px(slide) * np.tile(scale, 2))
    _draw_points(view, (table["place"] + 0.5) * scale - 0.5, table, um_per_px.mean())
    figures = int(table["accepted"].sum())
    bar, bar_label = scale_bar(view.width, um_per_px[0])
    entries = [  # what is drawn, its width in px, text
        (_ring_symbol(FIGURE), 20, f"mitotic figures: {figures}"),
        (_ring_symbol(REJECTED), 20, f"rejected candidates: {len(table) - figures}"),
        (None, 0, f"area: {area_mm2(slide):.3g} mm2"),
        (_bar_symbol(bar), bar + MARGIN, bar_label),
    ]
    if hotspot:
        entries.append((_window_symbol, 26, f"hotspot: {hotspot.count} in {hotspot.area_mm2:.3g} mm2"))
    return below_header(view, title, entries)


def area_mm2(slide):
    """Of the whole image, glass included."""
    return math.prod(side * step / 1000 for side, step in zip(slide.size, slide.um_per_px, strict=True))


def _draw_window(view, box):
    from PIL import ImageDraw

    draw = ImageDraw.Draw(view)
    left, top, right, bottom = np.rint(box).tolist()
    right, bottom = min(right, view.width) - 1, min(bottom, view.height) - 1
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=6)
    draw.rectangle((left, top, right, bottom), outline=HOTSPOT_COLOUR, width=4)


def _draw_points(view, centres, table, um_per_px):
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(view), ImageFont.load_default(14)
    radii = {name: max(RADIUS_UM[name] / um_per_px, LEAST_RADIUS[name]) for name in RADIUS_UM}
    for centre in centres[~table["accepted"]]:
        _ring(draw, centre, radii[REJECTED], REJECTED)
    figures = centres[table["accepted"]]
    for centre in figures:  # on top of the others
        _ring(draw, centre, radii[FIGURE], FIGURE)
    if len(figures) > MOST_LABELS:
        return
    reach = radii[FIGURE] + 4
    for (x, y), probability in zip(figures, table["probability"][table["accepted"]], strict=True):
        label = f"{probability:.2f}"
        fits = x + reach + font.getlength(label) < view.width
        place, anchor = ((x + reach, y), "lm") if fits else ((x - reach, y), "rm")
        draw.text(place, label, "black", font, anchor, stroke_width=2, stroke_fill=COLOURS[FIGURE])


def below_header(view, title, entries):
    """A picture below a title and a legend.

    Args:
        view: PIL image.
        title: one line.
        entries: of (draw(ImageDraw, left, middle) or None, its width in px, text).

    Returns:
        PIL image, `HEADER` px higher than the view, and wider where the header needs it.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, large = ImageFont.load_default(14), ImageFont.load_default(18)
    entries_width = sum(symbol_width + font.getlength(text) + GAP for _, symbol_width, text in entries) - GAP
    width = max(view.width, math.ceil(max(entries_width, large.getlength(title))) + 2 * MARGIN)
    picture = Image.new("RGB", (width, HEADER + view.height), "white")
    picture.paste(view, (0, HEADER))
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, "black", large)
    left, middle = MARGIN, HEADER - 18
    for symbol, symbol_width, text in entries:
        if symbol:
            symbol(draw, left, middle)
        draw.text((left + symbol_width, middle), text, "black", font, anchor="lm")
        left += symbol_width + font.getlength(text) + GAP
    return picture


def _ring_symbol(name):
    return lambda draw, left, middle: _ring(draw, (left + 7, middle), LEAST_RADIUS[name], name)


def _bar_symbol(length):
    return lambda draw, left, middle: draw.line((left, middle, left + length, middle), "black", 3)


def _window_symbol(draw, left, middle):
    draw.rectangle((left, middle - 7, left + 18, middle + 7), outline=HOTSPOT_COLOUR, width=3)


def _ring(draw, centre, radius, name):
    def circle(reach, colour, width):
        draw.ellipse((*(np.array(centre) - reach), *(np.array(centre) + reach)), outline=colour, width=width)

    if name == FIGURE:
        circle(radius + 1, "black", 4)  # an edge on either side, for tissue as light as the ring
    circle(radius, COLOURS[name], 2)


def scale_bar(width, um_per_px):
    """The longest bar of 1, 2 or 5 times a power of ten um that fits: its px, and its label.

    Args:
        width: px of the picture that it belongs to.
        um_per_px: of that picture.
    """
    most = BAR_SHARE * width * um_per_px
    power = 10.0 ** math.floor(math.log10(most))
    length = power * max(factor for factor in (1, 2, 5) if factor * power <= most)
    return length / um_per_px, f"{length:g} um" if length < 1000 else f"{length / 1000:g} mm"


def outside_warning(slide, table, title):
    """One line if points lie outside the image, or None."""
    reach = RADIUS_UM[FIGURE] / np.array(slide.um_per_px)  # a cell that the edge cuts may have its centre outside
    outside = ((table["place"] < -reach) | (table["place"] > slide.size + reach)).any(axis=1).sum()
    if not outside:
        return None
    return f"{title}: {outside} of {len(table)} points lie outside the image; is this result its own?"
