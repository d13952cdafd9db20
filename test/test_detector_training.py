"""Track 1's way from labelled fields to a system: losses, both trainings, a kill and a resume, evaluation."""

import csv
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT, Killed
from conftest import training_arguments as arguments
from PIL import Image

from midog.engine.two_stages import SystemDetector
from midog.errors import UserError
from midog.models import CLASSIFIERS, build
from midog.system import DataSource, load_system
from resources.data.fields import read_fields
from resources.train import candidate, evaluate_detection
from resources.train.kit.losses import contrastive_loss, focal_loss
from resources.train.yolo11 import read_detector_plan

TISSUE, FIGURE = (220, 160, 190), (60, 20, 90)


def disc(pixels, x, y, colour, radius=6):
    cv2.circle(pixels, (round(x), round(y)), radius, colour, -1, cv2.LINE_AA)


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


@pytest.fixture
def folder(tmp_path):
    """Three images: case a twice, at .25 and at .5 um/px, and case b without figures; the folder."""
    made = tmp_path / "set"
    made.mkdir()
    for name, side in (("one.png", 200), ("two.png", 100), ("three.png", 200)):
        pixels = np.full((side, side, 3), TISSUE, np.uint8)
        disc(pixels, 30, 60, FIGURE)
        Image.fromarray(pixels).save(made / name)
    (made / "images.csv").write_text("image,case,um_per_px\none.png,a1,0.26\ntwo.png,a2,0.5\nthree.png,,0.25\n")
    rows = ["one.png,30,60,mitotic figure", "two.png,30,60,mitotic figure", "one.png,9,9,non-mitotic figure"]
    (made / "figures.csv").write_text("\n".join(["image,x,y,label", *rows, ""]))
    return made


def test_fields_are_read_chosen_and_resampled(folder):
    one, two, three = read_fields([folder])
    assert (one.um_per_px[0], two.um_per_px[0], two.size) == (0.26, 0.25, (200, 200))
    assert one.figures.tolist() == [[30, 60]]
    assert one.look_alikes.tolist() == [[9, 9]]
    assert two.figures.tolist() == [[60.5, 120.5]]
    assert (two.pixels[120:122, 60:62].reshape(-1, 3) == FIGURE).all()
    assert len(three.figures) == 0
    assert two.area_mm2 == pytest.approx(0.0025)
    chosen = {"a2,three.png": ["two.png", "three.png"], "-a*": ["three.png"], "-*1,three*": ["two.png"]}
    chosen |= {"um_per_px=0.2*": ["one.png", "three.png"], "-image=t*": ["one.png"]}
    for cases, names in chosen.items():
        assert [field.name for field in read_fields([f"{folder}:{cases}"])] == names


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("images.csv", "um_per_px", "spacing", "images.csv: column um_per_px is missing"),
        ("images.csv", "0.26", "fine", "images.csv: line 2: um_per_px is fine"),
        ("images.csv", "0.26", "0", "images.csv: an um_per_px is not above 0"),
        ("images.csv", "one.png", "none.png", "none.png: cannot be read"),
        ("figures.csv", "x,y", "left,top", "figures.csv: column x, y is missing"),
        ("figures.csv", "9,9", "9,", "figures.csv: line 4: y is nan"),
        ("figures.csv", "non-mitotic", "unsure", "label 'unsure figure' is unknown"),
    ],
)
def test_broken_tables(folder, name, old, new, words):
    path = folder / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=words):
        read_fields([folder])


def test_selections_that_choose_nothing(folder, tmp_path):
    for selection, words in (
        (f"{folder}:c", "case c is not there"),
        (f"{folder}:-a*,three*", "no image is left"),
        (f"{folder}:b=1", "no column b"),
    ):
        with pytest.raises(UserError, match=words):
            read_fields([selection])
    with pytest.raises(UserError, match="no images.csv"):
        read_fields([tmp_path])


