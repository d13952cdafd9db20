"""How fast Track 1 runs here on a region or a slide, against what its detector must spend at least.

    python -m resources.benchmark.track1 [--region IMAGE --mpp .25] [--device cuda] [--precision float32]
    python -m resources.benchmark.track1 --slide
    python -m resources.benchmark.track1 --region IMAGE --other CLONE [--other-system NAME]

The first copies the image, or a drawn one, into a tiled TIFF and runs it as a job; the second does so with a slide of
60,000 x 60,000 px with little tissue. Both print wall time, peak memory, tiles, seconds a mm2, and the wall time over
the time that the detector takes for those tiles alone in the best batch, as the job runs it and by PyTorch in float32.
The third runs the job in turn with that of another clone, say of an older commit, and prints the ratio. Run it with
nothing else on the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from midog.arguments import add_device
from midog.engine.network import Engine
from midog.errors import UserError, exit_code
from midog.images.slide import open_slide
from midog.run import load
from midog.system import System, find_folder, load_system, model_folder
from resources.benchmark.job import entry_point
from resources.data import synthetic

SLUG = "histopathology-region-of-interest-cropout"
SIDE = 60_000
SEGMENT = 512


def write_slide(path: Path, tissue: NDArray[np.uint8], um_per_px: float) -> None:
    """A pyramid of 60,000 px a side: glass, and some square millimetres of an image repeated in its middle."""
    import tifffile

    glass = np.full((SEGMENT, SEGMENT, 3), 244, np.uint8)
    height, width = (side // SEGMENT * SEGMENT for side in tissue.shape[:2])
    tissue = tissue[:height, :width]

    def segment(top: int, left: int) -> NDArray[np.uint8]:
        middle = all(0.45 < (each + SEGMENT / 2) / SIDE < 0.55 for each in (top, left))
        if not middle:
            return glass
        y, x = (start % (length - SEGMENT + 1) for start, length in zip((top, left), tissue.shape, strict=False))
        return tissue[y : y + SEGMENT, x : x + SEGMENT]

    def level(shrink: int) -> Iterator[NDArray[np.uint8]]:
        step = SEGMENT * shrink
        for top in range(0, SIDE, step):
            for left in range(0, SIDE, step):
                rows, columns = (range(start, start + step, SEGMENT) for start in (top, left))
                yield np.block([[[segment(y, x)[::shrink, ::shrink]] for x in columns] for y in rows])

    density = 10_000 / um_per_px
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, shrink in enumerate((1, 4)):
            side = SIDE // shrink
            file.write(
                level(shrink),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(SEGMENT, SEGMENT),
                photometric="rgb",
                compression="jpeg",
                resolution=(density / shrink, density / shrink),
                resolutionunit="CENTIMETER",
                subifds=1 if number == 0 else 0,
                subfiletype=int(number > 0),
            )


def run_job(folder: Path, image: Path, options: Sequence[str], start: str = "") -> tuple[float, float, str]:
    """The whole process as the platform starts it: seconds, peak memory in MiB, what it said.

    Args:
        folder: for the job.
        image: in it.
        options: of inference.py.
        start: another inference.py than ours.
    """
    socket = {"slug": SLUG, "relative_path": synthetic.REGION_FOLDER}
    named = {"image": {"name": image.name}, "socket": socket, "interface": socket}  # the latter for older code
    (folder / "inputs.json").write_text(json.dumps([named]))
    command = [
        sys.executable,
        start or entry_point(),
        "--input",
        str(folder),
        "--output",
        str(folder / "out"),
        *options,
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{image}: its job ended with {os.waitstatus_to_exitcode(status)}; see what it said")
    return time.perf_counter() - started, usage.ru_maxrss / 1024, said


class Forwards(NamedTuple):
    """What a detector must do at least: tiles, those with tissue, seconds a tile by batch; the image's mm2."""

    tiles: int
    tissue: int
    times: dict[int, float]
    mm2: float

    @property
    def seconds(self) -> float:
        """Of all tiles, in the best batch."""
        return self.tissue * min(self.times.values())

    def __str__(self) -> str:
        return ", ".join(f"{batch}: {1000 * each:.1f}" for batch, each in self.times.items())


