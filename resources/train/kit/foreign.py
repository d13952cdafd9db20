"""Weight files of other projects, read without running a line of their code.

A .pt or .pth file is a pickle, and a pickle may call anything. Here it may build tensors and plain containers; whatever
else it wants built (mmengine's loggers, numpy's scalars, Ultralytics' layers) becomes an inert `StandIn`.
"""

import collections
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch._utils import _rebuild_parameter, _rebuild_tensor, _rebuild_tensor_v2

from midog.errors import UserError
from resources.train.kit.run import StateDict

LICENCE_UNKNOWN = "unknown"
WRAPPINGS = ("ema", "state_dict_ema", "model_ema", "state_dict", "model")  # averages first
COUNTER = "num_batches_tracked"  # of batch norms: without influence, and missing in many a file


class Foreign(NamedTuple):
    """What a file holds: its tensors by name, and the licence that it states, or "unknown"."""

    state: StateDict
    licence: str


class StandIn:
    """An object of a class that is not built: takes every argument, item and call; keeps a module's state."""

    dump_patches = False  # torch's reader of the format before 1.6 asks every module for it
    state: Mapping[object, object]

    def __new__(cls, *arguments: object, **options: object) -> "StandIn":
        made = super().__new__(cls)
        made.state = {}
        return made

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, Mapping) else {}

    def __call__(self, *arguments: object, **options: object) -> "StandIn":
        return StandIn()

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass

    def add(self, value: object) -> None:
        pass


class Locked:
    """A function whose attributes and defaults a file cannot change: pickle would set them for the whole process."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        pass


# Storages are let through by torch's own reader before it asks here.
ALLOWED: dict[tuple[str, str], object] = {
    **{
        ("torch._utils", function.__name__): Locked(function)
        for function in (_rebuild_tensor, _rebuild_tensor_v2, _rebuild_parameter)
    },
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    **{("torch", str(each).removeprefix("torch.")): each for each in vars(torch).values() if type(each) is torch.dtype},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> object:
        return ALLOWED.get((module_name, global_name), StandIn)


class _Pickle:
    """What torch.load asks of a pickle module."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: IO[bytes], *, encoding: str = "utf-8") -> object:
        return _Unpickler(file, encoding=encoding).load()


def read_foreign(path: Path) -> Foreign:
    """The tensors of a file, whatever they are wrapped in, and the licence that it states.

    Args:
        path: .safetensors; .npz of arrays; or what torch.save wrote (zip, or the format before 1.6): tensors by name,
            such a mapping under one of `WRAPPINGS` or any other key, or whole modules.

    Raises:
        UserError: no weights in it.
    """
    try:
        content = _read(path)
        state = tensors_of(content)
    except Exception as error:  # a foreign pickle may raise anything
        raise UserError(
            f"{path}: not a weight file ({first_line(error)}); give a .safetensors, .pth or .pt file"
        ) from None
    if not state:
        raise UserError(f"{path}: holds no tensors; give a .safetensors, .pth or .pt file of weights")
    said = str(content.get("license")) if isinstance(content, Mapping) else ""
    return Foreign(state, "AGPL-3.0" if said.startswith("AGPL-3.0") else LICENCE_UNKNOWN)


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(each) for name, each in arrays.items()}
    # torch.load would unpack the first into a folder, and hand the second to a reader that asks no pickle module.
    if tarfile.is_tarfile(path):
        raise ValueError("a tar archive")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
                raise ValueError("a TorchScript program")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the source of a stand-in is not that of the class in the file
        return torch.load(path, map_location="cpu", pickle_module=_Pickle, weights_only=False)


def tensors_of(content: object) -> StateDict:
    """The tensors by name of a state dict, of a module, or of a mapping that holds one of them at any depth."""
    if isinstance(content, StandIn):
        return dict(_walk(content, ""))
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPINGS:
        if isinstance(content.get(key), Mapping | StandIn) and (found := tensors_of(content[key])):
            return found
    own = {str(key): value.detach() for key, value in content.items() if isinstance(value, torch.Tensor)}
    # An optimiser's tensors lie apart, a few a parameter, so the weights are the most.
    return own or max(map(tensors_of, content.values()), key=len, default={})


def _walk(module: StandIn, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What `state_dict` of the module would hold."""

    def part(name: str) -> Mapping[object, object]:
        found = module.state.get(name)
        return found if isinstance(found, Mapping) else {}

    left_out = module.state.get("_non_persistent_buffers_set")
    for name, value in {**part("_parameters"), **part("_buffers")}.items():
        if isinstance(value, torch.Tensor) and not (isinstance(left_out, set) and name in left_out):
            yield f"{path}{name}", value.detach()
    for name, child in part("_modules").items():
        if isinstance(child, StandIn):
            yield from _walk(child, f"{path}{name}.")


def with_names_of(state: StateDict, expected: Collection[str]) -> StateDict:
    """The state without what wrappers put before its names (`module.`, Lightning's attribute, several of them).

    Args:
        state: of a file.
        expected: names in the network that it is for.

    Returns:
        the tensors under the prefix that makes most names expected ones, if these are at least half of the expected;
        else the state as it is.
    """
    roots = {name.partition(".")[0] for name in expected}
    own = f"{roots.pop()}." if len(roots) == 1 else ""  # a file of the module inside does not have it
    bare = {name.removeprefix(own) for name in expected}
    prefixes: collections.Counter[str] = collections.Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in bare:
                prefixes[".".join([*parts[:start], ""])] += 1
    prefix, count = max(prefixes.items(), key=lambda item: item[1], default=("", 0))
    if 2 * count < len(bare):
        return state
    return {own + name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def difference(state: StateDict, expected: StateDict, network: str) -> str:
    """The first reason why tensors are not those of a network, in words; empty where they are.

    Args:
        state: of a file.
        expected: what the network holds, for names and shapes only.
        network: its name, for the reader.
    """
    if not expected.keys() & state.keys():
        return f"holds no tensor of {network}: the first is {next(iter(state), 'missing')}"
    for name, value in without_counters(expected).items():
        if name not in state:
            return f"holds no {name}, which {network} has"
        if state[name].shape != value.shape:
            return f"{name} is {tuple(state[name].shape)}, {tuple(value.shape)} expected"
    unknown = [name for name in without_counters(state) if name not in expected]
    return f"holds {unknown[0]}, which {network} has not" if unknown else ""


def first_line(error: Exception) -> str:
    """The beginning of an error's text, for a one-line message: torch lists every consequence behind the reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120].rstrip(" .")


def without_counters(state: StateDict) -> StateDict:
    """All tensors that have an influence."""
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}


def shapes_of(build: Callable[[], torch.nn.Module]) -> StateDict:
    """Names and shapes of a network's tensors; they have no storage, and nothing is drawn."""
    with torch.device("meta"):
        return build().state_dict()
