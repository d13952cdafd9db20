"""Training stage 2 of Track 1: which of a detector's candidates are mitotic figures (Xiao, Lyu and Liu 2025)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import torch
from msgspec import Meta
from msgspec.structs import replace
from torch import nn
from torchvision.transforms import v2

from midog.engine.classifier import NetworkClassifier, classify, in_views, normalise
from midog.engine.detector import prefetch
from midog.engine.two_stages import PREFETCHED, cut_candidate, with_score
from midog.evaluation.metrics import best_operating_point
from midog.evaluation.provenance import domain_of
from midog.models import CLASSIFIERS, build, classifier_options, normalisation
from midog.models.classifiers import ConvNeXtV2
from midog.system import Classifier, Fraction, NotNegative, Positive, Pretrained
from resources.data.fields import Field, is_crop
from resources.train.kit.augment import Augmentation, Draws, augment
from resources.train.kit.loop import training_precision
from resources.train.kit.losses import contrastive_loss, focal_loss
from resources.train.kit.pretrained import load_start
from resources.train.kit.proposals import Proposals
from resources.train.kit.recipes import Count, LoopRecipe
from resources.train.kit.run import StateDict, seed_everything
from resources.train.kit.whole import WholeBatch
from resources.train.kit.workers import batches_of

MARGIN = 2.0  # of a crop's side over what the network sees, for turning and shifting


class CandidateRecipe(LoopRecipe, frozen=True, kw_only=True):
    """How stage 2 is trained.

    Attributes:
        steps_an_epoch: crops are drawn, so an epoch is as long as one says.
        score_threshold: of the detector's proposals that are learnt from.
        positive_fraction: of mitotic figures among what is drawn.
        alpha_mitotic, alpha_background, gamma: of the focal loss (equation 2).
        temperature, contrastive_weight: of the contrastive loss (equations 1 and 3).
        augmentation: see `Augmentation`.
        label_smoothing: targets are so far from 0 and 1, both together.
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
    label_smoothing: Fraction = 0.0
    colour_jitter: Annotated[tuple[Fraction, ...], Meta(max_length=3)]
    mixup: Fraction
    randaugment: Annotated[int, Meta(ge=0)]
    erase: Fraction


def start_classifier(
    part: Classifier, recipe: CandidateRecipe, given: str | None
) -> tuple[nn.Module, Pretrained | None]:
    """A network with the weights that it starts from, and what model.yaml tells of those.

    Args:
        part: of the system.
        recipe: how it is trained.
        given: --pretrained.

    Raises:
        UserError: as `resources.train.kit.pretrained.load_start`.
    """
    seed_everything(recipe.seed, "start")
    options = classifier_options(part.network, part.options, part.input_px)
    network = build(CLASSIFIERS, part.network, options)
    return network, load_start(network, part.network, part.options, given, recipe.pretrained, part.input_px)


class Batch(NamedTuple):
    """Normalised crops (N, 3, S, S), targets in [0, 1] (N,), labels int64 (N,), which are blends (N,); the step."""

    inputs: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    mixed: torch.Tensor
    step: int


class Candidates(NamedTuple):
    """Proposals with the fields that they lie in, in the pixels that inference cuts from."""

    fields: Sequence[Field]
    proposals: Proposals


