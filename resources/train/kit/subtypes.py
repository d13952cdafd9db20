"""Training Track 2's classifier: its recipe, its folds, its losses; one fold is one `resources.train.kit.loop.Task`."""

import logging
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import nn

from midog.engine.classifier import NetworkClassifier, Views, classify
from midog.engine.torch_engine import Normalised, TorchNetwork, normalise
from midog.errors import UserError
from midog.evaluation.operating_point import Rule
from midog.evaluation.splits import TEST, Split
from midog.models import CLASSIFIERS, build, classifier_options, normalisation
from midog.models.classifiers import ConvNeXtV2
from midog.system import CROP_UM, Classifier, NotNegative, Pretrained
from resources.data.crops import Crops
from resources.train.kit.augment import Augmentation, Draws, augment
from resources.train.kit.loop import training_precision
from resources.train.kit.losses import mask_loss, soft_binary_loss, subclass_loss
from resources.train.kit.pretrained import load_start
from resources.train.kit.recipes import LoopRecipe
from resources.train.kit.run import StateDict, seed_everything
from resources.train.kit.whole import WholeBatch
from resources.train.kit.workers import batches_of

logger = logging.getLogger(__name__)


class AtypicalRecipe(LoopRecipe, frozen=True, kw_only=True):
    """How Track 2's classifier is trained.

    Attributes:
        folds: of the cross-validation; an epoch is every other fold's crops once.
        grouped: crops of a case are in one fold; without it, a network is judged by cases that it has learnt from.
        labels: "hard" (majority) or "votes" (fraction of the experts).
        subclass_weight, mask_weight: of the auxiliary losses; 0 switches them off.
        augmentation: see `Augmentation`.
        operating_point: what .5 becomes, on what was held out; see `midog.evaluation.operating_point`.
    """

    folds: Annotated[int, Meta(ge=2)]
    grouped: bool = True
    labels: Literal["hard", "votes"]
    subclass_weight: NotNegative
    mask_weight: NotNegative
    augmentation: Augmentation
    operating_point: Rule = "pooled"


class Trainee(nn.Module):
    """The network with its auxiliary outputs: logits (N, 1 + subclasses), and a chromosome mask at half its fine map.

    Args:
        part: of the system; `options.num_classes` is set to 1 + subclasses.
        subclasses: how many.
        with_mask: predict the chromosomes from the second stage, at twice its resolution.
    """

    def __init__(self, part: Classifier, subclasses: int, with_mask: bool) -> None:
        super().__init__()
        self.network = build(CLASSIFIERS, part.network, network_options(part, subclasses))
        self.mask: nn.Conv2d | None = None
        if with_mask:
            if not isinstance(self.network, ConvNeXtV2):
                raise UserError(f"network {part.network}: no maps to learn masks from; set mask_weight to 0")
            self.mask = nn.Conv2d(self.network.widths[1], 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.mask is None or not isinstance(self.network, ConvNeXtV2):
            return self.network(x), None
        maps = self.network.stage_maps(x)
        return self.network.head(maps[-1]), nn.functional.pixel_shuffle(self.mask(maps[1]), 2)


def network_options(part: Classifier, subclasses: int) -> dict[str, object]:
    """The options of the network with an output for each subclass."""
    return classifier_options(part.network, part.options | {"num_classes": 1 + subclasses}, part.input_px)


def start_of(
    part: Classifier, recipe: AtypicalRecipe, subclasses: int, given: str | None
) -> tuple[StateDict | None, Pretrained | None]:
    """The weights that every fold starts from, and what model.yaml tells of them; None for random ones.

    Args:
        part: of the system.
        recipe: how it is trained.
        subclasses: how many outputs there are for them.
        given: --pretrained.

    Raises:
        UserError: as `resources.train.kit.pretrained.load_start`.
    """
    seed_everything(recipe.seed, "start")
    network = build(CLASSIFIERS, part.network, network_options(part, subclasses))
    record = load_start(network, part.network, part.options, given, recipe.pretrained, part.input_px)
    return (network.state_dict(), record) if record else (None, None)


def subclass_names(crops: Crops, recipe: AtypicalRecipe) -> list[str]:
    """The subclasses that the network has an output for."""
    return crops.subclass_names if recipe.subclass_weight else []


def split_folds(crops: Crops, recipe: AtypicalRecipe, split: Split | None = None) -> NDArray[np.int64]:
    """Fold number of every crop, int (N,): of a split, or stratified by label, grouped by case if the recipe says so.

    Args:
        crops: all of them.
        recipe: says how many folds there are without a split.
        split: its folds are numbered in the file's order; what is in "test" has -1.

    Raises:
        UserError: too few cases or crops of a class; the split does not know a case, or leaves a fold without both
            classes.
    """
    if split:
        return _folds_of_split(crops, split)
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    atypical = int(crops.labels.sum())
    there = len(np.unique(crops.cases)) if recipe.grouped else min(atypical, len(crops) - atypical)
    if there < recipe.folds:
        what = "cases" if recipe.grouped else "crops of the rarer class"
        raise UserError(
            f"{', '.join(crops.sets)}: {there} {what} for {recipe.folds} folds; give more data or a larger --limit"
        )
    kind = StratifiedGroupKFold if recipe.grouped else StratifiedKFold
    splitter = kind(recipe.folds, shuffle=True, random_state=recipe.seed)
    numbers = np.full(len(crops), -1)
    groups = crops.cases if recipe.grouped else None
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(crops)), crops.labels.numpy(), groups)):
        numbers[held_out] = number
    return numbers


