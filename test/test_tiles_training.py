"""Training tiles: what a window shows of a field and its mirror images, boxes on figures, the figures' own boxes,
mosaics, mixing and RandAugment, the same item everywhere, what samplers draw, pasted discs."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.images.slide import ArraySlide
from resources.data.fields import Field, is_crop
from resources.train.kit import tiles as tiles_module
from resources.train.kit.sampler import BalancedSampler, FixedFractionSampler, Sample
from resources.train.kit.tiles import (
    MAX_TRIES,
    TOUCHING,
    TileAugmentation,
    TileDataset,
    TileRandAugment,
    collate,
    darkest,
    figures_in,
    jitter_hsv,
    match_stain,
    operation_matrix,
    warped,
)

SIZE = 256
STILL = TileAugmentation()
TISSUE, FIGURE, HARD_NEGATIVE = (220, 160, 190), (60, 20, 90), (20, 110, 20)
MIDDLE = np.full(2, 300, np.float32)
EVEN = {"figure": 1, "hard_negative": 1, "background": 1, "crops": 1}


def field_of(pixels, figures=(), hard_negatives=(), unclear=(), case="a"):
    """A field of pixels in memory."""
    points = [np.array(each, np.float32).reshape(-1, 2) for each in (figures, hard_negatives, unclear)]
    return Field("a.png", case, "set", ArraySlide(pixels, (0.25, 0.25)), *points)


def dataset(fields, crops, fractions, augmentation=STILL, seed=0, size=SIZE, mosaic_tiles=0):
    sampler = FixedFractionSampler(fields, len(crops), fractions)
    return TileDataset(fields, crops, size, 12.5, sampler, augmentation, seed, mosaic_tiles)


def disc(pixels, x, y, colour, radius=6):
    cv2.circle(pixels, (round(x), round(y)), radius, colour, -1, cv2.LINE_AA)


@pytest.fixture(scope="module")
def fields():
    """Two fields with dark figures and green hard negatives on even tissue."""
    made = []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        pixels = np.full((600, 700, 3), TISSUE, np.uint8)
        places = np.stack(np.meshgrid(np.arange(40, 680, 80), np.arange(40, 580, 80)), -1).reshape(-1, 2)
        places = generator.permutation(places)[:16].astype(np.float32)
        for number, place in enumerate(places):
            disc(pixels, *place, FIGURE if number < 8 else HARD_NEGATIVE)
        made.append(field_of(pixels, places[:8], places[8:]))
    return made


@pytest.fixture(scope="module")
def crops():
    """Three crops with a figure, which is not in the middle of the last, that an edge of its image cut."""
    made = []
    for case, width, x in (("x", 128, 64), ("x", 128, 64), ("y", 84, 20)):
        pixels = np.full((128, width, 3), TISSUE, np.uint8)
        disc(pixels, x, 64, FIGURE)
        made.append(replace(field_of(pixels, [(x, 64)], case=case), source="crops"))
    return made


def discs(item):
    """Centres of the dark discs of a tile that are more than half there: (K, 2) px."""
    image = item[0].permute(1, 2, 0).numpy().astype(int)
    likeness = 1 - np.abs(image - FIGURE).sum(2) / np.abs(np.subtract(TISSUE, FIGURE)).sum()
    _, _, rows, middles = cv2.connectedComponentsWithStats((likeness > 0.7).astype(np.uint8))
    return middles[1:][rows[1:, cv2.CC_STAT_AREA] > 70]


def inside(points, margin):
    return ((points > margin) & (points < SIZE - margin)).all(1)


@pytest.mark.parametrize(
    ("source", "tolerance"), [("figure", 1.5), ("hard_negative", 1.5), ("background", 1.5), ("crops", 6)]
)
def test_boxes_lie_on_figures_and_on_nothing_else(fields, crops, source, tolerance):
    """The tolerance is a disc's radius where a seam may cut one, and all are of one size there."""
    scale = 0.05 if tolerance < 2 else 0.0
    augmentation = TileAugmentation(rotation=180, flip=0.5, scale=scale)
    tiles = dataset(fields, crops, {source: 1}, augmentation, seed=5)
    whole = 0
    for item in (tiles[number] for number in range(40)):
        seen, corners = discs(item), item[1].numpy()
        assert corners.min(initial=0) >= 0
        assert corners.max(initial=0) <= SIZE
        uncut = corners[(corners[:, 2:] - corners[:, :2] > 49.99).all(1)]
        middles = (uncut[:, :2] + uncut[:, 2:]) / 2
        whole += len(uncut)
        if tolerance < 2:
            assert all(np.hypot(*(seen - middle).T).min() < tolerance for middle in middles)
        for point in seen[inside(seen, 32)]:
            assert np.hypot(*(middles - point).T).min() < tolerance
    assert whole > 20


