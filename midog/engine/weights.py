"""What every network here needs, whatever it is for: a device, a precision, weights, batches that fit in memory."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from midog.errors import UserError
from midog.models import build

logger = logging.getLogger(__name__)

MAX_THREADS = 16  # the platform allows 128 processes and threads, whatever the host's core count

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def choose_device(name: str) -> torch.device:
    """The torch.device for "auto", "cpu" or "cuda"; UserError if CUDA is asked for and absent."""
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that PyTorch can use; give --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Half precision for forwards: bfloat16 (float16 where the GPU lacks it) on CUDA, nothing on a CPU.

    Args:
        device: where the forward runs.
        precision: "auto", or "float32" for none anywhere.
    """
    if device.type != "cuda" or precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast("cuda", half_type(device))


def half_type(device: torch.device) -> torch.dtype:
    """bfloat16, or float16 on a GPU that lacks it."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


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
    registry: Mapping[str, str | Callable[..., nn.Module]], name: str, options: dict[str, Any], path: Path
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
    for module in network.eval().modules():
        in_order = isinstance(module, nn.Sequential)
        for (first, convolution), (second, norm) in itertools.pairwise(list(module.named_children())):
            named = first.startswith("conv") and second.startswith("bn")
            if (in_order or named) and isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, getattr(norm, "act", nn.Identity()))
    return network


def to_tensor(images: list[NDArray[np.uint8]], device: torch.device) -> torch.Tensor:
    """uint8 (H, W, 3), all of one size -> float32 (N, 3, H, W) in [0, 1] on a device."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255


def in_batches(
    items: Iterable[Item], forward: Callable[[list[Item]], Iterable[Answer]], batch: int, what: str
) -> Iterator[Answer]:
    """Yield the answer to each item, in order; when memory runs out, the batch is halved and nothing is lost.

    Args:
        items: tiles or crops.
        forward: items to as many answers.
        batch: items a forward.
        what: they are, for the warning.

    Raises:
        UserError: memory runs out for a single item.
    """
    items = iter(items)
    while block := list(islice(items, batch)):
        start = 0
        while start < len(block):
            try:
                answers = forward(block[start : start + batch])
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if batch == 1:
                    raise UserError(f"memory ran out for one of the {what}; free some, or give --device cpu") from None
                batch //= 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                logger.warning("memory ran out; the batch is halved to %d %s", batch, what)
                continue
            yield from answers
            start += batch


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
