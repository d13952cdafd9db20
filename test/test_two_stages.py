"""The command that trains a system of two stages whole: what it starts, in which order, and what it leaves alone."""

import pytest

from midog.system import Classifier, System
from resources.train import two_stages
from resources.train.kit.recipes import SYSTEMS


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The commands that are started, as (name, arguments); each succeeds and trains nothing."""
    commands = []

    def stand_in(name):
        def main(arguments):
            commands.append((name, list(arguments)))
            return int(name == "folds" and "failing" in arguments[2])

        main.__module__ = f"resources.train.{name}"
        return main

    def divided(fields, crops, count, path):
        commands.append(("split", [*fields, *crops, count]))
        path.write_text("set,case,fold\n")

    monkeypatch.setattr(two_stages.split, "write_folds", divided)
    for name in ("folds", "score_weight", "midog"):
        monkeypatch.setattr(getattr(two_stages, name), "main", stand_in(name))
    recipe = (SYSTEMS / "centernet_two_stages.yaml").read_text()

    untuned = System(
        system="x", track=2, version="0", classifier=Classifier(network="timm", options={}, field_um=24.0, input_px=96)
    )
    monkeypatch.setattr(two_stages, "load_system", lambda folder: untuned)
    for name in ("small", "failing"):
        (tmp_path / f"{name}.yaml").write_text(recipe.replace("steps_an_epoch: 1000", "steps_an_epoch: 50"))
    return commands


def arguments_of(tmp_path, recipe="small"):
    return [
        "--system",
        str(tmp_path / f"{recipe}.yaml"),
        "--data",
        "fields",
        "--crops",
        "crops",
        "--out",
        f"{tmp_path}",
    ]


def option(arguments, name):
    return arguments[arguments.index(name) + 1]


def test_detector_twice_then_classifier_then_weight_and_threshold(tmp_path, started):
    assert two_stages.main(arguments_of(tmp_path)) == 0
    assert [name for name, _ in started] == ["split", "folds", "folds", "folds", "score_weight", "midog"]
    mining, detector, classifier = (arguments for name, arguments in started if name == "folds")
    assert [each[0] for each in (mining, detector, classifier)] == ["centernet", "centernet", "candidates"]
    assert option(mining, "--set") == "training.detector.steps_an_epoch=30"
    assert "--mined" not in mining
    assert "--set" not in detector
    at = detector.index("--mined")
    assert detector[at + 1 : at + 2] == [f"{tmp_path}/mining/mined.csv"]
    at = classifier.index("--mined")
    assert classifier[at + 1 : at + 3] == [f"{tmp_path}/mining/mined.csv", f"{tmp_path}/detector/mined.csv"]
    assert option(classifier, "--detector") == f"{tmp_path}/detector/fold_{{fold}}/model/centernet_two_stages"
    tune = started[-1][1]
    assert tune[0] == "tune"
    assert option(tune, "--model") == f"{tmp_path}/second_stage/model/centernet_two_stages"
    assert started[0][1] == ["fields", "crops", 3]
    started.clear()
    assert two_stages.main(arguments_of(tmp_path)) == 0  # as after a kill: the split stays as it is
    assert "split" not in [name for name, _ in started]


def test_a_step_that_fails_ends_it(tmp_path, started, capsys):
    assert two_stages.main(arguments_of(tmp_path, "failing")) == 1
    assert [name for name, _ in started].count("folds") == 1
    assert "resources.train.folds: failed" in capsys.readouterr().err
