"""How fast a detector's network runs here on a patch of 1920 x 1280 px, against what the machine must spend at least.

    python -m resources.benchmark.network [--network yolo11 --options '{scale: n}'] [--device cuda]

Random weights, batch norms folded, channels_last; float32 on a CPU, bfloat16 and float16 on a GPU. The floor is the
larger of two times: the network's multiplications and additions at the speed of this machine's own matrix product, and
its bytes at the speed of a copy in its memory, where every weight is read once, and the image and what each convolution
gives are written and read once. Run it with nothing else on the machine.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from midog.engine.torch_engine import choose_device, fold_batch_norms
from midog.errors import UserError, exit_code
from midog.models import DETECTORS, build
from resources.benchmark.machine import best_time, copied_bytes, matrix_flops

HEIGHT, WIDTH = 1280, 1920
BATCHES = {"cpu": (1, 2, 4), "cuda": (1, 2, 4, 8, 16, 32)}
PRECISIONS = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float16)}
OPTIONS: dict[str, dict[str, Any]] = {"rtmdet": {"size": "s"}, "yolo11": {"scale": "n"}}  # where none are given


def work(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
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


def measure(network: nn.Module, device: torch.device, precision: torch.dtype) -> None:
    """Print the milliseconds a patch of every batch, and the best over the floor."""
    network = network.to(device, precision, memory_format=torch.channels_last)  # type: ignore[call-overload]
    patches = torch.rand(max(BATCHES[device.type]), 3, HEIGHT, WIDTH, device=device, dtype=precision)
    patches = patches.contiguous(memory_format=torch.channels_last)
    times = {size: best_time(partial(network, patches[:size]), device) / size for size in BATCHES[device.type]}
    batch = min(times, key=times.__getitem__)
    flops, moved = (each / batch for each in work(network, patches[:batch]))
    peak, bandwidth = matrix_flops(device, precision), copied_bytes(device)
    floors = flops / peak, moved / bandwidth
    print(f"{precision}: matrix product {peak / 1e9:.0f} GFLOP/s, copy {bandwidth / 1e9:.1f} GB/s")
    print(f"ms a patch by batch: {', '.join(f'{size}: {1000 * each:.2f}' for size, each in times.items())}")
    print(
        f"best {1000 * times[batch]:.2f} ms (batch {batch}), {flops / 1e9:.1f} GFLOP in {1000 * floors[0]:.2f} ms, "
        f"{moved / 1e6:.0f} MB in {1000 * floors[1]:.2f} ms at least, {times[batch] / max(floors):.2f} x the floor"
    )


def yaml_mapping(text: str) -> dict[str, Any]:
    """A network's options from the command line."""
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text}: a YAML mapping such as '{{size: s}}' expected")
    return options


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.network",
        description="How fast a detector's network runs here, with random weights, on a patch of 1920 x 1280 px.",
    )
    parser.add_argument("--network", choices=sorted(DETECTORS), default="rtmdet", help="(%(default)s)")
    parser.add_argument(
        "--options",
        type=yaml_mapping,
        metavar="YAML",
        help="of the network, as detector.options of resources/systems ('{size: s}' of rtmdet, '{scale: n}' of yolo11)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    device = choose_device(arguments.device)
    torch.manual_seed(0)
    options = OPTIONS.get(arguments.network, {}) if arguments.options is None else arguments.options
    try:
        network = build(DETECTORS, arguments.network, options)
    except (TypeError, ValueError) as error:
        raise UserError(f"--options {options}: {arguments.network} refuses them ({error}); mend them") from None
    network = fold_batch_norms(network)
    with torch.inference_mode():
        for precision in PRECISIONS[device.type]:
            measure(network, device, precision)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
