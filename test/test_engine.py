"""What both engines share and what PyTorch's adds: precision by device, memory, resizing, what a job imports."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import point_differences
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_detect import read_sample, run_job, write_random_system

from midog import __main__ as commands
from midog.engine import torch_engine
from midog.engine.classifier import centre_crop
from midog.engine.dense import REACH, highest_around
from midog.engine.network import processor_has_bfloat16
from midog.engine.torch_engine import TorchNetwork, forward_type
from midog.images.folder import open_stack
from midog.run import load

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
STACK = next((ROOT / "test/input/track2/images").glob("*/*"))
HALF_PRECISION = 0.02  # in how much of a probability bfloat16 differs from float32, at most


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n", True),
        ("model name\t: of avx512_bf16\nflags\t\t: fpu avx512f avx512_bf16x\n", False),
        ("Features\t: fp asimd\n", False),
        ("", False),
        (None, False),
    ],
)
def test_whether_a_processor_has_bfloat16(text, expected, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr("midog.engine.network.CPU_INFO", path)
    assert processor_has_bfloat16() is expected


@pytest.mark.parametrize(
    ("has_bfloat16", "precision", "expected"),
    [(True, "auto", torch.bfloat16), (True, "float32", torch.float32), (False, "auto", torch.float32)],
)
def test_what_a_forward_computes_in(has_bfloat16, precision, expected, monkeypatch):
    """A convolution's answer is of that type inside, and float32 outside."""
    monkeypatch.setattr(torch_engine, "processor_has_bfloat16", lambda: has_bfloat16)
    inside = []
    network = torch.nn.Conv2d(3, 1, 1)
    network.register_forward_hook(lambda module, inputs, answer: inside.append(answer.dtype))
    (answer,) = TorchNetwork(network, CPU, precision)(np.ones((1, 3, 4, 4), np.float32))
    assert forward_type(CPU, precision) == inside[0] == expected
    assert answer.dtype == np.float32


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), MemoryError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_out_of_memory_is_a_memory_error_and_nothing_else_is(error, expected):
    class Broken(torch.nn.Module):
        def forward(self, images):
            raise error

    with pytest.raises(expected) as caught:
        TorchNetwork(Broken(), CPU)(np.zeros((1, 3, 2, 2), np.float32))
    assert caught.type is expected


@settings(deadline=None)
@given(st.integers(8, 80), st.integers(8, 80), st.floats(0.2, 1), st.integers(1, 80))
def test_the_centre_is_scaled_as_pytorch_scales(height, width, fraction, size):
    crops = np.random.default_rng(0).random((2, 3, height, width), np.float32)
    tall, wide = round(height * fraction), round(width * fraction)
    top, left = (height - tall) // 2, (width - wide) // 2
    centre = torch.from_numpy(crops[:, :, top : top + tall, left : left + wide])
    expected = F.interpolate(centre, (size, size), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(centre_crop(crops, fraction, size), expected, atol=2e-5)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_highest_around_is_pytorchs_pooling(height, width, seed):
    scores = np.random.default_rng(seed).random((height, width), np.float32)
    expected = F.max_pool2d(torch.from_numpy(scores)[None], 2 * REACH + 1, 1, REACH)[0]
    np.testing.assert_array_equal(highest_around(scores), expected)


# --- as asked for ---------------------------------------------------------------


@pytest.fixture
def has_bfloat16(monkeypatch):
    """Any processor computes in bfloat16, if slowly."""
    monkeypatch.setattr(torch_engine, "processor_has_bfloat16", lambda: True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights for Track 1."""
    folder = tmp_path_factory.mktemp("model")
    write_random_system(folder / "random")
    return folder


def test_a_job_is_run_in_the_precision_that_is_given(has_bfloat16, model, tmp_path, capfd):
    pixels, found = read_sample(160, 160), []
    for name, options in (("bfloat16", []), ("float32", ["--precision", "float32"])):
        found.append(run_job(tmp_path / name, model, pixels, options=options))
        assert f"device cpu (PyTorch, {name})" in capfd.readouterr().out
    assert found[0] != found[1]


def test_another_precision_makes_a_new_result(has_bfloat16, model, tmp_path, capfd):
    Image.fromarray(read_sample(300, 160)).save(tmp_path / "a.png")
    out = tmp_path / "out"
    command = ["predict", str(tmp_path / "a.png"), "--out", str(out), "--model", str(model), "--mpp", ".25"]
    for options, name, made_before in (
        ([], "bfloat16", False),
        (["--precision", "float32"], "float32", False),
        (["--precision", "float32"], "float32", True),
        (["--precision", "auto"], "bfloat16", False),
        ([], "bfloat16", True),
    ):
        assert commands.main([*command, *options]) == 0
        assert ("made before" in capfd.readouterr().out) is made_before
        about = json.loads((out / "a.png/about.json").read_text())
        assert about["runs_on"] == f"cpu (PyTorch, {name})"
        assert about["detector"].get("precision", "auto") == ("float32" if name == "float32" else "auto")


def test_bfloat16_finds_the_same_figures(has_bfloat16):
    pixels, found = read_sample(1248, 960)[640:, 928:], []
    for precision in ("float32", "auto"):
        runner = load(track=1, device="cpu", precision=precision)
        found.append(runner.predict(pixels, mpp=0.25))
    first, second = (each[each.accepted] for each in found)
    assert len(first) == len(second) > 2
    assert point_differences(*(each.to_json() for each in found), HALF_PRECISION) == []
    assert not np.array_equal(first.probabilities, second.probabilities)


def test_bfloat16_tells_the_same_subtypes(has_bfloat16):
    crops = np.stack(list(open_stack(STACK))[:2])
    first, second = (load(track=2, device="cpu", precision=each).classify(crops) for each in ("float32", "auto"))
    assert 0 < np.abs(first - second).max() < HALF_PRECISION


# --- start-up -------------------------------------------------------------------

UNTIL_THE_FIRST_FORWARD = """
import sys, torch
there = set(sys.modules)

def stop(*_):
    raise SystemExit

torch.nn.Module.__call__ = stop
import inference
for track in (1, 2):
    try:
        inference.main(["--input", f"test/input/track{track}", "--output", sys.argv[1]])
    except SystemExit:
        print(f"track {track}")
print(*sys.modules.keys() - there)
"""


def test_what_the_default_jobs_import_beside_pytorch(tmp_path):
    command = [sys.executable, "-c", UNTIL_THE_FIRST_FORWARD, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert {"track 1", "track 2"} <= set(lines)
    imported = lines[-1].split()
    packages = {name.partition(".")[0] for name in imported}
    assert not packages & {"timm", "torchvision", "pandas", "scipy", "sklearn", "matplotlib", "SimpleITK", "openvino"}
    assert "midog" in packages
    assert len(imported) < 130
