"""How fast Track 1 runs here on a region or a slide, against what its detector must spend at least.

    python -m resources.benchmark.track1 [--region IMAGE --mpp .25] [--device cuda]
    python -m resources.benchmark.track1 --slide

The first copies the image, or a drawn one, into a tiled TIFF and runs it as a
job; the second does so with a slide of 60,000 x 60,000 px with little tissue.
Both print wall time, peak memory, tiles, seconds a mm2, and the wall time over the
time that the detector takes for those tiles alone in the best batch. Run it with
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

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, exit_code
from midog.images.slide import open_slide
from midog.system import model_folder
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

    def level(side: int, shrink: int) -> Iterator[NDArray[np.uint8]]:
        for top in range(0, side, SEGMENT):
            for left in range(0, side, SEGMENT):
                middle = all(0.45 < (each + SEGMENT / 2) / side < 0.55 for each in (top, left))
                if not middle:
                    yield glass
                    continue
                part = tissue[::shrink, ::shrink]
                y, x = (start % (length - SEGMENT + 1) for start, length in zip((top, left), part.shape, strict=False))
                yield part[y : y + SEGMENT, x : x + SEGMENT]

    density = 10_000 / um_per_px
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, shrink in enumerate((1, 4)):
            side = SIDE // shrink
            file.write(
                level(side, shrink),
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


def run_job(folder: Path, image: Path, model: Path, system: str | None, device: str) -> tuple[float, float, str]:
    """The whole process as the platform starts it: seconds, peak memory in MiB, what it said."""
    socket = {"slug": SLUG, "relative_path": synthetic.REGION_FOLDER}
    (folder / "inputs.json").write_text(json.dumps([{"image": {"name": image.name}, "socket": socket}]))
    command = [sys.executable, entry_point(), "--input", str(folder), "--output", str(folder / "out")]
    command += ["--model", str(model), "--device", device]
    command += ["--system", system] if system else []
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{image}: its job ended with {os.waitstatus_to_exitcode(status)}; see what it said")
    return time.perf_counter() - started, usage.ru_maxrss / 1024, said


def best_forward(
    image: Path, model: Path, name: str | None, device_name: str
) -> tuple[int, int, dict[int, float], float]:
    """Tiles, those with tissue, the detector's seconds a tile by batch, and the image's mm2."""
    import torch

    from midog.engine.detector import load_detector, tiles_with_tissue
    from midog.engine.weights import choose_device, to_tensor
    from midog.images.slide import at_spacing
    from midog.images.tiles import grid
    from midog.system import find_system

    device = choose_device(device_name)
    system = find_system(model, name, track=1)
    part = system.detector
    assert part is not None
    detector = load_detector(system, device)
    with open_slide(image) as source, torch.inference_mode():
        slide = at_spacing(source, part.um_per_px)
        places = grid(*slide.size, part.tile, part.overlap)
        tissue = [pixels for _, pixels in tiles_with_tissue(slide, places, part.tile)]
        times = {}
        for batch in (1, 2, 4, 8) if device.type == "cpu" else (1, 4, 16, 64):
            tiles = to_tensor((tissue * batch)[:batch], device).contiguous(memory_format=torch.channels_last)
            walls = []
            for _ in range(max(4, 32 // batch)):
                started = time.perf_counter()
                detector(tiles)  # its answer is in the processor's memory: nothing to wait for
                walls.append(time.perf_counter() - started)
            times[batch] = float(np.median(walls[1:])) / batch
        area = slide.size[0] * slide.size[1] * slide.um_per_px[0] * slide.um_per_px[1] / 1e6
    return len(places), len(tissue), times, area


def measure(image: Path, folder: Path, model: Path, system: str | None, device: str) -> None:
    wall, memory, said = run_job(folder, image, model, system, device)
    print(said, end="")
    tiles, tissue, times, area = best_forward(image, model, system, device)
    batch = min(times, key=times.__getitem__)
    shown = ", ".join(f"{number}: {1000 * each:.1f}" for number, each in times.items())
    print(f"forward, ms a tile by batch: {shown}")
    print(
        f"wall {wall:.2f} s, peak memory {memory:.0f} MiB, {tiles} tiles, {tissue} with tissue, {area:.2f} mm2, "
        f"{wall / area:.2f} s/mm2, wall / forwards {wall / (tissue * times[batch]):.2f} (best batch {batch})"
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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
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
        measure(image, Path(name), model_folder(arguments.model), arguments.system, arguments.device)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