@pytest.fixture(scope="module")
def system(data):
    """The paper's recipe, with every augmentation it names, shrunk; the path of its YAML."""
    values = yaml.safe_load((ROOT / "resources/systems/sztu.yaml").read_text())
    values["system"] = "tiny"
    # After so few steps every score is about the network's first: one in 1,000.
    values["detector"] |= {"tile": 64, "score_threshold": 1e-4}
    values["detector"]["options"]["scale"] = "n"
    recipes = values["training"]
    recipes["detector"] |= {"tile": 64, "epochs": 2, "tiles_an_epoch": 8, "batch": 4}
    recipes["detector"]["augmentation"]["mosaic_epochs"] = 1
    values["classifier"] |= {"options": {"name": "test_convnext"}, "input_px": 32}
    recipes["classifier"] |= {"epochs": 3, "crops_an_epoch": 16, "batch": 8, "least_score": 1e-4}
    path = data / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def killed(data, system):
    """A training of the detector, killed after its first epoch; its folder."""
    from resources.train import detector, yolo_trainer

    out = data / "detector"
    whole = yolo_trainer.YOLO11Trainer.save_model

    def save_and_die(trainer):
        whole(trainer)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(data / "settings"))
        patch.setenv("YOLO_VERBOSE", "False")
        patch.setattr(yolo_trainer.YOLO11Trainer, "save_model", save_and_die)
        with pytest.raises(Killed):
            detector.main(arguments(data, system, out))
    return out


