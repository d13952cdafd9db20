"""Training tiles for the detectors: drawn at random from labelled fields and from crops of figures.

A tile is one resampling of its field: place, rotation, flips and scale are one
affine map. Parts of crops, with their figure or without, are pasted into windows
of the fields as discs with a soft edge, so that neither a seam nor another
laboratory's stain is a sign of a figure.
"""

from typing import Annotated

import cv2
import numpy as np
import torch
from msgspec import Meta
from torchvision.transforms import v2

from midog.system import Fraction, NotNegative
from resources.train.common import Degrees, Strict
from resources.train.draws import Draw

BOX_UM = 12.5  # MIDOG's boxes: 50 px squares at .25 um/px
WHITE = (255, 255, 255)
PATCH = 64  # px from the middle to the edge of what is pasted
PASTED_RADIUS = 28, 56  # px of the disc
FIGURE_RADIUS = 18  # px
MOST_PASTED = 5  # in a tile
PASTED_FROM_CROPS = 0.75  # share; the rest is cut from fields, without a figure
PASTED_FIGURES = 0.65  # share of discs with a figure among those from crops
OTHER_CELL_RADIUS = 28  # px of a disc that leaves a crop's figure out
DARKEST_OF = 6  # places that are drawn; nuclei teach more than stroma does
TRIES = 20  # of finding a place without a figure; fields can be smaller than that
GLASS = 225  # lightness from which a pixel is none of tissue
LEAST_TISSUE = 100  # pixels, every fourth both ways, to measure a stain on


