import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from midog import job
from midog.__main__ import main
from midog.calibration import Calibration, logit, sigmoid
from midog.detections import MM_PER_PX, Detections
from midog.engine.classifier import classify, load_classifier
from midog.engine.torch_engine import TorchEngine, normalise
from midog.engine.two_stages import with_score
from midog.errors import UserError
from midog.evaluation import tune
from midog.evaluation.metrics import DetectionCase, StackCase
from midog.evaluation.operating_point import fit_calibration
from midog.evaluation.tune import Objective, cross_validate, fit, folds_of, reliability, reliability_weights
from midog.models import CLASSIFIERS, build, normalisation
from midog.system import CROP_UM, load_system

OPTIONS = {"widths": [16, 32], "depths": [1, 1], "stem": "early"}


def stack(number, labels, scores):
    scores = np.array(scores, float)
    return StackCase(str(number), np.zeros(len(scores), int), np.array(labels, bool), scores >= 0.5, scores)


def image(number, hits, misses, rejected=0):
    """Figures 50 um apart; each of `hits` is a score on one, `misses` are scores in between, `rejected` has none."""
    truths = np.array([(0.05 * x, 0, 0) for x in range(len(hits) + rejected)], float).reshape(-1, 3)
    places = [*truths[: len(hits), :2], *((0.05 * x + 0.025, 0) for x in range(len(misses)))]
    found = Detections.of(np.tile(places, 2), [*hits, *misses], MM_PER_PX)
    return DetectionCase(f"{number}.tiff", 0, "hotspot", truths, found)


def test_the_best_threshold_by_hand():
    # figures at .9 .8 .7, others at .75 .6 .5; three figures in all
    # from .9: F1 2/4, .8: 4/5, .75: 4/6, .7: 6/7, .6: 6/8, .5: 6/9. So it lies between .7 and .6.
    f1 = Objective("f1")
    thresholds, values = f1.curve([image(0, [0.9, 0.8, 0.7], [0.75, 0.6, 0.5])])
    assert values == pytest.approx([0, 2 / 4, 4 / 5, 4 / 6, 6 / 7, 6 / 8, 6 / 9], abs=1e-6)
    best = f1.best_threshold([image(0, [0.9, 0.8, 0.7], [0.75, 0.6, 0.5])])
    assert best == pytest.approx(sigmoid((logit(0.7) + logit(0.6)) / 2))
    # atypical at .9 .4, normal at .6 .3 .2: from .4 on sensitivity 1, specificity 2/3, more than 1/2 and 1 from .9 on
    crops = [stack(0, [1, 1, 0, 0, 0], [0.9, 0.4, 0.6, 0.3, 0.2])]
    ba = Objective("ba")
    assert 0.3 < ba.best_threshold(crops) < 0.4
    assert ba.at(crops, 0.35) == pytest.approx((1 + 2 / 3) / 2)
    assert ba.at(crops, 0.5) == pytest.approx((1 / 2 + 2 / 3) / 2)


def many_images(count=20):
    """Figures score .3 to .4, others lower: the best threshold lies near .29, and so it does for any fold."""
    generator = np.random.default_rng(0)
    return [image(n, generator.uniform(0.3, 0.4, 3), generator.uniform(0.05, 0.31, 4)) for n in range(count)]


def test_a_fold_is_judged_at_the_others_threshold():
    cases, f1 = many_images(), Objective("f1")
    counts, thresholds, probabilities = cross_validate(cases, f1)
    assert len(thresholds) == 5
    folds = folds_of(len(cases))
    assert sorted(np.bincount(folds)) == [4] * 5
    others = [case for case, fold in zip(cases, folds, strict=True) if fold != folds[0]]
    threshold, calibration = fit(others, f1)
    assert threshold == thresholds[folds[0]]
    assert counts[0].tolist() == f1.counts(cases[0], threshold).tolist()
    np.testing.assert_array_equal(probabilities[:7], calibration.apply(cases[0].scores))
    assert all(0.27 < threshold < 0.32 for threshold in thresholds)


def test_half_is_the_operating_point_afterwards():
    cases = many_images()
    threshold, calibration = fit(cases, Objective("f1"))
    for case in cases:
        assert ((calibration.apply(case.scores) >= 0.5) == (case.scores >= threshold)).all()


