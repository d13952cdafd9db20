"""Training tiles for the detectors: windows drawn at random from whole labelled fields, read as they are needed.

A tile is one resampling of its field: place, rotation, flips and scale are one
affine map. It stays inside its field where it fits; where it does not, the field
is mirrored, with its figures. Parts of crops, with their figure or without, are
pasted into windows of the fields as discs with a soft edge, so that neither a
seam nor another laboratory's stain is a sign of a figure.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import ArrayLike, NDArray
from torchvision.transforms import v2

from midog.images.slide import Slide
from midog.images.tiles import has_tissue
from midog.system import Fraction, NotNegative
from resources.data.fields import Field, is_crop
from resources.train.kit.recipes import Degrees, Strict
from resources.train.kit.sampler import Sample, area_fractions

Tile = tuple[torch.Tensor, torch.Tensor]

PATCH_UM = 16.0  # from the middle to the edge of what is pasted
PASTED_RADIUS_UM = 7.0, 14.0  # of the disc
FIGURE_RADIUS_UM = 4.5
MAX_PASTED = 5  # in a tile
PASTED_FROM_CROPS = 0.75  # fraction; the rest is cut from fields, without a figure
PASTED_FIGURES = 0.65  # fraction of discs with a figure among those from crops
OTHER_CELL_RADIUS_UM = 7.0  # of a disc that leaves a crop's figure out
MARGIN = 2  # px around what a tile shows, for the interpolation
TOUCHING = 9  # px from a mirror, where a figure and its image are one
QUARTER = 90.0  # degrees
DARKEST_OF = 6  # places that are drawn; nuclei teach more than stroma does
MAX_TRIES = 20  # of finding a place without a figure; fields can be smaller than that
GLASS = 225  # lightness from which a pixel is none of tissue
MIN_TISSUE = 100  # pixels, every fourth both ways, to measure a stain on
LEAST_MOSAIC = 64  # px of a tile's side; a quarter of it is the least part of a mosaic


class TileAugmentation(Strict, frozen=True):
    """What is drawn for every tile.

    Attributes:
        rotation: degrees, at most, either way.
        flip: probability of each flip.
        scale: standard deviation of the log of the scale.
        stain, contrast: on the batch, as `resources.train.kit.augment`.
        hue, saturation, value: each changes by up to this fraction of its range.
        mixup: probability that another tile is blended in, with a weight uniform in [0, 1].
        randaugment: operations drawn from RandAugment, magnitude 9: of colour alone, for geometry is drawn above.
        randaugment_geometry: of geometry too, the boxes moved along; what comes from outside is black, as by default.
        blur: probability of a Gaussian blur of .4 to 1 px.
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
    randaugment_geometry: bool = False
    blur: Fraction = 0.0
    erase: Fraction = 0.0
    mosaic_epochs: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.randaugment_geometry and not self.randaugment:
            raise ValueError("randaugment_geometry wants operations; give randaugment, 2 by default")


class TileRandAugment(v2.RandAugment):
    """RandAugment (Cubuk et al. 2019) at torchvision's defaults, which tells where it moves the pixels.

    Args:
        operations: how many are drawn for an image.
        geometry: shears, translations and rotation are among them.

    Attributes:
        matrix: float64 (3, 3), of the last image: from where its pixels were to where they are.
    """

    def __init__(self, operations: int, geometry: bool) -> None:
        super().__init__(num_ops=operations)
        if not geometry:
            self._AUGMENTATION_SPACE = {
                name: how
                for name, how in v2.RandAugment._AUGMENTATION_SPACE.items()
                if not name.startswith(("Shear", "Translate", "Rotate"))
            }

    def forward(self, *inputs: Any) -> Any:
        self.matrix = np.eye(3)
        return super().forward(*inputs)

    def _apply_image_or_video_transform(self, image: Any, transform_id: str, magnitude: float, **how: Any) -> Any:
        height, width = image.shape[-2:]
        self.matrix = operation_matrix(transform_id, magnitude, width, height) @ self.matrix
        return super()._apply_image_or_video_transform(image, transform_id, magnitude, **how)


