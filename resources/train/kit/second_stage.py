"""Training stage 2 of Track 1: which of a detector's candidates are mitotic figures (Xiao, Lyu and Liu 2025)."""

from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import torch
from msgspec import Meta
from torch import nn
from torchvision.transforms import v2

from midog.engine.classifier import NetworkClassifier, Views, classify, normalise
from midog.engine.two_stages import with_score
from midog.evaluation.metrics import best_operating_point
from midog.models import CLASSIFIERS, build, classifier_options, normalisation
from midog.models.classifiers import ConvNeXtV2
from midog.system import Classifier, Fraction, NotNegative, Positive
from resources.train.kit.augment import Augmentation, augment
from resources.train.kit.loop import training_precision
from resources.train.kit.losses import contrastive_loss, focal_loss
from resources.train.kit.proposals import MARGIN, Proposals
from resources.train.kit.recipes import Count, LoopRecipe
from resources.train.kit.run import Processes, StateDict, seed_everything


class CandidateRecipe(LoopRecipe, frozen=True, kw_only=True):
    """How stage 2 is trained.

    Attributes:
        steps_an_epoch: crops are drawn, so an epoch is as long as one says.
        score_threshold: of the detector's proposals that are learnt from.
        positive_fraction: of mitotic figures among what is drawn.
        alpha_mitotic, alpha_background, gamma: of the focal loss (equation 2).
        temperature, contrastive_weight: of the contrastive loss (equations 1 and 3).
        augmentation: see `Augmentation`.
        colour_jitter: brightness, contrast and saturation change by up to these fractions; empty switches it off.
        mixup: probability that a crop is blended with another one.
        randaugment: operations of RandAugment, magnitude 5.
        erase: probability that a rectangle of .02 to .15 of the crop is erased.
    """

    steps_an_epoch: Count
    score_threshold: Fraction
    positive_fraction: Annotated[float, Meta(gt=0, lt=1)]
    alpha_mitotic: NotNegative
    alpha_background: NotNegative
    gamma: NotNegative
    temperature: Positive
    contrastive_weight: NotNegative
    augmentation: Augmentation
    colour_jitter: Annotated[tuple[Fraction, ...], Meta(max_length=3)]
    mixup: Fraction
    randaugment: Annotated[int, Meta(ge=0)]
    erase: Fraction


class Batch(NamedTuple):
    """Normalised crops (N, 3, S, S), their targets in [0, 1] (N,), labels int64 (N,), and which are blends (N,)."""

    inputs: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    mixed: torch.Tensor


