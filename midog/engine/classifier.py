"""Crops -> probabilities: members, views, calibration and their mean, in bounded batches.

Every wrapper here is a `Classifier`: a callable that takes float32 (N, 3, H, W) RGB in [0, 1] and returns float64 (N,),
the probability of the positive class. `detector.py` is its like.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog import system as schema
from midog.calibration import Calibration, sigmoid
from midog.engine.network import Engine, Network, Stored, in_batches, to_batch
from midog.engine.views import VIEWS, dihedral
from midog.models import classifier_options

BATCH_SIZE = {"cpu": 8, "cuda": 64}  # in four views, what a CPU runs as fast as any larger number

Classifier = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def centre_crop(crops: NDArray[np.float32], fraction: float, size: int) -> NDArray[np.float32]:
    """Keep the central fraction of the side and scale it bilinearly to the network's input.

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
    for axis in (2, 3):
        if kept.shape[axis] != size:
            kept = _scaled(kept, axis, size)
    return kept


def _scaled(images: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """Scale an axis of images linearly, pixels' corners on pixels' corners, as PyTorch does without `align_corners`."""
    last = images.shape[axis] - 1
    places = ((np.arange(size) + 0.5) * (last + 1) / size - 0.5).clip(0, last)
    lower = places.astype(int)
    weight = np.expand_dims((places - lower).astype(np.float32), tuple(range(1, images.ndim - axis)))
    return images.take(lower, axis) * (1 - weight) + images.take(np.minimum(lower + 1, last), axis) * weight


class NetworkClassifier:
    """A network whose first logit counts, behind its centre crop.

    Args:
        network: (N, 3, size, size) in [0, 1] -> (N, 1 or more) logits.
        fraction: of the crop's side that it sees.
        size: px.
    """

    def __init__(self, network: Network, fraction: float, size: int) -> None:
        self.network, self.fraction, self.size = network, fraction, size

    def __call__(self, crops: NDArray[np.float32]) -> NDArray[np.float64]:
        (logits,) = self.network(centre_crop(crops, self.fraction, self.size))
        return sigmoid(logits[:, 0])


class Views:
    """The mean over dihedral views, in one forward."""

    def __init__(self, classifier: Classifier, count: int) -> None:
        self.classifier, self.views = classifier, VIEWS[count]

    def __call__(self, crops: NDArray[np.float32]) -> NDArray[np.float64]:
        probability = self.classifier(np.concatenate([dihedral(crops, view) for view in self.views]))
        return probability.reshape(len(self.views), -1).mean(0)


class ViewsOfLikely(Views):
    """As `Views` for crops that the first view finds likely; the others, most candidates of a slide, keep that one.

    Args:
        classifier, count: as `Views`.
        least: probability.
    """

    def __init__(self, classifier: Classifier, count: int, least: float) -> None:
        super().__init__(classifier, count)
        self.least = least

    def __call__(self, crops: NDArray[np.float32]) -> NDArray[np.float64]:
        probability = self.classifier(crops)
        likely = probability >= self.least
        if likely.any():
            others = np.concatenate([dihedral(crops[likely], view) for view in self.views[1:]])
            starts = range(0, len(others), len(crops))  # no larger a forward
            answers = np.concatenate([self.classifier(others[start : start + len(crops)]) for start in starts])
            total = probability[likely] + answers.reshape(len(self.views) - 1, -1).sum(0)
            probability[likely] = total / len(self.views)
        return probability


class Calibrated:
    """A classifier behind its calibration."""

    def __init__(self, classifier: Classifier, calibration: Calibration) -> None:
        self.classifier, self.calibration = classifier, calibration

    def __call__(self, crops: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.calibration.apply(self.classifier(crops))


class Ensemble:
    """The mean of the members' probabilities (arXiv 2508.18831, "Inference Strategy")."""

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        self.classifiers = classifiers

    def __call__(self, crops: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(np.mean([classifier(crops) for classifier in self.classifiers], axis=0))


def field_of(part: schema.Classifier) -> tuple[float, int]:
    """The field (um; 0 is the candidate's box) and the side (px) of the crop that holds what every member sees."""
    fields = [part.field_um if member.field_um is None else member.field_um for member in part.members]
    sides = [part.input_px if member.input_px is None else member.input_px for member in part.members]
    widest = max(fields)
    finest = max(side * (widest / field if field else 1) for side, field in zip(sides, fields, strict=True))
    return widest, round(finest)


def load_classifier(system: schema.System, engine: Engine, field_um: float) -> Classifier:
    """A system's classifier with all its members, views and calibrations.

    Args:
        system: with a `classifier`.
        engine: that runs it.
        field_um: side of the crops that it will be given, of which members see their own field; 0: all of them.

    Raises:
        UserError: as `midog.engine.network.Engine.load`.
    """
    part = system.classifier
    assert part is not None
    classifiers: list[Classifier] = []
    for member in part.members:
        seen = part.field_um if member.field_um is None else member.field_um
        size = part.input_px if member.input_px is None else member.input_px
        network = engine.load(stored_network(part, member, system.path_of(member)))
        one = NetworkClassifier(network, seen / field_um if field_um else 1.0, size)
        classifiers.append(Calibrated(in_views(one, part), member.calibration))
    ensemble = Ensemble(classifiers)
    return ensemble if part.calibration.is_identity else Calibrated(ensemble, part.calibration)


def stored_network(part: schema.Classifier, member: schema.ClassifierWeights, path: Path) -> Stored:
    """A member's network, and where its weights lie."""
    size = part.input_px if member.input_px is None else member.input_px
    name = member.network or part.network
    options = classifier_options(name, part.options if member.options is None else member.options, size)
    return Stored("classifier", name, options, path, part.precision)


def in_views(classifier: Classifier, part: schema.Classifier) -> Classifier:
    """A classifier in the views that a system asks for."""
    if part.views == 1:
        return classifier
    return ViewsOfLikely(classifier, part.views, part.views_from) if part.views_from else Views(classifier, part.views)


def classify(
    crops: Iterable[NDArray[np.uint8]], classifier: Classifier, device: str, batch: int | None = None
) -> NDArray[np.float32]:
    """P(positive) of every crop, in order, with memory bounded by the batch.

    Args:
        crops: uint8 (H, W, 3), all of one size.
        classifier: see this module.
        device: "cpu" or "cuda", where it runs.
        batch: crops a forward; by the device if not given.

    Returns:
        float32 (crops,).
    """

    def forward(block: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        return classifier(to_batch(block))

    return np.fromiter(in_batches(crops, forward, batch or BATCH_SIZE[device], "crops"), np.float32)
