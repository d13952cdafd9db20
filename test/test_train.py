"""The whole way of Track 2's training: table, folds, a kill and a resume, provenance, export, inference."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, Killed
from PIL import Image
from safetensors.torch import save_file

import inference
from midog.__main__ import main
from midog.calibration import Calibration
from midog.engine.classifier import classify, load_classifier
from midog.engine.torch_engine import TorchEngine, load_network, normalise
from midog.errors import UserError
from midog.evaluation import held_out
from midog.evaluation.metrics import bootstrap_by_case
from midog.evaluation.operating_point import carried_over, domain_errors, fit_calibration
from midog.models import CLASSIFIERS
from midog.system import CROP_UM, DataSource, load_system
from resources.data import prepare, synthetic
from resources.data.crops import read_crops
from resources.train import atypical
from resources.train.kit import loop, subtypes
from resources.train.kit.losses import mask_loss, subclass_loss
from resources.train.kit.recipes import read_plan
from resources.train.kit.subtypes import AtypicalRecipe, Trainee

CASES = 8


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A recipe like the default's, small enough for a test; the path of its YAML."""
    values = yaml.safe_load((ROOT / "resources/systems/convnextv2_small.yaml").read_text())
    values["system"] = "tiny"
    values["classifier"]["options"] = {"widths": [8, 16], "depths": [1, 1], "stem": "early", "drop_path_rate": 0.1}
    values["classifier"] |= {"views": 2, "input_px": 32}
    values["training"]["classifier"] |= {"folds": 2, "epochs": 3, "batch": 8, "warmup_epochs": 1}
    values["training"]["classifier"] |= {"precision": "float32", "operating_point": "worst"}
    path = tmp_path_factory.mktemp("systems") / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One thread, because several wait for each other longer than so small a network runs; few resamples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "bootstrap_by_case", partial(bootstrap_by_case, draws=10))
        yield
    torch.set_num_threads(threads)


def plan_of(system):
    return read_plan(str(system), "atypical", AtypicalRecipe)


def train(table, system, out, *more):
    said = ["--data", str(table), "--system", str(system), "--out", str(out), "--folds", "0,1", "--device", "cpu"]
    return atypical.main([*said, "--pretrained", "none", *more])


SHORT = ("--folds", "0", "--set", "training.classifier.epochs=1")


@pytest.fixture(scope="module")
def whole(table, system, tmp_path_factory):
    """The folder of a training of both folds."""
    out = tmp_path_factory.mktemp("trained") / "whole"
    assert train(table, system, out) == 0
    return out