def operation_matrix(name: str, magnitude: float, width: int, height: int) -> NDArray[np.float64]:
    """Where an operation of torchvision's RandAugment moves the pixels of an image: float64 (3, 3).

    It shears about the corner of the first pixel and rotates about the middle of the image, against the clock.
    """
    linear, pivot, shift = np.eye(2), np.full(2, -0.5), np.zeros(2)
    match name:
        case "ShearX":
            linear[0, 1] = -magnitude
        case "ShearY":
            linear[1, 0] = -magnitude
        case "TranslateX":
            shift[0] = int(magnitude)
        case "TranslateY":
            shift[1] = int(magnitude)
        case "Rotate":
            cosine, sine = np.cos(np.deg2rad(magnitude)), np.sin(np.deg2rad(magnitude))
            linear, pivot = np.array([[cosine, sine], [-sine, cosine]]), (np.array([width, height]) - 1) / 2
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, pivot - linear @ pivot + shift
    return matrix


class TileDataset(torch.utils.data.Dataset[Tile]):
    """Tiles with their boxes, without end: whoever draws them says how many.

    Item `i` is an image, uint8 (3, H, W), and the boxes of its figures, float32 (N, 4), corners x0, y0, x1, y1 in px,
    cut at the tile's edge, or whole. It is the same whenever and in whatever process it is drawn: it is seeded by
    (seed, i). A tile that is drawn around a figure shows its centre; only a mixed, moved or erased one may not.

    Args:
        fields: at least one, at the um per pixel of the tiles.
        crops: fields of 128 px with at least one figure, to paste; may be empty.
        size: px of a tile's side, or of its width and height.
        box_um: side of a figure's box.
        sampler: draws what a tile is drawn around, see `resources.train.kit.sampler`.
        augmentation: of every tile.
        seed: at least 0.
        mosaic_tiles: so many first items are mosaics of four tiles.
        whole_boxes: boxes are not cut, and there are those of figures whose centre lies up to half a box outside.
        labelled_boxes: a figure that has a box of its own has that one, around it as it is turned, and lies in its
            middle; others have the square.

    Raises:
        ValueError: mosaics or RandAugment's geometry with whole boxes, whose parts they show where the boxes are not;
            mosaics of tiles below 64 px.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        crops: Sequence[Field],
        size: int | Sequence[int],
        box_um: float,
        sampler: Callable[[np.random.Generator], Sample],
        augmentation: TileAugmentation,
        seed: int,
        mosaic_tiles: int = 0,
        whole_boxes: bool = False,
        labelled_boxes: bool = False,
    ) -> None:
        if whole_boxes and (mosaic_tiles or augmentation.randaugment_geometry):
            raise ValueError("mosaic_epochs and randaugment_geometry want a detector of boxes, not of a map of centres")
        if mosaic_tiles and min(np.broadcast_to(size, 2)) < LEAST_MOSAIC:
            raise ValueError(f"mosaic_epochs wants tiles of {LEAST_MOSAIC} px at least")
        self.fields, self.crops, self.sampler, self.seed = fields, crops, sampler, seed
        self.augmentation, self.mosaic_tiles = augmentation, mosaic_tiles
        self.size = np.broadcast_to(size, 2)
        self.px = 1 / fields[0].um_per_px[0]  # to a um
        self.box_px = box_um * self.px
        self.whole_boxes, self.labelled_boxes = whole_boxes, labelled_boxes
        self.beyond = self.box_px / 2 if whole_boxes else 0.0
        self.hard_negatives = [(number, point) for number, each in enumerate(fields) for point in each.hard_negatives]
        self.field_weights = area_fractions(fields)
        self.randaugment = (
            TileRandAugment(augmentation.randaugment, augmentation.randaugment_geometry)
            if augmentation.randaugment
            else None
        )

    def __getitem__(self, i: int) -> Tile:
        augmentation = self.augmentation
        random = np.random.default_rng((self.seed, i))
        pixels, boxes = self._mosaic(random) if i < self.mosaic_tiles else self._boxed(random)
        if random.random() < augmentation.mixup:
            other, more = self._boxed(random)
            weight = random.random()
            pixels = np.asarray(cv2.addWeighted(pixels, weight, other, 1 - weight, 0), np.uint8)
            boxes = torch.cat([boxes, more])
        if augmentation.hue or augmentation.saturation or augmentation.value:
            pixels = jitter_hsv(pixels, random, augmentation)
        if augmentation.blur and random.random() < augmentation.blur:
            pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.4, 1.0)), np.uint8)
        image = torch.from_numpy(pixels).permute(2, 0, 1)  # copied into its order once, with the batch
        if self.randaugment:
            with torch.random.fork_rng(devices=[]):  # without workers this is the network's process
                torch.manual_seed(int(random.integers(2**31)))
                image = self.randaugment(image)
            boxes = self._moved(boxes, self.randaugment.matrix)
        if random.random() < augmentation.erase:
            self._erase(image, random)
        return image, boxes

    def _boxed(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], torch.Tensor]:
        """One tile and its boxes."""
        pixels, figures = self._tile(random)
        return pixels, self._boxes(figures)

    def _boxes(self, figures: NDArray[np.float64]) -> torch.Tensor:
        """Boxes around figures as `_figures` gives them."""
        half = np.full((len(figures), 2), self.box_px / 2)
        if self.labelled_boxes:
            half = np.where(np.isnan(figures[:, 2:]), half, figures[:, 2:])
        corners = np.concatenate([figures[:, :2] - half, figures[:, :2] + half], 1)
        if not self.whole_boxes:
            corners = corners.clip(0, np.tile(self.size, 2))
        return torch.from_numpy(corners.astype(np.float32))

    def _moved(self, boxes: torch.Tensor, matrix: NDArray[np.float64]) -> torch.Tensor:
        """Boxes where a matrix (3, 3) moves the tile's pixels; those whose centres leave it are gone, squares stay."""
        if np.array_equal(matrix, np.eye(3)):
            return boxes
        linear, size = torch.from_numpy(matrix[:2, :2]).float(), torch.from_numpy(self.size.copy())
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2 @ linear.T + torch.from_numpy(matrix[:2, 2]).float()
        half = (boxes[:, 2:] - boxes[:, :2]) / 2
        if self.labelled_boxes:
            half = half @ linear.abs().T
        inside = ((centres >= -0.5) & (centres < size - 0.5)).all(1)
        corners = torch.cat([centres - half, centres + half], 1)[inside]
        return torch.minimum(corners.clamp_min(0), size.repeat(2))

    def _tile(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """One tile: uint8 (height, width, 3) and its figures, see `_figures`.

        A cell of unclear class is neither a figure nor background, and glass teaches nothing: another one is drawn.
        """
        for number in range(MAX_TRIES):
            sample = self.sampler(random)
            field = self._any_field(random) if sample.field is None else self.fields[sample.field]
            matrix = self._matrix_around(field, sample.point, random)
            if number + 1 < MAX_TRIES and len(figures_in(matrix, field.unclear, field.size, self.size)):
                continue
            pixels, figures = self._window(field, matrix)
            if sample.point is not None or has_tissue(pixels):
                break
        return (pixels, figures) if sample.field is not None else self._pasted(pixels, figures, sample, random)

    def _any_field(self, random: np.random.Generator) -> Field:
        return self.fields[int(random.choice(len(self.fields), p=self.field_weights))]

    def _window(self, field: Field, matrix: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """What an affine map shows of a field: uint8 (height, width, 3), and the figures in it, mirrored ones too."""
        return warped(field, matrix, self.size), self._figures(field, matrix, self.size, self.beyond)

    def _figures(
        self, field: Field, matrix: NDArray[np.float64], size: NDArray[np.int_], beyond: float = 0.0
    ) -> NDArray[np.float64]:
        """The figures that a tile of `size` px shows: float (N, 2), their centres in px of the tile.

        With labelled boxes (N, 4): the middles of their boxes, and half the boxes' width and height around them as they
        are turned, NaN for figures without one.
        """
        if not self.labelled_boxes:
            return figures_in(matrix, field.figures, field.size, size, beyond)
        corners = field.figure_boxes
        if corners is None:
            corners = np.full((len(field.figures), 4), np.nan, np.float32)
        middles = np.where(np.isnan(corners[:, :2]), field.figures, (corners[:, :2] + corners[:, 2:]) / 2)
        centres, numbers = shown_in(matrix, middles, field.size, size, beyond)
        half = (corners[:, 2:] - corners[:, :2]) / 2 @ np.abs(matrix[:, :2]).T
        return np.concatenate([centres, half[numbers]], 1)

    def _matrix_around(
        self, field: Field, point: NDArray[np.float32] | None, random: np.random.Generator
    ) -> NDArray[np.float64]:
        """A drawn view of a field that shows a point of it, or any place, and stays inside where it can.

        A view that is turned by any angle leaves a small field, or does not reach a point at an edge: then it is turned
        by quarters, if that helps. A crop is no larger than a tile: inside it, its cell would always be in the middle.
        """
        drawn = self._linear(random)
        shift = random.random(2) - 0.5  # where in the tile the point is, or where in the field the tile
        if point is not None and is_crop(field):
            return around(drawn, point - np.linalg.inv(drawn) @ (shift * self._spread), self.size)
        view = self._inside(field, point, drawn, shift)
        if not all(view[1:]):
            view = max(view, self._inside(field, point, nearest_quarter(drawn), shift), key=lambda each: each[1:])
        return view[0]

    @property
    def _spread(self) -> NDArray[np.float64]:
        """Width and height of the part of a tile in which a point may be, so that a square around it is whole: px."""
        return (self.size - self.box_px).clip(0)

    def _inside(
        self, field: Field, point: NDArray[np.float32] | None, linear: NDArray[np.float64], shift: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], bool, bool]:
        """The map with a linear part, moved into the field; whether it shows the point, and lies inside."""
        inverse, last = np.linalg.inv(linear), np.array(field.size) - 1.0
        reach = np.abs(inverse) @ (self.size - 1) / 2
        centre = last * (shift + 0.5) if point is None else point - inverse @ (shift * self._spread)
        low, high = np.sort([reach, last - reach], axis=0)  # in a field smaller than the view: all of it is shown
        matrix = around(linear, centre.clip(low, high), self.size)
        shown = point is None or len(figures_in(matrix, point[None], field.size, self.size)) > 0
        return matrix, shown, bool((2 * reach <= last).all())

    def _linear(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Drawn rotation, scale and flips: (2, 2)."""
        angle = np.deg2rad(random.uniform(-1, 1) * self.augmentation.rotation)
        scale = np.exp(random.normal() * self.augmentation.scale)
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return linear * np.where(random.random(2) < self.augmentation.flip, -1.0, 1.0)

    def _pasted(
        self, tile: NDArray[np.uint8], figures: NDArray[np.float64], sample: Sample, random: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """A window of a field, and its figures, with discs from crops and from other fields pasted into it."""
        for number in range(random.integers(1, MAX_PASTED + 1)):
            place = random.integers(0, self.size)
            radius = random.uniform(*PASTED_RADIUS_UM) * self.px
            if (number == 0 and sample.crop is not None) or random.random() < PASTED_FROM_CROPS:
                chosen = sample if number == 0 else Sample(figure=None if sample.figure else sample.figure)
                source, centre, radius = self._place_in_crop(chosen, random, radius)
            elif found := self._place_in_field(random, radius):
                source, centre = found
            else:
                continue
            reach = round(PATCH_UM * self.px)
            side = np.full(2, 2 * reach + 1)
            matrix = around(self._linear(random), centre, side)
            paste(tile, match_stain(warped(source, matrix, side), tile, random.random()), place, radius)
            # As at a tile's edge: a figure whose middle shows keeps its box, or it would be learnt as background.
            figures = figures[np.hypot(*(figures[:, :2] - place).T) > radius]
            pasted = self._figures(source, matrix, side)
            pasted[:, :2] += place - reach
            figures = np.concatenate([figures, pasted[np.hypot(*(pasted[:, :2] - place).T) <= radius]])
        return tile, figures[((figures[:, :2] >= 0) & (figures[:, :2] < self.size)).all(1)]

    def _place_in_crop(
        self, sample: Sample, random: np.random.Generator, radius: float
    ) -> tuple[Field, NDArray[np.float64], float]:
        """A crop, the middle of a disc in it, with its figure or without any, and the disc's radius."""
        crop = self.crops[int(random.integers(len(self.crops))) if sample.crop is None else sample.crop]
        middle = (np.array(crop.size) - 1) / 2
        figure = min(crop.figures.astype(float), key=lambda each: np.hypot(*(each - middle)))
        if random.random() < PASTED_FIGURES if sample.figure is None else sample.figure:
            return crop, figure + on_circle(random, random.random() * (radius - FIGURE_RADIUS_UM * self.px)), radius
        away = (OTHER_CELL_RADIUS_UM + FIGURE_RADIUS_UM) * self.px
        places = [figure + on_circle(random, random.uniform(away, max(away, *middle))) for _ in range(DARKEST_OF)]
        places = [each.clip(0, 2 * middle) for each in places]  # beyond an edge the figure would be mirrored
        clear = [each for each in places if (np.hypot(*(crop.figures - each).T) >= away).all()]
        return crop, darkest(crop, clear or places), OTHER_CELL_RADIUS_UM * self.px

    def _place_in_field(self, random: np.random.Generator, radius: float) -> tuple[Field, NDArray[np.float64]] | None:
        """A field and the middle of a disc without a figure, hard negative or anywhere; None where none is found."""
        for _ in range(MAX_TRIES):
            if self.hard_negatives and random.random() < 0.5:
                number, place = self.hard_negatives[random.integers(len(self.hard_negatives))]
                field, places = self.fields[number], [place.astype(float)]
            else:
                field = self._any_field(random)
                places = list(random.random((DARKEST_OF, 2)) * (np.array(field.size) - 1))
            away = radius + FIGURE_RADIUS_UM * self.px
            cells = np.concatenate([field.figures, field.unclear])
            places = [each for each in places if (np.hypot(*(cells - each).T) > away).all()]
            if places:
                return field, darkest(field, places)
        return None

    def _mosaic(self, random: np.random.Generator) -> tuple[NDArray[np.uint8], torch.Tensor]:
        """Four tiles around a random cross (paper, "Mixing strategies"), each as large as its part, and their boxes."""
        width, height = self.size.tolist()
        column, row = random.integers(self.size // 4, 3 * self.size // 4).tolist()
        joined = np.empty((height, width, 3), np.uint8)
        boxes = []
        for left, right in ((0, column), (column, width)):
            for top, bottom in ((0, row), (row, height)):
                part = copy(self)
                part.size = np.array([right - left, bottom - top])
                joined[top:bottom, left:right], inside = part._boxed(random)
                boxes.append(inside + torch.tensor([left, top, left, top]))
        return joined, torch.cat(boxes)

    def _erase(self, image: torch.Tensor, random: np.random.Generator) -> None:
        area = random.uniform(0.02, 0.1) * self.size.prod()
        ratio = np.exp(random.uniform(-1, 1) * np.log(3.3))
        sides = np.sqrt([area / ratio, area * ratio]).round().astype(int).clip(None, self.size)
        (width, height), (left, top) = sides, random.integers(0, self.size - sides + 1)
        image[:, top : top + height, left : left + width] = 0


def jitter_hsv(pixels: NDArray[np.uint8], random: np.random.Generator, strength: TileAugmentation) -> NDArray[np.uint8]:
    """Change hue, saturation and value by up to a fraction of their range: uint8 (H, W, 3) -> the same."""
    levels = np.arange(256)
    hue = (levels + 256 * random.uniform(-1, 1) * strength.hue) % 256
    saturation, value = (
        (levels * (1 + random.uniform(-1, 1) * fraction)).clip(0, 255)
        for fraction in (strength.saturation, strength.value)
    )
    table = np.stack([hue, saturation, value], 1)[None].astype(np.uint8)
    changed = cv2.LUT(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL), table)
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_HSV2RGB_FULL), np.uint8)


