"""Training tiles for the detectors: drawn at random from labelled fields and from crops of figures.

A tile is one resampling of its field: place, rotation, flips and scale are one
affine map. Parts of crops, with their figure or without, are pasted into windows
of the fields as discs with a soft edge, so that neither a seam nor another
laboratory's stain is a sign of a figure.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import cv2
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import ArrayLike, NDArray
from torchvision.transforms import v2

from midog.system import Fraction, NotNegative
from resources.data.fields import Field
from resources.train.kit.recipes import Degrees, Strict
from resources.train.kit.sampler import Sample, area_fractions

Tile = tuple[torch.Tensor, torch.Tensor]

BOX_UM = 12.5  # MIDOG's boxes: 50 px squares at .25 um/px
WHITE = (255, 255, 255)
PATCH = 64  # px from the middle to the edge of what is pasted
PASTED_RADIUS = 28, 56  # px of the disc
FIGURE_RADIUS = 18  # px
MAX_PASTED = 5  # in a tile
PASTED_FROM_CROPS = 0.75  # fraction; the rest is cut from fields, without a figure
PASTED_FIGURES = 0.65  # fraction of discs with a figure among those from crops
OTHER_CELL_RADIUS = 28  # px of a disc that leaves a crop's figure out
DARKEST_OF = 6  # places that are drawn; nuclei teach more than stroma does
MAX_TRIES = 20  # of finding a place without a figure; fields can be smaller than that
GLASS = 225  # lightness from which a pixel is none of tissue
MIN_TISSUE = 100  # pixels, every fourth both ways, to measure a stain on


class TileAugmentation(Strict, frozen=True):
    """What is drawn for every tile.

    Attributes:
        rotation: degrees, at most, either way.
        flip: probability of each flip.
        scale: standard deviation of the log of the scale.
        stain, contrast: on the batch, as `resources.train.kit.augment`.
        hue, saturation, value: each changes by up to this fraction of its range.
        mixup: probability that another tile is blended in, with a weight uniform in [0, 1].
        randaugment: colour operations drawn from RandAugment, magnitude 9; the geometry is drawn above.
        erase: probability that a rectangle of .02 to .1 of the tile is erased.
        mosaic_epochs: so many first epochs join four tiles into each.
    """

    rotation: Degrees = 0.0
    flip: Fraction = 0.0
    scale: NotNegative = 0.0
    stain: NotNegative = 0.0
    contrast: NotNegative = 0.0
    hue: Fraction = 0.0
    saturation: Fraction = 0.0
    value: Fraction = 0.0
    mixup: Fraction = 0.0
    randaugment: Annotated[int, Meta(ge=0)] = 0
    erase: Fraction = 0.0
    mosaic_epochs: Annotated[int, Meta(ge=0)] = 0


class ColourRandAugment(v2.RandAugment):
    """RandAugment (Cubuk et al. 2019) without its geometric operations, which would move the boxes."""

    _AUGMENTATION_SPACE = {
        name: how
        for name, how in v2.RandAugment._AUGMENTATION_SPACE.items()
        if not name.startswith(("Shear", "Translate", "Rotate"))
    }


class TileDataset(torch.utils.data.Dataset[Tile]):
    """Tiles with their boxes, without end: whoever draws them says how many.

    Item `i` is an image, uint8 (3, H, W), and the boxes of its figures, float32 (N, 4), corners x0, y0, x1, y1 in px,
    cut at the tile's edge. It is the same whenever and in whatever process it is drawn: it is seeded by (seed, i).

    Args:
        fields: at least one.
        crops: uint8 (M, 128, 128, 3), each with a mitotic figure in the middle; may be empty.
        size: px of a tile's side, or of its width and height.
        sampler: draws what a tile is drawn around, see `resources.train.kit.sampler`.
        augmentation: of every tile.
        seed: at least 0.
        mosaic_tiles: so many first items are mosaics of four tiles.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        crops: NDArray[np.uint8],
        size: int | Sequence[int],
        sampler: Callable[[np.random.Generator], Sample],
        augmentation: TileAugmentation,
        seed: int,
        mosaic_tiles: int = 0,
    ) -> None:
        self.fields, self.crops, self.sampler, self.seed = fields, crops, sampler, seed
        self.augmentation, self.mosaic_tiles = augmentation, mosaic_tiles
        self.size = np.broadcast_to(size, 2)
        self.hard_negatives = [(number, point) for number, each in enumerate(fields) for point in each.hard_negatives]
        self.field_weights = area_fractions(fields)
        self.colours = ColourRandAugment(num_ops=augmentation.randaugment) if augmentation.randaugment else None

    def __getitem__(self, i: int) -> Tile:
        augmentation = self.augmentation
        random = np.random.default_rng((self.seed, i))
        pixels, points = self._mosaic(random) if i < self.mosaic_tiles else self._tile(random)
        if random.random() < augmentation.mixup:
            other, more = self._tile(random)
            weight = random.random()
            pixels = np.asarray(cv2.addWeighted(pixels, weight, other, 1 - weight, 0), np.uint8)
            points = np.concatenate([points, more])
        if augmentation.hue or augmentation.saturation or augmentation.value:
            pixels = jitter_hsv(pixels, random, augmentation)
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self.colours:
            with torch.random.fork_rng(devices=[]):  # without workers this is the network's process
                torch.manual_seed(int(random.integers(2**31)))
                image = self.colours(image)
        if random.random() < augmentation.erase:
            self._erase(image, random)
        return image, self._boxes(points)

    def _boxes(self, points: NDArray[np.float64]) -> torch.Tensor:
        """Boxes around centres in px."""
        half = BOX_UM / 0.25 / 2
        corners = np.concatenate([(points - half).clip(0, self.size), (points + half).clip(0, self.size)], 1)
        return torch.from_numpy(corners.astype(np.float32))

    def _tile(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """One tile: uint8 (height, width, 3) and the centres of its figures, float (N, 2)."""
        sample = self.sampler(random)
        if sample.field is None:
            return self._pasted(sample, random)
        field = self.fields[sample.field]
        if sample.point is None:
            centre = random.random(2) * field.size
        else:
            centre = sample.point + (random.random(2) - 0.5) * (self.size - BOX_UM / 0.25)
        return self._window(field, centre, self.size, random)

    def _window(
        self, field: Field, centre: ArrayLike, size: NDArray[np.int_], random: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """A drawn view of a field around a place: uint8 (height, width, 3), and the figures in it."""
        matrix = self._matrix(centre, size, random)
        pixels = cv2.warpAffine(field.pixels, matrix, size.tolist(), borderMode=cv2.BORDER_CONSTANT, borderValue=WHITE)
        points = field.figures @ matrix[:, :2].T + matrix[:, 2]
        return np.asarray(pixels, np.uint8), points[((points >= 0) & (points < size)).all(1)]

    def _matrix(
        self, centre: ArrayLike, size: NDArray[np.int_] | int, random: np.random.Generator
    ) -> NDArray[np.float64]:
        """The affine map from a field's pixels around `centre` to a tile's."""
        angle = np.deg2rad(random.uniform(-1, 1) * self.augmentation.rotation)
        scale = np.exp(random.normal() * self.augmentation.scale)
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear *= np.where(random.random(2) < self.augmentation.flip, -1.0, 1.0)
        offset = (size - 1) / 2 - linear @ np.asarray(centre, float)
        return np.concatenate([linear, offset[:, None]], 1)

    def _pasted(self, sample: Sample, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """A window of a field with discs from crops and from other fields pasted into it."""
        field = self.fields[random.choice(len(self.fields), p=self.field_weights)]
        tile, points = self._window(field, random.random(2) * field.size, self.size, random)
        for number in range(random.integers(1, MAX_PASTED + 1)):
            place = random.integers(0, self.size)
            radius = random.uniform(*PASTED_RADIUS)
            if (number == 0 and sample.crop is not None) or random.random() < PASTED_FROM_CROPS:
                chosen = sample if number == 0 else Sample(figure=None if sample.figure else sample.figure)
                source, centre, figures, radius = self._place_in_crop(chosen, random, radius)
            elif found := self._place_in_field(random, radius):
                source, centre, figures = *found, np.zeros((0, 2))
            else:
                continue
            matrix = self._matrix(centre, 2 * PATCH + 1, random)
            patch = cv2.warpAffine(source, matrix, (2 * PATCH + 1,) * 2, borderMode=cv2.BORDER_REFLECT_101)
            paste(tile, match_stain(np.asarray(patch, np.uint8), tile, random.random()), place, radius)
            # As at a tile's edge: a figure whose middle shows keeps its box, or it would be learnt as background.
            points = points[np.hypot(*(points - place).T) > radius]
            points = np.concatenate([points, figures @ matrix[:, :2].T + matrix[:, 2] - PATCH + place])
        return tile, points[((points >= 0) & (points < self.size)).all(1)]

    def _place_in_crop(
        self, sample: Sample, random: np.random.Generator, radius: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64], float]:
        """A crop, the middle of a disc in it, the figures in the disc (N, 2), and the disc's radius."""
        crop = self.crops[random.integers(len(self.crops)) if sample.crop is None else sample.crop]
        figure = np.full(2, (crop.shape[0] - 1) / 2)
        if random.random() < PASTED_FIGURES if sample.figure is None else sample.figure:
            return crop, figure + on_circle(random, random.random() * (radius - FIGURE_RADIUS)), figure[None], radius
        away = OTHER_CELL_RADIUS + FIGURE_RADIUS
        places = [figure + on_circle(random, random.uniform(away, figure[0])) for _ in range(DARKEST_OF)]
        return crop, darkest(crop, places), np.zeros((0, 2)), OTHER_CELL_RADIUS

    def _place_in_field(
        self, random: np.random.Generator, radius: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]] | None:
        """Pixels and the middle of a disc without a figure: hard negative or anywhere; None where chance finds none."""
        for _ in range(MAX_TRIES):
            if self.hard_negatives and random.random() < 0.5:
                number, place = self.hard_negatives[random.integers(len(self.hard_negatives))]
                field, places = self.fields[number], [place]
            else:
                field = self.fields[random.choice(len(self.fields), p=self.field_weights)]
                places = list(random.random((DARKEST_OF, 2)) * field.size)
            away = radius + FIGURE_RADIUS
            places = [each for each in places if (np.hypot(*(field.figures - each).T) > away).all()]
            if places:
                return field.pixels, darkest(field.pixels, places)
        return None

    def _mosaic(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Four tiles around a random cross (paper, "Mixing strategies")."""
        width, height = self.size
        cross = random.integers(self.size // 4, 3 * self.size // 4)
        joined = np.empty((height, width, 3), np.uint8)
        figures = []
        for columns in (slice(0, cross[0]), slice(cross[0], width)):
            for rows in (slice(0, cross[1]), slice(cross[1], height)):
                tile, points = self._tile(random)
                joined[rows, columns] = tile[rows, columns]
                inside = (points[:, 0] >= columns.start) & (points[:, 0] < columns.stop)
                figures.append(points[inside & (points[:, 1] >= rows.start) & (points[:, 1] < rows.stop)])
        return joined, np.concatenate(figures)

    def _erase(self, image: torch.Tensor, random: np.random.Generator) -> None:
        area = random.uniform(0.02, 0.1) * self.size.prod()
        ratio = np.exp(random.uniform(-1, 1) * np.log(3.3))
        sides = np.sqrt([area / ratio, area * ratio]).round().astype(int).clip(None, self.size)
        (width, height), (left, top) = sides, random.integers(0, self.size - sides + 1)
        image[:, top : top + height, left : left + width] = 0


def jitter_hsv(pixels: NDArray[np.uint8], random: np.random.Generator, strength: TileAugmentation) -> NDArray[np.uint8]:
    """Change hue, saturation and value by up to a fraction of their range: uint8 (H, W, 3) -> the same."""
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL))
    levels = np.arange(256)
    hue = cv2.LUT(hue, ((levels + 256 * random.uniform(-1, 1) * strength.hue) % 256).astype(np.uint8))
    rows = ((saturation, strength.saturation), (value, strength.value))
    changed = [
        cv2.LUT(each, (levels * (1 + random.uniform(-1, 1) * fraction)).clip(0, 255).astype(np.uint8))
        for each, fraction in rows
    ]
    return np.asarray(cv2.cvtColor(cv2.merge([hue, *changed]), cv2.COLOR_HSV2RGB_FULL), np.uint8)


def on_circle(random: np.random.Generator, radius: float) -> NDArray[np.float64]:
    """A point on a circle around the origin: float (2,)."""
    angle = random.uniform(0, 2 * np.pi)
    return radius * np.array([np.cos(angle), np.sin(angle)])


def darkest(pixels: NDArray[np.uint8], places: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """That of some places (x, y) around which the red channel, which haematoxylin absorbs, is darkest."""

    def red(place: NDArray[np.float64]) -> float:
        x, y = (max(0, int(each) - 5) for each in place)
        return float(pixels[y : y + 11, x : x + 11, 0].mean())

    return min(places, key=red)


def match_stain(patch: NDArray[np.uint8], tile: NDArray[np.uint8], fraction: float) -> NDArray[np.uint8]:
    """Move a patch's colours towards a tile's: mean and deviation of its tissue in CIELAB (Reinhard et al. 2001).

    Args:
        patch, tile: uint8 (H, W, 3).
        fraction: of the way, in [0, 1].
    """
    ours, theirs = (cv2.cvtColor(each, cv2.COLOR_RGB2LAB) for each in (patch, tile[::4, ::4]))
    from_tissue, to_tissue = (each[each[..., 0] < GLASS].astype(np.float32) for each in (ours[::4, ::4], theirs))
    if min(len(from_tissue), len(to_tissue)) < MIN_TISSUE:
        return patch
    gain = (to_tissue.std(0) / from_tissue.std(0).clip(1)).clip(0.5, 2)
    offset = to_tissue.mean(0) - gain * from_tissue.mean(0)
    # One straight line a channel: what every lightness and colour becomes.
    lines = fraction * (gain * np.arange(256)[:, None] + offset) + (1 - fraction) * np.arange(256)[:, None]
    moved = cv2.LUT(ours, lines.clip(0, 255).astype(np.uint8)[:, None])
    return np.asarray(cv2.cvtColor(moved, cv2.COLOR_LAB2RGB), np.uint8)


def paste(tile: NDArray[np.uint8], patch: NDArray[np.uint8], place: NDArray[np.int_], radius: float) -> None:
    """Blend the disc in the middle of a patch into a tile, in place.

    Args:
        tile, patch: uint8 (H, W, 3); the patch has an odd side.
        place: int (2,), x and y of the disc's middle in the tile.
        radius: px, where the patch's part is one half; it falls over some 6 px.
    """
    reach = patch.shape[0] // 2
    x, y = place
    left, right = max(0, x - reach), min(tile.shape[1], x + reach + 1)
    top, bottom = max(0, y - reach), min(tile.shape[0], y + reach + 1)
    rows, columns = np.ogrid[top - y : bottom - y, left - x : right - x]
    part = np.clip((radius - np.hypot(rows, columns)) / 6 + 0.5, 0, 1)[..., None].astype(np.float32)
    new = patch[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
    old = tile[top:bottom, left:right]
    tile[top:bottom, left:right] = (part * new + (1 - part) * old + 0.5).astype(np.uint8)


def collate(items: Sequence[Tile]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Items of `TileDataset` -> images uint8 (N, 3, H, W), and the boxes of each, float32 (K, 4)."""
    images, boxes = zip(*items, strict=True)
    return torch.stack(images), list(boxes)
