"""Both tracks, loaded once and called for any number of images; what inference.py, predict, report and Python use."""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog import job
from midog.detections import Detections
from midog.errors import UserError, not_installed
from midog.images.folder import open_stack
from midog.images.resolution import ASSUMED_UM_PER_PX
from midog.images.slide import ArraySlide, Slide, open_slide
from midog.images.stack import CROP_SIDE, CROP_UM_PER_PX, Crops, Stack
from midog.system import CROP_UM, Precision, System, find_folder, load_system, model_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from midog.engine.classifier import Classifier
    from midog.engine.detector import Progress
    from midog.engine.network import Engine
    from midog.engine.two_stages import SystemDetector

MOST_PAGES = 16  # of a stack of MIDOG 2025
LEAST_CROPS = 20  # of a class: of fewer, one more or less that is told right decides what a domain's errors are

logger = logging.getLogger(__name__)


class _Loaded:
    """A system on a device. Its networks are loaded when the first image needs them, and kept.

    Args:
        system: `midog.system.System` with its weights, for the track.
        device: "auto", "cpu" or "cuda".
    """

    def __init__(self, system: System, device: str = "auto") -> None:
        self.system, self._device_name = system, device

    @cached_property
    def engine(self) -> "Engine":
        """What runs the networks, and where."""
        from midog.engine.weights import engine_for

        try:
            return engine_for(self.system, self._device_name)
        except ModuleNotFoundError as error:
            raise not_installed(error) from None

    @property
    def runs_on(self) -> str:
        """Device, engine and precision, for a log."""
        part = self.system.detector or self.system.classifier
        assert part is not None
        return f"{self.engine.device} ({self.engine.name}, {self.engine.type_of(part.precision)})"


class Track1(_Loaded):
    """A system that finds mitotic figures."""

    @cached_property
    def _detector(self) -> "SystemDetector":
        engine = self.engine
        from midog.engine.two_stages import SystemDetector

        return SystemDetector(self.system, engine)

    def predict(
        self,
        image: "str | Path | NDArray[np.uint8] | Image",
        mpp: float | None = None,
        progress: "Progress | None" = None,
    ) -> Detections:
        """Find the mitotic figures of an image.

        Args:
            image: path of any file that `midog.images.slide.open_slide` reads, uint8 (H, W, 3) RGB, or a PIL image.
            mpp: um per pixel of both axes, whatever a file says; without it, pixels that are in no file are taken to
                have those of the challenge's images, with a warning.
            progress: wraps the places of the tiles (tqdm).

        Returns:
            `Detections` in px of the image, in reading order; `accepted` are the mitotic figures.

        Raises:
            UserError: the image cannot be read or names a resolution that no scanner has, or weights are missing or
                broken.
        """
        if isinstance(image, str | Path):
            slide: Slide = self.open(Path(image), mpp)
        else:
            if mpp is None:
                logger.warning("pixels without a resolution: %g um/px taken; give mpp", ASSUMED_UM_PER_PX)
                mpp = ASSUMED_UM_PER_PX
            pixels = np.asarray(image if isinstance(image, np.ndarray) else image.convert("RGB"))
            slide = ArraySlide(pixels, (mpp, mpp))
        with slide:
            return self._detect(slide, progress)

    def open(self, path: Path, mpp: float | None = None, refuse_implausible: bool = True) -> Slide:
        """A region or slide for `result`, as `midog.images.slide.open_slide` opens it."""
        self._detector  # noqa: B018 - what is wrong with a system is said before an image is read
        return open_slide(path, mpp, refuse_implausible=refuse_implausible)

    def _detect(self, slide: Slide, progress: "Progress | None") -> Detections:
        logger.info("device %s, size %d x %d px, um/px %.4g x %.4g", self.runs_on, *slide.size, *slide.um_per_px)
        found = self._detector(slide, progress)
        logger.info("candidates %d, mitotic figures %d", len(found), found.accepted.sum())
        return found

    def warm_up(self) -> None:
        """Load the networks and run each once, so that the first image takes as long as the next."""
        self._detector.warm_up()

    def result(self, path: Path, slide: Slide, progress: "Progress | None" = None) -> dict[str, Any]:
        """The platform's checked JSON of an open image; one warning line if the challenge would refuse it.

        Points are in mm by the spacing that the file names, even where that cannot be right and another was taken for
        the networks: who reads the result takes them apart by it.
        """
        found = self._detect(slide, progress)
        if slide.resolution.in_file:
            found = replace(found, um_per_px=slide.resolution.in_file)
        result = found.to_json()
        job.check_detection_result(result)
        if warning := job.detection_warning(result):
            logger.warning("%s: %s", path, warning)
        return result


