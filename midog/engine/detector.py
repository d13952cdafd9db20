"""Tiles -> boxes: networks, several as one, views, and a slide cut into tiles for them.

Every wrapper here is a `Detector`: a callable that takes float32 (N, 3, H, W) RGB in [0, 1] and returns, for each
image, boxes float32 (K, 4) px and scores float32 (K,). `classifier.py` is its like.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from midog import system as schema
from midog.calibration import logit, sigmoid
from midog.engine.boxes import nms, weighted_box_fusion
from midog.engine.dense import MapViews, MeanMap, PlaceDetector
from midog.engine.network import Engine, Network, Stored, in_batches, to_batch
from midog.engine.views import VIEWS, boxes_from_view, dihedral
from midog.images.slide import Slide
from midog.images.tiles import fitted, grid, tiles_with_tissue
from midog.models import DENSE

BATCH_SIZE = {"cpu": 2, "cuda": 16}
# Maps of stride 2 are large: two tiles in one forward take twice the memory, and as long as one after the other.
DENSE_BATCH_SIZE = {"cpu": 1, "cuda": 16}
WEAK_CANDIDATES = 1000  # a tile: bounds the work of a detector that looks from below its threshold on

Found = tuple[NDArray[np.float32], NDArray[np.float32]]
Detector = Callable[[NDArray[np.float32]], list[Found]]
Item = TypeVar("Item")


class Progress(Protocol):
    """Wraps the places of tiles, such as tqdm."""

    def __call__(self, places: NDArray[np.int64], /) -> Iterable[NDArray[np.int64]]: ...


class NetworkDetector:
    """A network that gives boxes and logits of one class, behind its threshold and non-maximum suppression.

    Args:
        network: (N, 3, H, W) in [0, 1] -> boxes (N, 4, P) px, logits (N, 1, P).
        score_threshold: the least score of a candidate.
        nms_iou: of two boxes that overlap more, the one with the higher score stays.
        lists: how many such answers a `FusedDetector` makes the mean of: this one looks from `score_threshold / lists`
            on, because what the others say may lift it, but no further than to the `WEAK_CANDIDATES` best of a tile.
    """

    def __init__(self, network: Network, score_threshold: float, nms_iou: float, lists: int = 1) -> None:
        self.network, self.score_threshold, self.nms_iou, self.lists = network, score_threshold, nms_iou, lists

    def __call__(self, tiles: NDArray[np.float32]) -> list[Found]:
        boxes, logits = self.network(tiles)
        corner = np.array(tiles.shape[:1:-1], np.float32)
        found = []
        for box, score in zip(boxes, sigmoid(logits[:, 0]).astype(np.float32), strict=True):
            likely = score >= self._least(score)
            box, score = box[:, likely].T, score[likely]
            with np.errstate(invalid="ignore"):  # a box without an end has no centre
                centre = (box[:, :2] + box[:, 2:]) / 2
            sure = ((centre >= 0) & (centre < corner)).all(1)  # what lies beyond the tile is no candidate
            box = box.clip(0, np.tile(corner, 2))
            sure &= (box[:, 2:] > box[:, :2]).all(1)  # a side below 0 is no box
            box, score = box[sure], score[sure]
            kept = nms(box, score, self.nms_iou)
            found.append((box[kept], score[kept]))
        return found

    def _least(self, score: NDArray[np.float32]) -> float:
        """The least score of a tile's candidates; of scores float (P,)."""
        least = self.score_threshold / self.lists
        if self.lists > 1 and len(score) > WEAK_CANDIDATES:
            last = float(np.partition(score, -WEAK_CANDIDATES)[-WEAK_CANDIDATES])
            least = max(least, min(last, self.score_threshold))
        return least


