"""How fast Track 2 runs here, against what the machine must spend at least.

    python resources/measure_speed.py [--device cuda]

Prints the wall time of a whole job of 16 pages against `import torch` alone,
and the pages a second against the machine's own matrix product. Run it with
nothing else on the machine.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from msgspec.structs import replace  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from midog.engine.classifier import classify, load_classifier  # noqa: E402
from midog.engine.weights import choose_device  # noqa: E402
from midog.files import write_yaml  # noqa: E402
from midog.system import CROP_UM, OWN_MODEL, System, as_yaml, load_system  # noqa: E402

SYSTEM = "convnextv2_small"
PAGES = 128


def seconds(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - started


def with_views(system: System, views: int) -> System:
    """The system with another number of views."""
    return replace(system, classifier=replace(system.classifier, views=views))


def measure_process(device, rounds):
    """Whole processes, in turn, so that the machine's mood is the same for both."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model" / SYSTEM
        model.mkdir(parents=True)
        for path in (OWN_MODEL / SYSTEM).iterdir():
            (model / path.name).symlink_to(path)
        (model / "model.yaml").unlink()
        write_yaml(model / "model.yaml", as_yaml(with_views(load_system(OWN_MODEL / SYSTEM), 1)))
        job = [sys.executable, "inference.py", "--input", "test/input/track2", "--output", folder, "--device", device]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "job of 16 pages, 1 view": [*job, "--model", str(model.parent)],
            "job of 16 pages, 8 views": job,
        }
        walls = {name: [] for name in commands}
        for number in range(rounds + 1):
            for name, command in commands.items():
                wall = seconds(command)
                if number:  # the first round fills the disk's cache
                    walls[name].append(wall)
    floor = statistics.median(walls["import torch"])
    for name, taken in walls.items():
        median = statistics.median(taken)
        print(f"{name:26s} median {median:.2f} s (least {min(taken):.2f}), {median / floor:.2f} x import torch")


def measure_pages(device):
    """Pages a second of the ensemble in a warm process, and the floor from its floating-point operations."""
    system = load_system(OWN_MODEL / SYSTEM)
    pages = np.random.default_rng(0).integers(0, 256, (PAGES, 128, 128, 3), np.uint8)
    peak = matrix_flops(device)
    print(f"matrix product, float32: {peak / 1e9:.0f} GFLOP/s")
    for views in (1, 8):
        classifier = load_classifier(with_views(system, views), device, CROP_UM)
        with FlopCounterMode(display=False) as counter:
            classify(iter(pages[:1]), classifier, device)
        a_page = counter.get_total_flops()
        classify(iter(pages[:64]), classifier, device)
        started = time.perf_counter()
        classify(iter(pages), classifier, device)
        rate = PAGES / (time.perf_counter() - started)
        print(
            f"{views} view(s): {rate:.1f} pages/s, {a_page / 1e9:.2f} GFLOP a page, "
            f"{rate * a_page / 1e9:.0f} GFLOP/s, {peak / (rate * a_page):.2f} x the floor"
        )


def best_time(call, device, repeats=5):
    """Seconds of the fastest of some calls, after one to warm up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = float("inf")
    call()
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - started)
    return best


def matrix_flops(device, precision=torch.float32):
    """Floating-point operations a second of a large matrix product: the most that convolutions can hope for."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(side, side, device=device, dtype=precision) for _ in range(2))
    return 2 * side**3 / best_time(lambda: a @ b, device)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    measure_process(arguments.device, arguments.rounds)
    with torch.inference_mode():
        measure_pages(choose_device(arguments.device))


if __name__ == "__main__":
    main()
