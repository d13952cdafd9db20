"""Track 1's way from labelled fields to a system of two stages: losses, both trainings, a kill and a resume."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, Killed
from conftest import training_arguments as arguments

from midog.engine.torch_engine import TorchEngine
from midog.engine.two_stages import SystemDetector
from midog.models import CLASSIFIERS, build
from midog.models.yolo11 import YOLO11
from midog.system import DataSource, load_system
from resources.data.fields import read_fields
from resources.train import candidates, yolo11
from resources.train.kit import loop
from resources.train.kit.losses import contrastive_loss, focal_loss
from resources.train.kit.second_stage import features_and_logits
from resources.train.kit.yolo11_loss import YOLO11Loss, prepare_yolo11

pytestmark = pytest.mark.usefixtures("one_thread")


def test_focal_loss_is_equation_2():
    logits, targets = torch.tensor([0.4, -1.2, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    p = torch.sigmoid(logits)
    expected = -(
        (1 - p[0]) ** 2 * torch.log(p[0]) + (1 - p[1]) ** 2 * torch.log(p[1]) + 1.5 * p[2] ** 2 * torch.log(1 - p[2])
    )
    assert focal_loss(logits, targets, 2.0, 1.0, 1.5) == pytest.approx(expected.item() / 3)
    soft = torch.tensor([0.3, 1.0, 0.0])
    entropy = F.binary_cross_entropy_with_logits(logits, soft)
    assert focal_loss(logits, soft, 0.0, 1.0, 1.0) == pytest.approx(entropy.item())
    assert focal_loss(torch.tensor([200.0, -200.0]), torch.tensor([0.0, 1.0]), 2.0, 1.0, 1.5).isfinite()


def test_contrastive_loss_by_hand():
    """Rows 0 and 1 are partners and at a right angle, row 2 has none and lies on row 0."""
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]], requires_grad=True)
    loss = contrastive_loss(features, torch.tensor([1, 1, 0]), 0.5)
    row0, row1 = np.log(1 + np.exp(1 / 0.5)), np.log(2)  # similarities to the other two: 0 and 1; 0 and 0
    assert loss.item() == pytest.approx((row0 + row1) / 2)
    loss.backward()
    assert features.grad[0, 1] < 0  # towards its partner
    assert features.grad[2, 1] > 0  # away from row 0's
    alone = contrastive_loss(features, torch.tensor([0, 1, 2]), 0.5)
    assert alone == 0
    alone.backward()
    assert features.grad.isfinite().all()


def test_the_loss_of_yolo11_is_ultralytics(monkeypatch):
    """Of the same weights on the same batch, one image of which has no figure; first biases and gradients, too."""
    loss = YOLO11Loss()
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    theirs = DetectionModel("yolo11n.yaml", nc=1, verbose=False).train()
    theirs.args = get_cfg()
    ours = YOLO11("n").train()
    prepare_yolo11(ours)
    first = {name: value for name, value in theirs.state_dict().items() if name.endswith("2.bias")}
    assert len(first) == 6
    for name, value in first.items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    ours.load_state_dict(theirs.state_dict())

    images = torch.rand(3, 3, 64, 96)
    truths = [torch.tensor([[10.0, 5, 60, 55], [50, 20, 96, 64]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 30, 40]])]
    boxes = torch.cat(truths) / torch.tensor([96, 64, 96, 64])
    batch = {
        "img": images,
        "batch_idx": torch.tensor([0, 0, 2]),
        "cls": torch.zeros(3, 1),
        "bboxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
    }
    expected, got = theirs.loss(batch)[0].sum(), loss(ours, images, truths)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    expected.backward()
    got.backward()
    gradient = theirs.model[0].conv.weight.grad
    assert gradient.abs().max() > 0
    torch.testing.assert_close(ours.model[0].conv.weight.grad, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max())


@pytest.fixture(scope="module")
def system(data):
    """The paper's recipe, with every augmentation it names, shrunk; the path of its YAML."""
    values = yaml.safe_load((ROOT / "resources/systems/sztu.yaml").read_text())
    values["system"] = "tiny"
    # After so few steps every score is about the network's first: one in 1,000.
    values["detector"] |= {"tile": [64, 64], "score_threshold": 1e-4}
    values["detector"]["options"]["scale"] = "n"
    recipes = values["training"]
    recipes["detector"] |= {"tile": [64, 64], "epochs": 2, "steps_an_epoch": 2, "batch": 4, "precision": "float32"}
    recipes["detector"]["augmentation"]["mosaic_epochs"] = 1
    values["classifier"] |= {"options": {"name": "test_convnext", "drop_path_rate": 0.2}, "input_px": 32}
    recipes["classifier"] |= {"epochs": 3, "steps_an_epoch": 2, "batch": 8, "score_threshold": 1e-4}
    path = data / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def said(data, system):
    """What YOLO11's training is called with: seed 7, crops of one class alone and a list of hard negatives."""
    (data / "figures").mkdir()
    shutil.copytree(data / "crops/crops", data / "figures/crops")
    (data / "figures/labels.csv").write_text("file,label\ncrops/0.png,0\ncrops/1.png,0\n")
    rows = ["set,image,x,y,label,score", "fields,0.png,128,128,non-mitotic figure,0.9"]
    (data / "mined.csv").write_text("\n".join([*rows, ""]))

    def command(out, *more):
        own = ["--seed", "7", "--mined", str(data / "mined.csv")]
        return arguments(data, system, data / out, *own, *more, crops="figures")

    return command


