"""Crops -> probabilities: members, views, calibration and their mean, in bounded batches.

Every wrapper here is a `Classifier`: a callable that takes float32 (N, 3, H, W) RGB in [0, 1] and returns float32 (N,),
the probability of the positive class. `detector.py` is its like.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from midog import system as schema
from midog.calibration import LOGIT_LIMIT, Calibration
from midog.engine.views import VIEWS, dihedral
from midog.engine.weights import autocast, fold_batch_norms, in_batches, load_network, to_tensor
from midog.models import CLASSIFIERS, classifier_options, normalisation

BATCH_SIZE = {"cpu": 4, "cuda": 64}  # what stays in a processor's cache runs 2.6 times as fast there as 64 crops

Classifier = Callable[[torch.Tensor], torch.Tensor]


def normalise(crops: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A network's statistics, float (N, 3, H, W) in [0, 1] -> the same, channels_last."""
    shift, scale = (crops.new_tensor(each)[:, None, None] for each in (mean, std))
    return ((crops - shift) / scale).contiguous(memory_format=torch.channels_last)


def centre_crop(crops: torch.Tensor, fraction: float, size: int) -> torch.Tensor:
    """Keep the central fraction of the side and scale it to the network's input.

    Args:
        crops: float (N, 3, H, W).
        fraction: of the side, in (0, 1]; .6 makes 77 of 128 px (arXiv 2508.18831, "Dataset and Preprocessing").
        size: px.

    Returns:
        float (N, 3, size, size).
    """
    height, width = crops.shape[2:]
    kept_y, kept_x = round(height * fraction), round(width * fraction)
    top, left = (height - kept_y) // 2, (width - kept_x) // 2
    kept = crops[:, :, top : top + kept_y, left : left + kept_x]
    return F.interpolate(kept, size=(size, size), mode="bilinear", align_corners=False)


class NetworkClassifier:
    """A network whose first logit counts, behind its centre crop and normalisation.

    Args:
        network: module, (N, 3, size, size) -> (N, 1 or more) logits.
        fraction: of the crop's side that it sees.
        size: px.
        precision: as `midog.engine.weights.autocast`.
    """

    def __init__(self, network: nn.Module, fraction: float, size: int, precision: str = "auto") -> None:
        self.network, self.fraction, self.size, self.precision = network.eval(), fraction, size, precision
        self.mean, self.std = normalisation(network)

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        with autocast(crops.device, self.precision):
            logits = self.network(normalise(centre_crop(crops, self.fraction, self.size), self.mean, self.std))
        return torch.sigmoid(logits[:, 0].float())


class Views:
    """The mean over dihedral views, in one forward."""

    def __init__(self, classifier: Classifier, count: int) -> None:
        self.classifier, self.views = classifier, VIEWS[count]

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        probability = self.classifier(torch.cat([dihedral(crops, view) for view in self.views]))
        return probability.view(len(self.views), -1).mean(0)


class ViewsOfLikely(Views):
    """As `Views` for crops that the first view finds likely; the others, most candidates of a slide, keep that one.

    Args:
        classifier, count: as `Views`.
        least: probability.
    """

    def __init__(self, classifier: Classifier, count: int, least: float) -> None:
        super().__init__(classifier, count)
        self.least = least

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        probability = self.classifier(crops)
        likely = probability >= self.least
        if likely.any():
            others = torch.cat([dihedral(crops[likely], view) for view in self.views[1:]])
            answers = torch.cat([self.classifier(part) for part in others.split(len(crops))])  # no larger a forward
            total = probability[likely] + answers.view(len(self.views) - 1, -1).sum(0)
            probability[likely] = total / len(self.views)
        return probability


class Calibrated:
    """sigmoid(scale x logit(p) + shift)."""

    def __init__(self, classifier: Classifier, calibration: Calibration) -> None:
        self.classifier, self.calibration = classifier, calibration

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        logit = torch.logit(self.classifier(crops), eps=LOGIT_LIMIT)
        return torch.sigmoid(self.calibration.scale * logit + self.calibration.shift)


class Ensemble:
    """The mean of the members' probabilities (arXiv 2508.18831, "Inference Strategy")."""

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        self.classifiers = classifiers

    def __call__(self, crops: torch.Tensor) -> torch.Tensor:
        return torch.stack([classifier(crops) for classifier in self.classifiers]).mean(0)


def field_of(part: schema.Classifier) -> tuple[float, int]:
    """The field (um; 0 is the candidate's box) and the side (px) of the crop that holds what every member sees."""
    fields = [part.field_um if member.field_um is None else member.field_um for member in part.members]
    sides = [part.input_px if member.input_px is None else member.input_px for member in part.members]
    widest = max(fields)
    finest = max(side * (widest / field if field else 1) for side, field in zip(sides, fields, strict=True))
    return widest, round(finest)


def load_classifier(system: schema.System, device: torch.device, field_um: float) -> Classifier:
    """A system's classifier with all its members, views and calibrations, on a device.

    Args:
        system: with a `classifier`.
        device: torch.device.
        field_um: side of the crops that it will be given, of which members see their own field; 0: all of them.

    Raises:
        UserError: as `midog.engine.weights.load_network`.
    """
    part = system.classifier
    assert part is not None
    classifiers: list[Classifier] = []
    for member in part.members:
        seen = part.field_um if member.field_um is None else member.field_um
        size = part.input_px if member.input_px is None else member.input_px
        name = member.network or part.network
        options = classifier_options(name, part.options if member.options is None else member.options, size)
        network = fold_batch_norms(load_network(CLASSIFIERS, name, options, system.path_of(member)))
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        one = NetworkClassifier(network, seen / field_um if field_um else 1.0, size, part.precision)
        classifiers.append(Calibrated(in_views(one, part), member.calibration))
    ensemble = Ensemble(classifiers)
    return ensemble if part.calibration.is_identity else Calibrated(ensemble, part.calibration)


def in_views(classifier: Classifier, part: schema.Classifier) -> Classifier:
    """A classifier in the views that a system asks for."""
    if part.views == 1:
        return classifier
    return ViewsOfLikely(classifier, part.views, part.views_from) if part.views_from else Views(classifier, part.views)


@torch.inference_mode()
def classify(
    crops: Iterable[NDArray[np.uint8]], classifier: Classifier, device: torch.device, batch: int | None = None
) -> NDArray[np.float32]:
    """P(positive) of every crop, in order, with memory bounded by the batch.

    Args:
        crops: uint8 (H, W, 3), all of one size.
        classifier: see this module.
        device: where the forward runs.
        batch: crops a forward; by the kind of device if not given.

    Returns:
        float32 (crops,).
    """

    def forward(block: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.asarray(classifier(to_tensor(block, device)).cpu().numpy())

    return np.fromiter(in_batches(crops, forward, batch or BATCH_SIZE[device.type], "crops"), np.float32)