def test_a_killed_training_resumes_to_the_same_weights_and_runs(
    table, system, whole, tmp_path, job, monkeypatch, capsys
):
    saved = loop.save_checkpoint

    def save_and_die(path, state):
        saved(path, state)
        if len(state["rows"]) == 2:
            raise Killed

    monkeypatch.setattr(loop, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train(table, system, tmp_path / "killed")
    monkeypatch.setattr(loop, "save_checkpoint", saved)
    assert train(table, system, tmp_path / "killed") == 1
    assert "--resume" in capsys.readouterr().err
    assert train(table, system, tmp_path / "killed", "--resume") == 0

    for name in ("model/tiny/fold0.safetensors", "model/tiny/fold1.safetensors", "out_of_fold.csv", "metrics.json"):
        assert (whole / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    epochs = list(csv.DictReader((tmp_path / "killed/fold0/epochs.csv").open()))
    assert [row["epoch"] for row in epochs] == ["1", "2", "3"]
    assert not list(tmp_path.glob("killed/fold*/checkpoint.pt"))
    for name in ("roc.png", "calibration.png"):
        assert Image.open(whole / name).size[0] > 300

    arguments = ["--input", str(job), "--output", str(tmp_path / "answer"), "--model", str(whole / "model")]
    assert inference.main(arguments) == 0
    assert len(json.loads((tmp_path / "answer/multiple-mitotic-figure-classification.json").read_text())) == 5


def test_out_of_fold_figures_are_what_inference_gives(table, system, whole):
    """A crop's held-out probability is that of its fold's exported network, calibration aside."""
    rows = [row for row in csv.DictReader((whole / "out_of_fold.csv").open()) if row["fold"] == "0"]
    crops, model = read_crops([table]), load_system(whole / "model/tiny")
    assert model.classifier.options["num_classes"] == 1 + len(crops.subclass_names)
    assert (model.made.data, model.made.pretrained) == ((DataSource(set=table.name),), {})
    weights = model.path_of(model.members[0])
    network = load_network(CLASSIFIERS, "convnextv2", model.classifier.options, weights)
    place = {name: number for number, name in enumerate(crops.files)}
    chosen = np.array([place[row["file"]] for row in rows])
    part = plan_of(system).classifier
    got = subtypes.predict(network, part, model.classifier.views, crops, chosen, torch.device("cpu"))
    np.testing.assert_allclose(got, [float(row["raw"]) for row in rows], atol=1e-5)


def test_the_recipes_operating_point_is_exported_with_its_errors_in_each_domain(whole):
    model, table = load_system(whole / "model/tiny"), pd.read_csv(whole / "out_of_fold.csv")
    assert {each.calibration for each in model.classifier.members} == {fit_calibration(table, "worst")}
    domains = carried_over([table], ["worst"])
    assert [each.domain for each in model.made.domains] == ["one", "two"]
    assert model.made.domains == domain_errors(domains)
    assert held_out.rule_of(whole) == "worst"
    written = json.loads((whole / "metrics.json").read_text())["carried_over"]["worst"]["domains"]
    assert written["two"]["sensitivity"] == domains.loc["two", "sensitivity"]


@pytest.fixture(scope="module")
def as_published(table, system, tmp_path_factory):
    """The folder of a training without calibration, groups and the centre crop, of an epoch for each of three folds."""
    out = tmp_path_factory.mktemp("published") / "out"
    values = {"calibrate": "false", "grouped": "false", "epochs": 1, "folds": 3, "learning_rate": 0.01}
    changes = [f"training.classifier.{name}={value}" for name, value in values.items()]
    said = ["--folds", "0,1,2", "--set", *changes, "classifier.field_um=32", "classifier.views=1"]
    assert train(table, system, out, *said) == 0
    return out


def test_an_ensemble_as_published_is_the_mean_of_the_folds_raw_probabilities(table, as_published):
    model = load_system(as_published / "model/tiny").with_precision("float32")
    assert {each.calibration for each in model.classifier.members} == {Calibration()}
    assert model.classifier.calibration == Calibration()
    assert model.classifier.field_um == 32
    crops, cpu = read_crops([table]), torch.device("cpu")
    every, folds = np.arange(len(crops)), []
    for member in model.classifier.members:
        network = load_network(CLASSIFIERS, "convnextv2", model.classifier.options, model.path_of(member))
        folds.append(subtypes.predict(network, model.classifier, 1, crops, every, cpu))
    classifier = load_classifier(model, TorchEngine(cpu), CROP_UM)
    got = classify((image.permute(1, 2, 0).numpy() for image in crops.images), classifier, "cpu")
    np.testing.assert_allclose(got, np.mean(folds, 0), atol=1e-6)
    assert np.ptp(got) > 0.01


def test_folds_are_told_as_papers_tell_them(as_published):
    """Balanced accuracy at .5 of raw probabilities, fold by fold, with mean and sample deviation; beside the rest."""
    rows = list(csv.DictReader((as_published / "out_of_fold.csv").open()))
    expected = []
    for fold in "012":
        mine = [(row["label"] == "1", float(row["raw"]) >= 0.5) for row in rows if row["fold"] == fold]
        shares = [
            np.mean([said == is_atypical for truth, said in mine if truth == is_atypical]) for is_atypical in (0, 1)
        ]
        expected.append(np.mean(shares))
    written = json.loads((as_published / "metrics.json").read_text())
    raw = written["raw"]["raw probabilities"]
    assert raw["balanced_accuracy_folds"] == pytest.approx(expected)
    assert raw["balanced_accuracy_fold_mean"] == pytest.approx(np.mean(expected))
    assert raw["balanced_accuracy_fold_sd"] == pytest.approx(np.std(expected, ddof=1))
    assert "balanced_accuracy_fold_mean" in written["overall"]
    told = " ".join(f"{figure:.4f}" for figure in expected)
    spread = f"mean +- SD {np.mean(expected):.4f} +- {np.std(expected, ddof=1):.4f}"
    line = f"balanced accuracy of the folds at .5, raw probabilities: {told}; {spread}"
    assert line in (as_published / "train.log").read_text()
    made = load_system(as_published / "model/tiny").made
    assert made.metrics["out_of_fold"] == raw
    for errors in made.domains:  # without calibration, too, they are those of the exported operating point
        mine = [(row["label"], float(row["raw"]) >= 0.5) for row in rows if row["domain"] == errors.domain]
        assert errors.sensitivity == pytest.approx(np.mean([said for label, said in mine if label == "1"]), abs=1e-4)
    assert len(made.domains) == 2


def test_a_finished_training_is_evaluated_and_tuned(table, whole, tmp_path, capsys):
    """On crops by their folder, which it has learned from, and on what each fold held out, which it has not."""
    said = ["evaluate", "--track", "2", "--data", str(table), "--model", str(whole / "model"), "--system", "tiny"]
    assert main([*said, "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    rows = {line.split("  ")[0]: line for line in printed.out.splitlines()}
    for name in ("overall", "tumour domain 0, one", "tumour domain 1, two"):
        assert rows[name].endswith("trained on")
    assert rows["overall"].split()[1] == "40"
    assert f"warning: tiny, weights 1.0 was trained on {table.name}:case0" in printed.err
    before = {path: path.read_bytes() for path in (whole / "out_of_fold.csv", whole / "metrics.json")}
    assert main(["evaluate", "--track", "2", "--folds", str(whole)]) == 0
    assert "domain two" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    shutil.copytree(whole / "model/tiny", tmp_path / "tiny")
    assert main(["tune", "--track", "2", "--folds", str(whole), "--model", str(tmp_path / "tiny")]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


# --- where the weights come from ------------------------------------------------


def start_weights(system, path, seed):
    torch.manual_seed(seed)
    network = Trainee(plan_of(system).classifier, 3, False).network
    save_file(network.state_dict(), path)
    return path


def test_a_file_of_pretrained_weights_is_recorded_and_no_other_is_resumed(table, system, tmp_path, capsys):
    out, file = tmp_path / "out", start_weights(system, tmp_path / "w.safetensors", 0)
    start = ("--pretrained", str(file))
    assert train(table, system, out, *SHORT, *start) == 0
    expected = {
        "source": "w.safetensors",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": "unknown",
    }
    assert yaml.safe_load((out / "recipe.yaml").read_text())["pretrained"] == expected
    made = yaml.safe_load((out / "model/tiny/model.yaml").read_text())["made"]
    assert made["pretrained"] == {"classifier": expected}
    assert train(table, system, out, *SHORT, *start, "--resume") == 0
    other = start_weights(system, tmp_path / "other.safetensors", 0)
    capsys.readouterr()
    for given in (str(other), "none"):
        assert train(table, system, out, *SHORT, "--pretrained", given, "--resume") == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "(pretrained" in said
        assert "give another --out" in said
    start_weights(system, file, 1)
    assert train(table, system, out, *SHORT, *start, "--resume") == 1
    assert "(pretrained.sha256 was" in capsys.readouterr().err


def test_none_starts_from_random_weights_whatever_the_recipe_says(table, system, tmp_path):
    name = "training.classifier.pretrained=convnextv2_atto"
    out, said = tmp_path / "out", [*SHORT, name, "--pretrained", "none"]
    assert train(table, system, out, *said) == 0
    assert yaml.safe_load((out / "recipe.yaml").read_text())["pretrained"] is None
    assert load_system(out / "model/tiny").made.pretrained == {}


# --- the loop ---------------------------------------------------------------------


def test_an_averages_batch_norm_is_measured_with_the_averages_weights(system, tmp_path):
    class Task:
        steps_an_epoch, portions, criterion, highest = 3, [range(8)], "loss", False

        def __init__(self):
            torch.manual_seed(0)
            self.network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))

        def batches(self, step):
            for number in range(step, 6):
                yield torch.rand(8, 2, generator=torch.Generator().manual_seed(number))

        def on_device(self, batch):
            return batch

        def inputs(self, batch):
            return batch

        def loss(self, network, batch, whole):
            return (network(batch) - batch.sum(1, keepdim=True)).square().mean()

        def validate(self, member):
            return {"loss": 1.0}

        def weights(self, member):
            return member.state_dict()

    changes = [f"training.classifier.{each}" for each in ("epochs=2", "learning_rate=0.5", "precision=float32")]
    changes += ["training.classifier.ema_momentum=[1, 0.3]", "training.classifier.warmup_epochs=0"]
    recipe = read_plan(str(system), "atypical", AtypicalRecipe, changes).training
    task = Task()
    last, average = loop.Loop(task, recipe, tmp_path, torch.device("cpu")).run()
    inputs = list(task.batches(0))  # fewer than are measured on in a longer training
    for weights, measured in ((average, True), (last, False)):
        hidden = [batch @ weights["0.weight"].T + weights["0.bias"] for batch in inputs]
        mean = torch.stack([each.mean(0) for each in hidden]).mean(0)
        variance = torch.stack([each.var(0) for each in hidden]).mean(0)
        close = torch.allclose(weights["1.running_mean"], mean, atol=1e-5)
        close = close and torch.allclose(weights["1.running_var"], variance, atol=1e-5)
        assert close == measured


def spoilt(loss, first):
    """A loss that is NaN from a call on."""
    calls = iter(range(1000))
    return lambda *arguments: loss(*arguments) * (float("nan") if next(calls) >= first else 1)


def test_a_loss_that_becomes_nan_leaves_the_last_good_epoch(table, system, tmp_path, monkeypatch, capsys):
    out, steps = tmp_path / "out", 20 // 8
    monkeypatch.setattr(subtypes, "soft_binary_loss", spoilt(subtypes.soft_binary_loss, steps + 1))
    assert train(table, system, out, "--folds", "0") == 0
    said = capsys.readouterr().err
    assert f"warning: {out / 'fold0'}: the loss is nan at step {steps + 2}; stopped" in said
    assert "the weights of the epochs up to 1" in said
    assert [row["epoch"] for row in csv.DictReader((out / "fold0/epochs.csv").open())] == ["1"]
    network = load_system(out / "model/tiny")
    state = load_network(CLASSIFIERS, "convnextv2", network.classifier.options, network.path_of(network.members[0]))
    assert all(value.isfinite().all() for value in state.state_dict().values())


def test_a_loss_that_is_nan_at_once_is_one_line(table, system, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subtypes, "soft_binary_loss", spoilt(subtypes.soft_binary_loss, 0))
    assert train(table, system, tmp_path / "out", "--folds", "0") == 1
    assert "the loss is nan at step 1, before the first good validation; give a lower" in capsys.readouterr().err
    assert not (tmp_path / "out/model").exists()


# --- tables, folds, losses ----------------------------------------------------------


def test_folds_keep_cases_together_and_classes_balanced(table, system):
    crops = read_crops([table])
    numbers = subtypes.split_folds(crops, plan_of(system).training)
    for case in np.unique(crops.cases):
        assert len(set(numbers[crops.cases == case])) == 1
    atypical = [int(crops.labels[torch.from_numpy(numbers == fold)].sum()) for fold in (0, 1)]
    assert sorted(atypical) == [7, 8]  # of 15, as evenly as can be
    assert np.bincount(numbers).tolist() == [20, 20]


def test_folds_as_published_have_a_cases_crops_in_several(table, system):
    crops = read_crops([table])
    recipe = read_plan(str(system), "atypical", AtypicalRecipe, ["training.classifier.grouped=false"]).training
    numbers = subtypes.split_folds(crops, recipe)
    assert np.bincount(numbers).tolist() == [20, 20]
    assert sorted(int(crops.labels[torch.from_numpy(numbers == fold)].sum()) for fold in (0, 1)) == [7, 8]
    assert max(len(set(numbers[crops.cases == case])) for case in np.unique(crops.cases)) == 2
    with pytest.raises(UserError, match="15 crops of the rarer class for 16 folds; give more data"):
        subtypes.split_folds(crops, msgspec.structs.replace(recipe, folds=16))


def test_the_papers_own_values(table):
    """Of convnextv2: a shift of 8 px of 128; without the 60 % crop the network sees every crop whole."""
    plan = read_plan("convnextv2", "atypical", AtypicalRecipe)
    assert plan.training.augmentation.shift * plan.classifier.input_px == 8.0
    assert (plan.training.calibrate, plan.training.grouped, plan.training.precision) == (False, False, "float16")
    changes = ["classifier.field_um=32", "training.classifier.augmentation={}", "training.classifier.batch=4"]
    plan = read_plan("convnextv2", "atypical", AtypicalRecipe, changes)
    part = msgspec.structs.replace(plan.classifier, options={"widths": [8, 16], "depths": [1, 1], "stem": "early"})
    crops = read_crops([table])
    task = subtypes.AtypicalTask(part, plan.training, crops, np.arange(40) % 5, 0, None, torch.device("cpu"))
    batch = task._drawn(0)
    whole = normalise(crops.images[batch.chosen].float() / 255, *task.normalisation)
    torch.testing.assert_close(batch.inputs, whole, atol=1e-3, rtol=0)


def test_the_table_is_read_as_it_says(table, tmp_path):
    crops = read_crops([table])
    assert (len(crops), int(crops.labels.sum()), len(set(crops.cases))) == (40, 15, CASES)
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
    crops = read_crops([folder / "ami_br", folder / "cmc_cells"], limit=100)
    assert len(crops) == 100
    assert len(crops.subclass_names) == 8
    assert crops.masked.sum() == (crops.domains != "canine_mammary_carcinoma").sum()


def test_calibration_puts_the_operating_point_at_one_half():
    generator = np.random.default_rng(0)
    labels = (generator.random(4000) < 0.2).astype(int)
    raw = 1 / (1 + np.exp(-(generator.normal(0, 1, 4000) + 2 * labels - 3)))
    table = pd.DataFrame({"label": labels, "domain": "one", "raw": raw})
    calibrated = fit_calibration(table, "pooled").apply(raw) >= 0.5
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


def test_schedule_by_hand(system):
    """A line over the 4 steps of the first epoch, then a cosine down to 0 at step 12."""
    changes = ["training.classifier.learning_rate=1"]
    recipe = read_plan(str(system), "atypical", AtypicalRecipe, changes).training
    assert loop.learning_rate_at(recipe, 0, 4) == 0.25
    assert loop.learning_rate_at(recipe, 4, 4) == 1
    assert loop.learning_rate_at(recipe, 8, 4) == pytest.approx(0.5)
    assert loop.learning_rate_at(recipe, 12, 4) == pytest.approx(0)


def test_bad_arguments_are_one_line_and_leave_nothing(table, system, tmp_path, capsys):
    out = tmp_path / "x"
    wrong = [
        ((table, system, out, "--folds", "7"), "--folds 7: numbers from 0 to 1 expected"),
        ((tmp_path / "nowhere", system, out), "nowhere/labels.csv: cannot be read"),
        ((table, system, out, "--limit", "1"), "larger --limit"),
        ((table, system, out, "--pretrained", str(tmp_path / "w.pt")), "w.pt: cannot be read"),
        ((table, system, out, "--set", "training.classifier.epoch=3"), "training.classifier"),
        ((table, "unheard_of", out), "unheard_of: no such system"),
        ((table, "rtmdet_tiny", out), "atypical does not train it; use python -m resources.train.rtmdet"),
    ]
    for arguments, said in wrong:
        assert train(*arguments) == 1
        message = capsys.readouterr().err
        assert said in message
        assert message.count("\n") == 1
    assert not out.exists()


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
    command += ["-m", "resources.train.atypical", "--data", str(table), "--system", str(system)]
    command += ["--out", str(tmp_path / "pair"), "--device", "cpu", *SHORT]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_system(tmp_path / "pair/model/tiny").members
    assert len(list(csv.DictReader((tmp_path / "pair/fold0/epochs.csv").open()))) == 1
    assert len((tmp_path / "pair/train.log").read_text().split("epoch 1 of 1")) == 2  # only the first process tells