def best_forwards(image: Path, system: System, engine: Engine) -> Forwards:
    """Time a system's detector on an image's tiles."""
    from midog.engine.detector import load_detector
    from midog.engine.network import to_batch
    from midog.images.slide import at_spacing
    from midog.images.tiles import fitted, grid, tiles_with_tissue

    part = system.detector
    assert part is not None
    detector = load_detector(system, engine)
    with open_slide(image) as source:
        slide = at_spacing(source, part.um_per_px)
        tile = fitted(slide.size, part.tile, part.overlap)
        places = grid(*slide.size, tile, part.overlap)
        tissue = [pixels for _, pixels in tiles_with_tissue(slide, places, tile)]
        times = {}
        for batch in (1, 2, 4) if engine.device == "cpu" else (1, 4, 16, 64):
            tiles = to_batch((tissue * batch)[:batch])
            walls = []
            for _ in range(max(4, 32 // batch)):
                started = time.perf_counter()
                detector(tiles)  # its answer is in the processor's memory: nothing to wait for
                walls.append(time.perf_counter() - started)
            times[batch] = float(np.median(walls[1:])) / batch
        area = slide.size[0] * slide.size[1] * slide.um_per_px[0] * slide.um_per_px[1] / 1e6
    return Forwards(len(places), len(tissue), times, area)


def measure(image: Path, folder: Path, arguments: argparse.Namespace) -> None:
    from midog.engine.torch_engine import TorchEngine

    runner = load(arguments.system, 1, arguments.model, arguments.device, arguments.precision)
    weights = load_system(find_folder(model_folder(None), runner.system.system, 1))
    options = [
        "--system",
        runner.system.system,
        "--device",
        arguments.device,
        "--model",
        str(runner.system.folder.parent),
    ]
    options += ["--precision", arguments.precision] if arguments.precision else []
    jobs = {str(runner.system): (options, "")}
    if arguments.other:
        theirs = ["--system", arguments.other_system] if arguments.other_system else []
        jobs[f"{arguments.other.name}'s {arguments.other_system or 'default'}"] = (
            theirs,
            str(arguments.other / "inference.py"),
        )
    walls: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(arguments.rounds):
        for name, (given, start) in jobs.items():
            wall, memory, said = run_job(folder, image, given, start)
            walls[name].append(wall)
            print("" if number else said, f"{name}: {wall:.2f} s, peak memory {memory:.0f} MiB", sep="", flush=True)
    ours, *others = (float(np.median(each)) for each in walls.values())
    for other in others:
        print(f"ratio of the medians {ours / other:.2f}")
    own = best_forwards(image, runner.system, runner.engine)
    floor = best_forwards(image, weights.with_precision("float32"), TorchEngine(arguments.device))
    print(f"forward, ms a tile by batch: {runner.runs_on} {own}; PyTorch, float32 {floor}")
    print(
        f"median {ours:.2f} s, {own.tiles} tiles, {own.tissue} with tissue, {own.mm2:.2f} mm2, {ours / own.mm2:.2f} "
        f"s/mm2, {ours / own.seconds:.2f} x its own forwards, {ours / floor.seconds:.2f} x PyTorch's in float32"
    )


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """All of an image in whatever format the program reads: uint8 (H, W, 3)."""
    with open_slide(path) as slide:
        return slide.read(0, 0, *slide.size)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.track1",
        description="How fast a Track 1 system runs here: a whole job of a region or slide, and its detector.",
    )
    parser.add_argument(
        "--region",
        type=Path,
        metavar="IMAGE",
        help="H&E tissue, for --slide of 512 px a side at least; without it one is drawn",
    )
    parser.add_argument(
        "--slide", action="store_true", help="a slide of 60,000 px a side, with the region repeated in its middle"
    )
    parser.add_argument(
        "--mpp", type=float, default=0.25, metavar="UM", help="um per pixel of the region (%(default)s)"
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of the systems' folders (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder in it (the default of Track 1)")
    parser.add_argument("--other", type=Path, metavar="CLONE", help="another clone, whose job is run in turn")
    parser.add_argument("--other-system", metavar="NAME", help="its system (its default)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="jobs of each (%(default)s)")
    add_device(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    pixels = read_pixels(arguments.region) if arguments.region else synthetic.region(seed=2025)[0]
    if arguments.slide and min(pixels.shape[:2]) < SEGMENT:
        raise UserError(f"{arguments.region}: smaller than {SEGMENT} px; give --region a larger image")
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / synthetic.REGION_FOLDER / "image.tif"
        image.parent.mkdir(parents=True)
        (write_slide if arguments.slide else synthetic.write_region_tiff)(image, pixels, arguments.mpp)
        del pixels
        measure(image, Path(name), arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
