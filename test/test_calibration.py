"""Logits: by hand, and the property that a chosen threshold lets its own candidate in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog.calibration import Calibration, between, logit, platt, shift_to_half, sigmoid


def test_logit_and_sigmoid_by_hand():
    np.testing.assert_allclose(logit([0.5, 0.2]), [0, -1.3862944], atol=1e-7)
    np.testing.assert_allclose(sigmoid(logit([0.01, 0.9])), [0.01, 0.9])
    assert np.isfinite(logit([0, 1])).all()


@given(*(st.floats(0.1, 4) for _ in range(2)), *(st.floats(-3, 3) for _ in range(2)), st.floats(0.01, 0.99))
def test_one_calibration_after_another_is_one(first_scale, second_scale, first_shift, second_shift, probability):
    first, second = Calibration(first_scale, first_shift), Calibration(second_scale, second_shift)
    one_by_one = second.scale * (first.scale * logit(probability) + first.shift) + second.shift
    np.testing.assert_allclose(first.then(second).apply(probability), sigmoid(one_by_one), atol=1e-9)
    assert Calibration().is_identity
    np.testing.assert_allclose(Calibration().apply(probability), probability)


def test_a_threshold_lets_its_own_candidate_in_and_the_next_one_not():
    generator = np.random.default_rng(0)
    for pair in generator.uniform(0.001, 0.999, (2000, 2)).astype(np.float32):
        refused, accepted = sorted(map(float, pair))
        calibration = Calibration(1, shift_to_half(between(accepted, refused)))
        assert calibration.apply([accepted])[0] >= 0.5 > calibration.apply([refused])[0]
        assert Calibration(1, shift_to_half(between(accepted, None))).apply([accepted])[0] >= 0.5
        assert Calibration(1, shift_to_half(between(None, refused))).apply([refused])[0] < 0.5
    assert between(None, None) == 0.5


def test_platt_puts_half_where_both_classes_are_equally_likely():
    generator = np.random.default_rng(0)
    scores = np.concatenate([generator.normal(1, 1, 400), generator.normal(-1, 1, 4000)])
    found = platt(sigmoid(scores - 2), np.arange(4400) < 400, 1e6)
    np.testing.assert_allclose([found.scale, found.shift], [2, 4], atol=0.3)
    with pytest.raises(ValueError, match="scale"):
        platt(sigmoid(-scores), np.arange(4400) < 400)
