"""A system trained once for each fold of a split: images predicted by what never saw them, all networks joined."""

import itertools
import json
import shutil

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from midog.__main__ import main as midog
from midog.errors import UserError
from midog.evaluation.splits import read_split
from midog.system import load_system
from resources.data.crops import read_crops
from resources.data.fields import add_mined, read_fields
from resources.train import folds
from resources.train.kit.joined import predict_fold
from resources.train.kit.recipes import read_plan
from resources.train.kit.subtypes import AtypicalRecipe, split_folds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def command(data):
    """Two folds of one case each, and a recipe of one step."""
    (data / "split.csv").write_text("set,case,fold\nfields,case0,left\nfields,case1,right\n")
    values = yaml.safe_load((ROOT / "resources/systems/rtmdet_tiny.yaml").read_text())
    values["detector"] |= {"tile": [256, 256], "score_threshold": 0.005}
    training = {"tile": [64, 64], "epochs": 1, "steps_an_epoch": 1, "batch": 2, "validation_tiles": 2}
    values["training"]["detector"] |= training | {"ema_momentum": [1.0], "precision": "float32"}
    (data / "tiny.yaml").write_text(yaml.safe_dump(values))
    known = ["--data", f"{data}/fields", "--split", f"{data}/split.csv", "--device", "cpu"]
    return ["rtmdet", "--system", f"{data}/tiny.yaml", *known]


def test_folds_from_training_to_evaluation(data, command, tmp_path, capsys):
    out = tmp_path / "out"
    assert folds.main([*command, "--out", str(out), "--mine", "0.005"]) == 0
    for fold, learnt, held_out in (("left", "case1", "0.png"), ("right", "case0", "1.png")):
        system = load_system(out / f"fold_{fold}/model/rtmdet_tiny")
        assert [source.cases for source in system.made.data] == [(learnt,)]
        assert set(pd.read_csv(out / f"fold_{fold}/mined.csv").image) == {held_out}
    assert sorted(path.name for path in (out / "out_of_fold").iterdir()) == ["0.png", "1.png"]

    mined = pd.read_csv(out / "mined.csv")
    assert set(mined.image) == {"0.png", "1.png"}
    assert mined.score.min() >= 0.005
    fields = read_fields([f"{data}/fields"])
    for before, after in zip(fields, add_mined(fields, [out / "mined.csv"]), strict=True):
        assert len(after.hard_negatives) > len(before.hard_negatives)

    joined = load_system(out / "model/rtmdet_tiny")
    assert [member.weights for member in joined.detector.members] == [
        "fold0_detector.safetensors",
        "fold1_detector.safetensors",
    ]
    assert [source.cases for source in joined.made.data] == [("case0", "case1")]

    # Killed before the second fold was predicted: the first is not touched again.
    shutil.rmtree(out / "out_of_fold/1.png")
    before = {path: path.stat().st_mtime_ns for path in out.glob("fold_*/**/*") if path.name != "train.log"}
    assert folds.main([*command, "--out", str(out), "--mine", "0.005"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((out / "out_of_fold/1.png/mitotic-figures.json").read_text())["points"]

    # Crops are learnt from, too, but there is nothing to search in them.
    (tmp_path / "split.csv").write_text(
        "set,case,fold\nfields,case0,left\nfields,case1,right\ncrops,crops/0.png,left\ncrops,crops/1.png,crops\n"
    )
    split, both = read_split(tmp_path / "split.csv"), [f"{data}/crops", f"{data}/fields"]
    for fold, images in (("left", ["0.png"]), ("crops", [])):
        predict_fold(out / "fold_left", both, split, fold, tmp_path / fold, "cpu")
        assert [path.name for path in (tmp_path / fold).glob("*")] == images

    capsys.readouterr()
    predicted = ["--track", "1", "--data", f"{data}/fields", "--predictions", str(out / "out_of_fold")]
    assert midog(["evaluate", *predicted, "--model", str(out / "model"), "--system", "rtmdet_tiny"]) == 0
    said = capsys.readouterr()
    assert "overall" in said.out
    assert "trained on" not in said.out + said.err  # the joined system was, but each fold's own was not
    assert midog(["tune", *predicted, "--model", str(out / "model/rtmdet_tiny")]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err  # a step of training may have learnt nothing to tune


def test_a_split_without_folds(data, command, tmp_path, capsys):
    (tmp_path / "split.csv").write_text("set,case,fold\nfields,case0,train\nfields,case1,validation\n")
    assert folds.main([*command, "--split", str(tmp_path / "split.csv"), "--out", str(tmp_path / "out")]) == 1
    assert "has no folds to train on in turn" in capsys.readouterr().err


def test_track_2_takes_its_folds_from_a_split(tmp_path):
    (tmp_path / "set").mkdir()
    rows = []
    for number, (case, label) in enumerate(itertools.product("abc", (0, 1))):
        Image.new("RGB", (128, 128), (number, 0, 0)).save(tmp_path / f"set/{number}.png")
        rows.append(f"{number}.png,{label},{case}\n")
    (tmp_path / "set/labels.csv").write_text("file,label,case\n" + "".join(rows))
    crops, path = read_crops([tmp_path / "set"]), tmp_path / "split.csv"
    path.write_text("set,case,fold\nset,a,Utrecht\nset,b,test\nset,c,Vienna\n")
    recipe = read_plan("convnextv2_small", "atypical", AtypicalRecipe).training
    numbers = split_folds(crops, recipe, read_split(path))
    assert numbers.tolist() == [0, 0, -1, -1, 1, 1]
    crops.labels[5] = 0
    with pytest.raises(UserError, match="fold Vienna has no normal or no atypical figure"):
        split_folds(crops, recipe, read_split(path))
