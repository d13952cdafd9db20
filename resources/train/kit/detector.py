"""Training a detector of any design: its recipe, its tiles, its validation, its export.

Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection", arXiv 2508.19804, "Methods": warm-up and
cosine, averages at several rates, and all of these "saved at the point of lowest validation loss" as members.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from midog.engine.detector import detector_of, find_candidates
from midog.engine.torch_engine import TorchNetwork, choose_device
from midog.engine.two_stages import merge
from midog.errors import UserError
from midog.models import DENSE, DETECTORS, build
from midog.system import Detector, Made, NotNegative, TileSide
from resources.data.fields import Field
from resources.train.kit.arguments import (
    TrainingData,
    add_data_arguments,
    parser_of,
    read_training_data,
    record_of,
    sources_of,
)
from resources.train.kit.augment import Draws, jitter_contrast, jitter_stain
from resources.train.kit.export import curve_on, export_detector
from resources.train.kit.loop import Loop, memory_format_of, training_precision
from resources.train.kit.pretrained import load_start
from resources.train.kit.recipes import Count, LoopRecipe, read_plan
from resources.train.kit.run import StateDict, commit, join_processes, prepare_out, seed_everything
from resources.train.kit.sampler import BalancedSampler, FixedFractionSampler, Source
from resources.train.kit.tiles import TileAugmentation, TileDataset, collate
from resources.train.kit.whole import Total, WholeBatch, itself
from resources.train.kit.workers import batches_of

VALIDATION_THRESHOLD = 0.05  # of the score of what average precision counts

Loss = Callable[[nn.Module, torch.Tensor, Sequence[torch.Tensor], Total], torch.Tensor]


class Batch(NamedTuple):
    """Images uint8 (N, 3, H, W), or float in [0, 1] on the device; each one's boxes, float (K, 4) px; its number."""

    images: torch.Tensor
    truths: list[torch.Tensor]
    numbers: range


class DetectorRecipe(LoopRecipe, frozen=True, kw_only=True):
    """How a detector is trained.

    Attributes:
        tile: px of a training tile, width and height.
        steps_an_epoch: tiles are drawn, so an epoch is as long as one says.
        loss: a name that the script knows.
        sampling: what tiles are drawn around: "balanced" over datasets, slides and classes, plain tissue among them, or
            "balanced_cells" without that, or the fraction of each `Source`; see `resources.train.kit.sampler`.
        boxes: of figures: "square", of the detector's `box_um`, or as they are "labelled".
        criterion: what an epoch is the best by: the lowest "validation_loss", on tiles, or the highest
            "average_precision", on whole fields.
        validation_tiles: how many the validation loss is measured on.
        augmentation: see `TileAugmentation`.
    """

    tile: tuple[TileSide, TileSide]
    steps_an_epoch: Count
    loss: str
    sampling: Literal["balanced", "balanced_cells"] | Annotated[dict[Source, NotNegative], Meta(min_length=1)]
    boxes: Literal["square", "labelled"] = "square"
    criterion: Literal["validation_loss", "average_precision"]
    validation_tiles: Count = 256
    augmentation: TileAugmentation


