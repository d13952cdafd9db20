"""What the trainings' windows are made of, and what they cost.

    python -m resources.benchmark.windows pixels --systems NAME ... --data DIR[:CASE] ... [--crops DIR ...]
    python -m resources.benchmark.windows speed --system NAME [--regions 10 60] [--image IMAGE]

`pixels` draws 1,000 windows of each detector's recipe, without changes of colour, and counts the pixels that come from
outside their image, and those that are mirrored: from fields of two greys, which pass for tissue, once as they are and
once with 0 where they would be mirrored.

`speed` makes regions of 7,215 x 5,412 px (JPEG-tiled TIFF) and draws windows of 512 px by as many workers as there are
processors, as the recipe has them, without its changes of colour, and then only reads the same places: windows a
second, and the memory of a worker.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from midog.errors import UserError, exit_code
from midog.images.slide import ArraySlide, Slide, open_slide
from midog.system import read_system
from resources.data import synthetic
from resources.data.fields import Field, read_fields
from resources.data.on_demand import OnDemandSlide
from resources.train.kit.arguments import TrainingData
from resources.train.kit.detector import DetectorRecipe, training_tiles
from resources.train.kit.recipes import SYSTEMS, read_plan
from resources.train.kit.tiles import TileAugmentation, TileDataset
from resources.train.kit.workers import batches_of

WINDOWS = 1000
INSIDE = 100, 112  # grey levels, by turns
SQUARE = 64  # px
TOLERANCE = 6  # grey levels that pasting and its colours may add
SIZE = 7215, 5412  # px, of the challenge's regions
TILE = 512, 512
BATCH = 8
STEP = 300  # px between the figures of a made region
CALM = {"hue": 0.0, "saturation": 0.0, "value": 0.0, "randaugment": 0, "erase": 0.0}

Place = tuple[int, int, int, int, int]  # number of a field; x, y, width, height


class _Even(Slide):
    """A slide of two greys, chequered."""

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        rows, columns = np.arange(y, y + height) // SQUARE, np.arange(x, x + width) // SQUARE
        greys = np.array(INSIDE, np.uint8)[(rows[:, None] + columns) % 2]
        return np.repeat(greys[..., None], 3, 2)


class _Marked(Field):
    """A field that is black where it would be mirrored."""

    def read_reflected(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return self.read_padded(x, y, width, height, fill=0)


class _Recording(Field):
    """A field that notes what is read of it."""

    number: int
    places: list[Place]

    def read_reflected(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        self.places.append((self.number, x, y, width, height))
        return super().read_reflected(x, y, width, height)


def _as(kind: type[Field], field: Field, slide: Slide) -> Field:
    """A field of another kind with other pixels."""
    own = {each.name: getattr(field, each.name) for each in dataclasses.fields(field)}
    return kind(**own | {"slide": slide})


def tiles_of(name: str, data: TrainingData, **changes: object) -> TileDataset:
    """The tiles of a system's recipe, some keys of which are changed."""
    detector = read_system(SYSTEMS / f"{name}.yaml").detector
    assert detector is not None
    plan = read_plan(name, detector.network, DetectorRecipe)
    recipe = msgspec.structs.replace(plan.training, **changes)
    return training_tiles(recipe, plan.detector, data.at(plan.detector.um_per_px))


def count_pixels(arguments: argparse.Namespace) -> None:
    """Print, for each recipe, the fractions of pixels from outside their image and of mirrored ones."""
    data = TrainingData(read_fields(arguments.data), [], read_fields(arguments.crops))
    even = TrainingData(*([_as(Field, each, _Even(each.size, each.um_per_px)) for each in group] for group in data))
    marked = TrainingData(*([_as(_Marked, each, each.slide) for each in group] for group in even))
    print(f"{'recipe':16s} {'window':>12s} {'from outside':>13s} {'mirrored':>9s}")
    for name in arguments.systems:
        detector = read_system(SYSTEMS / f"{name}.yaml").detector
        assert detector is not None
        recipe = read_plan(name, detector.network, DetectorRecipe).training
        calm = msgspec.structs.replace(recipe.augmentation, **CALM)
        fractions = []
        for fields in (even, marked):
            tiles = tiles_of(name, fields, augmentation=calm)
            other = [
                _is_other(tiles[number][0].numpy()).mean()
                for number in tqdm(range(WINDOWS), name, disable=None, leave=False)
            ]
            fractions.append(float(np.mean(other)))
        size = f"{recipe.tile[0]} x {recipe.tile[1]}"
        print(f"{name:16s} {size:>12s} {fractions[0]:13.2%} {fractions[1]:9.2%}", flush=True)


