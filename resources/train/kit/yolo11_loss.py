"""YOLO11's loss: Ultralytics' own (AGPL-3.0), on the raw outputs of our network."""

import math
import os
import tempfile
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import nn

from midog.models.yolo11 import BINS, STRIDES, YOLO11, Detect
from resources.train.kit.whole import Total, itself

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}  # Ultralytics' defaults
BOX_BIAS = 2.0
IMAGE_PX, FIGURES = 640, 5  # Ultralytics' guess of what an image holds, which the first scores should say


def prepare_yolo11(network: nn.Module) -> None:
    """Set the last layers' first biases as Ultralytics does, in place."""
    assert isinstance(network, YOLO11)
    detect = network.model[-1]
    assert isinstance(detect, Detect)
    for boxes, classes, stride in zip(detect.cv2, detect.cv3, STRIDES, strict=True):
        nn.init.constant_(boxes[-1].bias, BOX_BIAS)  # type: ignore[index]
        nn.init.constant_(classes[-1].bias, math.log(FIGURES / (IMAGE_PX / stride) ** 2))  # type: ignore[index]


class YOLO11Loss:
    """Task-aligned assignment, binary cross entropy, CIoU and distribution focal loss; the sum over a batch's images.

    Ultralytics divides by a forward's class targets, and multiplies by its images: here both are the whole batch's.

    Forward: as `resources.train.kit.detector.Loss`.
    """

    def __init__(self) -> None:
        # Its import writes settings and sets threads, unless told otherwise.
        os.environ.setdefault("YOLO_OFFLINE", "1")
        os.environ.setdefault("YOLO_AUTOINSTALL", "0")
        os.environ.setdefault("YOLO_VERBOSE", "False")
        os.environ.setdefault("YOLO_CONFIG_DIR", os.path.join(tempfile.gettempdir(), "ultralytics"))
        os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
        import PIL.Image

        open_image = PIL.Image.open
        from ultralytics.utils.loss import v8DetectionLoss

        PIL.Image.open = open_image  # its own asks for one more package whenever an image is broken
        self.kind = v8DetectionLoss
        self.criterion: v8DetectionLoss | None = None

    def __call__(
        self, network: nn.Module, images: torch.Tensor, truths: Sequence[torch.Tensor], total: Total = itself
    ) -> torch.Tensor:
        assert isinstance(network, YOLO11)
        distances, logits, maps = network.branches(images)
        if self.criterion is None or self.criterion.device != images.device:
            self.criterion = self.kind(_Described(images.device))
            self.criterion.assigner.register_forward_hook(self._note_targets)
        height, width = images.shape[2:]
        corners = torch.cat(list(truths)) / images.new_tensor([width, height, width, height])
        batch = {
            "batch_idx": torch.repeat_interleave(
                torch.arange(len(truths)), torch.tensor([len(each) for each in truths])
            ),
            "cls": torch.zeros(len(corners), 1),
            "bboxes": torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1),
        }
        batch = {name: value.to(images.device) for name, value in batch.items()}
        outputs = {"boxes": distances.float(), "scores": logits.float(), "feats": maps}
        with torch.autocast(images.device.type, enabled=False):  # half precision cannot tell corners apart
            own = self.criterion(outputs, batch)[0].sum() / len(images) * self.targets.clamp_min(1)
        return own * total(images.new_tensor(len(images))) / total(self.targets).clamp_min(1)

    def _note_targets(self, assigner: nn.Module, given: object, assigned: tuple[torch.Tensor, ...]) -> None:
        self.targets = assigned[2].sum()  # of class, over all points


class _Described(nn.Module):
    """What Ultralytics' loss asks of a model of one class: its gains, and its last layer's numbers."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, device=device))
        self.args = SimpleNamespace(**GAINS)
        stride = torch.tensor(STRIDES, dtype=torch.float32, device=device)
        self.model = [SimpleNamespace(stride=stride, nc=1, reg_max=BINS)]
