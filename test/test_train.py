"""The whole way of a training: table, folds, a kill and a resume, export, inference."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

import inference
from midog.engine.weights import load_network
from midog.errors import UserError
from midog.models import CLASSIFIERS
from midog.system import DataSource, load_system
from resources.data import prepare, synthetic
from resources.data.crops import read_crops
from resources.train import atypical, common, evaluate_atypical
from resources.train.atypical_report import fit_calibration
from resources.train.kit.losses import mask_loss, subclass_loss

CASES = 8


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """40 procedural crops in the table's format: 8 cases, masks for the first half."""
    folder = tmp_path_factory.mktemp("procedural")
    (folder / "crops").mkdir()
    pages, kinds = synthetic.stack(40, seed=3)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "vote_atypical", "case", "domain", "expert1_subclass"])
        for number, (page, kind) in enumerate(zip(pages, kinds, strict=True)):
            Image.fromarray(page).save(folder / "crops" / f"{number}.png")
            label = int(kind in synthetic.ATYPICAL)
            domain = "one" if number < 20 else "two"
            writer.writerow([f"crops/{number}.png", label, label * 0.8, f"case{number // 5}", domain, kind])
    names = [f"crops/{number}.png" for number in range(20)]
    packed = np.packbits((pages[:20].mean(-1) < 110).reshape(20, -1), axis=1)
    np.savez(folder / "chromosome_masks.npz", names=names, packed=packed)
    return folder


@pytest.fixture
def system(tmp_path):
    """A recipe like the default's, small enough for a test; the path of its YAML."""
    values = yaml.safe_load((ROOT / "resources/systems/convnextv2_small.yaml").read_text())
    values["system"] = "tiny"
    values["classifier"]["options"] = {"widths": [8, 16], "depths": [1, 1], "stem": "early", "drop_path_rate": 0.1}
    values["training"]["classifier"] |= {"folds": 2, "epochs": 3, "batch": 8, "warmup_epochs": 1, "compile": False}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def train(table, system, out, *more):
    return atypical.main(
        ["--data", str(table), "--system", str(system), "--out", str(out), "--folds", "0,1", "--device", "cpu", *more]
    )


