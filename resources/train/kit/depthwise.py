"""Gradients of depth-wise convolutions that a CPU computes quickly.

oneDNN has fast kernels for their forward in bfloat16, but falls back to plain loops for the gradient of a strided one's
input, and is slow for that of 5 x 5 and larger weights; the two take three quarters of a training step of an
EfficientNet-Lite0. The same sums, written as what is fast: the input's gradient is a convolution of the output's,
spread out to stride 1, with the kernel turned by 180 degrees; large weights' is computed in float32.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

LARGEST_IN_HALF = 3  # px of a kernel's side


class DepthwiseConvolution(torch.autograd.Function):
    """`F.conv2d` of (N, C, H, W) with (C, 1, k, k), one kernel a channel, without bias or dilation."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = _of_input(grad, x.shape, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        if weight.shape[2] > LARGEST_IN_HALF:
            grad, x = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (grad, x))
        _, grad_weight, _ = torch.ops.aten.convolution_backward(
            *(grad, x, weight.to(x.dtype), None, [ctx.stride] * 2, [ctx.padding] * 2),
            *([1, 1], False, [0, 0], len(weight), [False, True, False]),
        )
        return grad_x, grad_weight.to(weight.dtype), None, None


def _of_input(grad: torch.Tensor, shape: torch.Size, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
    side = weight.shape[2]
    if stride > 1:
        height, width = (length + 2 * padding - side + 1 for length in shape[2:])
        spread = torch.empty((*shape[:2], height, width), dtype=grad.dtype, memory_format=torch.channels_last).zero_()
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    return F.conv2d(grad, weight.flip(2, 3), padding=side - 1 - padding, groups=len(weight))


class FastDepthwise(TorchFunctionMode):
    """Within it, on a CPU, depth-wise convolutions are `DepthwiseConvolution`, in the precision of autocast."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.conv2d and torch.is_grad_enabled() and len(args) == 7 and args[6] > 1:
            x, weight, bias, *numbers, groups = args
            stride, padding, dilation = map(_single, numbers)
            square = weight.shape[:2] == (groups, 1) and weight.shape[2] == weight.shape[3]
            if square and dilation == 1 and None not in (stride, padding):
                half = torch.get_autocast_dtype("cpu")
                y = DepthwiseConvolution.apply(x.to(half), weight.to(half), stride, padding)
                return y if bias is None else y + bias.to(half)[:, None, None]
        return function(*args, **(kwargs or {}))


def _single(given: int | tuple[int, ...] | str) -> int | None:
    """The number that both directions have, if they have one."""
    if isinstance(given, tuple):
        return given[0] if len(set(given)) == 1 else None
    return given if isinstance(given, int) else None
