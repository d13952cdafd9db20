"""What stage 2 of Track 1 learns from: a detector's own proposals in whole fields, labelled by the nearest figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from tqdm import tqdm

from midog.detections import Detections
from midog.engine.torch_engine import TorchEngine
from midog.engine.two_stages import SystemDetector, sees_finer
from midog.evaluation.metrics import MATCH_UM, match
from midog.files import write_file
from midog.system import Classifier, Detector, System
from resources.data.fields import Field


@dataclass
class Proposals:
    """Places of candidates in a list of fields.

    Attributes:
        fields: int64 (N,), numbers of the fields that they lie in.
        boxes: float32 (N, 4), px of those fields.
        labels: int64 (N,), 1 a mitotic figure.
        scores: float32 (N,), the detector's; 1 for labelled cells that it did not propose.
    """

    fields: torch.Tensor
    boxes: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def fields_seen(labelled: Sequence[Field], detector: Detector, classifier: Classifier) -> list[Field]:
    """Fields in the pixels that inference cuts a classifier's crops from."""
    fields = [each.normalised(detector.stain_normalisation) for each in labelled]
    if sees_finer(detector, classifier.field_um, classifier.input_px):
        return fields
    return [each.at(detector.um_per_px) for each in fields]


class Proposer:
    """A detector that proposes, merged across tiles as at inference.

    Args:
        system: with the detector.
        score_threshold: of the detector; 1 takes labelled cells alone, mined ones among them.
        device: torch.device.
    """

    def __init__(self, system: System, score_threshold: float, device: torch.device) -> None:
        assert system.detector is not None
        self.box_um, self.searches = system.detector.box_um, score_threshold < 1
        # The fields that it is given are normalised already.
        part = replace(system.detector, score_threshold=score_threshold, stain_normalisation="none")
        self.detector = SystemDetector(replace(system, detector=part, classifier=None), TorchEngine(device))

    def gather(self, labelled: Sequence[Field], as_inference: bool) -> Proposals:
        """The candidates of fields.

        Args:
            labelled: the fields, as `fields_seen` gives them.
            as_inference: what inference classifies, and no more; else what there is to learn from: labelled cells where
                they were labelled, whether proposed or not, and no candidate of unclear class, which lies on an unclear
                cell or on a figure that another candidate stands for.
        """
        rows: list[tuple[int, NDArray[np.floating], int, float]] = []
        for number, field in enumerate(tqdm(labelled, "candidates", disable=None)):
            found = self.detector(field) if self.searches or as_inference else Detections.of([], [], (1, 1))
            hit = np.zeros(len(found), bool)
            taken = match(field.figures, found.centres, MATCH_UM / field.um_per_px[0])
            hit[taken[taken >= 0]] = True
            half = self.box_um / np.array(field.um_per_px) / 2
            doubtful = np.concatenate([field.figures, field.unclear])
            for box, centre, score, is_hit in zip(found.boxes, found.centres, found.scores, hit, strict=True):
                away = np.hypot(*((doubtful - centre) / half).T)
                if as_inference or is_hit or (away >= 1).all():
                    rows.append((number, box, int(is_hit), float(score)))
            for points, label in ((field.figures, 1), (field.hard_negatives, 0)) if not as_inference else ():
                rows += [(number, np.concatenate([point - half, point + half]), label, 1.0) for point in points]
        return Proposals(
            torch.tensor([number for number, *_ in rows], dtype=torch.int64),
            torch.from_numpy(np.array([box for _, box, *_ in rows], np.float32).reshape(-1, 4)),
            torch.tensor([label for *_, label, _ in rows], dtype=torch.int64),
            torch.tensor([score for *_, score in rows], dtype=torch.float32),
        )


def store(path: Path, make: Callable[[], Proposals]) -> None:
    """Make proposals and store them, unless the file is there: a resumed run does not look for them again."""
    if not path.exists():
        made = make()
        tensors = {each.name: getattr(made, each.name).contiguous() for each in fields(made)}
        write_file(path, save(tensors))


def read_proposals(path: Path) -> Proposals:
    """What `store` left."""
    return Proposals(**load_file(path))
