"""What every training script here shares: seeds, schedule, averaged weights, checkpoints, the log, the export."""

import copy
import csv
import hashlib
import math
import os
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import torch
from msgspec import Meta, Struct

from midog.errors import UserError
from midog.files import write_yaml
from midog.system import DataSource, System, as_yaml, load_system, parse, read_system
from resources.data.fields import read_tables, select_images

ROOT = Path(__file__).resolve().parents[2]

Count = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Degrees = Annotated[float, Meta(ge=0, le=180)]


class Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A recipe, or a part of one: exactly these keys, each checked where it is read."""


Recipe = TypeVar("Recipe", bound=Struct)


@dataclass(frozen=True)
class Plan(Generic[Recipe]):
    """A recipe file of resources/systems, and how one part of it is trained.

    Attributes:
        system: the file.
        part: what is trained.
        training: `training.<part>` of the file.
    """

    system: System
    part: Literal["detector", "classifier"]
    training: Recipe

    def with_training(self, **changes: object) -> "Plan[Recipe]":
        """The plan with other values in its recipe."""
        return Plan(self.system, self.part, msgspec.structs.replace(self.training, **changes))

    def with_part(self, **changes: object) -> "Plan[Recipe]":
        """The plan with other values in the part that is trained."""
        part = msgspec.structs.replace(getattr(self.system, self.part), **changes)
        return Plan(msgspec.structs.replace(self.system, **{self.part: part}), self.part, self.training)

    def as_yaml(self) -> dict[str, Any]:
        """Plain values of everything."""
        trained = {self.part: msgspec.to_builtins(self.training)}
        return as_yaml(msgspec.structs.replace(self.system, training=self.system.training | trained))


def read_plan(
    name: str, track: int, part: Literal["detector", "classifier"], kind: type[Recipe], network: str | None = None
) -> Plan[Recipe]:
    """Read and check resources/systems/NAME.yaml, or a path.

    Args:
        name: of a system, or the path of a YAML file.
        track: 1 or 2.
        part: what is trained.
        kind: of its recipe.
        network: the one that the part must have; None for any.

    Raises:
        UserError: the file is for the other track or network, or has no such part or recipe; see `midog.system.parse`.
    """
    path = Path(name) if name.endswith(".yaml") else ROOT / "resources" / "systems" / f"{name}.yaml"
    system = read_system(path)
    if system.track != track:
        raise UserError(f"{path}: is for Track {system.track}; choose a system for Track {track}")
    if getattr(system, part) is None or part not in system.training:
        raise UserError(f"{path}: no training.{part}; choose a system that has a recipe for its {part}")
    found = getattr(system, part).network
    if network not in (None, found):
        raise UserError(f"{path}: its {part} is {found}; choose a system of {network}")
    return Plan(system, part, parse(kind, system.training[part], path, f"training.{part}"))


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


def write_model(folder: Path, system: System) -> System:
    """Write model.yaml, whole or not at all, and prove that it loads; the system as loaded."""
    write_yaml(folder / "model.yaml", as_yaml(system))
    return load_system(folder)


def commit() -> str:
    """The commit of this repository, short; empty where git or the repository is not there."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def data_sources(data: Iterable[str], mined: Iterable[str] = (), crops: Iterable[str] = ()) -> tuple[DataSource, ...]:
    """What a run learns from, as model.yaml tells it.

    Args:
        data: strings as `resources.data.fields.read_fields` takes them.
        mined: paths of lists of hard negatives.
        crops: folders of crops.
    """
    sources = [_source_of(selection) for selection in data]
    for path in map(Path, mined):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        sources.append(DataSource(set=path.name, mined_sha256=sha256))
    return (*sources, *(DataSource(set=Path(folder).resolve().name) for folder in crops))


def _source_of(selection: str) -> DataSource:
    folder, _, cases = str(selection).partition(":")
    name = Path(folder).resolve().name
    if "=" in cases:  # chosen by another column: told by the cases that this means
        images = select_images(read_tables(Path(folder))[0], cases, selection)
        return DataSource(set=name, cases=tuple(sorted(set(images.case))))
    patterns = tuple(cases.removeprefix("-").split(",")) if cases else ()
    return DataSource(set=name, without=patterns) if cases.startswith("-") else DataSource(set=name, cases=patterns)
