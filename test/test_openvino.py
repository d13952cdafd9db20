"""Systems that OpenVINO runs: exported once, run without PyTorch, and what is refused."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from compare import differences
from conftest import ROOT
from test_detect import read_sample, write_job

import inference
from midog import __main__ as commands
from midog.engine.network import processor_has_bfloat16
from midog.engine.openvino_engine import OpenVINONetwork
from midog.files import sha256_of
from midog.job import SOCKETS
from midog.models import CLASSIFIERS
from midog.system import load_system

SUBTYPES, FIGURES = "efficientnet_lite0", "rtmdet_two_stages"
JOBS = {1: FIGURES, 2: SUBTYPES}
TOLERANCE = 3e-3  # of a probability: exported weights are rounded after batch norms are folded into them
RESULTS = {socket.track: socket.result_name for socket in SOCKETS.values()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Track 2's default system with one of its networks, and the smallest one with two stages."""
    folder = tmp_path_factory.mktemp("model")
    for name in (SUBTYPES, FIGURES):
        shutil.copytree(ROOT / "model" / name, folder / name)
    (folder / "rtmdet_tiny").mkdir()
    shutil.copy(ROOT / "model/rtmdet_tiny/member0.safetensors", folder / "rtmdet_tiny")
    change(folder / SUBTYPES, lambda values: values["classifier"].update(members=values["classifier"]["members"][:1]))
    return folder


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    assert commands.main(["export-openvino", "--model", str(model), "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the exported systems, to be spoilt."""
    return shutil.copytree(exported, tmp_path / "copied")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A part of Track 1's sample, and that of Track 2."""
    region = write_job(tmp_path_factory.mktemp("region") / "job", read_sample(1248, 1024)[512:, 736:])
    return {1: region, 2: ROOT / "test/input/track2"}


def change(system, how):
    """Change a system's model.yaml."""
    path = system / "model.yaml"
    values = yaml.safe_load(path.read_text())
    how(values)
    path.write_text(yaml.safe_dump(values))


RUN = """
import contextlib, sys
packages, *arguments = sys.argv[1:]
sys.modules.update(dict.fromkeys(["openvino_telemetry", *packages.split()]))
with contextlib.suppress(ModuleNotFoundError):
    import openvino
there = set(sys.modules)
import inference
code = inference.main(arguments)
print(*sys.modules.keys() - there)
sys.exit(code)
"""


def without(packages, *arguments):
    """A job where these cannot be imported; the last line of stdout is what `import openvino` did not import."""
    command = [sys.executable, "-c", RUN, packages, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def without_torch(*arguments):
    return without("torch torchvision timm safetensors", *arguments)


def result_in(folder, track):
    return json.loads((folder / RESULTS[track]).read_text())


@pytest.fixture(scope="module")
def expected(model, jobs, tmp_path_factory):
    """What PyTorch answers in float32."""
    results = {}
    for track, job in jobs.items():
        out = tmp_path_factory.mktemp("expected")
        said = ["--input", str(job), "--output", str(out), "--model", str(model), "--precision", "float32"]
        assert inference.main([*said, "--device", "cpu"]) == 0
        results[track] = result_in(out, track)
    assert sum(point["name"] == "mitotic figure" for point in results[1]["points"]) > 3
    return results


@pytest.mark.parametrize("track", [1, 2])
def test_a_job_without_pytorch_answers_as_with_it(track, exported, jobs, expected, tmp_path):
    said = ["--input", jobs[track], "--output", tmp_path, "--model", exported]
    done = without_torch(*said, "--precision", "float32")
    assert (done.returncode, done.stderr) == (0, "")
    assert "device cpu (OpenVINO, float32)" in done.stdout
    assert differences(expected[track], result_in(tmp_path, track), TOLERANCE) == []
    imported = done.stdout.splitlines()[-1].split()
    packages = {name.partition(".")[0] for name in imported}
    assert not packages & {"pandas", "scipy", "sklearn", "matplotlib", "SimpleITK", "tqdm"}
    assert len(imported) < 130


@pytest.mark.skipif(not processor_has_bfloat16(), reason="the processor has no bfloat16")
@pytest.mark.parametrize("track", [1, 2])
def test_bfloat16_is_near(track, exported, jobs, expected, tmp_path):
    done = without_torch("--input", jobs[track], "--output", tmp_path, "--model", exported)
    assert "device cpu (OpenVINO, bfloat16)" in done.stdout
    assert differences(expected[track], result_in(tmp_path, track), 0.03) == []


def test_what_is_written(model, exported, capsys):
    """The same but for the files, whose names say what they hold."""
    for name in (SUBTYPES, FIGURES):
        before, after = (load_system(folder / name) for folder in (model, exported))
        assert after.is_exported
        assert {path.name for path in after.folder.iterdir()} == {
            "model.yaml",
            *(member.weights for member in after.members),
            *(member.weights.replace(".xml", ".bin") for member in after.members),
        }
        assert [each.exported_from for each in after.members] == [each.sha256 for each in before.members]
        assert [each.calibration for each in after.members] == [each.calibration for each in before.members]
        assert (after.made, after.version) == (before.made, before.version)
    capsys.readouterr()
    assert commands.main(["systems", "--model", str(exported)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in listed] == [[SUBTYPES, "track", "2"], [FIGURES, "track", "1"]]
    assert "rtmdet x 1 + convnextv2 x 1" in listed[1]
    size = sum(path.stat().st_size for path in exported.glob(f"{FIGURES}/*.[xb]*"))
    assert listed[1].endswith(f" {size / 1e6:.1f} MB  for OpenVINO")


# --- refused in one line ----------------------------------------------------------


def refused(capfd, *arguments, command=inference.main):
    """The line on stderr."""
    assert command([str(each) for each in arguments]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    return line


def job_of(track, model, tmp_path, jobs):
    return ["--input", jobs[track], "--output", tmp_path / "out", "--model", model]


def test_files_that_are_not_what_was_exported(copied, jobs, tmp_path, capfd):
    path = copied / SUBTYPES / "fold0.bin"
    said = job_of(2, copied, tmp_path, jobs)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    line = refused(capfd, *said)
    assert f"{path.with_suffix('.xml')}: sha256 is " in line
    assert "export it again with midog export-openvino" in line
    path.unlink()
    assert f"{path}: weights not found; export it again with midog export-openvino" in refused(capfd, *said)
    path.write_bytes(content[:1000])
    sha256 = sha256_of(path.with_suffix(".xml"), path)
    change(path.parent, lambda values: values["classifier"]["members"][0].update(sha256=sha256))
    assert f"{path.with_suffix('.xml')}: OpenVINO cannot load it (" in refused(capfd, *said)
    assert not list((tmp_path / "out").iterdir())


def test_files_for_two_engines_in_one_system(model, copied, jobs, tmp_path, capfd):
    def one_for_pytorch(values):
        values["detector"]["members"][0] |= {"weights": "member0.safetensors", "shared": "rtmdet_tiny"}

    change(copied / FIGURES, one_for_pytorch)
    assert "some weights are .xml files for OpenVINO and others are not" in refused(
        capfd, *job_of(1, copied, tmp_path, jobs)
    )


def test_what_openvino_does_not_run_on(exported, jobs, tmp_path, capfd):
    said = job_of(2, exported, tmp_path, jobs)
    assert "--device cuda: OpenVINO runs on the CPU" in refused(capfd, *said, "--device", "cuda")
    done = without("openvino", *said)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "openvino is not installed" in done.stderr
    assert "midog[openvino]" in done.stderr


class Unsupported(torch.nn.Module):
    """An operation that OpenVINO has not."""

    def forward(self, crops):
        return torch.linalg.svdvals(crops[:, 0, :2, :2])


class CountsTheBatch(torch.nn.Module):
    """Traced with the batch that it is shown."""

    def forward(self, crops):
        return crops.mean((2, 3)) * len(crops)


@pytest.mark.parametrize(
    ("network", "said"), [(Unsupported, "cannot be exported"), (CountsTheBatch, "answers something else once it is")]
)
def test_a_network_that_cannot_be_exported_leaves_nothing(network, said, model, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(CLASSIFIERS, "efficientnet_lite", lambda **options: network())
    monkeypatch.setattr(network, "load_state_dict", lambda self, state: None)
    out = tmp_path / "out"
    line = refused(
        capfd, "export-openvino", "--model", model, "--system", SUBTYPES, "--out", out, command=commands.main
    )
    assert line.startswith(f"error: {model / SUBTYPES / 'fold0.safetensors'}: efficientnet_lite {said}")
    assert line.endswith("run it with PyTorch")
    assert not list(out.iterdir())


def test_weights_for_pytorch_are_not_written_over(model, exported, capfd):
    for given, out, said in (
        (model, model, f"{model / SUBTYPES}: holds weights for PyTorch; give another --out"),
        (exported, model, f"{exported / SUBTYPES}: exported already"),
    ):
        arguments = ["export-openvino", "--model", given, "--system", SUBTYPES, "--out", out]
        assert said in refused(capfd, *arguments, command=commands.main)
    assert not load_system(model / SUBTYPES).is_exported


@pytest.mark.parametrize(("said", "kind"), [("std::bad_alloc", MemoryError), ("a bug", RuntimeError)])
def test_out_of_memory_is_a_memory_error_and_nothing_else_is(said, kind):
    def infer(inputs):
        raise RuntimeError(f"Exception from src/inference:\n{said}\n")

    request = SimpleNamespace(infer=infer)
    with pytest.raises(kind) as caught:
        OpenVINONetwork(SimpleNamespace(create_infer_request=lambda: request))(np.zeros((1, 3, 2, 2), np.float32))
    assert caught.type is kind


def test_a_folder_that_is_no_export_is_not_replaced(model, tmp_path, capfd):
    theirs = tmp_path / SUBTYPES / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    line = refused(
        capfd, "export-openvino", "--model", model, "--system", SUBTYPES, "--out", tmp_path, command=commands.main
    )
    assert line == f"error: {theirs.parent}: holds no system, and is not replaced; give another --out"
    assert theirs.read_text() == "mine"
