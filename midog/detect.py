"""Slide -> candidates -> merged -> classified: everything between an image and its detections (Track 1).

A detector is a callable that takes float32 (N, 3, H, W) RGB in [0, 1] and
returns, for each image, boxes float32 (K, 4) px and scores float32 (K,) as
numpy arrays. A classifier is one of `midog.classify`.
"""

import contextlib
import queue
import threading

import numpy as np
import torch
from PIL import Image

from midog import job
from midog.boxes import merge_near, nms
from midog.classify import Calibrated, choose_device, classify, half_precision, load_classifier, load_network
from midog.ensemble import AveragedNetwork, DetectorViews, FusedDetector
from midog.models.focasnet import FoCasNet
from midog.models.fold import fold_batch_norms
from midog.models.rtmdet import RTMDet
from midog.models.yolo11 import YOLO11
from midog.slide import at_spacing, open_slide
from midog.tiles import grid, has_tissue, read_tile

NETWORKS = {"yolo11": YOLO11, "rtmdet": RTMDet, "focasnet": FoCasNet}
TILES_A_FORWARD = {"cpu": 2, "cuda": 16}
CANDIDATE = np.dtype([("box", np.float32, 4), ("score", np.float32), ("probability", np.float32)])
WHITE = 255


class NetworkDetector:
    """A network that gives boxes and logits of one class, behind its threshold and non-maximum suppression.

    Args:
        network: module, (N, 3, H, W) in [0, 1] -> boxes (N, 4, P) px, logits (N, 1, P).
        confidence: the least score of a candidate.
        nms_iou: of two boxes that overlap more, the one with the higher score stays.
    """

    def __init__(self, network, confidence, nms_iou):
        self.network, self.confidence, self.nms_iou = network.eval(), confidence, nms_iou

    def __call__(self, tiles):
        with half_precision(tiles.device):
            boxes, logits = self.network(tiles.contiguous(memory_format=torch.channels_last))
        found = []
        for box, score in zip(boxes.float(), torch.sigmoid(logits[:, 0].float()), strict=True):
            sure = (score >= self.confidence) & (box[2:] > box[:2]).all(0)  # a side below 0 is no box
            box, score = box[:, sure].T.cpu().numpy(), score[sure].cpu().numpy()
            kept = nms(box, score, self.nms_iou)
            found.append((box[kept], score[kept]))
        return found


def load_detector(system, device, confidence=None):
    """A `midog.system.System` -> the detector of all its members and views on a device.

    Args:
        system: with a `detector`.
        device: torch.device.
        confidence: instead of the system's own.

    Raises:
        UserError: as `midog.classify.load_network`.
    """
    part = system.detector
    confidence = part.confidence if confidence is None else confidence
    networks = []
    for member in part.members:
        network = load_network(part.network, part.options, system.folder / member.weights, NETWORKS)
        networks.append(fold_batch_norms(network).to(device, memory_format=torch.channels_last))
    if part.fusion == "average" and len(networks) > 1:
        networks = [AveragedNetwork(networks)]
    detectors = [NetworkDetector(network, confidence, part.nms_iou) for network in networks]
    detector = FusedDetector(detectors, part.nms_iou) if len(detectors) > 1 else detectors[0]
    return DetectorViews(detector, part.views, part.nms_iou) if part.views > 1 else detector


def tiles_with_tissue(slide, places, tile):
    """Read the tiles at `places` and yield (place, uint8 (tile, tile, 3)) of those that hold tissue."""
    for x, y in places:
        pixels = read_tile(slide, int(x), int(y), tile)
        if has_tissue(pixels):
            yield (x, y), pixels


def ahead(items, count):
    """Iterate in a thread of its own, at most `count` items ahead, so that reading runs beside the network."""
    waiting, stop = queue.Queue(count), threading.Event()
    end = object()

    def work():
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
            yield item
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                waiting.get(timeout=0.05)


@torch.inference_mode()
def find_candidates(slide, detector, tile, overlap, device, progress=lambda places: places, batch=None):
    """Run a detector over a slide.

    Args:
        slide: with `size` and `read`, see `midog.slide`.
        detector: see this module.
        tile, overlap: px, and share of the tile's side.
        device: torch.device.
        progress: wraps the places (tqdm).
        batch: tiles a forward; by the kind of device if not given.

    Returns:
        boxes float32 (K, 4) in px of the slide, scores float32 (K,): of all tiles, not yet merged.
    """
    batch = batch or TILES_A_FORWARD[device.type]
    width, height = slide.size
    places = progress(grid(width, height, tile, overlap))
    boxes, scores, block = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.float32)], []

    def run():
        pixels = torch.from_numpy(np.stack([pixels for _, pixels in block])).to(device)
        for ((x, y), _), (box, score) in zip(block, detector(pixels.permute(0, 3, 1, 2).float() / 255), strict=True):
            box = box + np.array([x, y, x, y], np.float32)
            centres = (box[:, :2] + box[:, 2:]) / 2
            inside = ((centres >= 0) & (centres < slide.size)).all(1)  # and not in the white around a small image
            boxes.append(box[inside])
            scores.append(score[inside])
        block.clear()

    for item in ahead(tiles_with_tissue(slide, places, tile), 2 * batch):
        block.append(item)
        if len(block) == batch:
            run()
    if block:
        run()
    return np.concatenate(boxes), np.concatenate(scores)


