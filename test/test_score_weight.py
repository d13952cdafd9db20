"""The detector's part beside the classifier's, chosen from predictions made by hand."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from midog.detections import Detections
from midog.engine.two_stages import with_score
from midog.evaluation.cases import case_of
from midog.system import load_system
from resources.train import score_weight
from resources.train.kit.combination import apart

PLACES = np.array([(20, 20), (80, 20), (20, 80), (80, 80), (140, 20), (140, 80)], float)  # the first three: figures
ORDERED, CONFUSED = np.array([0.8, 0.7, 0.6, 0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4, 0.9, 0.8, 0.7])
UNSURE = np.array([0.45, 0.47, 0.49, 0.51, 0.53, 0.55])  # which a quarter of the logits of `ORDERED` puts in order
USED = 1.5  # the weight that was predicted with


def result(probabilities, places=PLACES):
    """A Track 1 result of points, in px of .25 um."""
    return Detections.of(np.tile(places, 2), probabilities, (0.25, 0.25)).to_json()


def write_result(folder, image, content):
    (folder / image).mkdir(parents=True, exist_ok=True)
    (folder / image / "mitotic-figures.json").write_text(json.dumps(content))
    (folder / image / "about.json").write_text("{}")


@pytest.fixture
def runs(tmp_path):
    """Write fields, both folders of predictions and a system; returns a function of the two stages' probabilities."""
    (tmp_path / "set").mkdir()
    for name in ("a.png", "quiet.png"):
        Image.new("RGB", (200, 200)).save(tmp_path / "set" / name)
    (tmp_path / "set/images.csv").write_text("image,um_per_px\na.png,0.25\nquiet.png,0.25\n")
    rows = [f"a.png,{x:g},{y:g},mitotic figure" for x, y in PLACES[:3]]
    (tmp_path / "set/figures.csv").write_text("\n".join(["image,x,y,label", *rows, ""]))
    folder = tmp_path / "both/model/tiny"
    folder.mkdir(parents=True)
    (folder / "w.safetensors").write_bytes(b"w")
    members = [{"weights": "w.safetensors", "sha256": hashlib.sha256(b"w").hexdigest()}]
    detector = {"network": "centernet", "options": {}, "tile": [64, 64], "overlap": 0.1, "um_per_px": 0.5}
    detector |= {"score_threshold": 0.1, "merge": {"distance_um": 7.5}, "members": members}
    classifier = {"network": "timm", "options": {}, "field_um": 24.0, "input_px": 96, "score_weight": USED}
    values = {"system": "tiny", "track": 1, "version": "0", "detector": detector}
    values["classifier"] = classifier | {"members": members}
    (tmp_path / "both/fold_0/model/tiny").mkdir(parents=True)
    for each in (folder, tmp_path / "both/fold_0/model/tiny"):
        (each / "model.yaml").write_text(yaml.safe_dump(values))

    def write(classifier, detector):
        write_result(tmp_path / "one/out_of_fold", "a.png", result(detector))
        write_result(tmp_path / "both/out_of_fold", "a.png", result(with_score(classifier, detector, USED)))
        for name, probabilities in (("one", [0.3]), ("both", with_score(np.array([0.5]), np.array([0.3]), USED))):
            write_result(tmp_path / name / "out_of_fold", "quiet.png", result(probabilities, PLACES[:1]))
        return tmp_path

    return write


def choose(root):
    said = ["--data", str(root / "set"), "--detector", str(root / "one/out_of_fold")]
    return score_weight.main([*said, "--two-stages", str(root / "both"), "--system", "tiny"])


def test_the_parts_of_a_prediction_are_the_classifiers_and_the_detectors():
    """Whatever the order of the points, which is that of the probabilities."""
    truth = {"annotations": [], "tumor domain": "x", "roi type": "hotspot"}
    two, one = (case_of(1, "a.png", truth, result(each)) for each in (with_score(ORDERED, CONFUSED, USED), CONFUSED))
    classifier, detector = apart(two, one, USED)
    order = [PLACES.tolist().index(place) for place in (two.points[:, :2] / 0.00025).round().tolist()]
    assert order != sorted(order)
    assert classifier == pytest.approx(ORDERED[order])
    assert detector == pytest.approx(CONFUSED[order])


@pytest.mark.parametrize(("classifier", "detector", "weight"), [(ORDERED, CONFUSED, 0.0), (UNSURE, ORDERED, 0.25)])
def test_the_weight_of_the_higher_average_precision_is_taken(runs, classifier, detector, weight):
    """Of a detector that errs none, of one that knows better than the classifier the least that is enough."""
    root = runs(classifier, detector)
    assert choose(root) == 0
    assert load_system(root / "both/model/tiny").classifier.score_weight == weight
    points = json.loads((root / "both/weighted/a.png/mitotic-figures.json").read_text())["points"]
    expected = sorted(with_score(classifier, detector, weight), reverse=True)
    assert [point["probability"] for point in points] == pytest.approx(expected)
    assert choose(root) == 0  # again
    assert load_system(root / "both/model/tiny").classifier.score_weight == weight


def test_a_candidate_that_is_none_of_the_detectors_is_one_line(runs, capsys):
    root = runs(ORDERED, CONFUSED)
    before = (root / "both/model/tiny/model.yaml").read_text()
    write_result(root / "one/out_of_fold", "a.png", result(CONFUSED, PLACES + 1))
    assert choose(root) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.png: a candidate of two stages is none of the detector's; give predictions of the detector" in line
    assert (root / "both/model/tiny/model.yaml").read_text() == before


def test_what_holds_no_second_stage_is_refused(runs, capsys):
    root = runs(ORDERED, CONFUSED)
    path = root / "both/fold_0/model/tiny/model.yaml"
    values = yaml.safe_load(path.read_text())
    del values["classifier"]
    path.write_text(yaml.safe_dump(values))
    assert choose(root) == 1
    assert "no folds of two stages" in capsys.readouterr().err


def test_an_image_that_one_of_both_lacks_is_one_line(runs, capsys):
    root = runs(ORDERED, CONFUSED)
    shutil.rmtree(root / "one/out_of_fold/quiet.png")
    assert choose(root) == 1
    assert "quiet.png: predicted by one of detector and two stages alone" in capsys.readouterr().err