def region_of(image: Path | None) -> NDArray[np.uint8]:
    """A region's pixels, an image's or drawn ones repeated: uint8 (5412, 7215, 3)."""
    pixels = synthetic.region(0)[0]
    if image:
        with open_slide(image, synthetic.UM_PER_PX) as slide:
            pixels = slide.read(0, 0, *slide.size)
    repeats = [-(-side // pixels.shape[axis]) for axis, side in enumerate(SIZE[::-1])]
    return np.tile(pixels, (*repeats, 1))[: SIZE[1], : SIZE[0]]


def _is_other(tile: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pixels of a tile (3, H, W) are not a field's: bool (H, W)."""
    low, high = INSIDE[0] - TOLERANCE, INSIDE[1] + TOLERANCE
    return np.asarray(((tile < low) | (tile > high)).any(0))


def make_regions(folder: Path, count: int, pixels: NDArray[np.uint8]) -> list[Field]:
    """Different regions on disk, as fields with figures all over."""
    places = np.stack(np.meshgrid(*(np.arange(STEP, side, STEP) for side in SIZE)), -1).reshape(-1, 2)
    fields = []
    for number in tqdm(range(count), "making regions", disable=None, leave=False):
        path = folder / f"{number:03}.tiff"
        synthetic.write_region_tiff(path, np.roll(pixels, number * 37, (0, 1)))
        slide = OnDemandSlide(path, synthetic.UM_PER_PX)
        fields.append(Field(path.name, path.stem, "made", slide, places.astype(np.float32)))
    return fields


class _Timed:
    """Makes batches of items, and tells the memory of the process that made them (MiB)."""

    def __init__(self, items: Sequence[object] | TileDataset) -> None:
        self.items = items

    def __call__(self, number: int) -> float:
        for item in range(number * BATCH, (number + 1) * BATCH):
            self.items[item]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20


class _Reads(Sequence[None]):
    """Item by item what a window reads, and nothing else."""

    def __init__(self, fields: Sequence[Field], places: Sequence[Sequence[Place]]) -> None:
        self.fields, self.places = fields, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> None:  # type: ignore[override]
        for number, *place in self.places[item]:
            self.fields[number].read_reflected(*place)


def measure_speed(arguments: argparse.Namespace) -> None:
    """Print windows a second, those of reading alone, and the most memory of a worker, by the number of regions."""
    if not Path("/proc/self/statm").exists():
        raise UserError("/proc: not found; a process's memory is read from it, on Linux")
    print("regions  windows/s  no colour  read alone       ratios  MiB a worker")
    with tempfile.TemporaryDirectory() as name:
        pixels = region_of(arguments.image)
        regions = make_regions(Path(name), max(arguments.regions), pixels)
        for count in arguments.regions:
            fields = regions[:count]
            data = TrainingData(fields, [], [])
            tiles = tiles_of(arguments.system, data, tile=TILE, sampling="balanced")
            calm = msgspec.structs.replace(tiles.augmentation, **CALM)
            uncoloured = tiles_of(arguments.system, data, tile=TILE, sampling="balanced", augmentation=calm)
            places = _places_of(arguments.system, fields, calm, ArraySlide(pixels))
            rates, memory = [], 0.0
            for items in (tiles, uncoloured, _Reads(fields, places)):
                started = time.perf_counter()
                told = list(batches_of(_Timed(items), range(WINDOWS // BATCH)))
                rates.append(len(told) * BATCH / (time.perf_counter() - started))
                memory = max(memory, *told)
            ratios = f"{rates[0] / rates[2]:.2f}, {rates[1] / rates[2]:.2f}"
            print(
                f"{count:7d} {rates[0]:10.1f} {rates[1]:10.1f} {rates[2]:11.1f} {ratios:>12s} {memory:13.0f}",
                flush=True,
            )


def _places_of(
    system: str, fields: Sequence[Field], augmentation: TileAugmentation, stand_in: Slide
) -> list[list[Place]]:
    """What every window reads, noted on a region that stands for all."""
    places: list[Place] = []
    recording = []
    for number, field in enumerate(fields):
        each = _as(_Recording, field, stand_in)
        assert isinstance(each, _Recording)
        each.number, each.places = number, places
        recording.append(each)
    data = TrainingData(list(recording), [], [])
    tiles = tiles_of(system, data, tile=TILE, sampling="balanced", augmentation=augmentation)
    noted = []
    for item in range(WINDOWS):
        tiles[item]
        noted.append(places.copy())
        places.clear()
    return noted


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    kinds = parser.add_subparsers(required=True, metavar="pixels | speed")
    pixels = kinds.add_parser("pixels", help="from outside their image, and mirrored, by recipe")
    pixels.add_argument("--systems", nargs="+", required=True, metavar="NAME", help="of resources/systems")
    pixels.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASE]", help="labelled fields")
    pixels.add_argument("--crops", nargs="*", default=[], metavar="DIR", help="crops to paste")
    pixels.set_defaults(run=count_pixels)
    speed = kinds.add_parser("speed", help="windows a second and memory")
    speed.add_argument("--system", required=True, metavar="NAME", help="whose augmentation is drawn")
    speed.add_argument("--regions", nargs="+", type=int, default=[10, 60], metavar="N", help="how many (10 60)")
    speed.add_argument("--image", type=Path, metavar="IMAGE", help="whose pixels fill the regions (drawn ones)")
    speed.set_defaults(run=measure_speed)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return exit_code(arguments.run, arguments)


if __name__ == "__main__":
    sys.exit(main())