class CandidateTask:
    """Proposals, focal and contrastive loss, F1 of the validation fields: a `resources.train.kit.loop.Task`.

    Args:
        part: of the system.
        recipe: `CandidateRecipe`.
        training, validation: `Proposals`.
        truths: mitotic figures in the validation fields, proposed or not.
        device: torch.device.
        processes: of torchrun.
    """

    criterion, highest = "validation_f1", True

    def __init__(
        self,
        part: Classifier,
        recipe: CandidateRecipe,
        training: Proposals,
        validation: Proposals,
        truths: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.part, self.recipe, self.training, self.validation = part, recipe, training, validation
        self.truths, self.device, self.processes = truths, device, processes
        self.steps_an_epoch = recipe.steps_an_epoch
        seed_everything(recipe.seed, "start")
        self.network = build(CLASSIFIERS, part.network, classifier_options(part.network, part.options, part.input_px))
        self.normalisation = normalisation(self.network)
        self.chances = sampling_chances(training, recipe.positive_fraction)
        self.colours: list[nn.Module] = []
        if recipe.colour_jitter:
            self.colours.append(v2.ColorJitter(*recipe.colour_jitter))
        if recipe.randaugment:
            self.colours.append(v2.RandAugment(num_ops=recipe.randaugment, magnitude=5))

    def batches(self, step: int) -> Iterator[Batch]:
        """Drawn and changed crops, from an epoch's first step on."""
        recipe, processes = self.recipe, self.processes
        count = min(recipe.batch // recipe.accumulate, len(self.chances))
        for epoch in range(step // self.steps_an_epoch, recipe.epochs):
            seed_everything(recipe.seed, epoch)
            for _ in range(self.steps_an_epoch * recipe.accumulate):
                chosen = torch.multinomial(self.chances, count, replacement=False)
                yield self._prepare(chosen[processes.rank :: processes.world])

    def _prepare(self, chosen: torch.Tensor) -> Batch:
        recipe = self.recipe
        labels = self.training.labels[chosen].to(self.device)
        images = self.training.images[chosen]
        for change in self.colours:
            images = torch.stack([change(image) for image in images])
        images = images.to(self.device).float() / 255
        blank = images.new_zeros(len(images), 1, *images.shape[2:])
        images, _ = augment(images, blank, 1 / MARGIN, self.part.input_px, recipe.augmentation)
        mixed = torch.rand(len(images), device=self.device) < recipe.mixup
        weight = torch.where(mixed, torch.rand(len(images), device=self.device), 1.0)
        other = torch.randperm(len(images), device=self.device)
        images = weight[:, None, None, None] * images + (1 - weight[:, None, None, None]) * images[other]
        targets = weight * labels.float() + (1 - weight) * labels.float()[other]
        images = erase(images, recipe.erase)
        return Batch(normalise(images, *self.normalisation), targets, labels, mixed)

    def inputs(self, batch: Batch) -> torch.Tensor:
        """The crops."""
        return batch.inputs

    def loss(self, network: nn.Module, batch: Batch) -> torch.Tensor:
        """Equations 1 to 3."""
        recipe = self.recipe
        with training_precision(self.device, recipe):
            features, logits = features_and_logits(network, batch.inputs)
        loss = focal_loss(logits, batch.targets, recipe.gamma, recipe.alpha_mitotic, recipe.alpha_background)
        if recipe.contrastive_weight:
            whole = ~batch.mixed  # a blend has no class
            contrast = contrastive_loss(features[whole], batch.labels[whole], recipe.temperature)
            loss = loss + recipe.contrastive_weight * contrast
        return loss

    def validate(self, member: nn.Module) -> dict[str, float]:
        """As `judge`, in one view."""
        f1, threshold = self.judge(member, 1)
        return {"validation_f1": f1, "threshold": threshold}

    def judge(self, network: nn.Module, views: int) -> tuple[float, float]:
        """The best F1 of the validation fields before calibration, as inference computes it, and its threshold."""
        classifier = Views(NetworkClassifier(network, 1 / MARGIN, self.part.input_px), views)
        crops = iter(self.validation.images.permute(0, 2, 3, 1).numpy())
        scores = self.validation.scores.numpy()
        probabilities = with_score(classify(crops, classifier, self.device), scores, self.part.score_weight)
        return best_operating_point(probabilities, self.validation.labels.numpy(), self.truths)

    def weights(self, member: nn.Module) -> StateDict:
        """All of them."""
        return member.state_dict()


def sampling_chances(proposals: Proposals, positive_fraction: float) -> torch.Tensor:
    """Chance of each proposal to be drawn: figures of fields and of crops half each, the rest evenly; float64 (N,)."""
    is_figure, from_crops = proposals.labels == 1, proposals.from_crops
    chances = torch.zeros(len(is_figure), dtype=torch.float64)
    groups = [group for group in (is_figure & ~from_crops, is_figure & from_crops) if group.any()]
    for group in groups:
        chances[group] = positive_fraction / len(groups) / group.sum().item()
    chances[~is_figure] = (1 - positive_fraction) / max((~is_figure).sum().item(), 1)
    return chances


def features_and_logits(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features (N, D) and the logit (N,) of a batch, for our networks and timm's."""
    if isinstance(network, ConvNeXtV2):
        last = network.stage_maps(images)[-1]
        return last.mean((2, 3)), network.head(last)[:, 0]
    features_of: Callable[..., torch.Tensor] = network.forward_features  # type: ignore[assignment]
    head: Callable[..., torch.Tensor] = network.forward_head  # type: ignore[assignment]
    maps = features_of(images)
    return head(maps, pre_logits=True), head(maps)[:, 0]


def erase(images: torch.Tensor, probability: float) -> torch.Tensor:
    """Erase a rectangle of .02 to .15 of some images of a batch."""
    if not probability:
        return images
    drop = v2.RandomErasing(p=probability, scale=(0.02, 0.15))
    return torch.stack([drop(image) for image in images])
