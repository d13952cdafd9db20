"""How fast Track 1 runs here on a region or a slide, against what its detector must spend at least.

    python resources/measure_region_speed.py --region IMAGE [--um-per-px .25] [--device cuda]
    python resources/measure_region_speed.py --slide

The first copies the image into a tiled TIFF and runs it as a job; the second
does so with a generated slide of 60,000 x 60,000 px with little tissue. Both
print wall time, peak memory, tiles, seconds a mm2, and the wall time over the
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

FOLDER = "images/histopathology-roi-cropout"
SLUG = "histopathology-region-of-interest-cropout"
SIDE = 60_000
SEGMENT = 512


def write_region(path, pixels, um_per_px):
    """A region as a tiled JPEG TIFF with its resolution."""
    import tifffile

    density = 10_000 / um_per_px
    tifffile.imwrite(
        path,
        pixels,
        tile=(256, 256),
        photometric="rgb",
        compression="jpeg",
        resolution=(density, density),
        resolutionunit="CENTIMETER",
    )


def write_slide(path, tissue, um_per_px):
    """A pyramid of 60,000 px a side: glass, and some square millimetres of an image repeated in its middle."""
    import tifffile

    glass = np.full((SEGMENT, SEGMENT, 3), 244, np.uint8)
    height, width = (side // SEGMENT * SEGMENT for side in tissue.shape[:2])
    tissue = tissue[:height, :width]

    def level(side, shrink):
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


def run_job(folder, image, device):
    """The whole process as the platform starts it: seconds, peak memory in MiB, what it said."""
    (folder / "inputs.json").write_text(
        json.dumps([{"image": {"name": image.name}, "interface": {"slug": SLUG, "relative_path": FOLDER}}])
    )
    command = [sys.executable, "inference.py", "--input", str(folder), "--output", str(folder / "out")]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--device", device], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the job ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024, said


def best_forward(image, device_name):
    """Tiles with tissue, and the detector's seconds a tile by batch."""
    import torch

    from midog.engine.detector import load_detector, tiles_with_tissue
    from midog.engine.weights import choose_device, to_tensor
    from midog.images.slide import at_spacing, open_slide
    from midog.images.tiles import grid
    from midog.system import OWN_MODEL, find_system

    device = choose_device(device_name)
    system = find_system(OWN_MODEL, None, track=1)
    part = system.detector
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


def measure(image, folder, device):
    wall, memory, said = run_job(folder, image, device)
    print(said, end="")
    tiles, tissue, times, area = best_forward(image, device)
    batch = min(times, key=times.get)
    shown = ", ".join(f"{number}: {1000 * each:.1f}" for number, each in times.items())
    print(f"forward, ms a tile by batch: {shown}")
    print(
        f"wall {wall:.2f} s, peak memory {memory:.0f} MiB, {tiles} tiles, {tissue} with tissue, {area:.2f} mm2, "
        f"{wall / area:.2f} s/mm2, wall / forwards {wall / (tissue * times[batch]):.2f} (best batch {batch})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--region", type=Path, metavar="IMAGE", help="png or jpg of H&E tissue")
    parser.add_argument("--slide", action="store_true", help="a generated slide instead")
    parser.add_argument("--um-per-px", type=float, default=0.25, help="of the region (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / FOLDER / "image.tif"
        image.parent.mkdir(parents=True)
        sample = ROOT / "test/input/track1" / FOLDER
        source = arguments.region or next(sample.glob("*.tif*"))
        if source.suffix.startswith(".tif"):
            import tifffile

            pixels = tifffile.imread(source)
        else:
            pixels = np.asarray(Image.open(source).convert("RGB"))
        (write_slide if arguments.slide else write_region)(image, pixels, arguments.um_per_px)
        del pixels
        measure(image, folder, arguments.device)


if __name__ == "__main__":
    main()
