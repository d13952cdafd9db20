import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import to_builtins

from midog.calibration import logit, sigmoid
from midog.errors import UserError
from midog.evaluation import local_threshold
from midog.evaluation.local_threshold import PRIOR_SD, best_threshold, expected_f1, find, offset_of, read
from midog.evaluation.metrics import f1
from midog.files import write_json


def test_the_offset_is_the_most_probable_one():
    logits, verdicts = np.array([-2.0, -1, 0, 1, 3]), np.array([0, 1, 1, 1, 1], bool)

    def log_posterior(offset):
        probability = sigmoid(logits + offset)
        return np.log(np.where(verdicts, probability, 1 - probability)).sum() - (offset / PRIOR_SD) ** 2 / 2

    tried = np.arange(-6, 6, 0.001)
    assert offset_of(logits, verdicts) == pytest.approx(
        tried[np.argmax([log_posterior(each) for each in tried])], abs=1e-3
    )


def test_verdicts_of_one_kind_do_not_move_it_to_infinity():
    for kind in (True, False):
        offset = offset_of(np.zeros(30), np.full(30, kind))
        assert 2 < abs(offset) < 10
        assert (offset > 0) == kind


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=60), st.floats(-4, 4))
@settings(max_examples=60, deadline=None)
def test_no_other_threshold_is_expected_to_be_better(logits, offset):
    logits = np.array(logits)
    best = expected_f1(logits, offset, best_threshold(logits, offset))
    assert best >= max(expected_f1(logits, offset, float(sigmoid(each))) for each in logits) - 1e-9


def test_expected_f1_by_hand():
    logits = logit([0.8, 0.6, 0.1])
    assert expected_f1(logits, 0, 0.5) == pytest.approx(2 * 1.4 / (2 + 1.5))
    assert expected_f1(logits, 0, 0.9) == 0


def drawn(random, shift):
    """Candidates of a slide, a tenth of them figures, whose scores are calibrated, but for a shift of their logits."""
    logits = random.normal(-3, 2.5, 400)
    return sigmoid(logits + shift), random.random(400) < sigmoid(logits)


@pytest.mark.parametrize("shift", [-3, 0, 2])
def test_thirty_verdicts_mend_a_bad_threshold(shift, monkeypatch):
    monkeypatch.setattr(local_threshold, "BOOTSTRAPS", 100)
    random = np.random.default_rng(1)
    before, after, covered, rounds = [], [], 0, 40
    for _ in range(rounds):
        scores, figures = drawn(random, shift)
        order, accepted = np.argsort(-scores), (scores >= 0.5).sum()
        judged = order[np.linspace(0, max(2 * accepted, 80) - 1, 30).astype(int)]
        found = find(scores, judged, figures[judged])
        truth = best_threshold(logit(scores), -shift)
        covered += found.interval_95[0] <= truth <= found.interval_95[1]
        for threshold, values in ((0.5, before), (found.threshold, after)):
            called = scores >= threshold
            values.append(f1((figures & called).sum(), (figures & ~called).sum(), (~figures & called).sum()))
    assert covered >= 0.85 * rounds
    assert np.mean(after) > np.mean(before) + (0.05 if shift else -0.02)


def test_a_shift_that_the_result_had_is_part_of_the_next():
    scores, figures = drawn(np.random.default_rng(0), 0)
    judged = np.argsort(-scores)[:80:2]
    plain = find(scores, judged, figures[judged])
    shifted = find(sigmoid(logit(scores) + 1.5), judged, figures[judged], shift=1.5)
    assert sigmoid(logit(plain.threshold) + plain.shift) == pytest.approx(0.5)
    assert abs(logit(shifted.threshold) - logit(plain.threshold)) < 0.4  # but for what the prior does


def test_what_is_written_is_read_and_is_of_its_system(tmp_path):
    scores, figures = drawn(np.random.default_rng(0), 0)
    found = find(scores, np.arange(40), figures[:40], system="a", version="1")
    path = write_json(tmp_path / "local_threshold.json", to_builtins(found))
    assert read(path) == found
    found.check_is_of(path, "a", "1")
    with pytest.raises(UserError, match="of a, weights 1; this runs a, weights 2"):
        found.check_is_of(path, "a", "2")
    for content in ({}, [], to_builtins(found) | {"shift": "much"}):
        with pytest.raises(UserError, match="no local threshold"):
            read(write_json(path, content))
