"""Depth-wise convolutions of a training on a CPU: the same sums as PyTorch's, and memory that is kept."""

import ctypes

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from midog.engine import memory
from resources.train.kit.depthwise import DepthwiseConvolution, FastDepthwise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("side", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (5, 2, 2), (7, 3, 1), (1, 1, 0)])
def test_gradients_are_those_of_the_sums(side: int, stride: int, padding: int) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, side, side, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(DepthwiseConvolution.apply, (x, weight, stride, padding))


@settings(max_examples=15)
@given(
    st.sampled_from([(3, 1), (5, 2), (7, 3)]), st.integers(1, 3), st.booleans(), st.integers(7, 12), st.integers(7, 12)
)
def test_half_precision_is_pytorch_s(kernel: tuple[int, int], stride: int, bias: bool, height: int, width: int) -> None:
    side, padding = kernel
    convolution = nn.Conv2d(8, 8, side, stride, padding, groups=8, bias=bias)
    x = torch.randn(4, 8, height, width, requires_grad=True)
    expected = convolution(x)
    expected.square().sum().backward()
    wanted = [x.grad, *(each.grad for each in convolution.parameters())]
    x.grad = None
    convolution.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        found = convolution(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    for mine, theirs in zip([x.grad, *(each.grad for each in convolution.parameters())], wanted, strict=True):
        assert isinstance(mine, torch.Tensor)
        assert isinstance(theirs, torch.Tensor)
        assert (mine - theirs).norm() <= 0.03 * theirs.norm()  # eight bits of mantissa


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(8, 8, 3, dilation=2, groups=8),
        nn.Conv2d(8, 8, (3, 5), groups=8),
        nn.Conv2d(8, 8, 3, (1, 2), groups=8),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
    ],
    ids=str,
)
def test_any_other_convolution_is_left_alone(convolution: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DepthwiseConvolution, "apply", None)
    x = torch.randn(1, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        found = convolution(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, convolution(x))


def test_without_gradient_the_forward_is_pytorch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DepthwiseConvolution, "apply", None)
    with torch.no_grad(), FastDepthwise():
        F.conv2d(torch.randn(1, 8, 9, 9), torch.randn(8, 1, 3, 3), None, 1, 1, 1, 8)


def test_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.keep_memory()

    def missing(_: None) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    memory.keep_memory()