class DetectorTask:
    """Tiles, a loss on them, and a validation on tiles or on whole fields: a `resources.train.kit.loop.Task`.

    Args:
        network: what trains.
        loss: callable (network, images float (N, 3, H, W) in [0, 1], truths a list of float (K, 4) px, total of a count
            over the whole batch) -> scalar, these images' part of the batch's loss; boxes are cut at the tile's edge,
            but for a dense network, which has also those that are centred beyond.
        recipe: `DetectorRecipe`.
        part: of the system: how whole fields are searched.
        data: what is learnt from and validated on, in the files' own pixels.
        device: torch.device.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        recipe: DetectorRecipe,
        part: Detector,
        data: TrainingData,
        device: torch.device,
    ) -> None:
        self.network, self.recipe, self.part, self.device = network, recipe, part, device
        self.compute_loss = loss
        data = data.at(part.um_per_px, part.stain_normalisation)
        self.fields = data.validation
        check_window(recipe.tile, data.fields)
        self.layout = memory_format_of(network)
        self.steps_an_epoch = recipe.steps_an_epoch
        self.criterion: str = recipe.criterion
        self.highest = recipe.criterion == "average_precision"
        self.portions = [range(recipe.batch)]
        self.tiles = training_tiles(recipe, part, data)
        held_out = data.validation
        self.held_out = TileDataset(
            held_out,
            [],
            recipe.tile,
            part.box_um,
            BalancedSampler(held_out, plain_tissue=recipe.sampling != "balanced_cells"),
            TileAugmentation(),
            recipe.seed,
            whole_boxes=part.network in DENSE,
            labelled_boxes=recipe.boxes == "labelled",
        )

    def batches(self, step: int) -> Iterator[Batch]:
        """Tiles, from a step on to the last."""
        count = len(self.portions)
        numbers = range(step * count, self.recipe.epochs * self.recipe.steps_an_epoch * count)
        yield from batches_of(self._drawn, numbers, self.device.type == "cuda")

    def _drawn(self, number: int) -> Batch:
        """The tiles of a forward."""
        step, forward = divmod(number, len(self.portions))
        portion, first = self.portions[forward], step * self.recipe.batch
        return self._tiles(self.tiles, range(first + portion.start, first + portion.stop))

    def _drawn_to_validate(self, number: int) -> Batch:
        size = max(map(len, self.portions))
        return self._tiles(self.held_out, range(self.recipe.validation_tiles)[number * size : (number + 1) * size])

    def _tiles(self, tiles: TileDataset, numbers: range) -> Batch:
        return Batch(*collate([tiles[each] for each in numbers]), numbers)

    def on_device(self, batch: Batch) -> Batch:
        """Float images, with their stain and contrast changed."""
        images, strength = self._moved(batch), self.recipe.augmentation
        if strength.stain or strength.contrast:
            draws = Draws((self.recipe.seed, each) for each in batch.numbers)
            images = jitter_stain(images, strength.stain, draws) if strength.stain else images
            images = jitter_contrast(images, strength.contrast, draws) if strength.contrast else images
        return Batch(images, [each.to(self.device) for each in batch.truths], batch.numbers)

    def _moved(self, batch: Batch) -> torch.Tensor:
        return batch.images.to(self.device, non_blocking=True).float() / 255

    def inputs(self, batch: Batch) -> torch.Tensor:
        """The images."""
        return batch.images

    def loss(self, network: nn.Module, batch: Batch, whole: WholeBatch) -> torch.Tensor:
        """The detector's own."""
        return self._loss(network, batch.images, batch.truths, whole.total)

    def _loss(self, network: nn.Module, images: torch.Tensor, truths: list[torch.Tensor], total: Total) -> torch.Tensor:
        with training_precision(self.device, self.recipe):
            return self.compute_loss(network, images.contiguous(memory_format=self.layout), truths, total)

    def validate(self, member: nn.Module) -> dict[str, float]:
        """The loss on tiles, or `curve_on` whole fields."""
        if self.criterion == "validation_loss":
            return {"validation_loss": self._loss_on_tiles(member)}
        found = [self._search(member, field) for field in tqdm(self.fields, "validation", leave=False, disable=None)]
        centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes, _ in found]
        return curve_on(self.fields, centres, [scores for _, scores in found])

    def _loss_on_tiles(self, member: nn.Module) -> float:
        total, tiles = 0.0, self.recipe.validation_tiles
        forwards = -(-tiles // max(map(len, self.portions)))
        for batch in batches_of(self._drawn_to_validate, range(forwards), self.device.type == "cuda"):
            truths = [each.to(self.device) for each in batch.truths]  # drawn anew: 1,000 tiles would not stay in memory
            total += self._loss(member, self._moved(batch), truths, itself).item() * len(truths)
        return total / tiles

    def _search(self, member: nn.Module, field: Field) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The candidates of a whole field, as inference finds and merges them."""
        part = msgspec.structs.replace(self.part, views=1)
        network = TorchNetwork(member, self.device, part.precision)
        detector = detector_of([network], part, VALIDATION_THRESHOLD)
        boxes, scores = find_candidates(field, detector, self.part.tile, self.part.overlap, self.device.type)
        kept = merge(self.part.merge, boxes, scores, field.um_per_px)
        return boxes[kept], scores[kept]

    def weights(self, member: nn.Module) -> StateDict:
        """All of them."""
        return member.state_dict()


def training_tiles(recipe: DetectorRecipe, part: Detector, data: TrainingData) -> TileDataset:
    """The tiles that a recipe learns from, of fields and crops at the detector's um per pixel."""
    sampler: BalancedSampler | FixedFractionSampler
    if isinstance(recipe.sampling, str):
        sampler = BalancedSampler(data.fields, data.crops, recipe.sampling == "balanced")
    else:
        sampler = FixedFractionSampler(data.fields, len(data.crops), recipe.sampling)
    mosaics = recipe.augmentation.mosaic_epochs * recipe.steps_an_epoch * recipe.batch
    try:
        return TileDataset(
            data.fields,
            data.crops,
            recipe.tile,
            part.box_um,
            sampler,
            recipe.augmentation,
            recipe.seed,
            mosaics,
            whole_boxes=part.network in DENSE,
            labelled_boxes=recipe.boxes == "labelled",
        )
    except ValueError as error:
        raise UserError(f"training.detector.augmentation: {error}; change it with --set") from None


def check_window(tile: Sequence[int], fields: Sequence[Field]) -> None:
    """Make sure that a tile fits into a field.

    Raises:
        UserError: into none.
    """
    if not any(tile[0] <= width and tile[1] <= height for width, height in (each.size for each in fields)):
        width, height = (max(each.size[axis] for each in fields) for axis in (0, 1))
        raise UserError(
            f"tile {tile[0]} x {tile[1]} px: no image is as large, the largest are {width} px wide and {height} px "
            "high; give a smaller one with --set training.detector.tile=[256,256], or other --data"
        )


def train_detector(
    argv: Sequence[str] | None,
    description: str,
    script: str,
    losses: Mapping[str, Callable[[], Loss]],
    prepare: Callable[[nn.Module], None] = lambda network: None,
) -> None:
    """Parse the arguments, train, and export: what the scripts of all detectors do.

    Args:
        argv: of the command line, or None.
        description: of the script.
        script: its name, and in `midog.models.DETECTORS` that of the network.
        losses: by the name that a recipe gives, what makes them.
        prepare: what is done to the network's first weights.
    """
    parser = parser_of(description, script)
    add_data_arguments(parser)
    arguments = parser.parse_args(argv)
    plan = read_plan(arguments.system, script, DetectorRecipe, arguments.changes, arguments.seed)
    part, recipe = plan.detector, plan.training
    if recipe.loss not in losses:
        raise UserError(f"{arguments.system}: loss {recipe.loss!r} is unknown; known: {', '.join(losses)}")
    seed_everything(recipe.seed, "start")
    try:
        network = build(DETECTORS, script, part.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{arguments.system}: {script} refuses its options ({error}); mend them") from None
    prepare(network)
    pretrained = load_start(network, script, part.options, arguments.pretrained, recipe.pretrained)
    processes, device = join_processes(choose_device(arguments.device))
    data = read_training_data(arguments)
    if processes.is_first:
        record = record_of(arguments) | {"pretrained": msgspec.to_builtins(pretrained), "plan": plan.as_yaml()}
        prepare_out(arguments.out, arguments.resume, record)
    processes.wait()
    task = DetectorTask(network, losses[recipe.loss](), recipe, part, data, device)
    states = Loop(task, recipe, arguments.out, device, processes, script, arguments.micro_batch).run()
    if processes.is_first:
        folder = arguments.out / "model" / plan.system.system
        made = Made(
            code=commit(), data=sources_of(arguments), pretrained={"detector": pretrained} if pretrained else {}
        )
        export_detector(folder, plan, states, made, data.validation, device)
    processes.end()
