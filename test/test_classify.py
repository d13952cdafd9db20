import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midog.calibration import Calibration
from midog.engine.classifier import (
    Calibrated,
    Ensemble,
    NetworkClassifier,
    Views,
    ViewsOfLikely,
    centre_crop,
    classify,
)
from midog.engine.torch_engine import Normalised, TorchNetwork, choose_device, load_network
from midog.engine.views import dihedral
from midog.errors import UserError
from midog.models import CLASSIFIERS
from midog.models.classifiers import ConvNeXtV2

CPU = torch.device("cpu")


def brightness(crops):
    """A classifier that looks at one corner only, so that views differ."""
    return crops[:, :, :8, :8].mean((1, 2, 3))


def small_network():
    torch.manual_seed(0)
    network = ConvNeXtV2((16, 32), (1, 1), "early")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    return network


def test_60_percent_of_128_px_are_the_central_77():
    crops = np.zeros((1, 3, 128, 128), np.float32)
    crops[:, :, 25:102, 25:102] = 1
    assert centre_crop(crops, 0.6, 77).min() == 1
    crops[:, :, 25:102, 25:102] = 0
    assert centre_crop(1 - crops, 0.6, 64).min() == 1
    assert centre_crop(crops, 1.0, 128).shape == (1, 3, 128, 128)


def test_the_eight_views_are_all_different_and_any_turn_gives_the_same_mean():
    crop = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    views = [dihedral(crop, view) for view in range(8)]
    assert len({view.tobytes() for view in views}) == 8
    means = np.concatenate([Views(brightness, 8)(view) for view in views])
    np.testing.assert_allclose(means, means[0], rtol=1e-6)


def test_only_likely_crops_get_more_views():
    """Told from each other by one corner, whose value is the first view's answer."""
    seen = []

    def corner(crops):
        seen.append(len(crops))
        return crops[:, 0, 0, 0].copy()

    crops = np.zeros((3, 3, 2, 2), np.float32)
    crops[:, 0] = [[[0.8, 0.4], [0.2, 0.6]], [[0.1, 0.9], [0.9, 0.9]], [[0.3, 0.1], [0.2, 0.2]]]
    found = ViewsOfLikely(corner, 4, 0.3)(crops)
    np.testing.assert_allclose(found, [0.5, 0.1, 0.2], rtol=1e-6)
    assert seen == [3, 3, 3]
    np.testing.assert_allclose(ViewsOfLikely(corner, 4, 0.0)(crops), Views(corner, 4)(crops), rtol=1e-6)


def test_ensemble_and_calibration_by_hand():
    half = Ensemble([lambda x: np.array([0.2, 0.9]), lambda x: np.array([0.4, 0.7])])
    np.testing.assert_allclose(half(None), [0.3, 0.8])
    # logit(.2) = -1.3863, doubled and shifted by its negative: the operating point
    shifted = Calibrated(lambda x: np.array([0.2]), Calibration(2.0, 2 * 1.3862944))
    np.testing.assert_allclose(shifted(None), [0.5], rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(pages=st.integers(0, 9), batch=st.integers(1, 10))
def test_the_batch_does_not_change_the_result(pages, batch):
    images = np.random.default_rng(0).integers(0, 256, (pages, 16, 16, 3), np.uint8)
    whole = classify(iter(images), brightness, "cpu", batch=64)
    np.testing.assert_array_equal(classify(iter(images), brightness, "cpu", batch=batch), whole)
    assert whole.shape == (pages,)


def test_a_network_gives_the_same_for_batch_1_and_16(pages):
    network = TorchNetwork(Normalised(small_network()), CPU, "float32")
    classifier = Views(NetworkClassifier(network, 0.6, 64), 8)
    pages = np.concatenate([pages] * 4)[:16]
    one, many = (classify(iter(pages), classifier, "cpu", batch=batch) for batch in (1, 16))
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert np.ptp(one) > 1e-4


def test_when_memory_runs_out_the_batch_is_halved_and_nothing_lost(caplog):
    def hungry(crops):
        if len(crops) > 3:
            raise MemoryError
        return brightness(crops)

    images = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)
    got = classify(iter(images), hungry, "cpu", batch=16)
    np.testing.assert_array_equal(got, classify(iter(images), brightness, "cpu"))
    assert [line.split()[-2] for line in caplog.messages] == ["8", "4", "2"]


def test_any_other_error_is_not_swallowed():
    def broken(crops):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        classify(iter(np.zeros((1, 8, 8, 3), np.uint8)), broken, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent():
    with pytest.raises(UserError, match="--device cpu"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_buffers_that_no_file_holds_are_computed(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    class Shifted(torch.nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            self.register_buffer("shift", torch.ones(1) * 5, persistent=False)

    monkeypatch.setitem(CLASSIFIERS, "shifted", Shifted)
    save_file({"weight": torch.ones(1, 1), "bias": torch.zeros(1)}, tmp_path / "w.safetensors")
    network = load_network(CLASSIFIERS, "shifted", {}, tmp_path / "w.safetensors")
    assert (network.shift.item(), network.weight.item()) == (5, 1)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "fold0.safetensors"
    options = {"widths": [16, 32], "depths": [1, 1], "stem": "early"}
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in small_network().state_dict().items()
    }
    save_file(state, path)
    assert load_network(CLASSIFIERS, "convnextv2", options, path)(torch.zeros(1, 3, 64, 64)).dtype == torch.float32
    for network, changed, said in (
        ("convnextv2", options | {"widths": [16, 64]}, "not the weights of"),
        ("convnextv2", options | {"colour": "red"}, "refuses its options"),
        ("resnet", options, "unknown"),
    ):
        with pytest.raises(UserError, match=said):
            load_network(CLASSIFIERS, network, changed, path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="not the weights of"):
        load_network(CLASSIFIERS, "convnextv2", options, path)