def cut_candidate(slide, box, context_um, size, margin=1.0):
    """What a classifier sees of a candidate.

    Args:
        slide: see `midog.slide`.
        box: float (4,), px of the slide.
        context_um: side of the square around the box's centre; 0 takes the box itself, as the paper does.
        size: px of the result's side.
        margin: factor of the side, for training, which turns and shifts.

    Returns:
        uint8 (size, size, 3); white outside the slide.
    """
    sides = context_um / np.array(slide.um_per_px) if context_um else np.maximum(box[2:] - box[:2], 1)
    centre = (box[:2] + box[2:]) / 2 + 0.5  # from pixel centres to the pixels' corners, as Pillow counts
    start, stop = centre - margin * sides / 2, centre + margin * sides / 2
    left, top = np.floor(start).astype(int)
    right, bottom = np.ceil(stop).astype(int)
    window = np.full((bottom - top, right - left, 3), WHITE, np.uint8)
    width, height = slide.size
    inside_left, inside_top = max(left, 0), max(top, 0)
    inside_right, inside_bottom = min(right, width), min(bottom, height)
    if inside_right > inside_left and inside_bottom > inside_top:
        window[inside_top - top : inside_bottom - top, inside_left - left : inside_right - left] = slide.read(
            inside_left, inside_top, inside_right - inside_left, inside_bottom - inside_top
        )
    area = (start[0] - left, start[1] - top, stop[0] - left, stop[1] - top)
    return np.asarray(Image.fromarray(window).resize((size, size), Image.Resampling.BILINEAR, box=area))


def with_score(probabilities, scores, weight):
    """A classifier's probabilities and a detector's scores as one: logit(p) + weight x logit(score).

    Args:
        probabilities, scores: float32 (K,), in [0, 1].
        weight: 0 leaves the classifier alone, as the paper does.

    Returns:
        float32 (K,).
    """
    classifier, detector = (torch.logit(torch.from_numpy(each), eps=1e-6) for each in (probabilities, scores))
    return torch.sigmoid(classifier + weight * detector).numpy()


class SystemDetector:
    """A `midog.system.System` for Track 1 on a device: `SystemDetector(system, device)(slide)`.

    Candidates are merged across tiles before they are classified, so that each place is classified once and the
    result does not depend on how a tile cut it. (The paper classifies first; see the README for the difference.)
    """

    def __init__(self, system, device, warn):
        self.part, self.device, self.warn = system.detector, device, warn
        self.detector = load_detector(system, device)
        self.classifier = load_classifier(system, device) if system.members else None
        self.crop_size = max((member.size for member in system.members), default=0)

    def __call__(self, slide, progress=lambda places: places, batch=None):
        """Detect on a slide whose spacing is the system's; `CANDIDATE` table (K,), in reading order."""
        part = self.part
        boxes, scores = find_candidates(slide, self.detector, part.tile, part.overlap, self.device, progress, batch)
        um_per_px = sum(slide.um_per_px) / 2
        if part.merge_um:
            kept = merge_near(boxes, scores, part.merge_um / um_per_px)
        else:
            kept = nms(boxes, scores, part.merge_iou)
        found = np.zeros(len(kept), CANDIDATE)
        found["box"], found["score"] = boxes[kept], scores[kept]
        # Neighbours one after the other, so that the reader has their pixels at hand.
        found = found[np.lexsort((found["box"][:, 0], found["box"][:, 1] // part.tile))]
        found["probability"] = self._probabilities(slide, found)
        return found

    def _probabilities(self, slide, found):
        if self.classifier is None:
            calibrated = Calibrated(torch.nn.Identity(), self.part.calibration.scale, self.part.calibration.shift)
            return calibrated(torch.from_numpy(found["score"])).numpy()
        crops = (cut_candidate(slide, box, self.part.context_um, self.crop_size) for box in found["box"])
        probabilities = classify(ahead(crops, 64), self.classifier, self.device, self.warn)
        return with_score(probabilities, found["score"], self.part.score_weight)


def detect_file(path, system, device_name, um_per_px, warn, log, progress=lambda places: places):
    """Detections of an image on disk.

    Args:
        path: as `midog.slide.open_slide` reads it.
        system: `midog.system.System` for Track 1.
        device_name: "auto", "cpu" or "cuda".
        um_per_px: the image's spacing where its own is not to be trusted, or None.
        warn, log: called with one line each.
        progress: wraps the tiles' places (tqdm).

    Returns:
        points float64 (K, 2) in mm, `CANDIDATE` table (K,) in px of the slide as it was read.

    Raises:
        UserError: the image cannot be read.
    """
    part = system.detector
    with open_slide(path, warn, um_per_px, part.um_per_px) as source:
        slide = at_spacing(source, part.um_per_px)
        device = choose_device(device_name)
        log("device {}, size {} x {} px, um/px {:.4g} x {:.4g}".format(device, *slide.size, *slide.um_per_px))
        found = SystemDetector(system, device, warn)(slide, progress)
        centres = (found["box"][:, :2] + found["box"][:, 2:]) / 2
        points = slide.points_mm(centres)
    log(f"candidates {len(found)}, mitotic figures {(found['probability'] >= 0.5).sum()}")
    return points, found


def find_figures(path, system, device_name, um_per_px, warn, log, progress=lambda places: places):
    """As `detect_file`, but its answer is the checked result; one warning line if the challenge would refuse it.

    Returns:
        The dict that `midog.job.detection_result` makes: every candidate, a mitotic figure from .5 on.
    """
    points, found = detect_file(path, system, device_name, um_per_px, warn, log, progress)
    result = job.detection_result(points, found["probability"], found["probability"] >= 0.5)
    job.check_detection_result(result)
    if warning := job.detection_warning(result):
        warn(f"{path}: {warning}")
    return result