def test_a_killed_training_resumes_to_the_same_weights_and_runs(table, system, tmp_path, job, monkeypatch, capsys):
    assert train(table, system, tmp_path / "whole") == 0

    class Killed(BaseException):
        pass

    saved = common.save_checkpoint

    def save_and_die(path, state):
        saved(path, state)
        if len(state["rows"]) == 2:
            raise Killed

    monkeypatch.setattr(atypical, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train(table, system, tmp_path / "killed")
    monkeypatch.setattr(atypical, "save_checkpoint", saved)
    assert train(table, system, tmp_path / "killed") == 1
    assert "--resume" in capsys.readouterr().err
    assert train(table, system, tmp_path / "killed", "--resume") == 0

    for name in ("model/tiny/fold0.safetensors", "model/tiny/fold1.safetensors", "out_of_fold.csv", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    epochs = list(csv.DictReader((tmp_path / "killed/fold0/epochs.csv").open()))
    assert [row["epoch"] for row in epochs] == ["1", "2", "3"]
    for name in ("roc.png", "calibration.png"):
        assert Image.open(tmp_path / "whole" / name).size[0] > 300

    arguments = ["--input", str(job), "--output", str(tmp_path / "answer"), "--model", str(tmp_path / "whole/model")]
    assert inference.main(arguments) == 0
    assert len(json.loads((tmp_path / "answer/multiple-mitotic-figure-classification.json").read_text())) == 5


def test_out_of_fold_figures_are_what_inference_gives(table, system, tmp_path):
    """A crop's held-out probability is that of its fold's exported network, calibration aside."""
    assert train(table, system, tmp_path / "run") == 0
    rows = [row for row in csv.DictReader((tmp_path / "run/out_of_fold.csv").open()) if row["fold"] == "0"]
    plan, crops = atypical.read_atypical_plan(str(system)), read_crops([table])
    model = load_system(tmp_path / "run/model/tiny")
    assert model.classifier.options["num_classes"] == 1 + len(crops.subclass_names)
    assert (model.made.data, model.made.pretrained) == ((DataSource(set=table.name),), {})
    weights = model.path_of(model.members[0])
    network = load_network(CLASSIFIERS, "convnextv2", model.classifier.options, weights)
    place = {name: number for number, name in enumerate(crops.files)}
    chosen = [place[row["file"]] for row in rows]
    got = atypical.predict(network, plan, model.classifier.views, crops, chosen, torch.device("cpu"))
    np.testing.assert_allclose(got, [float(row["raw"]) for row in rows], atol=1e-5)


def test_folds_keep_cases_together_and_classes_balanced(table, system):
    crops = read_crops([table])
    numbers = atypical.split_folds(crops, atypical.read_atypical_plan(str(system)).training)
    for case in np.unique(crops.cases):
        assert len(set(numbers[crops.cases == case])) == 1
    shares = [crops.labels[torch.from_numpy(numbers == fold)].float().mean() for fold in (0, 1)]
    assert shares[0] == pytest.approx(0.4)
    assert shares[1] == pytest.approx(0.4)


def test_the_table_is_read_as_it_says(table, tmp_path):
    crops = read_crops([table])
    assert (len(crops), int(crops.labels.sum()), len(set(crops.cases))) == (40, 16, CASES)
    assert crops.votes.unique().tolist() == pytest.approx([0, 0.8])
    assert crops.subclass_names == sorted(synthetic.KINDS)
    assert crops.subclasses.sum() == 40
    assert crops.masked.tolist() == [True] * 20 + [False] * 20
    other = tmp_path / "other"
    shutil.copytree(table, other)
    both = read_crops([table, other])
    assert len(both) == 80
    assert both.sets == [table.name, "other"]
    (other / "crops/3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3.png: cannot be read"):
        read_crops([other])
    (other / "labels.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match="column file, label is missing"):
        read_crops([other])


def test_real_tables_are_read():
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real crops are not here")
    crops = read_crops([folder / "ami_br", folder / "cmc_cells"], limit=300)
    assert len(crops) == 300
    assert len(crops.subclass_names) == 8
    assert crops.masked.sum() == (crops.domains != "canine_mammary_carcinoma").sum()


def test_calibration_puts_the_operating_point_at_one_half():
    generator = np.random.default_rng(0)
    labels = (generator.random(4000) < 0.2).astype(int)
    raw = 1 / (1 + np.exp(-(generator.normal(0, 1, 4000) + 2 * labels - 3)))
    calibrated = fit_calibration(raw, labels).apply(raw) >= 0.5
    # two unit Gaussians 2 apart: the best cut is half way, sensitivity and specificity .841
    assert calibrated[labels == 1].mean() == pytest.approx(0.841, abs=0.03)
    assert calibrated[labels == 0].mean() == pytest.approx(0.159, abs=0.03)


def test_auxiliary_losses_skip_what_is_unknown():
    shares = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    logits = torch.tensor([[0.0, 0.0], [50.0, -50.0]])
    assert subclass_loss(logits, shares) == pytest.approx(np.log(2))
    assert subclass_loss(logits, torch.zeros(2, 2)) == 0
    masks = torch.ones(2, 1, 8, 8)
    assert mask_loss(torch.zeros(2, 1, 4, 4), masks, torch.tensor([True, False])) == pytest.approx(np.log(2))


def test_schedule_by_hand():
    assert common.cosine_with_warmup(0, 10, 4) == 0.25
    assert common.cosine_with_warmup(4, 12, 4) == 1
    assert common.cosine_with_warmup(8, 12, 4) == pytest.approx(0.5)


def test_bad_arguments(table, system, tmp_path, capsys):
    assert train(table, system, tmp_path / "x", "--folds", "7") == 1
    assert "--folds 7" in capsys.readouterr().err
    assert train(tmp_path / "nowhere", system, tmp_path / "x") == 1
    assert "labels.csv" in capsys.readouterr().err
    assert train(table, "unheard_of", tmp_path / "x") == 1
    assert "unheard_of.yaml" in capsys.readouterr().err


def test_without_network_the_pretrained_weights_are_asked_for(table, tmp_path, monkeypatch, capsys):
    import timm

    def offline(*arguments, **options):
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    network = torch.nn.Linear(1, 1)
    plan = atypical.read_atypical_plan("convnextv2")
    with pytest.raises(UserError, match="--pretrained FILE"):
        atypical.load_pretrained(network, plan.system.classifier, plan.training, None)


def test_pretrained_weights_from_a_local_file(tmp_path, system):
    from safetensors.torch import save_file

    plan = atypical.read_atypical_plan(str(system))
    source, target = (atypical.Trainee(plan.system.classifier, 3, False).network for _ in range(2))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    atypical.load_pretrained(target, plan.system.classifier, plan.training, str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(target.stages[1].blocks[0].conv_dw.weight, source.stages[1].blocks[0].conv_dw.weight)
    assert not torch.equal(target.head.fc.weight, source.head.fc.weight)
    told = atypical.pretrained_of(plan.training, str(tmp_path / "w.safetensors"))["classifier"]
    assert (told.source, told.licence) == ("w.safetensors", "unknown")
    assert told.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()


def test_any_network_of_timm_starts_from_its_weights_whatever_its_head_is_called(tmp_path, system):
    import timm
    from msgspec.structs import replace
    from safetensors.torch import save_file

    plan = atypical.read_atypical_plan(str(system))
    for name in ("vit_tiny_patch16_224", "resnet18"):
        source = timm.create_model(name)
        save_file(source.state_dict(), tmp_path / "w.safetensors")
        part = replace(plan.system.classifier, network="timm", options={"name": name}, input_px=64)
        target = atypical.Trainee(part, 3, False).network
        atypical.load_pretrained(target, part, plan.training, str(tmp_path / "w.safetensors"))
        assert target(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
        first = next(
            key for key in source.state_dict() if key.endswith("weight") and source.state_dict()[key].ndim == 4
        )
        torch.testing.assert_close(target.state_dict()[first], source.state_dict()[first])
    part = replace(part, options={"name": "resnet34"})
    with pytest.raises(UserError, match="w.safetensors: pretrained weights cannot be had"):
        atypical.load_pretrained(target, part, plan.training, str(tmp_path / "w.safetensors"))


def test_the_challenges_own_csv_becomes_a_table(table, tmp_path, capsys):
    rows = [
        "image_id,filename,coordinateX,coordinateY,Tumor,Scanner,Origin,Species,expert1,expert2,expert3,majority",
        "1.png,201.tiff,5047,459,canine lung cancer,3D Histech,VMU Vienna,Canine,NMF,NMF,,NMF",
        "3.png,202.tiff,2658,2519,canine lung cancer,3D Histech,VMU Vienna,Canine,AMF,NMF,AMF,AMF",
    ]
    path = tmp_path / "MIDOG25.csv"
    path.write_text("\n".join(rows) + "\n")
    arguments = ["midog25", "--csv", str(path), "--crops", str(table / "crops"), "--out", str(tmp_path / "out")]
    assert prepare.main(arguments) == 0
    crops = read_crops([tmp_path / "out"])
    assert crops.labels.tolist() == [0, 1]
    assert crops.votes.tolist() == pytest.approx([0, 2 / 3], abs=1e-3)
    assert crops.cases.tolist() == ["MIDOGpp_201", "MIDOGpp_202"]
    path.write_text("\n".join([*rows, "99.png,1.tiff,0,0,x,,,,AMF,AMF,,AMF"]))
    assert prepare.main([*arguments[:-1], str(tmp_path / "other")]) == 1
    assert "99.png: not found" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_two_processes_train_together(table, system, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [str(ROOT / "resources/train/atypical.py"), "--data", str(table), "--system", str(system)]
    command += ["--out", str(tmp_path / "pair"), "--folds", "0", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "pair/model/tiny/fold0.safetensors").exists()


def test_a_finished_system_is_evaluated_on_other_crops(table, system, tmp_path, capfd):
    assert train(table, system, tmp_path / "run") == 0
    capfd.readouterr()
    arguments = ["--data", str(table), "--model", str(tmp_path / "run/model"), "--device", "cpu"]
    assert evaluate_atypical.main(arguments) == 0
    said = capfd.readouterr()
    assert "overall" in said.out
    assert "domain two" in said.out
    assert "no test" in said.err  # these crops are the ones it was trained on