def test_boxes_are_cut_at_the_edge(fields, crops):
    box = dataset(fields, crops, EVEN)._boxes(np.array([[10.0, 128.0]]))
    assert box.dtype == torch.float32
    assert box.tolist() == [[0, 103, 35, 153]]


def test_whole_boxes_are_not_cut_and_there_are_those_of_figures_up_to_half_a_box_outside():
    """A box is 50 px; a pixel ends half a px beyond its centre."""
    inside, near, far = [(10, 30)], [(-25, 30), (88, 30), (30, -20)], [(-26, 30), (89, 30), (-25, -26)]
    field = field_of(np.zeros((400, 400, 3), np.uint8), np.add([*inside, *near, *far], 100))
    for whole, expected in ((False, inside), (True, [*inside, *near])):
        tiles = TileDataset([field], [], 64, 12.5, lambda random: Sample(0), STILL, 0, whole_boxes=whole)
        _, points = tiles._window(field, np.array([[1.0, 0, -100], [0, 1, -100]]))
        assert points.tolist() == [list(each) for each in expected]
        first = tiles._boxes(points)[0].tolist()
        assert first == ([-15, 5, 35, 55] if whole else [0, 5, 35, 55])


# --- the figures' own boxes -------------------------------------------------------

TURN = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        ([[1, 0], [0, 1]], [25, 10, 45, 50]),
        ([[0, -1], [1, 0]], [15, 20, 55, 40]),  # a quarter turn: width and height change places
        ([[2, 0], [0, 2]], [15, -10, 55, 70]),
        ([[TURN, -TURN], [TURN, TURN]], [35 - 30 * TURN, 30 - 30 * TURN, 35 + 30 * TURN, 30 + 30 * TURN]),
    ],
)
def test_a_labelled_box_is_the_one_around_the_turned_box_by_hand(linear, expected):
    """Of 20 x 40 px about (100, 200), beside whose middle its figure lies; a figure without one has a square."""
    field = field_of(np.zeros((400, 400, 3), np.uint8), [(103, 198), (110, 190)])
    field.figure_boxes = np.array([[90, 180, 110, 220], [np.nan] * 4], np.float32)
    tiles = TileDataset([field], [], 64, 5, lambda random: Sample(0), STILL, 0, whole_boxes=True, labelled_boxes=True)
    linear = np.array(linear, float)
    matrix = np.concatenate([linear, [[35], [30]] - linear @ [[100], [200]]], 1)
    own, square = tiles._boxes(tiles._window(field, matrix)[1])
    assert own.tolist() == pytest.approx(expected, abs=1e-4)
    x, y = matrix[:, :2] @ (110, 190) + matrix[:, 2]
    assert square.tolist() == pytest.approx([x - 10, y - 10, x + 10, y + 10], abs=1e-4)


def test_labelled_boxes_hold_their_figures_in_any_tile():
    """Bars of 14 x 30 px with boxes of their own, mirrored where the tile leaves the field, in mosaics and pasted."""
    pixels = np.full((300, 300, 3), TISSUE, np.uint8)
    places = np.array([(x, y) for x in (60, 150, 240) for y in (60, 150, 240)], np.float32)
    for x, y in places.astype(int):
        cv2.rectangle(pixels, (x - 7, y - 15), (x + 7, y + 15), FIGURE, -1)
    field = field_of(pixels, places)
    field.figure_boxes = np.concatenate([places - (7.5, 15.5), places + (7.5, 15.5)], 1).astype(np.float32)
    augmentation = TileAugmentation(rotation=180, flip=0.5)
    tiles = TileDataset([field], [], 384, 12.5, lambda random: Sample(0), augmentation, 0, 5, labelled_boxes=True)
    crop = replace(field, figure_boxes=None)
    plain = TileDataset([field], [crop], 384, 12.5, lambda random: Sample(crop=0), augmentation, 0, labelled_boxes=True)
    for image, boxes in [tiles[number] for number in range(12)] + [plain[number] for number in range(4)]:
        dark = image[1].numpy() < 60
        covered = np.zeros_like(dark)
        for left, top, right, bottom in boxes.numpy():
            covered[round(max(top - 1, 0)) : round(bottom) + 2, round(max(left - 1, 0)) : round(right) + 2] = True
        assert len(boxes) >= 3
        assert (dark & ~covered).sum() < 0.25 * dark.sum()  # of figures whose middle is beyond an edge or the cross
        assert (boxes[:, 2:] - boxes[:, :2]).max() < 51