class TileAugmentation(Strict, frozen=True):
    """What is drawn for every tile.

    Attributes:
        rotation: degrees, at most, either way.
        flip: probability of each flip.
        scale: standard deviation of the log of the scale.
        stain, contrast: on the batch, as `resources.train.augment`.
        hue, saturation, value: each changes by up to this share of its range.
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


class TileDataset(torch.utils.data.Dataset):
    """Tiles with their boxes, in the format of Ultralytics' datasets.

    Item `i` is the same whenever and in whatever process it is drawn: it is seeded by (seed, i).

    Args:
        fields: list of `resources.data.fields.Field`.
        crops: uint8 (M, 128, 128, 3), each with a mitotic figure in the middle; may be empty.
        size: px of a tile's side, or of its width and height.
        tiles: how many an epoch has.
        draws: what each tile is drawn around, see `resources.train.draws`.
        how: `TileAugmentation`.
        seed: int.
    """

    def __init__(self, fields, crops, size, tiles, draws, how, seed):
        self.fields, self.crops, self.tiles, self.draws, self.how, self.seed = fields, crops, tiles, draws, how, seed
        self.size = np.broadcast_to(size, 2)
        self.look_alikes = [(number, point) for number, each in enumerate(fields) for point in each.look_alikes]
        areas = np.array([each.pixels.shape[0] * each.pixels.shape[1] for each in fields], float)
        self.area_shares = areas / areas.sum()
        self.colours = ColourRandAugment(num_ops=how.randaugment) if how.randaugment else None

    def __len__(self):
        return self.tiles

    def __getitem__(self, i):
        random = np.random.default_rng((self.seed, i))
        mosaic = i < self.how.mosaic_epochs * self.tiles
        pixels, points = self._mosaic(random) if mosaic else self._tile(random)
        if random.random() < self.how.mixup:
            other, more = self._tile(random)
            weight = random.random()
            pixels = cv2.addWeighted(pixels, weight, other, 1 - weight, 0)
            points = np.concatenate([points, more])
        if self.how.hue or self.how.saturation or self.how.value:
            pixels = jitter_hsv(pixels, random, self.how)
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self.colours:
            with torch.random.fork_rng(devices=[]):  # without workers this is the network's process
                torch.manual_seed(int(random.integers(2**31)))
                image = self.colours(image)
        if random.random() < self.how.erase:
            self._erase(image, random)
        return {"img": image, "bboxes": self._boxes(points), "im_file": str(i)}

    def _boxes(self, points):
        """Centres in px -> x, y, width, height in shares of the tile, cut at its edge: float32 (N, 4)."""
        half = BOX_UM / 0.25 / 2
        corners = np.concatenate([(points - half).clip(0, self.size), (points + half).clip(0, self.size)], 1)
        corners /= np.tile(self.size, 2)
        boxes = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        return torch.from_numpy(boxes.astype(np.float32))

    def _tile(self, random):
        """One tile: uint8 (height, width, 3) and the centres of its figures, float (N, 2)."""
        draw = self.draws(random)
        if draw.field is None:
            return self._pasted(draw, random)
        field = self.fields[draw.field]
        if draw.point is None:
            centre = random.random(2) * field.size
        else:
            centre = draw.point + (random.random(2) - 0.5) * (self.size - BOX_UM / 0.25)
        return self._window(field, centre, self.size, random)

    def _window(self, field, centre, size, random):
        """A drawn view of a field around a place: uint8 (height, width, 3), and the figures in it."""
        matrix = self._matrix(centre, size, random)
        pixels = cv2.warpAffine(field.pixels, matrix, size.tolist(), borderMode=cv2.BORDER_CONSTANT, borderValue=WHITE)
        points = field.figures @ matrix[:, :2].T + matrix[:, 2]
        return pixels, points[((points >= 0) & (points < size)).all(1)]

    def _matrix(self, centre, size, random):
        """The affine map from a field's pixels around `centre` to a tile's."""
        angle = np.deg2rad(random.uniform(-1, 1) * self.how.rotation)
        scale = np.exp(random.normal() * self.how.scale)
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear *= np.where(random.random(2) < self.how.flip, -1.0, 1.0)
        offset = (size - 1) / 2 - linear @ np.asarray(centre, float)
        return np.concatenate([linear, offset[:, None]], 1)

    def _pasted(self, draw, random):
        """A window of a field with discs from crops and from other fields pasted into it."""
        field = self.fields[random.choice(len(self.fields), p=self.area_shares)]
        tile, points = self._window(field, random.random(2) * field.size, self.size, random)
        for number in range(random.integers(1, MOST_PASTED + 1)):
            place = random.integers(0, self.size)
            radius = random.uniform(*PASTED_RADIUS)
            if (number == 0 and draw.crop is not None) or random.random() < PASTED_FROM_CROPS:
                chosen = draw if number == 0 else Draw(figure=None if draw.figure else draw.figure)
                source, centre, figures, radius = self._place_in_crop(chosen, random, radius)
            elif found := self._place_in_field(random, radius):
                source, centre, figures = *found, np.zeros((0, 2))
            else:
                continue
            matrix = self._matrix(centre, 2 * PATCH + 1, random)
            patch = cv2.warpAffine(source, matrix, (2 * PATCH + 1,) * 2, borderMode=cv2.BORDER_REFLECT_101)
            paste(tile, match_stain(patch, tile, random.random()), place, radius)
            # As at a tile's edge: a figure whose middle shows keeps its box, or it would be learnt as background.
            points = points[np.hypot(*(points - place).T) > radius]
            points = np.concatenate([points, figures @ matrix[:, :2].T + matrix[:, 2] - PATCH + place])
        return tile, points[((points >= 0) & (points < self.size)).all(1)]

    def _place_in_crop(self, draw, random, radius):
        """A crop, the middle of a disc in it, the figures in the disc (N, 2), and the disc's radius."""
        crop = self.crops[random.integers(len(self.crops)) if draw.crop is None else draw.crop]
        figure = np.full(2, (crop.shape[0] - 1) / 2)
        if random.random() < PASTED_FIGURES if draw.figure is None else draw.figure:
            return crop, figure + on_circle(random, random.random() * (radius - FIGURE_RADIUS)), figure[None], radius
        away = OTHER_CELL_RADIUS + FIGURE_RADIUS
        places = [figure + on_circle(random, random.uniform(away, figure[0])) for _ in range(DARKEST_OF)]
        return crop, darkest(crop, places), np.zeros((0, 2)), OTHER_CELL_RADIUS

    def _place_in_field(self, random, radius):
        """Pixels and the middle of a disc without a figure: a look-alike, or anywhere; None where chance finds none."""
        for _ in range(TRIES):
            if self.look_alikes and random.random() < 0.5:
                number, place = self.look_alikes[random.integers(len(self.look_alikes))]
                field, places = self.fields[number], [place]
            else:
                field = self.fields[random.choice(len(self.fields), p=self.area_shares)]
                places = list(random.random((DARKEST_OF, 2)) * field.size)
            away = radius + FIGURE_RADIUS
            places = [each for each in places if (np.hypot(*(field.figures - each).T) > away).all()]
            if places:
                return field.pixels, darkest(field.pixels, places)
        return None

    def _mosaic(self, random):
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

    def _erase(self, image, random):
        area = random.uniform(0.02, 0.1) * self.size.prod()
        ratio = np.exp(random.uniform(-1, 1) * np.log(3.3))
        sides = np.sqrt([area / ratio, area * ratio]).round().astype(int).clip(None, self.size)
        (width, height), (left, top) = sides, random.integers(0, self.size - sides + 1)
        image[:, top : top + height, left : left + width] = 0