def around(linear: NDArray[np.float64], centre: ArrayLike, size: NDArray[np.int_]) -> NDArray[np.float64]:
    """The affine map (2, 3) that shows a place of a field in the middle of a tile of `size` px (width, height)."""
    offset = (size - 1) / 2 - linear @ np.asarray(centre, float)
    return np.concatenate([linear, offset[:, None]], 1)


def nearest_quarter(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """A map (2, 2) of rotation, scale and flips with its angle rounded to quarter turns."""
    flips = np.diag([1.0, np.sign(np.linalg.det(linear))])
    turn = linear @ flips
    angle = np.deg2rad(np.round(np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0])) / QUARTER) * QUARTER)
    scale = np.hypot(*turn[:, 0])
    return scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).round() @ flips


def warped(slide: Slide, matrix: NDArray[np.float64], size: NDArray[np.int_]) -> NDArray[np.uint8]:
    """What an affine map (2, 3) from a slide's pixels to a tile's shows: uint8 (height, width, 3).

    No more of the slide is read than the tile needs; beyond its edges it is mirrored.
    """
    width, height = size - 1
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float) - matrix[:, 2]
    corners = corners @ np.linalg.inv(matrix[:, :2]).T
    first, last = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int) + 1
    # The margin is for the interpolation; alone it is not worth a mirror.
    start = np.maximum(first - MARGIN, np.minimum(first, 0))
    stop = np.minimum(last + MARGIN, np.maximum(last, slide.size))
    window = slide.read_reflected(*start.tolist(), *(stop - start).tolist())
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ start
    return np.asarray(cv2.warpAffine(window, moved, size.tolist(), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def figures_in(
    matrix: NDArray[np.float64],
    points: NDArray[np.float32],
    extent: Sequence[int],
    size: NDArray[np.int_],
    beyond: float = 0.0,
) -> NDArray[np.float64]:
    """Where a tile shows points of a field, and their mirror images beyond its edges: float (N, 2) px.

    Arguments are those of `shown_in`.
    """
    return shown_in(matrix, points, extent, size, beyond)[0]


def shown_in(
    matrix: NDArray[np.float64],
    points: NDArray[np.floating],
    extent: Sequence[int],
    size: NDArray[np.int_],
    beyond: float,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Where a tile shows points of a field, and their mirror images beyond its edges; and which points these are.

    Args:
        matrix: (2, 3), from the field's pixels to the tile's.
        points: float32 (K, 2) px of the field.
        extent: (width, height) of the field.
        size: (width, height) of the tile.
        beyond: also points that are so far outside of the tile, px.

    Returns:
        float (N, 2) px of the tile, int64 (N,).
    """
    numbers, last = np.arange(len(points)), np.array(extent) - 1
    inverse = np.linalg.inv(matrix[:, :2])
    reach = np.abs(inverse) @ (size / 2 + beyond)
    centre = inverse @ ((size - 1) / 2 - matrix[:, 2])
    if (centre < reach).any() or (centre + reach > last).any():
        x, y = (_copies(points[:, axis], last[axis], centre[axis], reach[axis]) for axis in (0, 1))
        points = np.stack([np.repeat(x, y.shape[1], 1).ravel(), np.tile(y, x.shape[1]).ravel()], 1)
        numbers = np.repeat(numbers, x.shape[1] * y.shape[1])
    shown = points @ matrix[:, :2].T + matrix[:, 2]
    inside = ((shown >= -0.5 - beyond) & (shown < size - 0.5 + beyond)).all(1)  # a pixel's centre is at integers
    return shown[inside], numbers[inside]


def _copies(own: NDArray[np.floating], last: int, centre: float, reach: float) -> NDArray[np.float64]:
    """Where the mirrored continuation of an axis from 0 to `last` shows places, (K,), about `centre`: float (K, N).

    A copy that touches its original is one with it, and NaN.
    """
    period = max(2 * last, 1)
    turns = np.arange(np.floor((centre - reach) / period), np.ceil((centre + reach) / period) + 1) * period
    mirrored = turns - own[:, None].astype(float)
    mirrored[np.minimum(own, last - own) < TOUCHING] = np.nan
    return np.concatenate([turns + own[:, None], mirrored], 1)


def on_circle(random: np.random.Generator, radius: float) -> NDArray[np.float64]:
    """A point on a circle around the origin: float (2,)."""
    angle = random.uniform(0, 2 * np.pi)
    return radius * np.array([np.cos(angle), np.sin(angle)])


def darkest(slide: Slide, places: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """That of some places (x, y) around which the red channel, which haematoxylin absorbs, is darkest."""

    def red(place: NDArray[np.float64]) -> float:
        x, y = (int(each) - 5 for each in place)
        return float(slide.read_reflected(x, y, 11, 11)[..., 0].mean())

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
