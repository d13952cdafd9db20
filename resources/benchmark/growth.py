"""How the cost of Track 1 grows with the tissue, and with the number of images and workers.

    python -m resources.benchmark.growth [--region IMAGE --mpp .25] [--mm2 .5 2 8 32]
    python -m resources.benchmark.growth --folder 8 [--region IMAGE --mpp .25]

The first runs a job, a process of its own, on a square of tissue of each size, an image repeated, and prints seconds,
peak memory, and the seconds a mm2 over those of the first size: 1 is linear. The second runs `midog predict` on a
folder of squares of .5 mm2, without workers and with 1 and 2 of Dask, which give each one processor, and prints the
seconds from when the workers are there. Run it with nothing else on the machine.
"""

import argparse
import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog.arguments import add_device
from midog.errors import UserError, exit_code
from midog.system import model_folder
from resources.benchmark.track1 import SEGMENT, read_pixels, run_job
from resources.data import synthetic

ROOT = Path(__file__).parents[2]
FOLDER_MM2 = 0.5
WORKERS = 1, 2
PATIENCE = 60  # s, until a scheduler answers


def write_tissue(path: Path, tissue: NDArray[np.uint8], um_per_px: float, mm2: float) -> None:
    """A square of so many mm2, in which an image is repeated, as a TIFF of JPEG tiles, written tile by tile."""
    import tifffile

    tissue = tissue[: tissue.shape[0] // SEGMENT * SEGMENT, : tissue.shape[1] // SEGMENT * SEGMENT]
    side = math.ceil(1000 * math.sqrt(mm2) / um_per_px)

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for top in range(0, side, SEGMENT):
            for left in range(0, side, SEGMENT):
                y, x = top % tissue.shape[0], left % tissue.shape[1]
                yield tissue[y : y + SEGMENT, x : x + SEGMENT]

    density = 10_000 / um_per_px
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(SEGMENT, SEGMENT),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 85},
        resolution=(density, density),
        resolutionunit="CENTIMETER",
        metadata=None,
    )


def grow(tissue: NDArray[np.uint8], arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Print a line a size."""
    first = 0.0
    print(f"{'mm2':>6s} {'seconds':>8s} {'MiB':>6s} {'s a mm2':>8s} {'of the first':>12s}")
    for mm2 in arguments.mm2:
        with tempfile.TemporaryDirectory() as name:
            image = Path(name) / synthetic.REGION_FOLDER / "image.tif"
            write_tissue(image, tissue, arguments.mpp, mm2)
            wall, memory, _ = run_job(Path(name), image, options)
        first = first or wall / mm2
        print(f"{mm2:6g} {wall:8.1f} {memory:6.0f} {wall / mm2:8.2f} {wall / mm2 / first:12.2f}", flush=True)


@contextlib.contextmanager
def dask_workers(folder: Path, count: int) -> Iterator[str]:
    """The address of a scheduler with so many workers, which end with it."""
    from distributed import Client

    file = folder / f"scheduler{count}.json"
    common = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    worker = ["worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"]
    commands = [scheduler, *[[*worker, "--local-directory", str(folder / f"worker{n}")] for n in range(count)]]
    started = [subprocess.Popen([sys.executable, "-m", "dask", *each], **common) for each in commands]  # type: ignore[call-overload]
    try:
        with Client(scheduler_file=str(file), timeout=PATIENCE) as client:
            client.wait_for_workers(count, timeout=PATIENCE)
            address = str(client.scheduler.address)
        yield address
    except (OSError, TimeoutError) as error:
        raise UserError(f"{file}: no Dask scheduler with its workers ({error}); pip install '.[cluster]'") from None
    finally:
        for process in reversed(started):  # a worker without its scheduler does not end
            process.terminate()
            process.wait()


def predict(folder: Path, out: Path, options: Sequence[str]) -> float:
    """Seconds of `midog predict` on a folder."""
    command = [sys.executable, "-m", "midog", "predict", str(folder), "--out", str(out), "--track", "1", *options]
    started = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"{folder}: midog predict ended with {process.returncode} ({process.stderr.strip()})")
    return time.perf_counter() - started


def share(tissue: NDArray[np.uint8], arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Print a line a number of workers."""
    with tempfile.TemporaryDirectory() as name:
        folder, images = Path(name), Path(name) / "images"
        for number in range(arguments.folder):
            write_tissue(images / f"{number:03}.tif", np.roll(tissue, 37 * number, (0, 1)), arguments.mpp, FOLDER_MM2)
        print(f"{arguments.folder} images of {FOLDER_MM2:g} mm2, {os.cpu_count()} processors", flush=True)
        print(f"without workers {predict(images, folder / 'here', options):8.1f} s", flush=True)
        for count in WORKERS:
            with dask_workers(folder, count) as address:
                wall = predict(images, folder / f"by{count}", [*options, "--scheduler", address])
            print(f"workers {count}       {wall:8.1f} s", flush=True)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.growth", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--region", type=Path, metavar="IMAGE", help="H&E tissue of 512 px a side at least; without it one is drawn"
    )
    parser.add_argument("--mpp", type=float, default=0.25, metavar="UM", help="um per pixel of it (%(default)s)")
    parser.add_argument(
        "--mm2", type=float, nargs="+", default=[0.5, 2, 8, 32], metavar="AREA", help="of tissue (.5 2 8 32)"
    )
    parser.add_argument("--folder", type=int, metavar="N", help="a folder of N images, on 1 and 2 workers")
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of the systems' folders (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder in it (the default of Track 1)")
    add_device(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    tissue = read_pixels(arguments.region) if arguments.region else synthetic.region(seed=2025)[0]
    if min(tissue.shape[:2]) < SEGMENT:
        raise UserError(f"{arguments.region}: smaller than {SEGMENT} px; give --region a larger image")
    options = ["--model", str(model_folder(arguments.model)), "--device", arguments.device]
    options += ["--system", arguments.system] if arguments.system else []
    options += ["--precision", arguments.precision] if arguments.precision else []
    (share if arguments.folder else grow)(tissue, arguments, options)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