def test_reliability_is_weighed_at_the_odds_of_the_operating_point():
    """Where scores are log-odds of both classes drawn alike, no threshold but .5 changes the classes' odds."""
    generator = np.random.default_rng(0)
    labels = generator.random(20_000) < 0.5
    scores = sigmoid(generator.normal(0, 1, 20_000) + np.where(labels, 0.5, -0.5))
    weights = reliability_weights([stack(0, labels, scores)], 0.5)
    assert weights[labels].sum() / weights[~labels].sum() == pytest.approx(1, abs=0.05)
    weights = reliability_weights([stack(0, labels, scores)], sigmoid(1.0))
    assert weights[labels].sum() / weights[~labels].sum() == pytest.approx(np.exp(-1), rel=0.1)


def test_reliability_is_the_plain_share_of_figures_by_probability():
    probabilities = np.array([0.02, 0.06, 0.1, 0.55, 0.58, 0.51, 0.99, 1.0])
    positive = np.array([0, 1, 1, 0, 0, 1, 1, 1], bool)
    # .1 lies in the second bin, 1 in the last; the others are empty
    expected = [(0.04, 0.5, 2), (0.1, 1.0, 1), (0.5467, 0.3333, 3), (0.995, 1.0, 2)]
    assert reliability(probabilities, positive) == expected


# --- the whole command, with a system of small random networks ----------------