def test_a_patch_around_a_figure_shows_its_centre(fields):
    """FoCasNet: "certain mitosis nuclei are in each patch". In fields larger and smaller than it, at their edges."""
    corners = field_of(np.full((300, 260, 3), TISSUE, np.uint8), [(0, 0), (259, 0), (130, 299)])
    small = field_of(np.full((170, 150, 3), TISSUE, np.uint8), [(149, 169), (70, 2)])
    augmentation = TileAugmentation(rotation=180, flip=0.5, scale=0.1)
    for mosaics in (0, 100):
        tiles = dataset([*fields, corners, small], [], {"figure": 1.0}, augmentation, 0, 224, mosaics)
        for number in range(60):
            boxes = tiles[number][1]
            assert len(boxes) >= (4 if mosaics else 1)
            assert ((boxes[:, 2:] - boxes[:, :2]) >= 24.4).all()  # half of a square at least: its centre shows


# --- mosaics and RandAugment ------------------------------------------------------


def test_the_boxes_of_a_mosaic_are_cut_at_its_cross(fields, crops):
    augmentation = TileAugmentation(rotation=180, flip=0.5)
    tiles = dataset(fields, crops, {"figure": 1}, augmentation, seed=5, mosaic_tiles=40)
    cut = 0
    for number in range(40):
        item = tiles[number]
        cross = np.random.default_rng((5, number)).integers(tiles.size // 4, 3 * tiles.size // 4)
        first, last = np.split(item[1].numpy(), 2, 1)
        assert ((last <= cross) | (first >= cross)).all()
        cut += ((last == cross) | (first == cross)).any()
        for point in discs(item):
            assert ((first <= point + 6) & (point - 6 <= last)).all(1).any()
    assert cut > 10


def test_maps_of_centres_take_no_mosaics_and_no_moved_tiles(fields):
    moved = TileAugmentation(randaugment=2, randaugment_geometry=True)
    for augmentation, mosaics in ((STILL, 1), (moved, 0)):
        with pytest.raises(ValueError, match="not of a map"):
            TileDataset(fields, [], 64, 12.5, lambda random: Sample(0), augmentation, 0, mosaics, whole_boxes=True)
    with pytest.raises(ValueError, match="64 px at least"):
        dataset(fields, [], {"figure": 1}, size=(32, 128), mosaic_tiles=1)
    with pytest.raises(ValueError, match="wants operations"):
        TileAugmentation(randaugment_geometry=True)


@pytest.mark.parametrize("magnitude", [-0.27, 0.27])
@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Posterize"])
def test_an_operation_moves_pixels_where_its_matrix_says(name, magnitude):
    """Against the pixels that torchvision moves; dots off the middle of an oblong image."""
    magnitude *= {"Rotate": 100, "Posterize": 20}.get(name, 110 if name[0] == "T" else 1)
    magnitude = abs(magnitude) if name == "Posterize" else magnitude
    image = torch.zeros(3, 120, 200, dtype=torch.uint8)
    places = np.array([(90, 40), (130, 75)])
    for x, y in places:
        image[:, y - 2 : y + 3, x - 2 : x + 3] = 255
    augment = TileRandAugment(1, True)
    augment.matrix = np.eye(3)
    how = {"interpolation": augment.interpolation, "fill": augment._fill}
    shown = augment._apply_image_or_video_transform(image, name, magnitude, **how)
    matrix = operation_matrix(name, magnitude, 200, 120)
    assert np.array_equal(augment.matrix, matrix)
    middles = cv2.connectedComponentsWithStats((shown[0].numpy() > 127).astype(np.uint8))[3][1:]
    for point in places @ matrix[:2, :2].T + matrix[:2, 2]:
        assert np.hypot(*(middles - point).T).min() < 0.8
    assert np.array_equal(matrix, np.eye(3)) == (name == "Posterize")


def test_randaugment_moves_boxes_with_their_figures_and_colours_alone_move_nothing(fields):
    """Geometry alone, so that figures can be told by their colour; boxes whose centres leave the tile are gone."""
    still, colours, moved = (
        dataset(fields, [], {"figure": 1}, augmentation, 2)
        for augmentation in (
            STILL,
            TileAugmentation(randaugment=2),
            TileAugmentation(randaugment=2, randaugment_geometry=True),
        )
    )
    space = moved.randaugment._AUGMENTATION_SPACE
    moved.randaugment._AUGMENTATION_SPACE = {
        name: space[name] for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    }
    uncut = lost = 0
    for number in range(30):
        before, item = still[number][1], moved[number]
        assert torch.equal(colours[number][1], before)
        seen, (first, last) = discs(item), np.split(item[1].numpy(), 2, 1)
        assert first.min(initial=0) >= 0
        assert last.max(initial=0) <= SIZE
        assert all(((first <= point + 6) & (point - 6 <= last)).all(1).any() for point in seen)
        middles = ((first + last) / 2)[((last - first) > 49.9).all(1)]
        assert all(np.hypot(*(seen - middle).T).min() < 2 for middle in middles)
        uncut += len(middles)
        lost += len(before) - len(first)
    assert uncut > 20
    assert lost > 2


def test_a_blurred_tile_has_the_same_boxes_and_softer_edges(fields, crops):
    still, blurred = (dataset(fields, crops, {"figure": 1}, TileAugmentation(blur=blur), 1) for blur in (0.0, 1.0))
    for number in range(5):
        (sharp, boxes), (soft, same) = still[number], blurred[number]
        assert torch.equal(boxes, same)
        steps, softer = (image.float().diff(dim=2).square().sum() for image in (sharp, soft))
        assert 0.2 * steps < softer < 0.95 * steps


def test_the_cell_of_a_crop_is_anywhere_in_a_tile_as_large_as_the_crop():
    """All of its box lies in the tile, whatever the turn: a place inside the crop would be the middle, always."""
    crop = field_of(textured(128, 128), [(63.5, 63.5)])
    sample = Sample(0, crop.figures[0])
    for augmentation in (STILL, TileAugmentation(rotation=180, flip=0.5)):
        tiles = TileDataset([crop], [], 128, 12.5, lambda random: sample, augmentation, 0)
        matrices = [tiles._matrix_around(crop, sample.point, np.random.default_rng(seed)) for seed in range(200)]
        places = np.array([matrix[:, :2] @ sample.point + matrix[:, 2] for matrix in matrices])
        assert (places.min(0) < 28).all()
        assert (places.max(0) > 99).all()
        assert ((places >= 24.5 - 1e-4) & (places <= 102.5 + 1e-4)).all()
    larger = field_of(textured(168, 168), [(83.5, 83.5)])  # 42 um
    tiles = TileDataset([larger], [], 168, 12.5, lambda random: Sample(0, larger.figures[0]), STILL, 0)
    assert all(tiles[number][1].tolist() == [[58.5, 58.5, 108.5, 108.5]] for number in range(5))


def test_both_tiles_of_a_mixup_keep_their_boxes(fields, crops):
    plain, mixed = (
        [tiles[number][1] for number in range(20)]
        for tiles in (dataset(fields, crops, {"figure": 1}, TileAugmentation(mixup=mixup), 1) for mixup in (0, 1))
    )
    assert all(torch.equal(both[: len(one)], one) for one, both in zip(plain, mixed, strict=True))
    assert sum(map(len, mixed)) > 1.5 * sum(map(len, plain))


def test_an_item_is_the_same_whenever_and_wherever_it_is_drawn(fields, crops):
    augmentation = TileAugmentation(rotation=180, flip=0.5, scale=0.1, mixup=0.5, randaugment=2, erase=0.5)
    tiles = dataset(fields, crops, EVEN, augmentation, seed=3, mosaic_tiles=4)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    here = [tiles[number] for number in range(8)]
    assert torch.equal(before, torch.get_rng_state())
    for start, workers in ((4, 2), (0, 0)):
        loader = torch.utils.data.DataLoader(
            tiles, 2, sampler=range(start, start + 4), num_workers=workers, collate_fn=collate
        )
        for step, (images, boxes) in enumerate(loader):
            first = here[start + 2 * step : start + 2 * step + 2]
            assert images.dtype == torch.uint8
            assert torch.equal(images, torch.stack([image for image, _ in first]))
            assert all(torch.equal(got, box) for got, (_, box) in zip(boxes, first, strict=True))
    assert not torch.equal(here[0][0], here[4][0])


@pytest.mark.parametrize("kind", ["balanced", "fixed_fraction"])
def test_the_first_tiles_are_mosaics_and_later_ones_are_not(kind, crops):
    """Every tile of these fields has one colour, so that a mosaic has as many as it has fields."""
    fields = [field_of(np.full((600, 600, 3), value, np.uint8)) for value in range(10, 250, 20)]
    sampler = BalancedSampler(fields) if kind == "balanced" else FixedFractionSampler(fields, 0, {"background": 1})
    tiles = TileDataset(fields, [], 64, 12.5, lambda random: sampler(random)._replace(point=MIDDLE), STILL, 0, 5)
    colours = [len(tiles[number][0].unique()) for number in range(10)]
    assert min(colours[:5]) > 1
    assert colours[5:] == [1] * 5


def test_tiles_are_drawn_around_what_the_fractions_say(fields, crops):
    sampler = FixedFractionSampler(fields, len(crops), {"figure": 3, "crops": 1})
    random = np.random.default_rng(0)
    drawn = [sampler(random) for _ in range(400)]
    assert 0.19 < sum(each.field is None for each in drawn) / 400 < 0.31
    at_figures = [each for each in drawn if each.field is not None]
    assert all((each.point == fields[each.field].figures).all(1).any() for each in at_figures)
    assert FixedFractionSampler(fields, 0, EVEN).sources == [*EVEN][:3]


def test_the_balanced_sampler_is_even_over_sets_slides_and_classes(fields, crops):
    """Two slides of one set with 8 figures each, one of them with 80 hard negatives more; crops of two cases."""
    more = np.tile(fields[0].hard_negatives, (10, 1))
    fields = [replace(fields[0], hard_negatives=more), replace(fields[1], case="b")]
    sampler = BalancedSampler(fields, crops)
    random = np.random.default_rng(0)
    drawn = [sampler(random) for _ in range(4000)]
    of_field = [sum(each.field == number for each in drawn) for number in (0, 1)]
    of_crop = [sum(each.crop == number for each in drawn) for number in range(3)]

    places = {(number, *point) for number, each in enumerate(fields) for point in each.figures}
    figures = sum(each.figure or (each.point is not None and (each.field, *each.point) in places) for each in drawn)
    assert of_field == pytest.approx([1000, 1000], abs=120)
    assert of_crop == pytest.approx([500, 500, 1000], abs=120)
    assert figures == pytest.approx(2000, abs=150)


def test_a_drawn_crop_is_pasted_with_its_figure_or_no_figure_is(fields, crops):
    empty = [replace(each, figures=np.zeros((0, 2), np.float32)) for each in fields]
    for figure in (True, False):
        for sample in (Sample(crop=1, figure=figure), Sample(crop=2, figure=figure)):
            tiles = TileDataset(empty, crops, SIZE, 12.5, lambda _, sample=sample: sample, STILL, 0)
            counts = [len(tiles[number][1]) for number in range(20)]
            assert (min(counts) >= 1) == figure  # a later disc may hide the first one's figure: not in these 20
            assert (max(counts) == 0) == (not figure)


def test_tiles_can_be_oblong(fields, crops):
    augmentation = TileAugmentation(rotation=15, flip=0.5, erase=1.0, hue=0.1, saturation=0.2, value=0.2)
    tiles = dataset(fields, crops, EVEN, augmentation, size=(192, 128), mosaic_tiles=4)
    for image, boxes in (tiles[number] for number in range(8)):
        assert image.shape == (3, 128, 192)
        assert ((boxes >= 0) & (boxes <= torch.tensor([192, 128, 192, 128]))).all()


def test_hsv_jitter_stays_in_its_range():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jittered = jitter_hsv(pixels, np.random.default_rng(1), TileAugmentation(value=0.2))
    ratio = jittered.max(2)[pixels.max(2) > 100] / pixels.max(2)[pixels.max(2) > 100]
    assert 0.79 < ratio.min() <= ratio.max() < 1.21
    assert np.ptp(ratio[ratio < 0.99]) < 0.02  # one factor a tile
    assert np.abs(jitter_hsv(pixels, np.random.default_rng(1), STILL).astype(int) - pixels).mean() < 1


def test_fields_without_room_for_another_cell_do_not_stop_the_pasting(crops):
    field = field_of(np.full((128, 128, 3), TISSUE, np.uint8), [(64, 64)], [(84, 84)])
    tiles = dataset([field], crops, {"crops": 1})
    assert all(tiles[number][0].shape == (3, SIZE, SIZE) for number in range(10))


def test_a_pasted_stain_comes_to_its_surroundings():
    generator = np.random.default_rng(0)
    patch, tile = (
        (colour + 12 * generator.standard_normal((129, 129, 1))).clip(0, 255).astype(np.uint8)
        for colour in ((150, 110, 190), TISSUE)
    )
    tile[:40] = 255  # glass has no say

    def distance(share):
        return np.abs(match_stain(patch, tile, share).mean((0, 1)) - tile[40:].mean((0, 1))).max()

    assert np.array_equal(match_stain(patch, np.full_like(tile, 250), 1.0), patch)
    assert distance(0.0) > 25
    assert distance(0.5) == pytest.approx(distance(0.0) / 2, abs=4)
    assert distance(1.0) < 4


def test_discs_keep_their_distance_from_a_crop_s_figure(fields, crops):
    tiles = dataset(fields, crops, {"crops": 1})
    random = np.random.default_rng(0)
    with_figure = 0
    for crop, middle, radius in (tiles._place_in_crop(Sample(), random, 40) for _ in range(200)):
        away = np.hypot(*(middle - crop.figures[0]))
        shows = radius == 40
        with_figure += shows
        assert away <= radius - 18 if shows else away >= radius + 18
        assert shows or ((middle >= 0) & (middle < crop.size)).all()
    assert 100 < with_figure < 160


def test_the_darkest_place_is_a_nucleus():
    pixels = np.full((128, 128, 3), TISSUE, np.uint8)
    disc(pixels, 3, 64, FIGURE)
    places = [np.array(place) for place in ((20.0, 20.0), (2.0, 65.0), (127.9, 127.9))]
    assert darkest(ArraySlide(pixels), places) is places[1]


# --- what a window shows ----------------------------------------------------------

VIEWS = {
    "field": st.tuples(st.integers(24, 260), st.integers(24, 260)),
    "tile": st.tuples(st.sampled_from([32, 96, 160]), st.sampled_from([32, 64, 160])),
    "augmentation": st.builds(
        TileAugmentation,
        rotation=st.sampled_from([0.0, 10.0, 180.0]),
        flip=st.sampled_from([0.0, 0.5]),
        scale=st.sampled_from([0.0, 0.15]),
    ),
    "seed": st.integers(0, 1000),
}


def views_of(field, tile, augmentation, sample=None):
    """A `TileDataset` of one field."""
    return TileDataset([field], [], tile, 5.0, lambda random: sample or Sample(0), augmentation, 0)


def textured(width, height):
    """Noise that a small shift changes little: uint8 (height, width, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


@settings(max_examples=60, deadline=None)
@given(**VIEWS)
def test_a_window_shows_its_field_and_its_mirror_images_alone(field, tile, augmentation, seed):
    """As OpenCV shows the whole field, mirrored at its edges; so a field of one colour has tiles of one colour."""
    pixels = textured(*field)
    tiles = views_of(field_of(pixels), tile, augmentation)
    matrix = tiles._matrix_around(tiles.fields[0], None, np.random.default_rng(seed))
    expected = cv2.warpAffine(pixels, matrix, tile, borderMode=cv2.BORDER_REFLECT_101)
    assert np.abs(warped(tiles.fields[0], matrix, tiles.size).astype(int) - expected).max() <= 1
    assert (views_of(field_of(np.full_like(pixels, 77)), tile, augmentation)[seed][0] == 77).all()


@settings(max_examples=300, deadline=None)
@given(**VIEWS, place=st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_window_lies_inside_where_it_fits_and_shows_its_point(field, tile, augmentation, seed, place):
    last = np.array(field) - 1.0
    point = None if place is None else (np.array(place) * last).astype(np.float32)
    made = field_of(np.zeros((field[1], field[0], 3), np.uint8))
    tiles = views_of(made, tile, augmentation)
    matrix = tiles._matrix_around(made, point, np.random.default_rng(seed))
    if point is not None:
        assert len(figures_in(matrix, point[None], field, tiles.size))
        if is_crop(made):
            return
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    corners = np.array([[x, y] for x in (0, tile[0] - 1) for y in (0, tile[1] - 1)]) - matrix[:, 2]
    seen = corners @ np.linalg.inv(matrix[:, :2]).T
    first, end = seen.min(0), seen.max(0)
    fits = end - first <= last + 1e-6
    assert ((first >= -1e-6) & (end <= last + 1e-6))[fits].all()
    assert ((first <= 1e-6) & (end >= last - 1e-6))[~fits].all()  # no farther out than needs be
    if (last >= (max(tile) - 1) / scale).all():  # in quarter turns at least
        assert fits.all()


@settings(max_examples=60, deadline=None)
@given(**VIEWS, around=st.booleans())
def test_every_figure_and_mirror_image_that_shows_has_its_box(field, tile, augmentation, seed, around):
    """White dots on black, some at the very distance from an edge at which they and their images are two."""
    width, height = field
    pixels = np.zeros((height, width, 3), np.uint8)
    places = [(x, y) for x in range(TOUCHING, width - TOUCHING, 25) for y in range(TOUCHING, height - TOUCHING, 25)]
    for x, y in places:
        cv2.circle(pixels, (x, y), 4, (255, 255, 255), -1)
    tiles = views_of(
        field_of(pixels, places), tile, augmentation, Sample(0, np.array(places[-1], np.float32) if around else None)
    )
    shown, points = tiles._tile(np.random.default_rng(seed))
    assert not around or len(points)
    middles = cv2.connectedComponentsWithStats((shown[..., 0] > 127).astype(np.uint8))[3][1:]
    for these, those in ((middles, points), (points, middles)):
        whole = these[((these > 7) & (these < np.array(tile) - 8)).all(1)]
        for point in whole:
            assert np.hypot(*(those - point).T).min(initial=99) < 1


def test_a_figure_that_touches_its_mirror_image_has_one_box():
    pixels = np.zeros((40, 40, 3), np.uint8)
    field = field_of(pixels, [(3, 20)])
    tiles = views_of(field, (96, 32), STILL)
    _, points = tiles._window(field, np.array([[1.0, 0, 28], [0, 1, -4]]))
    assert sorted(points.tolist()) == [[31, 16]]


# --- cells of unclear class -------------------------------------------------------


@pytest.mark.parametrize("source", ["figure", "background", "crops"])
def test_no_window_shows_a_cell_of_unclear_class_where_there_are_other_places(crops, source, monkeypatch):
    """Nor does a disc from a field; the cell is bright green, far enough from a figure to be left out."""
    monkeypatch.setattr(tiles_module, "match_stain", lambda patch, tile, fraction: patch)  # green stays green
    pixels = np.random.default_rng(0).integers(150, 200, (300, 900, 3), np.uint8)
    for x in (60, 840):
        disc(pixels, x, 150, FIGURE)
    disc(pixels, 150, 150, (0, 255, 0))
    field = field_of(pixels, [(60, 150), (840, 150)], [(150, 170)], [(150, 150)])
    tiles = dataset([field], crops, {source: 1}, TileAugmentation(rotation=180), size=128)
    for image, _ in (tiles[number] for number in range(60)):
        red, green, _ = image.int()
        assert ((green - red) > 150).sum() < 75  # of 113: its middle is outside


def test_a_field_of_nothing_but_unclear_cells_and_glass_gives_tiles_all_the_same():
    field = field_of(np.full((64, 64, 3), 240, np.uint8), unclear=[(32, 32)])
    drawn = []
    tiles = TileDataset([field], [], 64, 12.5, lambda random: drawn.append(0) or Sample(0), STILL, 0)
    assert tiles[0][0].shape == (3, 64, 64)
    assert len(drawn) == MAX_TRIES


def test_places_without_tissue_are_drawn_again():
    """Half of the field is glass; labelled cells are learnt wherever they are."""
    pixels = np.full((200, 1000, 3), 240, np.uint8)
    pixels[:, 500:] = textured(500, 200)
    field = field_of(pixels, [(100, 100)])
    tiles = views_of(field, (96, 96), STILL)
    assert all(tiles[number][0].unique().numel() > 10 for number in range(30))
    tiles = views_of(field, (96, 96), STILL, Sample(0, field.figures[0]))
    assert tiles[0][0].unique().numel() == 1