def jitter_hsv(pixels, random, how):
    """Change hue, saturation and value by up to a share of their range: uint8 (H, W, 3) -> the same."""
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL))
    levels = np.arange(256)
    hue = cv2.LUT(hue, ((levels + 256 * random.uniform(-1, 1) * how.hue) % 256).astype(np.uint8))
    rows = ((saturation, how.saturation), (value, how.value))
    changed = [
        cv2.LUT(each, (levels * (1 + random.uniform(-1, 1) * share)).clip(0, 255).astype(np.uint8))
        for each, share in rows
    ]
    return cv2.cvtColor(cv2.merge([hue, *changed]), cv2.COLOR_HSV2RGB_FULL)


def on_circle(random, radius):
    """A point on a circle around the origin: float (2,)."""
    angle = random.uniform(0, 2 * np.pi)
    return radius * np.array([np.cos(angle), np.sin(angle)])


def darkest(pixels, places):
    """That of some places (x, y) around which the red channel, which haematoxylin absorbs, is darkest."""

    def red(place):
        x, y = (max(0, int(each) - 5) for each in place)
        return pixels[y : y + 11, x : x + 11, 0].mean()

    return min(places, key=red)


def match_stain(patch, tile, share):
    """Move a patch's colours towards a tile's: mean and deviation of its tissue in CIELAB (Reinhard et al. 2001).

    Args:
        patch, tile: uint8 (H, W, 3).
        share: of the way, in [0, 1].
    """
    ours, theirs = (cv2.cvtColor(each, cv2.COLOR_RGB2LAB) for each in (patch, tile[::4, ::4]))
    from_tissue, to_tissue = (each[each[..., 0] < GLASS].astype(np.float32) for each in (ours[::4, ::4], theirs))
    if min(len(from_tissue), len(to_tissue)) < LEAST_TISSUE:
        return patch
    gain = (to_tissue.std(0) / from_tissue.std(0).clip(1)).clip(0.5, 2)
    offset = to_tissue.mean(0) - gain * from_tissue.mean(0)
    # One straight line a channel: what every lightness and colour becomes.
    lines = share * (gain * np.arange(256)[:, None] + offset) + (1 - share) * np.arange(256)[:, None]
    return cv2.cvtColor(cv2.LUT(ours, lines.clip(0, 255).astype(np.uint8)[:, None]), cv2.COLOR_LAB2RGB)


def paste(tile, patch, place, radius):
    """Blend the disc in the middle of a patch into a tile, in place.

    Args:
        tile, patch: uint8 (H, W, 3); the patch has an odd side.
        place: int (2,), x and y of the disc's middle in the tile.
        radius: px, where the patch's share is one half; it falls over some 6 px.
    """
    reach = patch.shape[0] // 2
    x, y = place
    left, right = max(0, x - reach), min(tile.shape[1], x + reach + 1)
    top, bottom = max(0, y - reach), min(tile.shape[0], y + reach + 1)
    rows, columns = np.ogrid[top - y : bottom - y, left - x : right - x]
    share = np.clip((radius - np.hypot(rows, columns)) / 6 + 0.5, 0, 1)[..., None].astype(np.float32)
    new = patch[top - y + reach : bottom - y + reach, left - x + reach : right - x + reach]
    old = tile[top:bottom, left:right]
    tile[top:bottom, left:right] = (share * new + (1 - share) * old + 0.5).astype(np.uint8)


def collate(items):
    """Items of `TileDataset` -> one batch as Ultralytics' trainers take it."""
    counts = [len(item["bboxes"]) for item in items]
    return {
        "img": torch.stack([item["img"] for item in items]),
        "bboxes": torch.cat([item["bboxes"] for item in items]),
        "cls": torch.zeros(sum(counts), 1),
        "batch_idx": torch.repeat_interleave(torch.arange(len(items)), torch.tensor(counts)).float(),
        "im_file": [item["im_file"] for item in items],
    }


class EpochSampler(torch.utils.data.Sampler):
    """Numbers of the items of the epoch that `epoch` names, so that a resumed run draws what it would have drawn."""

    def __init__(self, dataset):
        self.dataset, self.epoch = dataset, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.dataset)

    def __iter__(self):
        return iter(range(self.epoch * len(self), (self.epoch + 1) * len(self)))