class AveragedNetwork:
    """Networks of one architecture as one: the mean of their boxes and of their probabilities, place by place.

    Args:
        networks: (N, 3, H, W) -> boxes (N, 4, P) px, logits (N, classes, P).

    A logit of its answer is that of the mean probability.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = networks

    def __call__(self, tiles: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        boxes, logits = zip(*(network(tiles) for network in self.networks), strict=True)
        probability = np.mean([sigmoid(each) for each in logits], axis=0)
        return np.mean(boxes, axis=0), logit(probability).astype(np.float32)


class FusedDetector:
    """Weighted box fusion of what several detectors find, behind the threshold of the fused score.

    A fused score is the mean over the detectors, so that it means what one detector's means, if each looks from
    `score_threshold` over their number on. What one leaves out counts as 0: the mean is too low by less than that, and
    whatever they accept together, one of them finds.

    Args:
        detectors: callables.
        iou_threshold: boxes that overlap by so much are one figure.
        score_threshold: the least fused score.
    """

    def __init__(self, detectors: Sequence[Detector], iou_threshold: float, score_threshold: float = 0.0) -> None:
        self.detectors, self.iou_threshold, self.score_threshold = detectors, iou_threshold, score_threshold

    def __call__(self, tiles: NDArray[np.float32]) -> list[Found]:
        together = []
        for found in zip(*(detector(tiles) for detector in self.detectors), strict=True):
            boxes, scores = weighted_box_fusion(found, self.iou_threshold)
            sure = scores >= self.score_threshold
            together.append((boxes[sure], scores[sure]))
        return together


class DetectorView:
    """A detector that looks at a dihedral view, and tells where in the image its boxes lie."""

    def __init__(self, detector: Detector, view: int) -> None:
        self.detector, self.view = detector, view

    def __call__(self, tiles: NDArray[np.float32]) -> list[Found]:
        found = self.detector(dihedral(tiles, self.view))
        height, width = tiles.shape[2:]
        return [(boxes_from_view(boxes, self.view, height, width), scores) for boxes, scores in found]


def load_detector(system: schema.System, engine: Engine, score_threshold: float | None = None) -> Detector:
    """A system's detector with all its members and views.

    Args:
        system: with a `detector`.
        engine: that runs it.
        score_threshold: instead of the system's own.

    Raises:
        UserError: as `midog.engine.network.Engine.load`.
    """
    part = system.detector
    assert part is not None
    stored = (
        Stored("detector", part.network, part.options, system.path_of(each), part.precision) for each in part.members
    )
    networks = [engine.load(each) for each in stored]
    return detector_of(networks, part, part.score_threshold if score_threshold is None else score_threshold)


def detector_of(networks: Sequence[Network], part: schema.Detector, score_threshold: float) -> Detector:
    """Networks, as the members of a system's detector, with its views.

    Args:
        networks: at least one, what `part.network` and `part.options` build.
        part: of the system.
        score_threshold: the least score of a candidate.
    """
    if part.network in DENSE:
        network = MeanMap(networks) if len(networks) > 1 else networks[0]
        network = MapViews(network, part.views) if part.views > 1 else network
        return PlaceDetector(network, score_threshold, part.box_um / part.um_per_px)
    if part.fusion == "average" and len(networks) > 1:
        networks = [AveragedNetwork(networks)]
    lists = part.views * len(networks)
    detectors = [NetworkDetector(each, score_threshold, part.nms_iou, lists) for each in networks]
    if lists == 1:
        return detectors[0]
    # One view after the other: a batch of them all takes as many times the memory, and no less time on a CPU.
    views = [DetectorView(detector, view) for view in VIEWS[part.views] for detector in detectors]
    return FusedDetector(views, part.nms_iou, score_threshold)


def prefetch(items: Iterable[Item], count: int) -> Iterator[Item]:
    """Iterate in a thread of its own, at most `count` items ahead, so that reading runs beside the network."""
    waiting: queue.Queue[object] = queue.Queue(count)
    stop = threading.Event()
    end = object()

    def work() -> None:
        try:
            for item in items:
                waiting.put(item)
                if stop.is_set():
                    return
            waiting.put(end)
        except BaseException as error:  # raised again where the items are used
            waiting.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=0.05)


def find_candidates(
    slide: Slide,
    detector: Detector,
    tile: tuple[int, int],
    overlap: float,
    device: str,
    progress: Progress | None = None,
    batch: int | None = None,
) -> Found:
    """Run a detector over a slide.

    Args:
        slide: at the um per pixel that the detector was trained at.
        detector: see this module.
        tile, overlap: (width, height) px, and fraction of the tile's sides.
        device: "cpu" or "cuda", where the detector runs.
        progress: wraps the places (tqdm).
        batch: tiles a forward; by the kinds of device and detector if not given.

    Returns:
        boxes float32 (K, 4) in px of the slide, scores float32 (K,): of all tiles, not yet merged.

    Raises:
        UserError: the slide's pixels cannot be decoded; memory runs out for a single tile.
    """
    usual = DENSE_BATCH_SIZE if isinstance(detector, PlaceDetector) else BATCH_SIZE
    batch = batch or usual[device]
    boxes, scores = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)]

    def forward(block: list[tuple[tuple[int, int], NDArray[np.uint8]]]) -> Iterable[tuple[tuple[int, int], Found]]:
        found = detector(to_batch([pixels for _, pixels in block]))
        return zip([place for place, _ in block], found, strict=True)

    tile = fitted(slide.size, tile, overlap)
    places = grid(*slide.size, tile, overlap)
    tiles = prefetch(tiles_with_tissue(slide, progress(places) if progress else places, tile), 2 * batch)
    for (x, y), (box, score) in in_batches(tiles, forward, batch, "tiles"):
        box = box + np.array([x, y, x, y], np.float32)
        centres = (box[:, :2] + box[:, 2:]) / 2
        inside = ((centres >= 0) & (centres < slide.size)).all(1)  # and not in what is mirrored around a small image
        boxes.append(box[inside])
        scores.append(score[inside])
    return np.concatenate(boxes), np.concatenate(scores)
