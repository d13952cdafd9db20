"""Slide -> candidates -> merged -> classified: everything between an image and its detections (Track 1)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from midog import system as schema
from midog.calibration import logit, sigmoid
from midog.detections import Detections
from midog.engine.boxes import merge_near, nms
from midog.engine.classifier import classify, field_of, load_classifier
from midog.engine.detector import Progress, find_candidates, load_detector, prefetch
from midog.engine.network import Engine
from midog.images.slide import ArraySlide, Slide, at_spacing
from midog.images.stain import stain_normalised

PREFETCHED = 64  # crops
BATCH_SIZE = {"cpu": 32, "cuda": 64}  # crops a forward
FINER = 0.9  # of the detector's um per pixel; a smaller difference is not worth reading the slide twice


def cut_candidate(
    slide: Slide, box: NDArray[np.floating], field_um: float, size: int, margin: float = 1.0
) -> NDArray[np.uint8]:
    """What a classifier sees of a candidate.

    Args:
        slide: `midog.images.slide.Slide`.
        box: float (4,), px of the slide.
        field_um: side of the square around the box's centre; 0 takes the box itself, as the SZTU paper does.
        size: px of the result's side.
        margin: factor of the side, for training, which turns and shifts.

    Returns:
        uint8 (size, size, 3); outside the slide, that is mirrored.
    """
    from PIL import Image

    sides = field_um / np.array(slide.um_per_px) if field_um else np.maximum(box[2:] - box[:2], 1)
    centre = (box[:2] + box[2:]) / 2 + 0.5  # from pixel centres to the pixels' corners, as Pillow counts
    start, stop = centre - margin * sides / 2, centre + margin * sides / 2
    left, top = np.floor(start).astype(int).tolist()
    right, bottom = np.ceil(stop).astype(int).tolist()
    window = slide.read_reflected(left, top, right - left, bottom - top)
    area = (start[0] - left, start[1] - top, stop[0] - left, stop[1] - top)
    return np.asarray(Image.fromarray(window).resize((size, size), Image.Resampling.BILINEAR, box=area))


def with_score(probabilities: NDArray[np.floating], scores: NDArray[np.floating], weight: float) -> NDArray[np.float64]:
    """A classifier's probabilities and a detector's scores as one: logit(p) + weight x logit(score).

    Args:
        probabilities, scores: float (K,), in [0, 1].
        weight: 0 leaves the classifier alone, as the SZTU paper does.

    Returns:
        float64 (K,).
    """
    return sigmoid(logit(probabilities) + weight * logit(scores))


class SystemDetector:
    """A Track 1 system, loaded: `SystemDetector(system, engine)(slide)` for any number of slides.

    Candidates are merged across tiles before they are classified, so that each place is classified once and the
    result does not depend on how a tile cut it; `merge.after_classification` is the SZTU paper's order.

    Args:
        system: `midog.system.System` with a detector.
        engine: that runs its networks.
    """

    def __init__(self, system: schema.System, engine: Engine) -> None:
        assert system.detector is not None
        self.part, self.device = system.detector, engine.device
        self.detector = load_detector(system, engine)
        self.score_weight, self.classifier = 0.0, None
        if system.classifier:
            self.field_um, self.crop_px = field_of(system.classifier)
            self.score_weight = system.classifier.score_weight
            self.classifier = load_classifier(system, engine, self.field_um)

    def warm_up(self) -> None:
        """Run everything once on made pixels: noise, which is searched like tissue, and crops, which it has none of."""
        width, height = self.part.tile
        spacing = self.part.um_per_px / 2
        noise = np.random.default_rng(0).integers(0, 256, (4 * height, 4 * width, 3), np.uint8)
        self(ArraySlide(noise, (spacing, spacing)))
        if self.classifier:
            batch = BATCH_SIZE[self.device]
            crops = np.zeros((batch, self.crop_px, self.crop_px, 3), np.uint8)
            classify(crops, self.classifier, self.device, batch)

    def __call__(self, source: Slide, progress: Progress | None = None, batch: int | None = None) -> Detections:
        """Detect on a slide, resampled where its um per pixel is another; in px of the slide itself, reading order.

        A classifier that sees finer pixels than the detector has its crops from the slide itself.
        """
        part = self.part
        if part.stain_normalisation == "macenko":
            source = stain_normalised(source)
        slide = at_spacing(source, part.um_per_px)
        boxes, scores = find_candidates(slide, self.detector, part.tile, part.overlap, self.device, progress, batch)
        late = part.merge.after_classification
        if not late:
            kept = merge(part.merge, boxes, scores, slide.um_per_px)
            boxes, scores = boxes[kept], scores[kept]
        # Neighbours one after the other, so that the reader has their pixels at hand.
        order = np.lexsort((boxes[:, 0], boxes[:, 1] // part.tile[1]))
        boxes, scores = boxes[order], scores[order]
        found = Detections.of(boxes, scores, slide.um_per_px, slide.origin_mm, scores=scores)
        found = found.on_grid(source.um_per_px, source.origin_mm)
        if self.classifier is None:
            probabilities = part.calibration.apply(scores)
        else:
            finer = sees_finer(part, self.field_um, self.crop_px)
            crops = crops_of(source if finer else slide, found.boxes if finer else boxes, self.field_um, self.crop_px)
            probabilities = with_score(
                classify(crops, self.classifier, self.device, BATCH_SIZE[self.device]), scores, self.score_weight
            )
        if late:
            kept = np.sort(merge(part.merge, boxes, probabilities, slide.um_per_px))
            found, probabilities = found[kept], probabilities[kept]
        return found.with_probabilities(probabilities)


def sees_finer(part: schema.Detector, field_um: float, crop_px: int) -> bool:
    """Whether a classifier sees finer pixels than a detector: then its crops are cut from the slide's own."""
    return 0 < field_um / crop_px < FINER * part.um_per_px


def merge(
    rule: schema.Merge, boxes: NDArray[np.float32], scores: NDArray[np.floating], um_per_px: tuple[float, float]
) -> NDArray[np.int64]:
    """Indices of the candidates of overlapping tiles that stay, one a figure.

    Args:
        rule: `merge` of a system's detector.
        boxes, scores: float (K, 4) px, and (K,).
        um_per_px: of the boxes' slide.
    """
    if rule.iou is not None:
        return nms(boxes, scores, rule.iou)
    assert rule.distance_um is not None
    return merge_near(boxes, scores, rule.distance_um / (sum(um_per_px) / 2))


def crops_of(slide: Slide, boxes: NDArray[np.floating], field_um: float, size: int) -> Iterator[NDArray[np.uint8]]:
    """`cut_candidate` of every box, read ahead."""
    return prefetch((cut_candidate(slide, box, field_um, size) for box in boxes), PREFETCHED)
