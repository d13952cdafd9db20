"""What the pictures are drawn with: header and legend, scale bar, rings, and one set of fonts and colours."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.detections import COLOURS, FIGURE, REJECTED, UNSURE

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

HOTSPOT_COLOUR = "#00a878"
TISSUE_COLOUR = "#111827"
AREA_COLOUR = "#00b4d8"
EXCLUDED_COLOUR = "#dc2626"
NOT_COUNTED = "not counted"  # a figure where it is not counted
SOFT = "#555555"  # of text that explains
DOUBT = "#b91c1c"  # of text that limits what a result means
SMALL_FONT, TEXT_FONT, TITLE_FONT = 12, 14, 18  # px
MARGIN = 8  # px
HEADER = 64  # px above the view
MIN_RADIUS = {FIGURE: 6, REJECTED: 3, UNSURE: 6, NOT_COUNTED: 6}  # px of a ring, however small the slide is drawn
RING_COLOURS = COLOURS | {NOT_COUNTED: "#cbd5e1"}
LEGEND_MIDDLE = HEADER - 18  # px from the top
GAP = 22  # px between the legend's entries
BAR_FRACTION = 0.15  # of the view's width that the scale bar takes at most


class LegendEntry(NamedTuple):
    """Something in a legend.

    Attributes:
        text: what it means.
        width: px that the symbol takes.
        symbol: draws it: (ImageDraw, left, middle), px; or None.
    """

    text: str
    width: float = 0
    symbol: "Callable[[ImageDraw.ImageDraw, float, float], object] | None" = None


def below_header(view: "Image.Image", title: str, legend: Sequence[LegendEntry]) -> "Image.Image":
    """A picture below a title and a legend, each one line.

    Returns:
        RGB, `HEADER` px higher than the view, and wider where the header needs it.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, large = ImageFont.load_default(TEXT_FONT), ImageFont.load_default(TITLE_FONT)
    legend_width = sum(entry.width + font.getlength(entry.text) + GAP for entry in legend) - GAP
    width = max(view.width, math.ceil(max(legend_width, large.getlength(title))) + 2 * MARGIN)
    picture = Image.new("RGB", (width, HEADER + view.height), "white")
    picture.paste(view, (0, HEADER))
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, "black", large)
    left: float = MARGIN
    for entry in legend:
        if entry.symbol:
            entry.symbol(draw, left, LEGEND_MIDDLE)
        draw.text((left + entry.width, LEGEND_MIDDLE), entry.text, "black", font, anchor="lm")
        left += entry.width + font.getlength(entry.text) + GAP
    return picture


def scale_bar(width: int, um_per_px: float) -> tuple[float, str]:
    """The longest bar of 1, 2 or 5 times a power of ten um that fits: its px, and its label.

    Args:
        width: px of the view that it belongs to.
        um_per_px: of that view.
    """
    longest = BAR_FRACTION * width * um_per_px
    power = 10.0 ** math.floor(math.log10(longest))
    length = power * max(factor for factor in (1, 2, 5) if factor * power <= longest)
    return length / um_per_px, f"{length:g} um" if length < 1000 else f"{length / 1000:g} mm"


def scale_bar_entry(width: int, um_per_px: float) -> LegendEntry:
    """`scale_bar` as it stands in a legend."""
    length, label = scale_bar(width, um_per_px)
    return LegendEntry(
        label,
        length + MARGIN,
        lambda draw, left, middle: draw.line((left, middle, left + length, middle), "black", 3),
    )


def enlarged(mask: NDArray[np.bool_], size: tuple[int, int]) -> "Image.Image":
    """A mask, bool (rows, columns), as "L" of another size (width, height), whose edges have no steps."""
    from PIL import Image

    levels = Image.fromarray(mask).convert("L").resize(size, Image.Resampling.BICUBIC)
    return levels.point(lambda level: 255 * (level >= 128))


def ring(draw: "ImageDraw.ImageDraw", centre: ArrayLike, radius: float, name: str) -> None:
    """A candidate's ring: px (2,) and px; `name` is a key of `RING_COLOURS`."""
    x, y = np.asarray(centre, np.float64).tolist()

    def circle(reach: float, colour: str, width: int) -> None:
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour, width=width)

    if name in (FIGURE, NOT_COUNTED):
        circle(radius + 1, "black", 4)  # an edge on either side, for tissue as light as the ring
    circle(radius, RING_COLOURS[name], 2)


def ring_entry(text: str, name: str) -> LegendEntry:
    """A ring as it stands in a legend."""
    return LegendEntry(text, 20, lambda draw, left, middle: ring(draw, (left + 7, middle), MIN_RADIUS[name], name))
