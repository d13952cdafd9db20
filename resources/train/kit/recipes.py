"""Recipes: what a YAML of resources/systems says about a training, and the one reader of them.

Each kind of training adds its own keys to `LoopRecipe`, beside what uses them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct

from midog.errors import UserError
from midog.files import read_yaml
from midog.system import Classifier, Detector, NotNegative, Positive, System, as_yaml, check_system, parse, read_system

SYSTEMS = Path(__file__).resolve().parents[2] / "systems"
TRAINED_BY = {"atypical": (2, "classifier"), "candidates": (1, "classifier")}  # every other script: a detector

Count = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0)]
Rate = Annotated[float, Meta(gt=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Degrees = Annotated[float, Meta(ge=0, le=180)]


class Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A recipe, or a part of one: exactly these keys, each checked where it is read."""


class LoopRecipe(Strict, frozen=True, kw_only=True):
    """What `resources.train.kit.loop.Loop` does, whatever it trains.

    Attributes:
        seed: of everything random.
        pretrained: weights to start from, a name that `resources.train.kit.pretrained` knows, or "".
        epochs: validation, checkpoint and the choice of the best weights come after each.
        batch: of an optimiser step, over all processes and forwards: its losses are those of the whole batch.
        optimizer: "adam" or "sgd" (weight decay through the gradient, of every weight), or "adamw" (of matrices alone).
        betas: of Adam; the first is SGD's momentum.
        learning_rate, warmup_lr, final_lr: a line from the second up to the first, then a cosine down to the third.
        warmup_epochs: of the line.
        decay_epochs, decay_factor: after each of these epochs the rate is multiplied by the factor, instead of the
            cosine.
        weight_decay, max_grad_norm: of the optimiser.
        ema_momentum: one a member of the system: of its weights, an exponential moving average, the fraction of the
            network's own that enters at a step; 1 is the network's own.
        ema_warmup: steps; the fraction is ema_warmup / (ema_warmup + step) or more: the first weights are noise.
        keep: of each member the weights of its "best" epoch or of the "last".
        patience: epochs without a better one until the training stops; 0 is never.
        precision: of the forwards: "float32", "bfloat16" (float16 on a GPU without it) or "float16" (with the loss
            scaled; bfloat16 on a CPU); losses are float32 always.
        calibrate: .5 becomes the best operating point on what was held out; without it, it is what the network says.
    """

    seed: Seed
    pretrained: str
    epochs: Count
    batch: Count
    optimizer: Literal["adam", "adamw", "sgd"]
    betas: tuple[Decay, Decay]
    learning_rate: Rate
    warmup_lr: Annotated[float, Meta(ge=0, le=1)]
    final_lr: Annotated[float, Meta(ge=0, le=1)]
    warmup_epochs: NotNegative
    decay_epochs: tuple[Count, ...] = ()
    decay_factor: Rate = 0.1
    weight_decay: NotNegative
    max_grad_norm: Positive
    ema_momentum: Annotated[tuple[Rate, ...], Meta(min_length=1)]
    ema_warmup: Positive
    keep: Literal["best", "last"]
    patience: Annotated[int, Meta(ge=0)]
    precision: Literal["float32", "bfloat16", "float16"]
    calibrate: bool = True


Recipe = TypeVar("Recipe", bound=LoopRecipe)


@dataclass(frozen=True)
class Plan(Generic[Recipe]):
    """A system, and how one part of it is trained.

    Attributes:
        system: the file, with what the command line changed in it.
        part: what is trained.
        training: `training.<part>` of it.
    """

    system: System
    part: Literal["detector", "classifier"]
    training: Recipe

    @property
    def detector(self) -> Detector:
        """The system's; every Track 1 system has one."""
        assert self.system.detector is not None
        return self.system.detector

    @property
    def classifier(self) -> Classifier:
        """The system's, in the plan of a classifier's training."""
        assert self.system.classifier is not None
        return self.system.classifier

    def as_yaml(self) -> dict[str, Any]:
        """Plain values of everything."""
        trained = {self.part: msgspec.to_builtins(self.training)}
        return as_yaml(msgspec.structs.replace(self.system, training=self.system.training | trained))


def read_plan(
    name: str, script: str, kind: type[Recipe], changes: Iterable[str] = (), seed: int | None = None
) -> Plan[Recipe]:
    """Read and check resources/systems/NAME.yaml, or a path.

    Args:
        name: of a system, or the path of a YAML file.
        script: the training that reads it, a module of resources.train.
        kind: of the recipe.
        changes: of the file's values, each "training.detector.batch=8".
        seed: instead of the recipe's.

    Raises:
        UserError: no such file; a system that another script trains, which is named; a change that is none; see
            `midog.system.parse`.
    """
    path = recipe_path(name, script)
    track, part = TRAINED_BY.get(script, (1, "detector"))
    values = read_yaml(path)
    changes = [*changes, *([] if seed is None else [f"training.{part}.seed={seed}"])]
    if isinstance(values, dict):
        for change in changes:
            _change(values, change)
    system = check_system(values, path)
    fitting = scripts_of(system)
    if script not in fitting:
        remedy = " or ".join(f"python -m resources.train.{each}" for each in fitting) or "another --system"
        raise UserError(f"{path}: {script} does not train it; use {remedy}")
    return Plan(system, part, parse(kind, system.training[part], path, f"training.{part}"))  # type: ignore[arg-type]


def recipe_path(name: str, script: str) -> Path:
    """The file of a system's name, or of the path of a YAML file.

    Args:
        name: of a system, or the path.
        script: the training that reads it, for the message.

    Raises:
        UserError: there is none.
    """
    path = Path(name) if name.endswith(".yaml") else SYSTEMS / f"{name}.yaml"
    if not path.exists():
        raise UserError(f"{name}: no such system; give --system a .yaml file or one of {', '.join(systems_of(script))}")
    return path


def systems_of(script: str) -> list[str]:
    """The recipes of resources/systems that a module of resources.train trains a part of."""
    return [path.stem for path in sorted(SYSTEMS.glob("*.yaml")) if script in scripts_of(read_system(path))]


def _change(values: dict[str, Any], change: str) -> None:
    """Set one value of a YAML mapping, in place."""
    key, equals, text = change.partition("=")
    *parents, last = key.split(".")
    inside: Any = values
    for parent in parents:
        inside = inside.get(parent) if isinstance(inside, dict) else None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        equals = ""
    if not equals or not isinstance(inside, dict):
        raise UserError(
            f"--set {change}: KEY=VALUE expected, KEY as in training.detector.batch, VALUE as the YAML file has it"
        )
    inside[last] = value


def scripts_of(system: System) -> list[str]:
    """The modules of resources.train that train a part of the system."""
    if system.track == 2:
        return ["atypical"] * ("classifier" in system.training)
    assert system.detector is not None
    detectors = [system.detector.network] * ("detector" in system.training)
    return detectors + ["candidates"] * (system.classifier is not None and "classifier" in system.training)
