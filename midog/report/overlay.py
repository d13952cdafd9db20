"""A region or slide in one picture, with its mitotic figures and the candidates that were rejected."""

import math

import numpy as np

from midog.job import POINT_NAMES

LONGEST_SIDE = 2000  # px of the slide in the picture
MARGIN = 8  # px
HEADER = 64  # px above the slide
GAP = 28  # px between the header's entries
MOST_LABELS = 60  # the probabilities of more figures would hide the tissue
BAR_SHARE = 0.15  # of the slide's width that the scale bar takes at most
FIGURE, REJECTED = POINT_NAMES
# Yellow and blue are apart for every kind of colour vision; in grey, lightness and size tell them apart.
COLOURS = {FIGURE: "#ffe11a", REJECTED: "#1747c9"}
RADIUS_UM = {FIGURE: 12.5, REJECTED: 8.0}
LEAST_RADIUS = {FIGURE: 6, REJECTED: 3}  # px


def points_px(slide, result):
    """Where a Track 1 result lies on its slide.

    Args:
        slide: `midog.slide.Slide`.
        result: the platform's "Multiple points", in mm.

    Returns:
        float64 (N, 2), x and y in level-0 px, a pixel's centre at integers.
    """
    points_mm = np.array([point["point"][:2] for point in result["points"]], np.float64).reshape(-1, 2)
    return (points_mm - slide.origin_mm) / (np.array(slide.um_per_px) / 1000)


def overlay(slide, result, title):
    """Draw a slide with its result.

    Args:
        slide: `midog.slide.Slide`; only its overview is read, so that memory does not grow with it.
        result: Track 1's result.
        title: one line on top.

    Returns:
        PIL image: the slide, at most `LONGEST_SIDE` px long, below a header of `HEADER` px.

    Raises:
        UserError: the slide's pixels cannot be decoded.
    """
    from PIL import Image

    view = Image.fromarray(slide.overview(LONGEST_SIDE))
    scale = np.array(view.size) / slide.size  # px of the view a px of the slide
    um_per_px = slide.um_per_px / scale
    _draw_points(view, (points_px(slide, result) + 0.5) * scale - 0.5, result["points"], um_per_px.mean())
    figures = sum(point["name"] == FIGURE for point in result["points"])
    area = math.prod(side * step / 1000 for side, step in zip(slide.size, slide.um_per_px, strict=True))
    bar, bar_label = scale_bar(view.width, um_per_px[0])
    entries = [  # symbol, its width in px, text
        (FIGURE, 20, f"mitotic figures: {figures}"),
        (REJECTED, 20, f"rejected candidates: {len(result['points']) - figures}"),
        (None, 0, f"area: {area:.3g} mm2"),
        ("bar", bar + MARGIN, bar_label),
    ]
    return _below_header(view, title, entries)


def _draw_points(view, centres, points, um_per_px):
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(view), ImageFont.load_default(14)
    radii = {name: max(RADIUS_UM[name] / um_per_px, LEAST_RADIUS[name]) for name in POINT_NAMES}
    figures = []
    for centre, point in zip(centres, points, strict=True):
        if point["name"] == FIGURE:
            figures.append((centre, f"{point['probability']:.2f}"))
        else:
            _ring(draw, centre, radii[REJECTED], REJECTED)
    for centre, _ in figures:  # on top of the others
        _ring(draw, centre, radii[FIGURE], FIGURE)
    if len(figures) > MOST_LABELS:
        return
    reach = radii[FIGURE] + 4
    for (x, y), probability in figures:
        fits = x + reach + font.getlength(probability) < view.width
        place, anchor = ((x + reach, y), "lm") if fits else ((x - reach, y), "rm")
        draw.text(place, probability, "black", font, anchor, stroke_width=2, stroke_fill=COLOURS[FIGURE])


def _below_header(view, title, entries):
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
        if symbol in COLOURS:
            _ring(draw, (left + 7, middle), LEAST_RADIUS[symbol], symbol)
        elif symbol == "bar":
            draw.line((left, middle, left + symbol_width - MARGIN, middle), "black", 3)
        draw.text((left + symbol_width, middle), text, "black", font, anchor="lm")
        left += symbol_width + font.getlength(text) + GAP
    return picture


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


def write_overlay(slide, result, folder, title, warn):
    """Draw and write `overlay.png`; returns its path. `warn` is called with one line if the result does not fit."""
    places = points_px(slide, result)
    reach = RADIUS_UM[FIGURE] / np.array(slide.um_per_px)  # a cell that the edge cuts may have its centre outside
    outside = ((places < -reach) | (places > slide.size + reach)).any(axis=1).sum()
    if outside:
        warn(f"{title}: {outside} of {len(places)} points lie outside the image; is this result its own?")
    path = folder / "overlay.png"
    overlay(slide, result, title).save(path)
    return path