def die_after(patch, epochs):
    """Kill the training after so many epochs' checkpoints."""
    saved = loop.save_checkpoint

    def save_and_die(path, state):
        saved(path, state)
        if len(state["rows"]) == epochs:
            raise Killed

    patch.setattr(loop, "save_checkpoint", save_and_die)


@pytest.fixture(scope="module")
def whole(data, said):
    """The folder of a training of the detector."""
    assert yolo11.main(said("whole")) == 0
    return data / "whole"


@pytest.fixture(scope="module")
def killed(data, said):
    """A training of the detector, killed after its first epoch; its folder."""
    with pytest.MonkeyPatch.context() as patch:
        die_after(patch, 1)
        with pytest.raises(Killed):
            yolo11.main(said("killed"))
    return data / "killed"


def test_a_run_is_not_mixed_with_another(data, said, killed, capsys):
    def refused(*more):
        assert yolo11.main(said("killed", *more)) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "give --resume" in refused()
    assert "plan.training.detector.seed was 7, is 1); give another --out" in refused("--resume", "--seed", "1")
    mined = data / "mined.csv"
    before = mined.read_text()
    mined.write_text(before.replace("128,128", "100,100"))
    assert "(mined.0.sha256 was " in refused("--resume")
    mined.write_text(before)
    assert yolo11.main(arguments(data / "nowhere", data / "tiny.yaml", data / "typo")) == 1
    assert not (data / "typo").exists()


def test_a_killed_detector_resumes_to_the_same_weights_in_another_process(data, said, whole, killed):
    """Which leaves nothing in the user's home and says nothing but news."""
    home = data / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO_", "XDG_"))}
    environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "resources.train.yolo11", *said("killed", "--resume")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["reading", "training", "yolo11:", "validation"]
    assert "epoch 2 of 2, training_loss " in done.stdout
    for path in sorted((whole / "model/tiny").iterdir()):
        assert path.read_bytes() == (killed / "model/tiny" / path.name).read_bytes()
    assert (whole / "epochs.csv").read_text() == (killed / "epochs.csv").read_text()


def test_an_exported_detector_says_what_it_was_made_from(data, whole):
    assert [row["epoch"] for row in csv.DictReader((whole / "epochs.csv").open())] == ["1", "2"]
    model = load_system(whole / "model/tiny")
    sha256 = hashlib.sha256((data / "mined.csv").read_bytes()).hexdigest()
    fields = DataSource(set="fields", cases=("case0",), mined_sha256=sha256)
    assert model.made.data == (fields, DataSource(set="figures"))
    assert model.classifier is None
    assert model.training["detector"]["seed"] == 7
    assert model.training["detector"]["epochs"] == 2


