"""How fast a detector's network runs here on a patch of 1920 x 1280 px, against what the machine must spend at least.

    python resources/measure_detector_speed.py [--network yolo11 --options '{scale: n}'] [--device cuda]

Random weights, batch norms folded, channels_last; float32 on a CPU, bfloat16 and float16 on a GPU. The floor is the
larger of two times: the network's multiplications and additions at the speed of this machine's own matrix product, and
its bytes at the speed of a copy in its memory, where every weight is read once, and the image and what each convolution
gives are written and read once. Run it with nothing else on the machine.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
import yaml  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from midog.engine.weights import choose_device, fold_batch_norms  # noqa: E402
from midog.models import DETECTORS, build  # noqa: E402
from resources.measure_speed import best_time, matrix_flops  # noqa: E402

HEIGHT, WIDTH = 1280, 1920
BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16, 32)}
PRECISIONS = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float16)}
COPIED = 2**28  # bytes


def copied_bytes(device):
    """Bytes a second that a large copy reads and writes."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_time(lambda: target.copy_(source), device)


def work(network, image):
    """Floating-point operations and bytes that a network cannot do without on an image."""
    moved = [2 * image.nbytes, sum(each.nbytes for each in network.parameters())]
    hooks = [
        module.register_forward_hook(lambda _, __, output: moved.append(2 * output.nbytes))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with FlopCounterMode(display=False) as counter:
        network(image)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), sum(moved)


def measure(network, device, precision):
    """Print the milliseconds a patch of every batch, and the best over the floor."""
    network = network.to(device, precision, memory_format=torch.channels_last)
    patches = torch.rand(max(BATCHES[device.type]), 3, HEIGHT, WIDTH, device=device, dtype=precision)
    patches = patches.contiguous(memory_format=torch.channels_last)
    times = {size: best_time(partial(network, patches[:size]), device) / size for size in BATCHES[device.type]}
    batch = min(times, key=times.get)
    flops, moved = (each / batch for each in work(network, patches[:batch]))
    peak, bandwidth = matrix_flops(device, precision), copied_bytes(device)
    floors = flops / peak, moved / bandwidth
    print(f"{precision}: matrix product {peak / 1e9:.0f} GFLOP/s, copy {bandwidth / 1e9:.1f} GB/s")
    print(f"ms a patch by batch: {', '.join(f'{size}: {1000 * each:.2f}' for size, each in times.items())}")
    print(
        f"best {1000 * times[batch]:.2f} ms (batch {batch}), {flops / 1e9:.1f} GFLOP in {1000 * floors[0]:.2f} ms, "
        f"{moved / 1e6:.0f} MB in {1000 * floors[1]:.2f} ms at least, {times[batch] / max(floors):.2f} x the floor"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=sorted(DETECTORS), default="rtmdet")
    parser.add_argument("--options", type=yaml.safe_load, default={"size": "s"}, help="of the network (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    network = fold_batch_norms(build(DETECTORS, arguments.network, arguments.options))
    with torch.inference_mode():
        for precision in PRECISIONS[device.type]:
            measure(network, device, precision)


if __name__ == "__main__":
    main()
