"""What every training script here shares: arguments, seeds, schedule, averaged weights, checkpoints, the log."""

import copy
import csv
import math
import os
import zlib
from pathlib import Path

import torch

from midog.errors import UserError


def seed_everything(*parts):
    """Seed torch from any values, the same on every machine: ("convnextv2", fold 0, epoch 3), say."""
    torch.manual_seed(zlib.crc32(repr(parts).encode()))


def cosine_with_warmup(step, steps, warmup):
    """The factor of the learning rate at a step: linear up over `warmup`, then a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class WeightAverage:
    """An exponential moving average of a network's weights.

    Args:
        network: the network that trains.
        decay: share of the average that stays at each step; 0 gives the network's own weights.
    """

    def __init__(self, network, decay):
        self.network, self.decay = network, decay
        self.average = copy.deepcopy(network).eval()
        self.steps = 0

    @torch.no_grad()
    def update(self):
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + 9))  # the first weights are noise: forget them soon
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - keep)
        for average, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            average.copy_(buffer)


def save_checkpoint(path, state):
    """Write a checkpoint whole or not at all."""
    part = Path(f"{path}.part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path):
    """A checkpoint of ours (tensors and plain values only), or None where there is none."""
    if not Path(path).exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); delete it to start this part anew") from None


def write_rows(path, rows):
    """Write dicts with the same keys as CSV."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def distributed():
    """Join torchrun's group where there is one: (rank, number of processes)."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1
    import torch.distributed as group

    group.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return group.get_rank(), world
