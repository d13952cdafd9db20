"""The detectors' trainings as users run them: a kill and a resume, members, losses that are not finite, ablation."""

import csv
import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT, Killed
from conftest import training_arguments as arguments
from safetensors.torch import load_file

from midog.engine.torch_engine import TorchEngine
from midog.engine.two_stages import SystemDetector
from midog.system import load_system
from resources.data.fields import read_fields
from resources.train import ablation, focasnet, rtmdet
from resources.train.kit import loop
from resources.train.kit.rtmdet_loss import RTMDetLoss

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "rtmdet_s": {"size": "tiny"},
    "focasnet": {
        "backbone": 18,
        "cbam": True,
        "group_norm": True,
        "hybrid": True,
        "levels": 2,
        "width": 32,
        "depth": 1,
    },
}
SCRIPTS = {"rtmdet_s": rtmdet, "focasnet": focasnet}
CHANGE = ["--set", "training.detector.batch=2"]
STEPS = 2  # an epoch


@pytest.fixture(autouse=True, scope="module")
def _few_forwards_for_batch_norm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "NORM_BATCHES", 2)
        yield


def shrunk(data, name):
    """A published recipe with two epochs of two steps, and one average; the path of its YAML."""
    values = yaml.safe_load((ROOT / f"resources/systems/{name}.yaml").read_text())
    # After so few steps every score is about the network's first, one in 100: few candidates are quick to join.
    values["detector"] |= {"tile": [256, 256], "score_threshold": 0.02, "views": 1, "options": SMALL[name]}
    values["training"]["detector"] |= {"tile": [64, 96], "epochs": 2, "steps_an_epoch": STEPS, "warmup_epochs": 1}
    values["training"]["detector"] |= {"batch": 4, "validation_tiles": 3}
    values["training"]["detector"] |= {"ema_momentum": [1.0, 0.9], "precision": "float32"}
    path = data / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module", params=SMALL)
def paper(request):
    """The name of a published recipe."""
    return request.param


@pytest.fixture(scope="module")
def system(data, paper):
    return shrunk(data, paper)


@pytest.fixture(scope="module")
def whole(data, paper, system):
    """The folder of a training."""
    assert SCRIPTS[paper].main(arguments(data, system, data / f"whole_{paper}")) == 0
    return data / f"whole_{paper}"


def test_a_killed_run_resumes_to_the_same_weights(data, paper, system, whole, monkeypatch, capsys):
    train, cut = SCRIPTS[paper].main, data / f"cut_{paper}"
    saved = loop.save_checkpoint

    def save_and_die(path, state):
        saved(path, state)
        raise Killed

    monkeypatch.setattr(loop, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train(arguments(data, system, cut))
    monkeypatch.setattr(loop, "save_checkpoint", saved)
    assert train(arguments(data, system, cut, "--resume")) == 0
    for path in sorted((whole / "model" / paper).iterdir()):
        assert path.read_bytes() == (cut / "model" / paper / path.name).read_bytes()
    assert [row["epoch"] for row in csv.DictReader((whole / "epochs.csv").open())] == ["1", "2"]
    assert sorted(path.name for path in cut.iterdir()) == sorted(
        ["checkpoint.pt", "epochs.csv", "model", "recipe.yaml", "train.log"]
    )
    capsys.readouterr()
    assert train(arguments(data, system, cut, "--resume", *CHANGE)) == 1
    said = capsys.readouterr().err
    assert "another recipe or other data (plan.training.detector.batch was 4, is 2); give another --out" in said
    assert said.count("\n") == 1


def test_the_networks_own_weights_and_averages_are_the_members(data, paper, whole):
    model = load_system(whole / "model" / paper)
    assert [each.weights for each in model.detector.members] == [f"member{number}.safetensors" for number in range(2)]
    assert len({each.sha256 for each in model.detector.members}) == 2
    found = SystemDetector(model, TorchEngine("cpu"))(read_fields([f"{data}/fields:case1"])[0])
    assert ((found.probabilities > 0) & (found.probabilities < 1)).all()


def test_variants_are_systems_with_their_own_operating_points(data, paper, whole, tmp_path, capsys):
    said = ["--model", str(whole / "model"), "--system", paper, "--validation", f"{data}/fields:case1"]
    assert ablation.main([*said, "--out", str(tmp_path), "--device", "cpu"]) == 0
    names = ["member0", "member1", "average", "weighted_box_fusion"]
    names += [f"average_{views}_views" for views in (2, 4, 8)]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["variant", *names]
    for name in names:
        model = load_system(tmp_path / name)
        assert len(model.detector.members) == (1 if name.startswith("member") else 2)
        assert set(model.made.metrics) == {"validation_average_precision", "validation_f1", "validation_threshold"}
    assert ablation.main([*said, "--out", str(tmp_path), "--only", "member9"]) == 1
    assert "--only member9: unknown; known: member0, " in capsys.readouterr().err


@pytest.fixture
def train_to_a_loss_of_nan(data, monkeypatch):
    """Train RTMDet, whose loss is nan from a step on; returns the exit code."""

    def train(out, step):
        steps = 0

        class Diverging(RTMDetLoss):
            def __call__(self, network, images, truths, total):
                nonlocal steps
                steps += network.training
                loss = super().__call__(network, images, truths, total)
                return loss * float("nan") if network.training and steps > step else loss

        monkeypatch.setattr(rtmdet, "RTMDetLoss", Diverging)
        return rtmdet.main(arguments(data, shrunk(data, "rtmdet_s"), out, *CHANGE))

    return train


def test_a_loss_of_nan_in_the_second_epoch_leaves_the_weights_of_the_first(train_to_a_loss_of_nan, tmp_path, capsys):
    """With values changed on the command line, which are recorded."""
    assert train_to_a_loss_of_nan(tmp_path, STEPS) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == 1
    assert f"the loss is nan at step {STEPS + 1}; stopped, with the weights of the epochs up to 1" in warnings[0]
    kept = torch.load(tmp_path / "checkpoint.pt")["kept"]
    for number, state in enumerate(kept):
        exported = load_file(tmp_path / f"model/rtmdet_s/member{number}.safetensors")
        for name, value in exported.items():
            assert torch.equal(value, state[name].half() if state[name].is_floating_point() else state[name])
            assert value.isfinite().all()
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "epochs.csv").open())] == ["1"]
    for path, inside in (("recipe.yaml", "plan"), ("model/rtmdet_s/model.yaml", None)):
        values = yaml.safe_load((tmp_path / path).read_text())
        assert (values[inside] if inside else values)["training"]["detector"]["batch"] == 2


def test_a_loss_of_nan_in_the_first_epoch_is_an_error(train_to_a_loss_of_nan, tmp_path, capsys):
    assert train_to_a_loss_of_nan(tmp_path, 1) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line or "warning: " in line]
    assert f"error: {tmp_path}: the loss is nan at step 2, before the first good validation; give a lower" in line
    assert not (tmp_path / "model").exists()


def test_two_processes_train_one_detector(data, tmp_path):
    values = yaml.safe_load(shrunk(data, "rtmdet_s").read_text())
    values["training"]["detector"] |= {"epochs": 1, "ema_momentum": [1.0, 0.1], "keep": "last"}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "resources.train.rtmdet", *arguments(data, path, tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(load_system(tmp_path / "out/model/rtmdet_s").detector.members) == 2
    (row,) = csv.DictReader((tmp_path / "out/epochs.csv").open())
    assert float(row["training_loss"]) > 0
    for said in (done.stdout, (tmp_path / "out/train.log").read_text()):  # by one of the two
        assert said.count("epoch 1 of 1") == said.count("exported") == 1
