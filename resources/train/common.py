"""What every training script here shares: seeds, schedule, averaged weights, checkpoints, the log, the export."""

import copy
import csv
import hashlib
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


def prepare_out(out, resume, said):
    """Make OUT and note in recipe.yaml what its run is, or refuse to mix it with another run's.

    Args:
        out: the folder.
        resume: --resume.
        said: mapping of everything that the run depends on.
    """
    import yaml

    path = out / "recipe.yaml"
    text = yaml.safe_dump(said, sort_keys=False)
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    if not resume:
        raise UserError(f"{out}: holds a run already; give --resume, or another --out")
    if path.read_text() != text:
        raise UserError(f"{path}: was another recipe or other data; give another --out")


def operating_shift(threshold):
    """The shift of `midog.system.Calibration` that puts a threshold at .5; finite for 0 and 1 as well."""
    threshold = min(max(threshold, 1e-6), 1 - 1e-6)
    return round(-math.log(threshold / (1 - threshold)), 4)


def save_weights(weights, path):
    """Write a state dict as fp16 safetensors, whole or not at all; returns the file's sha256."""
    from safetensors.torch import save_file

    stored = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    part = Path(f"{path}.part")
    save_file({key: value.cpu().contiguous() for key, value in stored.items()}, part)
    part.chmod(0o644)
    part.replace(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_model(folder, values):
    """Write model.yaml, whole or not at all, and prove that it loads."""
    import yaml

    from midog.system import load_system

    part = folder / "model.yaml.part"
    part.write_text(yaml.safe_dump(values, sort_keys=False))
    part.replace(folder / "model.yaml")
    load_system(folder)