def _folds_of_split(crops: Crops, split: Split) -> NDArray[np.int64]:
    names = [name for name in split.names if name != TEST]
    numbers = np.full(len(crops), -1)
    sets = np.array([file.partition("/")[0] for file in crops.files])
    for name in np.unique(sets):
        mine = np.flatnonzero(sets == name)
        table = pd.DataFrame({"case": crops.cases[mine], "row": mine})
        for number, fold in enumerate(names):
            numbers[split.choose(table, name, [fold]).row.to_numpy()] = number
    for number, fold in enumerate(names):
        if len(np.unique(crops.labels.numpy()[numbers == number])) < 2:
            raise UserError(
                f"{split.path}: fold {fold} has no normal or no atypical figure of --data; make another split"
            )
    logger.info("folds %s", ", ".join(f"{number}: {fold}" for number, fold in enumerate(names)))
    return numbers


class Batch(NamedTuple):
    """Normalised crops (N, 3, S, S), their masks (N, 1, S, S), and their numbers in `Crops` (N,)."""

    inputs: torch.Tensor
    masks: torch.Tensor
    chosen: torch.Tensor


class AtypicalTask:
    """All folds but one to learn from, that one to validate on.

    Args:
        part: of the system.
        recipe: `AtypicalRecipe`.
        crops: all of them.
        numbers: fold of each, int (N,).
        fold: to hold out; part of every seed.
        start: weights that the network starts from, or None.
        device: torch.device.
    """

    criterion, highest = "validation_loss", False

    def __init__(
        self,
        part: Classifier,
        recipe: AtypicalRecipe,
        crops: Crops,
        numbers: NDArray[np.int64],
        fold: int,
        start: StateDict | None,
        device: torch.device,
    ) -> None:
        self.part, self.recipe, self.crops, self.fold = part, recipe, crops, fold
        self.device = device
        self.training = np.flatnonzero((numbers != fold) & (numbers >= 0))
        self.held_out = np.flatnonzero(numbers == fold)
        self.steps_an_epoch = max(1, len(self.training) // recipe.batch)
        self.portions = [range(recipe.batch)]
        seed_everything(recipe.seed, "start", fold)
        trainee = Trainee(part, len(subclass_names(crops, recipe)), recipe.mask_weight > 0)
        if start:
            trainee.network.load_state_dict(start)
        self.normalisation = normalisation(trainee.network)
        self.network: nn.Module = trainee

    def batches(self, step: int) -> Iterator[Batch]:
        """Changed crops, each once an epoch, from a step on."""
        count = len(self.portions)
        numbers = range(step * count, self.recipe.epochs * self.steps_an_epoch * count)
        yield from batches_of(self._drawn, numbers, self.device.type == "cuda")

    def on_device(self, batch: Batch) -> Batch:
        """The same; what the losses want of each crop stays on the host until they do."""
        return Batch(batch.inputs.to(self.device), batch.masks.to(self.device), batch.chosen)

    def _drawn(self, number: int) -> Batch:
        """The crops of a forward: its portion of those of a step."""
        recipe = self.recipe
        step, forward = divmod(number, len(self.portions))
        epoch, place = divmod(step, self.steps_an_epoch)
        random = np.random.default_rng((recipe.seed, self.fold, epoch))
        order = torch.from_numpy(random.permutation(self.training))[place * recipe.batch : (place + 1) * recipe.batch]
        chosen = order[self.portions[forward].start : self.portions[forward].stop]
        images, masks = self.crops.images[chosen].float() / 255, self.crops.masks[chosen].float()
        fraction = self.part.field_um / CROP_UM
        draws = Draws((recipe.seed, self.fold, epoch, each) for each in chosen.tolist())
        images, masks = augment(images, masks, fraction, self.part.input_px, recipe.augmentation, draws)
        return Batch(normalise(images, *self.normalisation), masks, chosen)

    def inputs(self, batch: Batch) -> torch.Tensor:
        """The crops."""
        return batch.inputs

    def loss(self, network: nn.Module, batch: Batch, whole: WholeBatch) -> torch.Tensor:
        """Binary cross entropy, and the auxiliary losses that the recipe has."""
        recipe, crops, chosen = self.recipe, self.crops, batch.chosen
        targets = (crops.votes if recipe.labels == "votes" else crops.labels.float())[chosen].to(self.device)
        with training_precision(self.device, recipe):
            logits, mask_logits = network(batch.inputs)
        loss = soft_binary_loss(logits[:, 0], targets, whole.total)
        if logits.shape[1] > 1:
            fractions = crops.subclasses[chosen].to(self.device)
            loss = loss + recipe.subclass_weight * subclass_loss(logits[:, 1:], fractions, whole.total)
        if mask_logits is not None:
            masked = crops.masked[chosen].to(self.device)
            loss = loss + recipe.mask_weight * mask_loss(mask_logits, batch.masks, masked, whole.total)
        return loss

    def validate(self, member: nn.Module) -> dict[str, float]:
        """Cross entropy and AUC of the fold that was held out."""
        from sklearn.metrics import roc_auc_score

        labels = self.crops.labels[self.held_out].numpy()
        assert isinstance(member, Trainee)
        probability = predict(member.network, self.part, 1, self.crops, self.held_out, self.device).astype(np.float64)
        p = np.clip(probability, 1e-6, 1 - 1e-6)
        loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
        auc = roc_auc_score(labels, p) if 0 < labels.sum() < len(labels) else float("nan")
        return {"validation_loss": float(loss), "validation_auc": float(auc)}

    def weights(self, member: nn.Module) -> StateDict:
        """Those of the network, without what predicts masks."""
        assert isinstance(member, Trainee)
        return member.network.state_dict()


def predict(
    network: nn.Module, part: Classifier, views: int, crops: Crops, rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.float32]:
    """P(atypical) before calibration, as inference computes it: (len(rows),)."""
    predicted = TorchNetwork(Normalised(network), device, part.precision)
    classifier = Views(NetworkClassifier(predicted, part.field_um / CROP_UM, part.input_px), views)
    return classify((crops.images[row].permute(1, 2, 0).numpy() for row in rows), classifier, device.type)
