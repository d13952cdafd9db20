"""The plain detection loop: a kill and a resume, the schedule, members, and what variants.py makes of them."""

import csv

import pytest
import torch
import yaml
from conftest import ROOT, Killed
from conftest import training_arguments as arguments

from midog.detect import SystemDetector
from midog.system import load_system
from resources.data.fields import read_fields
from resources.train import detection_loop, rtmdet, variants


@pytest.fixture(scope="module")
def system(data):
    """The paper's recipe, shrunk; the path of its YAML."""
    values = yaml.safe_load((ROOT / "resources/systems/rtmdet_s.yaml").read_text())
    values["system"] = "tiny"
    # After so few steps every score is about the network's first: one in 100.
    values["detector"] |= {"tile": 64, "confidence": 1e-3, "views": 1, "options": {"size": "tiny"}}
    values["detector"]["training"] |= {"tile": [64, 96], "iterations": 4, "batch": 4, "accumulate": 2}
    values["detector"]["training"] |= {"warmup_iterations": 2, "validate_every": 2, "validation_tiles": 3}
    values["detector"]["training"] |= {"average_rates": [0.9, 0.8], "half_precision": False}
    path = data / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def whole(data, system):
    assert rtmdet.main(arguments(data, system, data / "whole")) == 0
    return data / "whole"


def test_a_killed_run_resumes_to_the_same_weights(data, system, whole, monkeypatch):
    saved = detection_loop.save_checkpoint

    def save_and_die(path, state):
        saved(path, state)
        raise Killed

    monkeypatch.setattr(detection_loop, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        rtmdet.main(arguments(data, system, data / "cut"))
    monkeypatch.setattr(detection_loop, "save_checkpoint", saved)
    assert rtmdet.main(arguments(data, system, data / "cut", "--resume")) == 0
    for path in sorted((whole / "model/tiny").iterdir()):
        assert path.read_bytes() == (data / "cut/model/tiny" / path.name).read_bytes()
    assert [row["iteration"] for row in csv.DictReader((whole / "iterations.csv").open())] == ["2", "4"]


def test_raw_weights_and_averages_are_the_members(data, whole):
    model = load_system(whole / "model/tiny")
    assert [each.weights for each in model.detector.members] == [f"member{number}.safetensors" for number in range(3)]
    assert len({each.sha256 for each in model.detector.members}) == 3
    found = SystemDetector(model, torch.device("cpu"), print)(read_fields([f"{data}/fields:case1"])[0])
    assert len(found) > 0


def test_variants_are_systems_with_their_own_operating_points(data, whole, capsys):
    said = ["--model", str(whole / "model"), "--system", "tiny", "--validation", f"{data}/fields:case1"]
    assert variants.main([*said, "--out", str(data / "variants"), "--device", "cpu"]) == 0
    names = ["member0", "member1", "member2", "average", "weighted_box_fusion"]
    names += [f"average_{views}_views" for views in (2, 4, 8)]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["variant", *names]
    for name in names:
        model = load_system(data / "variants" / name)
        assert len(model.detector.members) == (1 if name.startswith("member") else 3)
        assert set(model.metrics) == {"validation_average_precision", "validation_f1", "validation_threshold"}


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine(data, system):
    """From 1e-5 to 1e-3 in 250 steps, to 0 at step 25,000 (paper, "Methods")."""
    from resources.train.loop_detector import LoopPlan, read_detector_plan

    _, plan = read_detector_plan("rtmdet_s", LoopPlan)
    loop = object.__new__(detection_loop.DetectionLoop)
    loop.recipe, rates = plan.training, []
    for loop.done in (0, 124, 249, 250, 12625, 24999):
        rates.append(loop._learning_rate())
    assert rates == pytest.approx([1.396e-5, 5.05e-4, 1e-3, 1e-3, 5e-4, 0], rel=1e-3, abs=1e-8)


def test_a_system_of_another_network_is_refused(data, capsys):
    assert rtmdet.main(arguments(data, "yolo11_small", data / "refused")) == 1
    assert "detector.training: unknown key" in capsys.readouterr().err
    assert not (data / "refused").exists()