@pytest.fixture(scope="module")
def resumed(data, system, killed):
    """The same folder after a second process ended it, with nothing but an empty home; what that one said."""
    home = data / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("YOLO_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home)}
    command = [sys.executable, ROOT / "resources/train/detector.py", *arguments(data, system, killed, "--resume")]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_a_run_is_not_mixed_with_another(data, system, killed, capsys):
    from resources.train import detector

    assert detector.main(arguments(data, system, killed)) == 1
    assert "give --resume" in capsys.readouterr().err
    assert detector.main(arguments(data, system, killed, "--resume", "--seed", "1")) == 1
    assert "another recipe" in capsys.readouterr().err
    assert detector.main(arguments(data / "nowhere", system, data / "typo")) == 1
    assert not (data / "typo").exists()


def test_a_killed_detector_goes_on_with_its_second_epoch(data, killed, resumed):
    rows = list(csv.DictReader((killed / "results.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    model = load_system(killed / "model/tiny")
    assert model.made.data == (DataSource(set="fields", cases=("case0",)), DataSource(set="crops"))
    assert model.classifier is None
    assert model.training["detector"]["epochs"] == 2
    assert sorted(path.name for path in killed.iterdir()) == sorted(
        ["args.yaml", "finished", "model", "recipe.yaml", "results.csv", "ultralytics", "weights"]
    )


def test_a_detectors_training_keeps_to_its_folder_and_says_little(data, resumed):
    assert [str(path) for path in (data / "home").rglob("*") if path.is_file()] == []
    lines = resumed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["training", "epoch", "validation"]
    assert lines[1].startswith("epoch 2, box_loss ")
    assert resumed.stderr == ""


@pytest.mark.parametrize("marked", [True, False])  # without the mark: killed between the last epoch and the export
def test_a_finished_detector_is_only_exported_again(data, system, killed, resumed, marked, monkeypatch):
    from resources.train import detector, yolo_trainer

    monkeypatch.setenv("YOLO_CONFIG_DIR", str(data / "settings"))
    monkeypatch.setattr(yolo_trainer.YOLO11Trainer, "train", lambda trainer: pytest.fail("trained again"))
    before = (killed / "model/tiny/detector.safetensors").read_bytes()
    shutil.rmtree(killed / "model")
    if not marked:
        (killed / "finished").unlink()
    assert detector.main(arguments(data, system, killed, "--resume")) == 0
    assert (killed / "model/tiny/detector.safetensors").read_bytes() == before


def test_a_killed_classifier_resumes_to_the_same_weights_and_runs(
    data, system, killed, resumed, monkeypatch, capsys, caplog
):
    def train(out, *more):
        return candidate.main(arguments(data, system, data / out, "--detector", str(killed / "model/tiny"), *more))

    assert train("whole") == 0
    saved = candidate.save_checkpoint

    def save_and_die(path, state):
        saved(path, state)
        if len(state["rows"]) == 2:
            raise Killed

    monkeypatch.setattr(candidate, "save_checkpoint", save_and_die)
    with pytest.raises(Killed):
        train("cut")
    monkeypatch.setattr(candidate, "save_checkpoint", saved)
    assert train("cut", "--resume", "--field-um", "16") == 1
    assert "another recipe" in capsys.readouterr().err
    assert train("cut", "--resume") == 0
    for name in ("classifier.safetensors", "model.yaml"):
        assert (data / "whole/model/tiny" / name).read_bytes() == (data / "cut/model/tiny" / name).read_bytes()
    assert [row["epoch"] for row in csv.DictReader((data / "cut/epochs.csv").open())] == ["1", "2", "3"]

    model = load_system(data / "whole/model/tiny")
    caplog.clear()
    found = SystemDetector(model, torch.device("cpu"))(read_fields([f"{data}/fields:case1"])[0])
    assert len(found) > 0
    assert ((found.probabilities > 0) & (found.probabilities < 1)).all()
    assert caplog.messages == []
    capsys.readouterr()
    assert evaluate_detection.main(["--model", str(data / "whole/model"), "--data", f"{data}/fields:case1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[0] == "fields:case1"
    assert (int(row[1]) + int(row[3]), int(row[-1])) == (3, len(found))


def test_a_detector_of_several_members_that_find_nothing(data, system, killed, resumed):
    """Finding nothing is no reason to stop, and the export keeps the members and the views."""
    folder = data / "several"
    shutil.copytree(killed / "model/tiny", folder)
    shutil.copyfile(folder / "detector.safetensors", folder / "second.safetensors")
    values = yaml.safe_load((folder / "model.yaml").read_text())
    first = values["detector"]["members"][0]
    values["detector"] |= {"members": [first, first | {"weights": "second.safetensors"}], "score_threshold": 1.0}
    values["detector"] |= {"views": 2, "fusion": "weighted_box_fusion"}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    values = yaml.safe_load(system.read_text())
    values["detector"]["score_threshold"] = 1.0
    values["training"]["classifier"] |= {"least_score": 1.0, "epochs": 1}
    path = data / "blind.yaml"
    path.write_text(yaml.safe_dump(values))
    assert candidate.main(arguments(data, path, data / "blind", "--detector", str(folder))) == 0
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
        features, logits = candidate.features_and_logits(network, crops)
        torch.testing.assert_close(logits, network(crops)[:, 0])
        assert features.shape[0] == 2
        assert features.ndim == 2


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("detector", {"shares": {"figures": 1}}, "training.detector.* invalid enum value 'figures'"),
        ("detector", {"tiles_an_epoch": 3}, "at least one batch"),
        ("detector", {"tile": 100}, "training.detector.tile: 100: expected int that's a multiple of 32"),
        ("detector", {"batch": 0}, "training.detector.batch: 0: expected int >= 1"),
        ("classifier", {"augmentation": {"turn": 1}}, "training.classifier.augmentation: unknown key turn"),
        ("classifier", {"learning_rate": -1.0}, "training.classifier.learning_rate: -1.0: expected float > 0"),
    ],
)
def test_recipes_that_cannot_be_followed(system, tmp_path, part, change, words):
    values = yaml.safe_load(system.read_text())
    values["training"][part] |= change
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=words):
        (read_detector_plan if part == "detector" else candidate.read_candidate_plan)(str(path))


@pytest.mark.parametrize("name", ["sztu", "sztu_small"])
def test_recipes_of_the_project_are_read(name):
    read_detector_plan(name)
    part = candidate.read_candidate_plan(name).system.classifier
    with torch.device("meta"):
        build(CLASSIFIERS, part.network, part.options)
