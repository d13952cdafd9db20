"""What stage 2 of Track 1 learns from: a detector's own proposals, cut out and labelled by the nearest figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from midog.engine.boxes import merge_near
from midog.engine.detector import find_candidates, load_detector
from midog.engine.two_stages import cut_candidate
from midog.evaluation.metrics import MATCH_UM, match
from midog.files import write_with
from midog.system import Classifier, System
from resources.data.fields import Field

MARGIN = 2.0  # of a stored crop's side over what the network sees, for turning and shifting
BOX_PX = 50
PAD = 64  # px around a crop whose neighbourhood is unknown


@dataclass
class Proposals:
    """Crops of candidates.

    Attributes:
        images: uint8 (N, 3, S, S), `MARGIN` times what the network sees.
        labels: int64 (N,), 1 a mitotic figure.
        from_crops: bool (N,), whether each comes from a labelled crop, not from a field.
        scores: float32 (N,), the detector's; 1 for labelled cells that it did not propose.
    """

    images: torch.Tensor
    labels: torch.Tensor
    from_crops: torch.Tensor
    scores: torch.Tensor

    def __add__(self, other: "Proposals") -> "Proposals":
        """All of both."""
        return Proposals(*(torch.cat([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)))


class Proposer:
    """A detector that proposes, and the cut around what it proposes.

    Args:
        system: with the detector.
        classifier: what the crops are for.
        score_threshold: of the detector.
        device: torch.device.
    """

    def __init__(self, system: System, classifier: Classifier, score_threshold: float, device: torch.device) -> None:
        assert system.detector is not None
        self.detector = load_detector(system, device, score_threshold)
        self.part, self.classifier, self.device = system.detector, classifier, device
        self.size = round(classifier.input_px * MARGIN)

    def propose(self, field: Field) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The merged candidates of a field: boxes (K, 4), scores (K,)."""
        tile = self.part.tile if max(field.size) > 256 else (256, 256)
        boxes, scores = find_candidates(field, self.detector, tile, self.part.overlap, self.device)
        kept = merge_near(boxes, scores, MATCH_UM / field.um_per_px[0])
        return boxes[kept], scores[kept]

    def gather(self, labelled: Sequence[Field], are_crops: bool = False, with_missed: bool = True) -> Proposals:
        """Cut the candidates of fields.

        Args:
            labelled: the fields.
            are_crops: they are what `crops_as_fields` makes: what lies in the mirrored margin is left out.
            with_missed: add the labelled cells where they were labelled, whether proposed or not.
        """
        rows: list[tuple[NDArray[np.uint8], int, float]] = []
        for field in tqdm(labelled, "candidates", disable=None):
            found, scores = self.propose(field)
            centres = (found[:, :2] + found[:, 2:]) / 2
            hit = np.zeros(len(found), bool)
            taken = match(field.figures, centres, MATCH_UM / field.um_per_px[0])
            hit[taken[taken >= 0]] = True
            for box, centre, score, is_hit in zip(found, centres, scores, hit, strict=True):
                if are_crops and not is_hit:
                    away = np.abs(centre - field.figures[0])
                    if away.max() > PAD or np.hypot(*away) < BOX_PX / 2:
                        continue  # in the mirrored margin, or on the figure after all
                rows.append((self._cut(field, box), int(is_hit), float(score)))
            for points, label in ((field.figures, 1), (field.hard_negatives, 0)) if with_missed else ():
                for point in points:
                    box = np.concatenate([point - BOX_PX / 2, point + BOX_PX / 2])
                    rows.append((self._cut(field, box), label, 1.0))
        images = np.array([image for image, _, _ in rows], np.uint8).reshape(-1, self.size, self.size, 3)
        return Proposals(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
            torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
            torch.full((len(rows),), are_crops),
            torch.tensor([score for _, _, score in rows], dtype=torch.float32),
        )

    def _cut(self, field: Field, box: NDArray[np.floating]) -> NDArray[np.uint8]:
        return cut_candidate(field, box, self.classifier.field_um, self.size, MARGIN)


def crops_as_fields(crops: NDArray[np.uint8]) -> list[Field]:
    """Crops with a figure in the middle, uint8 (M, H, W, 3), as small fields with mirrored surroundings."""
    made = []
    for number, crop in enumerate(crops):
        pixels = np.pad(crop, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="symmetric")
        middle = np.full((1, 2), (pixels.shape[0] - 1) / 2, np.float32)
        made.append(Field(f"crop {number}", "", "crops", pixels, (0.25, 0.25), middle))
    return made


def store(path: Path, make: Callable[[], Proposals]) -> None:
    """Make proposals and store them, unless the file is there: a resumed run does not look for them again."""
    if not path.exists():
        tensors = {name: value.contiguous() for name, value in vars(make()).items()}
        write_with(path, lambda part: save_file(tensors, part))


def read_proposals(path: Path) -> Proposals:
    """What `store` left."""
    return Proposals(**load_file(path))
