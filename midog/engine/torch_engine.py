"""PyTorch as the engine: devices, precision, and networks from safetensors files."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from midog import system as schema
from midog.engine.memory import keep_memory
from midog.engine.network import MAX_THREADS, Network, Stored, processor_has_bfloat16
from midog.errors import UserError
from midog.models import CLASSIFIERS, DETECTORS, build, normalisation


def choose_device(name: str) -> torch.device:
    """The torch.device for "auto", "cpu" or "cuda"; UserError if CUDA is asked for and absent."""
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that PyTorch can use; give --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def forward_type(device: torch.device, precision: schema.Precision) -> torch.dtype:
    """What a forward computes in: half precision where the device has it, unless float32 is asked for.

    Args:
        device: where the forward runs.
        precision: "auto", or "float32" for it everywhere.
    """
    has_half = precision == "auto" and (device.type == "cuda" or processor_has_bfloat16())
    return half_type(device) if has_half else torch.float32


def half_type(device: torch.device) -> torch.dtype:
    """bfloat16, or float16 on a GPU that lacks it."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


class TorchNetwork:
    """A module as a `midog.engine.network.Network`.

    Args:
        module: float32 (N, 3, H, W) -> a tensor or a tuple of them; in evaluation mode afterwards.
        device: where its weights are.
        precision: as `forward_type`.
    """

    def __init__(self, module: nn.Module, device: torch.device, precision: schema.Precision = "auto") -> None:
        self.module, self.device, self.type = module.eval(), device, forward_type(device, precision)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            inputs = torch.from_numpy(images).to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, self.type, enabled=self.type != torch.float32):
                answer = self.module(inputs)
            answers = answer if isinstance(answer, tuple) else (answer,)
            return tuple(each.float().cpu().numpy() for each in answers)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
        torch.cuda.empty_cache()  # out here, where the error holds no tensors any more; nothing without a GPU
        raise MemoryError


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Normalised(nn.Module):
    """A classifier behind its statistics: (N, 3, H, W) RGB in [0, 1] -> logits.

    Args:
        network: a module that takes normalised images.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = normalisation(network)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.network(normalise(crops, self.mean, self.std))


def normalise(crops: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A network's statistics, float (N, 3, H, W) in [0, 1] -> the same, channels_last."""
    shift, scale = (crops.new_tensor(each)[:, None, None] for each in (mean, std))
    return ((crops - shift) / scale).contiguous(memory_format=torch.channels_last)


class TorchEngine:
    """PyTorch on a CPU or a GPU, as a `midog.engine.network.Engine`.

    Args:
        device: "auto", "cpu" or "cuda", or which of several GPUs.
    """

    name = "PyTorch"

    def __init__(self, device: str | torch.device) -> None:
        self.torch_device = choose_device(device) if isinstance(device, str) else device
        self.device = self.torch_device.type
        if self.device == "cpu":
            keep_memory()

    def type_of(self, precision: schema.Precision) -> str:
        """As the protocol."""
        return str(forward_type(self.torch_device, precision)).removeprefix("torch.")

    def load(self, stored: Stored) -> Network:
        """As the protocol; of a safetensors file."""
        module = fold_batch_norms(load_module(stored))
        module = module.to(self.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return TorchNetwork(module, self.torch_device, stored.precision)


def load_module(stored: Stored) -> nn.Module:
    """A network as a module that takes RGB in [0, 1]: detectors normalise it themselves.

    Raises:
        UserError: as `load_network`.
    """
    if stored.kind == "detector":
        return load_network(DETECTORS, stored.name, stored.options, stored.path)
    return Normalised(load_network(CLASSIFIERS, stored.name, stored.options, stored.path))


class WithoutRandomStart(TorchFunctionMode):
    """Skips the drawing of first weights, which a file is about to replace.

    The meta device does the same, but imports a second's worth of torch's compiler.
    """

    DRAWS = (
        *(torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_),
        *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_),
    )

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function in self.DRAWS:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def load_network(
    registry: Mapping[str, str | Callable[..., nn.Module]], name: str, options: Mapping[str, Any], path: Path
) -> nn.Module:
    """Build a network and fill it strictly from a safetensors file, without initialising it first.

    Args:
        registry: `midog.models.DETECTORS` or `CLASSIFIERS`.
        name: a key of it.
        options: the constructor's arguments.
        path: of the file.

    Raises:
        UserError: unknown network or option, broken file, other names or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if name not in registry:
        raise UserError(f"{path}: network {name!r} is unknown; known: {', '.join(registry)}")
    try:
        with WithoutRandomStart():
            network = build(registry, name, options)
        network.load_state_dict(load_file(path))
    except TypeError as error:
        raise UserError(f"{path}: network {name} refuses its options ({error}); see model.yaml") from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of {name} ({reason}); unpack the model again") from None
    return network


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold every batch norm that follows a convolution into it, in place; of timm's norms the activation stays.

    It does so where the two follow each other in an `nn.Sequential`, and among the parts of any other block where a
    `conv...` stands right before a `bn...`. Blocks that share a convolution have one each afterwards.

    Returns:
        The network, in evaluation mode.
    """
    uses = Counter(id(each) for _, each in network.eval().named_modules(remove_duplicate=False))
    for module in network.modules():
        in_order = isinstance(module, nn.Sequential)
        for (first, convolution), (second, norm) in itertools.pairwise(list(module.named_children())):
            named = first.startswith("conv") and second.startswith("bn")
            if (in_order or named) and isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                if uses[id(convolution)] > 1:
                    convolution = copy.deepcopy(convolution)
                    setattr(module, first, convolution)
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    *(convolution.weight, convolution.bias, norm.running_mean, norm.running_var),  # type: ignore[arg-type]
                    *(norm.eps, norm.weight, norm.bias),
                )
                setattr(module, second, getattr(norm, "act", nn.Identity()))
    return network