def write_system(folder, seeds, crops):
    """Networks whose logits of `crops` have a mean of 0 and a deviation of 1.5."""
    folder.mkdir(parents=True)
    members = []
    for number, seed in enumerate(seeds):
        torch.manual_seed(seed)
        network = build(CLASSIFIERS, "convnextv2", OPTIONS)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0, 0.5)
        with torch.no_grad():
            pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
            logits = network.eval()(normalise(pixels, *normalisation(network)))
            network.head.fc.bias[0] -= logits.mean()
            for parameter in network.head.fc.parameters():
                parameter *= 1.5 / logits.std()
        path = folder / f"fold{number}.safetensors"
        save_file(network.state_dict(), path)
        member = {"weights": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        members.append(member | {"calibration": {"scale": 0.5, "shift": 0.25}})
    classifier = {"network": "convnextv2", "options": OPTIONS, "field_um": 32.0, "input_px": 64, "views": 1}
    values = {"track": 2, "system": "mine", "version": "7", "classifier": classifier | {"members": members}}
    values |= {"training": {"epochs": 3, "z": None, "a": [1, 2]}}
    values |= {"made": {"data": [{"set": "a"}], "metrics": {"note": "kept"}}}
    (folder / "model.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def crops():
    """uint8 (40, 64, 64, 3) of very different colours."""
    generator = np.random.default_rng(1)
    colours = generator.integers(0, 256, (40, 1, 1, 3))
    return (colours + generator.integers(-20, 20, (40, 64, 64, 3))).clip(0, 255).astype(np.uint8)


def predict(folder, crops):
    return classify(crops, load_classifier(load_system(folder), TorchEngine("cpu"), CROP_UM), "cpu")


def write_predictions(folder, probabilities, labels):
    """Ten stacks of four crops; returns the arguments that name them."""
    truth = []
    folder.mkdir(exist_ok=True)
    for number in range(10):
        rows = slice(4 * number, 4 * number + 4)
        content = job.atypical_result(probabilities[rows])
        (folder / f"s{number}.json").write_text(json.dumps(content))
        names = ["atypical" if label else "normal" for label in labels[rows]]
        truth.append({"image": f"s{number}.tiff", "labels": names, "tumordomains": [1] * 4})
    path = folder.with_suffix(".truth")
    path.write_text(json.dumps(truth))
    return ["--track", "2", "--ground-truth", str(path), "--predictions", str(folder)]


def atypical_above(probabilities, fraction, noise=0.1):
    generator = np.random.default_rng(2)
    return (probabilities > np.quantile(probabilities, fraction)) ^ (generator.random(len(probabilities)) < noise)


@pytest.mark.parametrize("seeds", [[0], [0, 3]])  # one network, and an ensemble whose members differ
def test_tune_moves_the_real_systems_operating_point(tmp_path, crops, capsys, seeds):
    folder = write_system(tmp_path / "mine", seeds, crops)
    before, text = predict(folder, crops), (folder / "model.yaml").read_text()
    assert np.ptp(before) > 0.1
    command = write_predictions(tmp_path / "p", before, atypical_above(before, 0.7))
    assert main(["tune", *command, "--model", str(folder), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    said = json.loads((tmp_path / "out" / "tuning.json").read_text())
    threshold = said["threshold"]
    assert f"threshold {threshold:.4f} of the present probability" in printed.out
    assert "expected calibration error" in printed.out
    assert {"reliability.png", "threshold.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    after = predict(folder, crops)
    old, new = yaml.safe_load(text), yaml.safe_load((folder / "model.yaml").read_text())
    calibration = Calibration(**new["classifier"].pop("calibration"))
    np.testing.assert_allclose(after, calibration.apply(before), atol=1e-6)
    assert calibration.scale != 1
    assert abs(threshold - 0.5) > 0.01
    exact = sigmoid(-calibration.shift / calibration.scale)  # tuning.json has four digits
    assert exact == pytest.approx(threshold, abs=1e-4)
    np.testing.assert_array_equal(after >= 0.5, before >= exact)
    # All else in model.yaml stays, in its order: the members' calibrations, too.
    assert new["made"]["metrics"].pop("tuned") == said
    bins = new["made"].pop("reliability")
    assert sum(points for *_, points in bins) == 40
    figures = sum(observed * points for _, observed, points in bins)
    assert figures == pytest.approx(atypical_above(before, 0.7).sum(), abs=0.01)
    assert json.dumps(new) == json.dumps(old)


def test_members_that_differ_are_tuned_in_one_round(tmp_path, crops):
    folder = write_system(tmp_path / "mine", [0, 3, 4], crops)
    labels = atypical_above(predict(folder, crops), 0.8)
    thresholds = []
    for _ in range(2):
        command = write_predictions(tmp_path / "p", predict(folder, crops), labels)
        assert main(["tune", *command, "--model", str(folder)]) == 0
        thresholds.append(yaml.safe_load((folder / "model.yaml").read_text())["made"]["metrics"]["tuned"]["threshold"])
    assert abs(thresholds[0] - 0.5) > 0.01
    assert thresholds[1] == 0.5


def write_folds(out, folder, probabilities, labels):
    """A training's folder whose folds are the members of a system, each with crops of five cases."""
    count = len(labels) // 2
    for fold in (0, 1):
        (out / f"fold{fold}").mkdir(parents=True)
        shutil.copyfile(folder / f"fold{fold}.safetensors", out / f"fold{fold}/weights.safetensors")
        rows = ["file,case,domain,fold,label,one_view,raw"]
        for n in range(fold * count, (fold + 1) * count):
            domain = "cat" if n < 12 else "dog"
            rows.append(f"set/{n}.png,{n // 4},{domain},{fold},{int(labels[n])},{probabilities[n]},{probabilities[n]}")
        (out / f"fold{fold}/held_out.csv").write_text("\n".join(rows))
    return ["tune", "--track", "2", "--folds", str(out), "--model", str(folder)]


def test_held_out_crops_tune_the_system_that_their_training_exported(tmp_path, crops, capsys):
    folder = write_system(tmp_path / "mine", [0, 3], crops)
    generator = np.random.default_rng(5)
    raw = generator.uniform(0.05, 0.95, 40).round(4)
    labels = (raw > 0.7) ^ (generator.random(40) < 0.05)
    command = write_folds(tmp_path / "out", folder, raw, labels)
    assert main(command) == 0
    assert "10 stacks, " in capsys.readouterr().out
    model = yaml.safe_load((folder / "model.yaml").read_text())
    # at the threshold, which lies between the members' calibrated scores around .7, the new calibration gives .5
    member, joined = Calibration(0.5, 0.25), Calibration(**model["classifier"]["calibration"])
    threshold = model["made"]["metrics"]["tuned"]["threshold"]
    assert member.apply(0.6) < threshold < member.apply(0.8)
    assert joined.apply(threshold) == pytest.approx(0.5, abs=1e-3)
    # a recipe's rule chooses instead, on the crops of both domains
    model["training"] = {"classifier": {"operating_point": "worst"}}
    del model["classifier"]["calibration"]
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    assert main(command) == 0
    assert "operating point worst" in capsys.readouterr().out
    scores = member.apply(raw)
    table = pd.DataFrame({"label": labels.astype(int), "domain": ["cat"] * 12 + ["dog"] * 28, "raw": scores})
    fitted = fit_calibration(table, "worst")
    tuned = yaml.safe_load((folder / "model.yaml").read_text())
    assert tuned["classifier"]["calibration"] == pytest.approx({"scale": fitted.scale, "shift": fitted.shift})
    assert tuned["made"]["metrics"]["tuned"]["operating_point"] == "worst"
    text = (folder / "model.yaml").read_bytes()
    (tmp_path / "out/fold1/weights.safetensors").write_bytes(b"of another training")
    wrong = [(command, "fold1/weights.safetensors: not the weights that mine")]
    wrong.append((command[:-1] + [str(write_system(tmp_path / "one", [0], crops))], "2 folds, mine, weights 7 has 1"))
    wrong.append(([*command[:5], str(tmp_path), *command[5:]], "tune takes one training"))
    wrong.append(([*command, "--predictions", str(tmp_path)], "has the predictions; leave --predictions, --split"))
    wrong.append((["tune", "--track", "1", *command[3:]], "a system for Track 2; give one for Track 1"))
    for said, expected in wrong:
        assert main(said) == 1
        message = capsys.readouterr().err
        assert expected in message
        assert message.count("\n") == 1
    assert (folder / "model.yaml").read_bytes() == text


def test_labelled_crops_are_run_and_tuned(tmp_path, crops, capsys):
    """Without predictions the system to be tuned sees the crops of --data itself; it is warned of what it learned."""
    folder = write_system(tmp_path / "models" / "mine", [0, 3], crops)
    data = tmp_path / "a"
    data.mkdir()
    wide = np.pad(crops, ((0, 0), (32, 32), (32, 32), (0, 0)), "symmetric")
    rows = ["file,label,case"]
    scores = predict(folder, wide)
    for number, label in enumerate(atypical_above(scores, 0.7)):
        Image.fromarray(crops[number]).save(data / f"{number}.png")
        rows.append(f"{number}.png,{int(label)},c{number // 4}")
    (data / "labels.csv").write_text("\n".join(rows))
    assert main(["tune", "--track", "2", "--data", str(data), "--model", str(folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "10 stacks, " in printed.out
    assert "warning: mine, weights 7 was trained on a:c0,c1" in printed.err
    threshold = yaml.safe_load((folder / "model.yaml").read_text())["made"]["metrics"]["tuned"]["threshold"]
    after = predict(folder, wide)
    np.testing.assert_array_equal(after >= 0.5, scores >= threshold)


def write_track1(folder, with_classifier):
    """A system whose weights are no weights."""
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(b"w")
    part = {"network": "any", "options": {}, "members": [{"weights": "w.safetensors"}]}
    part["members"][0]["sha256"] = hashlib.sha256(b"w").hexdigest()
    detector = {"tile": [64, 64], "overlap": 0.2, "um_per_px": 0.25, "score_threshold": 0.1, "nms_iou": 0.3}
    detector |= {"merge": {"distance_um": 7.5}, "calibration": {"scale": 1.25, "shift": -0.5}}
    values = {"system": "mine", "track": 1, "version": "1", "detector": part | detector}
    if with_classifier:
        values["classifier"] = part | {"field_um": 16.0, "input_px": 64, "score_weight": 0.4}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    return load_system(folder)


def test_the_detectors_score_beside_a_classifier_is_scaled_too(tmp_path):
    system, calibration = write_track1(tmp_path / "two", True), Calibration(1 / 3, 0.123456789)
    part, present, after = tune.write_calibration(system, calibration, {}, [(0.25, 0.2, 5)])
    assert (part, present, after) == ("classifier", Calibration(), calibration)
    found = load_system(tmp_path / "two")
    assert (found.classifier.calibration, found.detector) == (calibration, system.detector)
    assert found.made.reliability == ((0.25, 0.2, 5),)
    mean, scores = np.random.default_rng(0).uniform(0.05, 0.95, (2, 100))
    tuned = with_score(found.classifier.calibration.apply(mean), scores, found.classifier.score_weight)
    np.testing.assert_allclose(tuned, calibration.apply(with_score(mean, scores, 0.4)), atol=1e-12)


def test_a_detector_alone_is_calibrated_by_its_score(tmp_path):
    system, calibration = write_track1(tmp_path / "one", False), Calibration(2.0, 0.1)
    assert tune.write_calibration(system, calibration, {}, [])[0] == "detector"
    assert load_system(tmp_path / "one").detector.calibration == Calibration(2.5, -0.9)


def test_track_1s_predictions_come_back_under_the_others_calibration(tmp_path, capsys):
    """Evaluated at .5 they give the cross-validated F1."""
    write_track1(tmp_path / "two", True)
    data, found, random = tmp_path / "fields", tmp_path / "found", np.random.default_rng(0)
    data.mkdir()
    names, figures = [f"{number}.png" for number in range(6)], []
    for name in names:
        Image.new("RGB", (800, 100)).save(data / name)
        x = np.arange(50, 800, 100)
        figures += [f"{name},{each},50,mitotic figure" for each in x[:4]]
        scores = np.concatenate([random.uniform(0.3, 0.9, 4), random.uniform(0.1, 0.6, 4)])
        boxes = np.stack([x, np.full(8, 50), x, np.full(8, 50)], 1)
        (found / name).mkdir(parents=True)
        result = Detections.of(boxes, scores, (0.25, 0.25)).to_json()
        (found / name / "mitotic-figures.json").write_text(json.dumps(result))
    (data / "images.csv").write_text("\n".join(["image,um_per_px", *(f"{name},0.25" for name in names)]))
    (data / "figures.csv").write_text("\n".join(["image,x,y,label", *figures]))
    same, out = ["--track", "1", "--data", str(data), "--predictions"], tmp_path / "out"
    assert main(["tune", *same, str(found), "--model", str(tmp_path / "two"), "--out", str(out)]) == 0
    expected = json.loads((out / "tuning.json").read_text())["cross_validated"]
    capsys.readouterr()
    assert main(["evaluate", *same, str(out / "predictions")]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("overall")]
    assert float(row[6]) == expected


def test_a_model_that_would_not_load_stays_as_it_was(tmp_path, monkeypatch):
    system = write_track1(tmp_path / "two", True)
    before = (tmp_path / "two" / "model.yaml").read_bytes()

    def refuse(folder):
        assert (folder / "model.yaml").read_bytes() != before
        raise UserError("no")

    monkeypatch.setattr(tune, "load_system", refuse)
    with pytest.raises(UserError):
        tune.write_calibration(system, Calibration(2.0, 0.1), {"images": 3}, [])
    assert (tmp_path / "two" / "model.yaml").read_bytes() == before


def test_what_cannot_be_tuned_is_one_line_and_changes_nothing(tmp_path, crops, capsys):
    folder = write_system(tmp_path / "mine", [0], crops)
    text = (folder / "model.yaml").read_bytes()
    before = predict(folder, crops)
    labels = atypical_above(before, 0.7)
    wrong = [
        (write_predictions(tmp_path / "a", before, np.zeros(40, bool)), "predictions of both kinds"),
        (write_predictions(tmp_path / "b", before, ~labels), "no higher for figures than for the rest"),
        (write_predictions(tmp_path / "c", before, np.arange(40) == 3), "images are too few"),
    ]
    for command, said in wrong:
        assert main(["tune", *command, "--model", str(folder)]) == 1
        message = capsys.readouterr().err
        assert said in message
        assert message.count("\n") == 1
    track1 = ["--track", "1", *wrong[0][0][2:]]
    assert main(["tune", *track1, "--model", str(folder)]) == 1
    assert "a system for Track 2" in capsys.readouterr().err
    assert (folder / "model.yaml").read_bytes() == text
