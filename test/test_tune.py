import hashlib
import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from midog import job
from midog.__main__ import main
from midog.classify import Calibrated, classify, load_classifier, normalise
from midog.metrics import DetectionCase, StackCase
from midog.models.classifiers import NETWORKS
from midog.system import load_system
from midog.tune import Objective, compose, cross_validate, fit, folds_of, logit, reliability_weights, sigmoid

CPU = torch.device("cpu")
OPTIONS = {"widths": [16, 32], "depths": [1, 1], "stem": "early"}


def stack(number, labels, scores):
    scores = np.array(scores, float)
    return StackCase(str(number), np.zeros(len(scores), int), np.array(labels, bool), scores >= 0.5, scores)


def image(number, hits, misses, rejected=0):
    """Figures 50 um apart; each of `hits` is a score on one, `misses` are scores in between, `rejected` has none."""
    truths = [(0.05 * x, 0, 0) for x in range(len(hits) + rejected)]
    points = [*truths[: len(hits)], *((0.05 * x + 0.025, 0, 0) for x in range(len(misses)))]
    scores = np.array([*hits, *misses], float)
    arrays = np.array(truths, float).reshape(-1, 3), np.array(points, float).reshape(-1, 3)
    return DetectionCase(f"{number}.tiff", 0, "hotspot", *arrays, scores >= 0.5, scores)


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
    counts, thresholds, probabilities = cross_validate(cases, f1, True)
    assert len(thresholds) == 5
    folds = folds_of(len(cases))
    assert sorted(np.bincount(folds)) == [4] * 5
    others = [case for case, fold in zip(cases, folds, strict=True) if fold != folds[0]]
    threshold, scale, shift = fit(others, f1, True)
    assert threshold == thresholds[folds[0]]
    assert counts[0].tolist() == f1.counts(cases[0], threshold).tolist()
    np.testing.assert_allclose(probabilities[:7], sigmoid(scale * logit(cases[0].scores) + shift))
    assert all(0.27 < threshold < 0.32 for threshold in thresholds)


def test_half_is_the_operating_point_afterwards():
    cases = many_images()
    threshold, scale, shift = fit(cases, Objective("f1"), True)
    for case in cases:
        assert ((sigmoid(scale * logit(case.scores) + shift) >= 0.5) == (case.scores >= threshold)).all()
    assert fit(cases, Objective("f1"), False)[1] == 1


def test_reliability_is_weighed_at_the_odds_of_the_operating_point():
    """Where scores are log-odds of both classes drawn alike, no threshold but .5 changes the classes' odds."""
    generator = np.random.default_rng(0)
    labels = generator.random(20_000) < 0.5
    scores = sigmoid(generator.normal(0, 1, 20_000) + np.where(labels, 0.5, -0.5))
    weights = reliability_weights([stack(0, labels, scores)], 0.5)
    assert weights[labels].sum() / weights[~labels].sum() == pytest.approx(1, abs=0.05)
    weights = reliability_weights([stack(0, labels, scores)], sigmoid(1.0))
    assert weights[labels].sum() / weights[~labels].sum() == pytest.approx(np.exp(-1), rel=0.1)


def test_composition_is_exact():
    raw = torch.linspace(0.01, 0.99, 50)
    present, scale, shift = {"scale": 1.3, "shift": -0.4}, 2.1, 0.7
    twice = Calibrated(Calibrated(torch.nn.Identity(), **present), scale, shift)
    once = Calibrated(torch.nn.Identity(), **compose(present, scale, shift))
    torch.testing.assert_close(once(raw), twice(raw), atol=1e-5, rtol=0)


# --- the whole command, with a system of small random networks ----------------


