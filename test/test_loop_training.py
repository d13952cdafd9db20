"""The plain detection loop: a kill and a resume, the schedule, members, and what variants.py makes of them."""

import csv

import pytest
import torch
import yaml
from conftest import ROOT, Killed
from conftest import training_arguments as arguments

from midog.engine.two_stages import SystemDetector
from midog.models import CLASSIFIERS, DETECTORS, build
from midog.system import load_system
from resources.data.fields import read_fields
from resources.train import candidate, detection_loop, focasnet, rtmdet, variants
from resources.train.common import read_plan
from resources.train.detection_loop import LoopRecipe

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


@pytest.fixture(scope="module", params=SMALL)
def paper(request):
    """The name of a published recipe."""
    return request.param


@pytest.fixture(scope="module")
def system(data, paper):
    """The recipe, shrunk; the path of its YAML."""
    values = yaml.safe_load((ROOT / f"resources/systems/{paper}.yaml").read_text())
    # After so few steps every score is about the network's first, one in 100: few candidates are quick to join.
    values["detector"] |= {"tile": 256, "score_threshold": 0.02, "views": 1, "options": SMALL[paper]}
    values["training"]["detector"] |= {"tile": [64, 96], "iterations": 4, "batch": 4, "accumulate": 2}
    values["training"]["detector"] |= {"warmup_iterations": 2, "validate_every": 2, "validation_tiles": 3}
    values["training"]["detector"] |= {"average_rates": [0.9, 0.8], "half_precision": False}
    path = data / f"{paper}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def whole(data, paper, system):
    """The folder of a training."""
    assert SCRIPTS[paper].main(arguments(data, system, data / f"whole_{paper}")) == 0
    return data / f"whole_{paper}"


def test_a_killed_run_resumes_to_the_same_weights(data, paper, system, whole, monkeypatch):
    train, cut = SCRIPTS[paper].main, data / f"cut_{paper}"
    saved = detection_loop.save_checkpoint

    def save_and_die(path, state):
        saved(path, state)
        raise Killed

    monkeypatch.setattr(detection_loop, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train(arguments(data, system, cut))
    monkeypatch.setattr(detection_loop, "save_checkpoint", saved)
    assert train(arguments(data, system, cut, "--resume")) == 0
    for path in sorted((whole / "model" / paper).iterdir()):
        assert path.read_bytes() == (cut / "model" / paper / path.name).read_bytes()
    assert [row["iteration"] for row in csv.DictReader((whole / "iterations.csv").open())] == ["2", "4"]


def test_raw_weights_and_averages_are_the_members(data, paper, whole):
    model = load_system(whole / "model" / paper)
    assert [each.weights for each in model.detector.members] == [f"member{number}.safetensors" for number in range(3)]
    assert len({each.sha256 for each in model.detector.members}) == 3
    found = SystemDetector(model, torch.device("cpu"))(read_fields([f"{data}/fields:case1"])[0])
    assert ((found.probabilities > 0) & (found.probabilities < 1)).all()


def test_variants_are_systems_with_their_own_operating_points(data, paper, whole, tmp_path, capsys):
    said = ["--model", str(whole / "model"), "--system", paper, "--validation", f"{data}/fields:case1"]
    assert variants.main([*said, "--out", str(tmp_path), "--device", "cpu"]) == 0
    names = ["member0", "member1", "member2", "average", "weighted_box_fusion"]
    names += [f"average_{views}_views" for views in (2, 4, 8)]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["variant", *names]
    for name in names:
        model = load_system(tmp_path / name)
        assert len(model.detector.members) == (1 if name.startswith("member") else 3)
        assert set(model.made.metrics) == {"validation_average_precision", "validation_f1", "validation_threshold"}


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    """From 1e-5 to 1e-3 in 250 steps, to 0 at step 25,000 (paper, "Methods")."""
    plan = read_plan("rtmdet_s", 1, "detector", LoopRecipe)
    loop = object.__new__(detection_loop.DetectionLoop)
    loop.recipe, rates = plan.training, []
    for loop.done in (0, 124, 249, 250, 12625, 24999):
        rates.append(loop._learning_rate())
    assert rates == pytest.approx([1.396e-5, 5.05e-4, 1e-3, 1e-3, 5e-4, 0], rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("name", ["rtmdet_s", "rtmdet_tiny", "focasnet", "focasnet_small"])
def test_recipes_of_the_project_are_read(name):
    part = read_plan(name, 1, "detector", LoopRecipe).system.detector
    with torch.device("meta"):
        build(DETECTORS, part.network, part.options)


@pytest.mark.parametrize("name", ["rtmdet_two_stages", "focasnet", "focasnet_small"])
def test_second_stages_of_the_project_are_read(name):
    part = candidate.read_candidate_plan(name).system.classifier
    with torch.device("meta"):
        build(CLASSIFIERS, part.network, part.options)


@pytest.mark.parametrize("option", ["cbam", "size=18", "backbone=34", "width=wide", "cbam=["])
def test_options_that_no_network_takes(data, option, capsys):
    assert focasnet.main(arguments(data, "focasnet_small", data / "refused", "--options", option)) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (data / "refused").exists()


def test_a_system_of_another_network_is_refused(data, capsys):
    assert rtmdet.main(arguments(data, "yolo11_small", data / "refused")) == 1
    assert "its detector is yolo11; choose a system of rtmdet" in capsys.readouterr().err
    assert rtmdet.main(arguments(data, "rtmdet_two_stages", data / "refused")) == 1
    assert "no training.detector; choose a system that has a recipe" in capsys.readouterr().err
    assert rtmdet.main(arguments(data, "convnextv2", data / "refused")) == 1
    assert "is for Track 2; choose a system for Track 1" in capsys.readouterr().err
    assert not (data / "refused").exists()
