"""A system trained once for each fold of a split: images predicted by what never saw them, all networks joined."""

import json

import pytest
import yaml
from conftest import ROOT

from midog.__main__ import main as midog
from midog.system import load_system
from resources.train import folds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def command(data):
    """Two folds of one case each, and a recipe of one step."""
    (data / "split.csv").write_text("set,case,fold\nfields,case0,left\nfields,case1,right\n")
    values = yaml.safe_load((ROOT / "resources/systems/rtmdet_tiny.yaml").read_text())
    values["detector"] |= {"tile": [256, 256], "score_threshold": 0.005}
    training = {"tile": [64, 64], "epochs": 1, "steps_an_epoch": 1, "batch": 2, "validation_tiles": 2}
    values["training"]["detector"] |= training | {"ema_momentum": [1.0], "half_precision": False}
    (data / "tiny.yaml").write_text(yaml.safe_dump(values))
    known = ["--data", f"{data}/fields", "--split", f"{data}/split.csv", "--device", "cpu"]
    return ["rtmdet", "--system", f"{data}/tiny.yaml", *known]


def test_folds_from_training_to_evaluation(data, command, tmp_path, capsys):
    out = tmp_path / "out"
    assert folds.main([*command, "--out", str(out)]) == 0
    for fold, learnt in (("left", "case1"), ("right", "case0")):
        system = load_system(out / f"fold_{fold}/model/rtmdet_tiny")
        assert [source.cases for source in system.made.data] == [(learnt,)]
    assert sorted(path.name for path in (out / "out_of_fold").iterdir()) == ["0.png.json", "1.png.json"]

    joined = load_system(out / "model/rtmdet_tiny")
    assert [member.weights for member in joined.detector.members] == [
        "fold0_detector.safetensors",
        "fold1_detector.safetensors",
    ]
    assert {source.cases for source in joined.made.data} == {("case0",), ("case1",)}

    # Killed before the second fold was predicted: the first is not touched again.
    (out / "out_of_fold/1.png.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors") if "fold_" in str(path)}
    assert folds.main([*command, "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((out / "out_of_fold/1.png.json").read_text())["points"]

    capsys.readouterr()
    tune = ["tune", "--track", "1", "--data", f"{data}/fields", "--predictions", str(out / "out_of_fold")]
    assert midog([*tune, "--model", str(out / "model/rtmdet_tiny")]) in (0, 1)  # two steps may have learnt nothing
    evaluate = ["evaluate", *tune[1:]]
    assert midog(evaluate) == 0


def test_a_split_without_folds(data, command, tmp_path, capsys):
    (tmp_path / "split.csv").write_text("set,case,fold\nfields,case0,train\nfields,case1,validation\n")
    assert folds.main([*command, "--split", str(tmp_path / "split.csv"), "--out", str(tmp_path / "out")]) == 1
    assert "has no folds to train on in turn" in capsys.readouterr().err