class Track2(_Loaded):
    """A system that tells atypical from normal mitotic figures."""

    @cached_property
    def _classifier(self) -> "Classifier":
        engine = self.engine
        from midog.engine.classifier import load_classifier

        return load_classifier(self.system, engine, CROP_UM)

    @property
    def subtype_errors(self) -> list[tuple[str, float, float]]:
        """How often it errs, as `midog.report.misclassification` takes it; empty where that is not known.

        Without domains that have too few crops of a class to tell.
        """
        domains = (each for each in self.system.made.domains if min(each.atypical, each.normal) >= LEAST_CROPS)
        return [(each.domain, each.sensitivity, each.specificity) for each in domains]

    def classify(self, crops: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """P(atypical) of crops.

        Args:
            crops: uint8 (128, 128, 3) RGB at .25 um/px, a mitotic figure in the middle of each; an array of them or
                anything that gives them one by one, of which only a batch is held.

        Returns:
            float32 (crops,), in [0, 1]; from .5 on, atypical.

        Raises:
            ValueError: a crop of another shape or dtype.
        """
        classifier = self._classifier
        from midog.engine.classifier import classify

        return classify(map(_checked, crops), classifier, self.engine.device)

    def classify_stack(self, path: Path) -> NDArray[np.float32]:
        """As `classify`, every crop of a stack on disk; UserError where it cannot be read."""
        return self._classify(self.open(path))

    def open(self, path: Path, mpp: float | None = None, refuse_implausible: bool = True) -> Stack | Crops:
        """A stack, a crop, or a folder of crops for `result`, as `midog.images.folder.open_stack` opens it.

        Its um per pixel is its own, and matters only where its pages have another size.
        """
        self._classifier  # noqa: B018 - what is wrong with a system is said before an image is read
        return open_stack(path)

    def _classify(self, stack: Stack | Crops) -> NDArray[np.float32]:
        um_per_px = "unknown" if stack.um_per_px is None else "{:.4g} x {:.4g}".format(*stack.um_per_px)
        logger.info("device %s, um/px %s", self.runs_on, um_per_px)
        probabilities = self.classify(stack)
        logger.info("pages %d, atypical %d", len(probabilities), (probabilities >= 0.5).sum())
        return probabilities

    def warm_up(self) -> None:
        """Load the networks and run each once, so that the first stack takes as long as the next."""
        from midog.engine.classifier import BATCH_SIZE

        pages = min(MOST_PAGES, BATCH_SIZE[self.engine.device])
        self.classify(np.zeros((pages, CROP_SIDE, CROP_SIDE, 3), np.uint8))

    def result(self, path: Path, stack: Stack | Crops, progress: "Progress | None" = None) -> list[dict[str, Any]]:
        """The platform's JSON of an open stack; it needs no progress bar."""
        return job.atypical_result(self._classify(stack))

    def classify_figures(self, slide: Slide, found: Detections) -> Detections:
        """The accepted ones with P(atypical); each is cut as Track 2's crops are, whatever the slide's spacing.

        Raises:
            UserError: the slide's pixels cannot be decoded.
        """
        logger.info("atypical or normal: %s, figures %d", self.system, found.accepted.sum())
        if not found.accepted.any():
            return found
        from midog.engine.classifier import classify
        from midog.engine.two_stages import crops_of

        boxes = np.tile(found.centres[found.accepted], 2)
        crops = crops_of(slide, boxes, CROP_SIDE * CROP_UM_PER_PX, CROP_SIDE)
        return found.with_atypical(classify(crops, self._classifier, self.engine.device))


def _checked(crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if crop.dtype != np.uint8 or crop.shape != (CROP_SIDE, CROP_SIDE, 3):
        raise ValueError(f"crops uint8 ({CROP_SIDE}, {CROP_SIDE}, 3) expected, got {crop.dtype} {crop.shape}")
    return crop


def load(
    system: str | None = None,
    track: int | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    precision: Precision | None = None,
) -> Any:
    """A system by its name, or a track's default, loaded once: called again, it is the same object.

    Args:
        system: name of a folder of weights; None is the track's default.
        track: 1 or 2; None is what the system is for.
        model: folder of the systems' folders; None is the platform's, or our own.
        device: "auto", "cpu" or "cuda".
        precision: "auto" or "float32", instead of the system's own.

    Returns:
        `Track1` or `Track2`.

    Raises:
        UserError: no such system, one for the other track, or broken weights.
    """
    if system is None and track is None:
        raise ValueError("a system's name or a track expected")
    folder = find_folder(model_folder(model), system, track)
    stat = os.stat(folder / "model.yaml")
    return _load(folder.resolve(), (stat.st_mtime_ns, stat.st_size), device, precision)


@lru_cache(maxsize=4)
def _load(folder: Path, stamp: tuple[int, int], device: str, precision: Precision | None) -> "Track1 | Track2":
    """`stamp` tells a model.yaml that was written anew, as `tune` does, from the one that was loaded."""
    system = load_system(folder)
    if precision:
        system = system.with_precision(precision)
    return Track1(system, device) if system.track == 1 else Track2(system, device)


def load_ahead(
    tracks: Iterable[int], system: str | None, model: Path, device: str, precision: Precision | None = None
) -> None:
    """Load and warm up what `load` gives for jobs of some tracks; a warning for each that it gives nothing for.

    Args:
        tracks: 1, 2 or both.
        system, device, precision: as `load`.
        model: folder of the systems' folders.

    Raises:
        UserError: there is nothing for any of the tracks, or weights are missing or broken.
    """
    there, missing = [], {}
    for track in tracks:
        try:
            find_folder(model, system, track)
            there.append(track)
        except UserError as error:
            missing[track] = error
    if not there:
        raise next(iter(missing.values()))
    for track, why in missing.items():
        logger.warning("jobs of Track %d will fail: %s", track, why)
    for track in there:
        runner = load(system, track, model, device, precision)
        runner.warm_up()
        logger.info("loaded for Track %d: system %s, device %s", track, runner.system, runner.runs_on)


def classify_with(runner: Track2) -> Callable[[Slide, Detections], tuple[Detections, str]]:
    """What a report calls for subtypes: gives them to a slide's figures, and names the system."""

    def classify_figures(slide: Slide, found: Detections) -> tuple[Detections, str]:
        return runner.classify_figures(slide, found), str(runner.system)

    return classify_figures
