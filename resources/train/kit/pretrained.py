"""Weights that a classifier's training starts from: timm's by name, or a local file; recorded in model.yaml."""

import hashlib
from pathlib import Path

import timm
import torch
from torch import nn

from midog.errors import UserError
from midog.models import classifier_options
from midog.models.classifiers import timm_pretrained
from midog.system import Classifier, Pretrained
from resources.train.kit.run import StateDict, given_sha256

LICENCE_UNKNOWN = "unknown"


def start_of(given: str | None, recipe: str) -> tuple[str | None, str]:
    """What a training starts from: (a file or None, a name in timm or "").

    Args:
        given: --pretrained: a file, "none" for random weights, or None for what the recipe says.
        recipe: its `pretrained`.
    """
    return (None, "") if given == "none" else (given, recipe)


def record_pretrained(given: str | None, recipe: str) -> Pretrained | None:
    """What `load_pretrained` reads, as model.yaml tells it; None for random weights.

    A file is told by its own sha256, timm's weights by that of their tensors, name by name.

    Raises:
        UserError: it cannot be read.
    """
    file, name = start_of(given, recipe)
    if file:
        return Pretrained(
            source=Path(file).name, sha256=given_sha256(Path(file), "--pretrained"), licence=LICENCE_UNKNOWN
        )
    if not name:
        return None
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise _cannot_be_had(name, error) from None
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.numpy().tobytes())
    licence = network.pretrained_cfg.get("license") or LICENCE_UNKNOWN
    return Pretrained(source=f"timm/{name}", sha256=digest.hexdigest(), licence=licence)


def load_pretrained(network: nn.Module, part: Classifier, given: str | None, recipe: str) -> None:
    """Fill a network; its last layer stays new.

    Args:
        network: what `part` describes.
        part: of the system.
        given, recipe: as `start_of`.

    Raises:
        UserError: the weights cannot be had or do not fit.
    """
    file, name = start_of(given, recipe)
    if not (file or name):
        return
    source = file or name
    try:
        if part.network == "timm":
            options = {key: value for key, value in part.options.items() if key != "num_classes"}
            options["name"] = name or options["name"]
            started = timm_pretrained(file=file, **classifier_options("timm", options, part.input_px))
            last = timm.models.get_pretrained_cfg_value(options["name"], "classifier")
            heads = (last,) if isinstance(last, str) else tuple(last)
            state = started.state_dict()
        else:
            heads, state = ("head.fc", "fc", "classifier"), _state_of(file, source)
    except Exception as error:
        raise _cannot_be_had(source, error) from None
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or any(not key.startswith(heads) for key in missing):
        raise UserError(f"{source}: not the weights of this network ({(unexpected or missing)[0]}); choose others")


def _state_of(file: str | None, name: str) -> StateDict:
    """The tensors of a local file, or of timm's network of that name."""
    if not file:
        return timm.create_model(name, pretrained=True).state_dict()
    if file.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _cannot_be_had(source: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return UserError(
        f"{source}: pretrained weights cannot be had ({reason[0][:120]}); "
        "download them elsewhere and give --pretrained FILE, or 'none'"
    )
