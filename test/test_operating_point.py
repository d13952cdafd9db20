"""Operating points by hand, and what has to hold of a rule: whose crops it sees, and whose it does not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.calibration import logit, sigmoid
from midog.evaluation.metrics import classification_metrics
from midog.evaluation.operating_point import (
    RULES,
    best_balanced_accuracy,
    calibrated_by_other_domains,
    calibrated_by_other_folds,
    carried_over,
    domain_errors,
    domain_figures,
    fit_calibration,
    summary,
)
from midog.system import DomainErrors


def table_of(**domains):
    """Domain = (logits of normal crops, logits of atypical crops), each domain a fold."""
    rows = [
        (domain, fold, label, sigmoid(value))
        for fold, (domain, classes) in enumerate(domains.items())
        for label, values in enumerate(classes)
        for value in values
    ]
    return pd.DataFrame(rows, columns=["domain", "fold", "label", "raw"])


def threshold_of(calibration):
    return -calibration.shift / calibration.scale


@pytest.fixture(scope="module")
def noisy():
    """600 crops of three domains, whose best thresholds and class ratios differ, in four folds."""
    random = np.random.default_rng(0)
    label = (random.random(600) < np.repeat([0.2, 0.4, 0.1], 200)).astype(int)
    scores = random.normal(1.5 * label + np.repeat([0.0, 1.0, -1.5], 200), 1)
    domain = np.repeat(["a", "b", "c"], 200)
    return pd.DataFrame({"domain": domain, "fold": np.arange(600) % 4, "label": label, "raw": sigmoid(scores)})


def test_worst_is_the_middle_of_where_the_lowest_balanced_accuracy_is_highest():
    # from .6 to 3 the lowest is .75: of "near" up to 1 and from 2 on, of "far" up to 2.5
    table = table_of(near=([0.6, 1], [2, 3]), far=([0, 2.5], [3.5, 4]))
    assert threshold_of(fit_calibration(table, "worst")) == pytest.approx(1.8)
    # one domain alone is told apart between its classes, and more crops of one kind pull nothing
    assert threshold_of(fit_calibration(table_of(near=([0, 1] * 9, [2, 3])), "worst")) == pytest.approx(1.5)
    # of several such ranges it is the widest: a balanced accuracy of .75 from 0 to 1, and from 2 to 5
    assert threshold_of(fit_calibration(table_of(only=([0, 2], [1, 5])), "worst")) == pytest.approx(3.5)


def test_worst_asks_only_domains_with_both_classes(noisy):
    alone = table_of(normal=([5, 5, 5], [])).assign(fold=0)
    with_it = pd.concat([noisy, alone], ignore_index=True)
    assert threshold_of(fit_calibration(with_it, "worst")) == pytest.approx(
        threshold_of(fit_calibration(noisy, "worst"))
    )
    assert np.isfinite(fit_calibration(alone, "worst").shift)


def test_domains_weigh_every_class_of_every_domain_the_same(noisy):
    doubled = pd.concat([noisy, noisy[noisy.domain == "c"]], ignore_index=True)
    for rule, same in (("pooled", False), ("domains", True), ("worst", True)):
        before, after = (threshold_of(fit_calibration(each, rule)) for each in (noisy, doubled))
        assert (abs(before - after) < 1e-3) == same
    one = noisy[noisy.domain == "a"]
    pooled, domains = (fit_calibration(one, rule) for rule in ("pooled", "domains"))
    assert (pooled.scale, pooled.shift) == pytest.approx((domains.scale, domains.shift))
    # domains of one class each balance the classes, too
    apart = pd.concat([one.assign(domain=one.label.map({0: "x", 1: "y"})), one[one.label == 0].assign(domain="z")])
    assert threshold_of(fit_calibration(apart, "domains")) == pytest.approx(threshold_of(pooled), abs=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_names_and_order_of_domains_change_nothing(noisy, rule):
    other = noisy.sample(frac=1, random_state=1).replace({"domain": {"a": "z", "b": "y", "c": "x"}})
    before, after = (threshold_of(fit_calibration(each, rule)) for each in (noisy, other))
    assert before == pytest.approx(after, abs=1e-3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=20), st.integers(0, 7))
def test_no_threshold_beats_the_best(crops, cut):
    labels, scores = np.array(crops).T
    best = best_balanced_accuracy(labels, scores)
    reached = [classification_metrics(labels, scores, scores >= each)["balanced_accuracy"] for each in range(8)]
    assert best == pytest.approx(max(reached), nan_ok=True)


def test_the_best_balanced_accuracy_by_hand():
    assert best_balanced_accuracy([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]) == 0.75
    assert best_balanced_accuracy([0, 1], [0.3, 0.3]) == 0.5
    assert np.isnan(best_balanced_accuracy([1, 1], [0.1, 0.2]))


@pytest.mark.parametrize("rule", RULES)
def test_an_operating_point_of_one_domain_is_wrong_for_another(rule):
    """Each domain is judged at the threshold between the classes of the other."""
    low, high = ([-4, -2], [-3, -1]), ([1, 3], [2, 4])
    found = carried_over([table_of(low=low, high=high)], [rule])
    names = ["balanced_accuracy", "best_balanced_accuracy", "lost", "roc_auc", "sensitivity", "specificity"]
    assert found.loc["low", names].tolist() == [0.5, 0.75, 0.25, 0.75, 0, 1]
    assert found.loc["high", names].tolist() == [0.5, 0.75, 0.25, 0.75, 1, 0]
    assert DomainErrors(domain="high", atypical=2, normal=2, sensitivity=1, specificity=0) in domain_errors(found)


def test_the_mean_of_trainings_is_that_of_their_calibrated_probabilities(noisy):
    other = noisy.assign(raw=sigmoid(2 * logit(noisy.raw) + np.random.default_rng(1).normal(0, 1, len(noisy))))
    found = carried_over([noisy, other], ["pooled", "worst"])
    mean = (calibrated_by_other_domains(noisy, "pooled") + calibrated_by_other_domains(other, "worst")) / 2
    for domain, figures in found.iterrows():
        mine = noisy.domain == domain
        expected = classification_metrics(noisy.label[mine], mean[mine])
        assert figures.balanced_accuracy == pytest.approx(expected["balanced_accuracy"])
        assert figures.lost >= 0


@pytest.mark.parametrize("rule", RULES)
def test_no_crop_is_judged_by_its_domain_or_fold(noisy, rule):
    before = calibrated_by_other_domains(noisy, rule)
    for changed, untouched in (
        (noisy.domain == "a", noisy.domain == "a"),
        (noisy.fold == 2, noisy.fold == 2),
    ):
        flipped = noisy.assign(label=noisy.label.where(~changed, 1 - noisy.label))
        after = calibrated_by_other_domains(flipped, rule)
        np.testing.assert_array_equal(before[untouched], after[untouched])
        assert not np.allclose(before[~untouched], after[~untouched])


def test_folds_that_are_domains_are_left_out_once(noisy):
    left_out = noisy.assign(fold=noisy.domain.map({"a": 0, "b": 1, "c": 2}))
    for rule in RULES:
        by_folds, by_domains = calibrated_by_other_folds(left_out, rule), calibrated_by_other_domains(left_out, rule)
        np.testing.assert_array_equal(by_folds, by_domains)


def test_one_fold_leaves_out_the_domain_alone(noisy):
    one_fold = calibrated_by_other_domains(noisy.assign(fold=0), "domains")
    mine, others = noisy[noisy.domain == "b"], noisy[noisy.domain != "b"]
    expected = fit_calibration(others, "domains").apply(mine.raw)
    np.testing.assert_allclose(one_fold[(noisy.domain == "b").to_numpy()], expected)


def test_where_nothing_carries_over_that_is_said(noisy):
    one = noisy[noisy.domain == "a"].reset_index(drop=True)
    assert carried_over([one], ["worst"]) is None
    assert domain_errors(None) == ()
    normal = table_of(normal=([5, 5, 5], [])).assign(fold=0)
    found = carried_over([pd.concat([noisy, normal], ignore_index=True)], ["domains"])
    assert np.isnan(found.loc["normal", "balanced_accuracy"])
    assert [each.domain for each in domain_errors(found)] == ["a", "b", "c"]
    said = summary(found)
    assert said["worst_domain"] == found.balanced_accuracy.idxmin()
    assert said["lost_mean"] == pytest.approx(found.lost[["a", "b", "c"]].mean())
    only_normal = domain_figures(normal.assign(probability=normal.raw))
    assert set(summary(only_normal).values()) == {None}