def test_a_finished_detector_is_only_exported_again(said, whole, monkeypatch):
    monkeypatch.setattr(loop.Loop, "_step", lambda *arguments: pytest.fail("trained again"))
    before = (whole / "model/tiny/detector.safetensors").read_bytes()
    shutil.rmtree(whole / "model")
    assert yolo11.main(said("whole", "--resume")) == 0
    assert (whole / "model/tiny/detector.safetensors").read_bytes() == before


def test_a_killed_classifier_resumes_to_the_same_weights_and_runs(data, system, whole, monkeypatch, capsys, caplog):
    def train(out, *more):
        return candidates.main(arguments(data, system, data / out, "--detector", str(whole / "model/tiny"), *more))

    assert train("classifier") == 0
    with monkeypatch.context() as patch:
        die_after(patch, 2)
        with pytest.raises(Killed):
            train("cut")
    capsys.readouterr()
    assert train("cut", "--resume", "--set", "classifier.field_um=16.0") == 1
    assert "another recipe or other data (plan.classifier.field_um was 0.0, is 16.0)" in capsys.readouterr().err
    assert train("cut", "--resume") == 0
    for name in ("classifier.safetensors", "model.yaml"):
        assert (data / "classifier/model/tiny" / name).read_bytes() == (data / "cut/model/tiny" / name).read_bytes()
    assert [row["epoch"] for row in csv.DictReader((data / "cut/epochs.csv").open())] == ["1", "2", "3"]
    assert (data / "classifier/epochs.csv").read_text() == (data / "cut/epochs.csv").read_text()

    caplog.clear()
    model = load_system(data / "classifier/model/tiny")
    found = SystemDetector(model, TorchEngine("cpu"))(read_fields([f"{data}/fields:case1"])[0])
    assert len(found) > 0
    assert ((found.probabilities > 0) & (found.probabilities < 1)).all()
    assert caplog.messages == []


def test_a_detector_of_several_members_that_find_nothing(data, system, whole):
    """Finding nothing is no reason to stop, and the export keeps the members and the views."""
    folder = data / "several"
    shutil.copytree(whole / "model/tiny", folder)
    shutil.copyfile(folder / "detector.safetensors", folder / "second.safetensors")
    values = yaml.safe_load((folder / "model.yaml").read_text())
    first = values["detector"]["members"][0]
    values["detector"] |= {"members": [first, first | {"weights": "second.safetensors"}], "score_threshold": 1.0}
    values["detector"] |= {"views": 2, "fusion": "weighted_box_fusion"}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    values = yaml.safe_load(system.read_text())
    values["detector"]["score_threshold"] = 1.0
    values["training"]["classifier"] |= {"score_threshold": 1.0, "epochs": 1}
    path = data / "blind.yaml"
    path.write_text(yaml.safe_dump(values))
    assert candidates.main(arguments(data, path, data / "blind", "--detector", str(folder))) == 0
    exported = load_system(data / "blind/model/tiny")
    assert exported.made.metrics["validation_f1_two_stages"] == 0
    assert exported.detector.members == load_system(folder).detector.members
    assert (exported.detector.views, exported.detector.fusion) == (2, "weighted_box_fusion")


def test_features_and_logits_are_the_networks_own():
    crops = torch.rand(2, 3, 32, 32)
    for name, options in (
        ("timm", {"name": "test_convnext"}),
        ("convnextv2", {"widths": [8, 16], "depths": [1, 1], "stem": "early"}),
    ):
        network = build(CLASSIFIERS, name, options).eval()
        features, logits = features_and_logits(network, crops)
        torch.testing.assert_close(logits, network(crops)[:, 0])
        assert features.shape[0] == 2
        assert features.ndim == 2