def write_system(folder, seeds, crops):
    """Networks whose logits of `crops` have a mean of 0 and a deviation of 1.5."""
    folder.mkdir(parents=True)
    members = []
    for number, seed in enumerate(seeds):
        torch.manual_seed(seed)
        network = NETWORKS["convnextv2"](**OPTIONS)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0, 0.5)
        with torch.no_grad():
            logits = network.eval()(normalise(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255))
            network.head.fc.bias[0] -= logits.mean()
            for parameter in network.head.fc.parameters():
                parameter *= 1.5 / logits.std()
        path = folder / f"fold{number}.safetensors"
        save_file(network.state_dict(), path)
        member = {"network": "convnextv2", "options": OPTIONS, "crop": 1.0, "size": 64, "weights": path.name}
        member |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        members.append(member | {"calibration": {"scale": 0.5, "shift": 0.25}})
    values = {"track": 2, "system": "mine", "version": "7", "views": 1, "data": ["a: b"], "members": members}
    values |= {"training": {"epochs": 3, "z": None, "a": [1, 2]}, "metrics": {"note": "kept"}}
    (folder / "model.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def crops():
    """uint8 (40, 64, 64, 3) of very different colours."""
    generator = np.random.default_rng(1)
    colours = generator.integers(0, 256, (40, 1, 1, 3))
    return (colours + generator.integers(-20, 20, (40, 64, 64, 3))).clip(0, 255).astype(np.uint8)


def predict(folder, crops):
    return classify(crops, load_classifier(load_system(folder), CPU), CPU, None)


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


def atypical_above(probabilities, share, noise=0.1):
    generator = np.random.default_rng(2)
    return (probabilities > np.quantile(probabilities, share)) ^ (generator.random(len(probabilities)) < noise)


@pytest.mark.parametrize("seeds", [[0], [0, 0]])  # one network, and an ensemble whose members agree
def test_tune_moves_the_real_systems_operating_point(tmp_path, crops, capsys, seeds):
    folder = write_system(tmp_path / "mine", seeds, crops)
    before, text = predict(folder, crops), (folder / "model.yaml").read_text()
    assert np.ptp(before) > 0.1
    command = write_predictions(tmp_path / "p", before, atypical_above(before, 0.7))
    assert main(["tune", *command, "--model", str(folder), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert ("an ensemble of 2" in printed.err) == (len(seeds) == 2)
    said = json.loads((tmp_path / "out" / "tuning.json").read_text())
    threshold = said["threshold"]
    assert f"threshold {threshold:.4f} of the present probability" in printed.out
    assert "expected calibration error" in printed.out
    assert {"reliability.png", "threshold.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    after = predict(folder, crops)
    old, new = yaml.safe_load(text), yaml.safe_load((folder / "model.yaml").read_text())
    scale = new["members"][0]["calibration"]["scale"] / 0.5
    shift = new["members"][0]["calibration"]["shift"] - scale * 0.25
    np.testing.assert_allclose(after, sigmoid(scale * logit(before) + shift), atol=1e-4)
    assert abs(threshold - 0.5) > 0.01
    exact = sigmoid(-shift / scale)  # tuning.json has four digits
    assert exact == pytest.approx(threshold, abs=1e-4)
    np.testing.assert_array_equal(after >= 0.5, before >= exact)
    assert (scale == 1) == (len(seeds) == 2)
    # All else in model.yaml stays, in its order.
    assert new["metrics"].pop("tuned") == said
    for values in (old, new):
        for member in values["members"]:
            del member["calibration"]
    assert list(new) == list(old)
    assert json.dumps(new) == json.dumps(old)


def test_members_that_differ_need_a_second_round(tmp_path, crops):
    folder = write_system(tmp_path / "mine", [0, 3, 4], crops)
    labels = atypical_above(predict(folder, crops), 0.8, noise=0)
    off = []
    for _ in range(3):
        command = write_predictions(tmp_path / "p", predict(folder, crops), labels)
        assert main(["tune", *command, "--model", str(folder)]) == 0
        tuned = yaml.safe_load((folder / "model.yaml").read_text())["metrics"]["tuned"]
        off.append(abs(logit(tuned["threshold"])))
    assert off[1] < off[0] / 2
    assert off[2] <= off[1]


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
