"""Networks only: one file a paper, plain PyTorch; and one registry a kind, from which a name builds a network.

An entry is "module:attribute" or what builds the network itself; a module is imported when its network is wanted.
"""

import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Registry = Mapping[str, "str | Callable[..., nn.Module]"]
Colour = tuple[float, float, float]  # red, green, blue

DETECTORS: dict[str, "str | Callable[..., nn.Module]"] = {
    "yolo11": "midog.models.yolo11:YOLO11",
    "rtmdet": "midog.models.rtmdet:RTMDet",
    "focasnet": "midog.models.focasnet:FoCasNet",
    "centernet": "midog.models.centernet:CenterNet",
    "torchvision_detector": "midog.models.torchvision_detectors:torchvision_detector",
}
DENSE = {"centernet"}  # detectors that give a map, with its `stride`; the others give boxes
CLASSIFIERS: dict[str, "str | Callable[..., nn.Module]"] = {
    "convnextv2": "midog.models.classifiers:ConvNeXtV2",
    "efficientnet_lite": "midog.models.efficientnet_lite:EfficientNetLite",
    "timm": "midog.models.classifiers:timm_classifier",
}

IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


def build(registry: Registry, name: str, options: Mapping[str, Any]) -> "nn.Module":
    """Build a network without trained weights.

    Args:
        registry: `DETECTORS` or `CLASSIFIERS`.
        name: a key of it.
        options: keyword arguments of the network.

    Raises:
        ValueError: unknown name, or a value that the network refuses.
        TypeError: an option that the network does not have.
    """
    if name not in registry:
        raise ValueError(f"network {name!r} is not one of {', '.join(registry)}")
    entry = registry[name]
    make = pkgutil.resolve_name(entry) if isinstance(entry, str) else entry
    return make(**options)


def classifier_options(name: str, options: Mapping[str, Any], input_px: int) -> dict[str, Any]:
    """A classifier's options for crops of `input_px` a side: some networks of timm are made for one size."""
    return {"img_size": input_px, **options} if name == "timm" else dict(options)


def normalisation(network: "nn.Module") -> tuple[Colour, Colour]:
    """Mean and standard deviation, of RGB in [0, 1], that a classifier's input is normalised by.

    Some networks here tell theirs, as `mean` and `std`; timm's know those of their weights; ImageNet's for every other.
    """
    if hasattr(network, "mean"):
        return network.mean, network.std  # type: ignore[return-value]
    if not hasattr(network, "pretrained_cfg"):
        return IMAGENET_MEAN, IMAGENET_STD
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    return tuple(config["mean"]), tuple(config["std"])
