"""Systems for OpenVINO: a model folder of the same layout, whose networks run on a CPU without PyTorch."""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from midog.engine.classifier import stored_network
from midog.engine.network import Stored
from midog.engine.openvino_engine import OpenVINOEngine, openvino
from midog.engine.torch_engine import TorchNetwork, load_module
from midog.errors import UserError
from midog.files import sha256_of, write_yaml
from midog.system import EXPORTED, Classifier, Detector, System, Weights, as_yaml, files_of, read_system

CPU = torch.device("cpu")
CHECKED_TILE = (96, 128)  # (height, width) px, unlike any that a network is traced with
CHECKED_BATCH = 3
TOLERANCE = 1e-2  # of the greatest number that a network answers: its folded weights are rounded to float16


def export(system: System, out: Path) -> Path:
    """Write a system's networks and its model.yaml; nothing is left of what cannot be finished.

    Args:
        system: with its weights, for PyTorch.
        out: folder of the systems' folders; an earlier export in it is replaced.

    Returns:
        The system's folder.

    Raises:
        UserError: a network cannot be exported, or answers something else afterwards; weights for PyTorch lie there.
    """
    folder = out / system.system
    if system.is_exported:
        raise UserError(f"{system.folder}: exported already; give --model the weights for PyTorch")
    if folder.exists() and not (folder / "model.yaml").exists():
        raise UserError(f"{folder}: holds no system, and is not replaced; give another --out")
    if folder.exists() and not read_system(folder / "model.yaml").is_exported:
        raise UserError(f"{folder}: holds weights for PyTorch; give another --out")
    with tempfile.TemporaryDirectory(prefix=f".{system.system}-", dir=out) as name:
        made = Path(name, "made")
        made.mkdir()
        with tqdm(total=len(system.members), desc=system.system, unit="network", disable=None) as progress:
            parts = {}
            for kind in ("detector", "classifier"):
                if part := getattr(system, kind):
                    members = []
                    for member in part.members:
                        members.append(_export_member(system.path_of(member), part, member, made))
                        progress.update()
                    parts[kind] = replace(part, members=tuple(members))
        write_yaml(made / "model.yaml", as_yaml(replace(system, **parts)))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def _export_member(source: Path, part: Detector | Classifier, member: Any, made: Path) -> Weights:
    """One network's files, in a folder; its entry in model.yaml."""
    if isinstance(part, Detector):
        stored = Stored("detector", part.network, part.options, source, "float32")
        width, height = part.tile
        sides, checked = (-1, -1), CHECKED_TILE
    else:
        stored = stored_network(part, member, source)._replace(precision="float32")
        width = height = member.input_px or part.input_px
        sides = checked = (height, width)
    module = load_module(stored).eval()
    path = (made / f"{member.shared}_{member.weights}".lstrip("_")).with_suffix(EXPORTED)
    try:
        openvino.save_model(_converted(module, (height, width), sides), path)
        crops = np.random.default_rng(0).random((CHECKED_BATCH, 3, *checked), np.float32)
        expected = TorchNetwork(module, CPU, "float32")(crops)
        found = OpenVINOEngine("cpu").load(stored._replace(path=path))(crops)
    except (RuntimeError, openvino.frontend.OpConversionFailure) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: {stored.name} cannot be exported ({reason}); run it with PyTorch") from None
    if not all(_is_near(*pair) for pair in zip(found, expected, strict=True)):
        raise UserError(f"{source}: {stored.name} answers something else once it is exported; run it with PyTorch")
    changed = {"weights": path.name, "sha256": sha256_of(*files_of(path)), "shared": ""}
    return cast(Weights, replace(member, **changed, exported_from=member.sha256))


def _converted(module: nn.Module, side: tuple[int, int], sides: tuple[int, int]) -> openvino.Model:
    """A module as a model that takes batches (N, height, width, 3) of any N, and of sides that are -1, any."""
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # the tracer's, of what the check covers
        model = openvino.convert_model(module, example_input=torch.rand(2, 3, *side))
    model.reshape([-1, 3, *sides])
    processor = openvino.preprocess.PrePostProcessor(model)
    processor.input().tensor().set_layout(openvino.Layout("NHWC"))
    processor.input().model().set_layout(openvino.Layout("NCHW"))
    return processor.build()


def _is_near(found: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    scale = float(np.abs(expected).max())
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE * max(scale, 1))