class CandidateTask:
    """Proposals, focal and contrastive loss, F1 of the validation fields: a `resources.train.kit.loop.Task`.

    Crops are cut and changed by worker processes, from the whole fields, as they are drawn.

    Args:
        network: what trains.
        part: of the system.
        recipe: `CandidateRecipe`.
        training, validation: `Candidates`.
        device: torch.device.
    """

    criterion, highest = "validation_f1", True

    def __init__(
        self,
        network: nn.Module,
        part: Classifier,
        recipe: CandidateRecipe,
        training: Candidates,
        validation: Candidates,
        device: torch.device,
    ) -> None:
        self.network, self.part, self.recipe, self.training, self.validation = (
            network,
            part,
            recipe,
            training,
            validation,
        )
        self.truths = sum(len(each.figures) for each in validation.fields)  # proposed or not
        self.device = device
        self.steps_an_epoch, self.portions = recipe.steps_an_epoch, [range(recipe.batch)]
        self.normalisation = normalisation(network)
        proposals = training.proposals
        domains = domains_of(training.fields)[proposals.fields]
        self.chances = sampling_chances(proposals.labels, domains, recipe.positive_fraction)
        self.colours: list[nn.Module] = []
        if recipe.colour_jitter:
            self.colours.append(v2.ColorJitter(*recipe.colour_jitter))
        if recipe.randaugment:
            self.colours.append(v2.RandAugment(num_ops=recipe.randaugment, magnitude=5))

    def batches(self, step: int) -> Iterator[Batch]:
        """Drawn and changed crops, from a step on."""
        count = len(self.portions)
        numbers = range(step * count, self.recipe.epochs * self.steps_an_epoch * count)
        yield from batches_of(self._drawn, numbers, self.device.type == "cuda")

    def on_device(self, batch: Batch) -> Batch:
        """The same."""
        tensors = {name: getattr(batch, name) for name in ("inputs", "targets", "labels", "mixed")}
        moved = {name: value.to(self.device, non_blocking=True) for name, value in tensors.items()}
        return batch._replace(**moved)

    def _drawn(self, number: int) -> Batch:
        """The crops of a forward: its portion of those of a step, which are drawn alike in all processes."""
        recipe = self.recipe
        step, forward = divmod(number, len(self.portions))
        (random,) = Draws([(recipe.seed, step)]).generators
        few = len(self.chances) < recipe.batch
        drawn = torch.multinomial(self.chances, recipe.batch, replacement=few, generator=random)
        places = [*self.portions[forward]]
        draws = Draws((recipe.seed, step, each, "blend") for each in places)
        mixed, weight = draws.chance(recipe.mixup), draws.uniform() / 2 + 0.5
        others = [int((each + 1) / 2 * recipe.batch) for each in draws.uniform().tolist()]  # of the whole batch
        labels = self.training.proposals.labels[drawn]
        images, targets = self._changed(step, drawn, places), labels[places].float()
        if mixed.any():
            blended = mixed.nonzero()[:, 0].tolist()
            theirs = [others[each] for each in blended]
            kept = weight[mixed]
            images[mixed] = images[mixed].lerp(self._changed(step, drawn, theirs), (1 - kept)[:, None, None, None])
            targets[mixed] = targets[mixed].lerp(labels[theirs].float(), 1 - kept)
        targets = targets + recipe.label_smoothing * (0.5 - targets)
        if recipe.erase:
            seeds = ((recipe.seed, step, each, "erase") for each in places)
            images = torch.stack([erased(*each, recipe.erase) for each in zip(images, seeds, strict=True)])
        return Batch(normalise(images, *self.normalisation), targets, labels[places], mixed, step)

    def _changed(self, step: int, drawn: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """Crops of a step, each changed alike in whatever forward it is: float (N, 3, S, S) in [0, 1]."""
        crops = []
        for place in places:
            crop = self._cut(int(drawn[place]))
            seed_everything(self.recipe.seed, step, place)
            for change in self.colours:
                crop = change(crop)
            crops.append(crop)
        images = torch.stack(crops).float() / 255
        blank = images.new_zeros(len(images), 1, *images.shape[2:])
        draws = Draws((self.recipe.seed, step, each) for each in places)
        return augment(images, blank, 1 / MARGIN, self.part.input_px, self.recipe.augmentation, draws)[0]

    def _cut(self, number: int) -> torch.Tensor:
        """uint8 (3, S, S), `MARGIN` times what the network sees."""
        fields, proposals = self.training
        field, box = fields[int(proposals.fields[number])], proposals.boxes[number].numpy()
        crop = cut_candidate(field, box, self.part.field_um, round(self.part.input_px * MARGIN), MARGIN)
        return torch.from_numpy(crop.transpose(2, 0, 1).copy())

    def inputs(self, batch: Batch) -> torch.Tensor:
        """The crops."""
        return batch.inputs

    def loss(self, network: nn.Module, batch: Batch, whole: WholeBatch) -> torch.Tensor:
        """Equations 1 to 3."""
        recipe = self.recipe
        with training_precision(self.device, recipe):
            features, logits = features_and_logits(network, batch.inputs)
        alphas = recipe.alpha_mitotic, recipe.alpha_background
        loss = focal_loss(logits, batch.targets, recipe.gamma, *alphas, whole.total)
        if recipe.contrastive_weight:
            pure = ~whole.rows(batch.mixed)  # a blend has no class
            features, labels = whole.rows(features.float())[pure], whole.rows(batch.labels)[pure]
            (partners,) = Draws([(recipe.seed, batch.step, "partners")]).generators
            contrast = contrastive_loss(features, labels, recipe.temperature, partners)
            loss = loss + recipe.contrastive_weight * whole.share(contrast)
        return loss

    def validate(self, member: nn.Module) -> dict[str, float]:
        """As `judge`, in one view."""
        f1, threshold = self.judge(member, replace(self.part, views=1))
        return {"validation_f1": f1, "threshold": threshold}

    def judge(self, network: nn.Module, part: Classifier) -> tuple[float, float]:
        """The best F1 of the validation fields before calibration, as inference computes it, and its threshold."""
        fields, proposals = self.validation
        classifier = in_views(NetworkClassifier(network, 1.0, part.input_px), part)
        places = zip(proposals.fields.tolist(), proposals.boxes.numpy(), strict=True)
        crops = prefetch((cut_candidate(fields[i], box, part.field_um, part.input_px) for i, box in places), PREFETCHED)
        found = classify(crops, classifier, self.device)
        probabilities = with_score(found, proposals.scores.numpy(), part.score_weight)
        return best_operating_point(probabilities, proposals.labels.numpy(), self.truths)

    def weights(self, member: nn.Module) -> StateDict:
        """All of them."""
        return member.state_dict()


def domains_of(fields: Sequence[Field]) -> torch.Tensor:
    """int64 (N,): -1 for a field, and for a crop around a cell the number of its tumour, laboratory and scanner."""
    numbers: dict[tuple[str, ...], int] = {}
    domains = [domain_of(each.source, each.case) if is_crop(each) else None for each in fields]
    return torch.tensor([-1 if each is None else numbers.setdefault(each, len(numbers)) for each in domains])


def sampling_chances(labels: torch.Tensor, domains: torch.Tensor, positive_fraction: float) -> torch.Tensor:
    """Chance of each proposal to be drawn: figures of fields and of crops half each, the rest evenly; float64 (N,).

    Half of the crops' share is even over their figures, half over their domains first.

    Args:
        labels: int64 (N,), 1 a mitotic figure.
        domains: int64 (N,), of each proposal's field, as `domains_of`.
        positive_fraction: of mitotic figures.
    """
    is_figure = labels == 1
    chances = torch.zeros(len(is_figure), dtype=torch.float64)
    of_fields, of_crops = is_figure & (domains < 0), is_figure & (domains >= 0)
    share = positive_fraction / max(1, int(of_fields.any()) + int(of_crops.any()))
    chances[of_fields] = share / of_fields.sum().clamp_min(1)
    kinds, kind, counts = domains[of_crops].unique(return_inverse=True, return_counts=True)
    chances[of_crops] = share / 2 * (1 / of_crops.sum() + 1 / (counts[kind] * len(kinds))).double()
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


def erased(image: torch.Tensor, seed: object, probability: float) -> torch.Tensor:
    """An image (3, S, S) in which a rectangle of .02 to .15 of it may be erased, always the same by its seed."""
    seed_everything(seed)
    return v2.RandomErasing(p=probability, scale=(0.02, 0.15))(image)
