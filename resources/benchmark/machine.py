"""What a machine can do at most: the speed of its matrix product, and of a copy in its memory."""

import time
from collections.abc import Callable

import torch

COPIED = 2**28  # bytes


def best_time(call: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Seconds of the fastest of some calls, after one to warm up."""
    best = float("inf")
    call()
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_flops(device: torch.device, precision: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a large matrix product: the most that convolutions can hope for."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(side, side, device=device, dtype=precision) for _ in range(2))
    return 2 * side**3 / best_time(lambda: a @ b, device)


def copied_bytes(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_time(lambda: target.copy_(source), device)
