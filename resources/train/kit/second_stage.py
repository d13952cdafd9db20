"""Training stage 2 of Track 1: which of a detector's candidates are mitotic figures (Xiao, Lyu and Liu 2025)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms import v2

from midog.engine.classifier import NetworkClassifier, classify, in_views
from midog.engine.detector import prefetch
from midog.engine.torch_engine import Normalised, TorchNetwork, normalise
from midog.engine.two_stages import PREFETCHED, cut_candidate, with_score
from midog.errors import UserError
from midog.evaluation.metrics import best_operating_point
from midog.evaluation.provenance import domain_of
from midog.images.tiles import has_tissue
from midog.models import CLASSIFIERS, build, classifier_options, normalisation
from midog.models.classifiers import ConvNeXtV2
from midog.system import Classifier, Fraction, InputSide, NotNegative, Positive, Pretrained
from resources.data.fields import Field, is_crop
from resources.train.kit.augment import Augmentation, Draws, augment
from resources.train.kit.loop import training_precision
from resources.train.kit.losses import contrastive_loss, focal_loss
from resources.train.kit.pretrained import load_start
from resources.train.kit.proposals import Proposals
from resources.train.kit.recipes import Count, LoopRecipe
from resources.train.kit.run import StateDict, seed_everything
from resources.train.kit.sampler import area_fractions
from resources.train.kit.whole import WholeBatch
from resources.train.kit.workers import batches_of

MARGIN = 2.0  # of a crop's side over what the network sees, for turning and shifting
MAX_TRIES = 20  # of finding a place of tissue without a figure
BACKGROUND = -1  # instead of a proposal's number
ERASED = 0.5  # of the normalised colours


class CandidateRecipe(LoopRecipe, frozen=True, kw_only=True):
    """How stage 2 is trained.

    Attributes:
        steps_an_epoch: crops are drawn, so an epoch is as long as one says.
        input_px: side of what is learnt from; None is the classifier's own.
        field_um: side of the square that it shows; None is as many um per pixel as the classifier sees.
        score_threshold: of the detector's proposals that are learnt from.
        positive_fraction: of mitotic figures among what is drawn.
        background: of the rest, so much is cut anywhere in the fields where no figure is in sight.
        alpha_mitotic, alpha_background, gamma: of the focal loss (equation 2).
        temperature, contrastive_weight: of the contrastive loss (equations 1 and 3).
        augmentation: see `Augmentation`.
        label_smoothing: targets are so far from 0 and 1, both together.
        colour_jitter: brightness, contrast and saturation change by up to these fractions; empty switches it off.
        mixup: probability that a crop is blended with another one, by a weight that is even from 0 to 1.
        randaugment: operations of RandAugment, magnitude 5, those that move the crop among them.
        erase: probability that a rectangle of .02 to .15 of the crop is erased.
    """

    steps_an_epoch: Count
    input_px: InputSide | None = None
    field_um: Positive | None = None
    score_threshold: Fraction
    positive_fraction: Annotated[float, Meta(gt=0, lt=1)]
    background: Fraction = 0.0
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
        UserError: as `resources.train.kit.pretrained.load_start`; a network for one size of crops is to learn from
            another one.
    """
    seed_everything(recipe.seed, "start")
    options = classifier_options(part.network, part.options, part.input_px)
    network = build(CLASSIFIERS, part.network, options)
    if recipe.input_px:
        try:
            network.eval()(torch.zeros(1, 3, recipe.input_px, recipe.input_px))
        except (AssertionError, RuntimeError, ValueError):
            raise UserError(
                f"training.classifier.input_px {recipe.input_px}: the network is made for {part.input_px} px alone; "
                "leave this key out"
            ) from None
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
        self.input_px, self.field_um = recipe.input_px or part.input_px, recipe.field_um or part.field_um
        self.margin = MARGIN if recipe.field_um else MARGIN * self.input_px / part.input_px
        proposals = training.proposals
        domains = domains_of(training.fields)[proposals.fields]
        self.chances = sampling_chances(proposals.labels, domains, recipe.positive_fraction)
        others = proposals.labels == 0
        self.chances[others] *= 1 - recipe.background
        share = recipe.background if others.any() else float(recipe.background > 0)
        self.background = (1 - recipe.positive_fraction) * share
        self.tissue = [each for each in training.fields if not is_crop(each)]
        if self.background and not self.tissue:
            raise UserError("training.classifier.background: no field of --data is larger than a crop; set it to 0")
        self.tissue_fractions = area_fractions(self.tissue)
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
        few = int(self.chances.count_nonzero()) < recipe.batch
        drawn = torch.multinomial(self.chances, recipe.batch, replacement=few, generator=random)
        drawn[torch.rand(recipe.batch, generator=random) < self.background] = BACKGROUND
        labels = torch.where(drawn == BACKGROUND, 0, self.training.proposals.labels[drawn])
        places = [*self.portions[forward]]
        draws = Draws((recipe.seed, step, each, "blend") for each in places)
        mixed, weight = draws.chance(recipe.mixup), draws.uniform() / 2 + 0.5
        apart = [1 + int((each + 1) / 2 * (recipe.batch - 1)) for each in draws.uniform().tolist()]
        others = [sum(each) % recipe.batch for each in zip(places, apart, strict=True)]  # of the whole batch
        images, targets = self._changed(step, drawn, places), labels[places].float()
        if mixed.any():
            blended = mixed.nonzero()[:, 0].tolist()
            theirs = [others[each] for each in blended]
            kept = weight[mixed]
            images[mixed] = images[mixed].lerp(self._changed(step, drawn, theirs), (1 - kept)[:, None, None, None])
            targets[mixed] = targets[mixed].lerp(labels[theirs].float(), 1 - kept)
        targets = targets + recipe.label_smoothing * (0.5 - targets)
        inputs = normalise(images, *self.normalisation)
        if recipe.erase:
            for image, place in zip(inputs, places, strict=True):
                image.copy_(erased(image, (recipe.seed, step, place, "erase"), recipe.erase))
        return Batch(inputs, targets, labels[places], mixed, step)

    def _changed(self, step: int, drawn: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """Crops of a step, each changed alike in whatever forward it is: float (N, 3, S, S) in [0, 1]."""
        images = torch.stack([self._cut(step, place, int(drawn[place])) for place in places]).float() / 255
        blank = images.new_zeros(len(images), 1, 1, 1)
        draws = Draws((self.recipe.seed, step, each) for each in places)
        images, _ = augment(images, blank, 1 / MARGIN, self.input_px, self.recipe.augmentation, draws)
        if self.colours:
            changed = [self._coloured(image, step, place) for image, place in zip(images, places, strict=True)]
            images = torch.stack(changed)
        return images

    def _coloured(self, image: torch.Tensor, step: int, place: int) -> torch.Tensor:
        """An image after what torchvision draws, in 256 steps of each colour as published."""
        seed_everything(self.recipe.seed, step, place)
        pixels = (image * 255).round().byte()
        for change in self.colours:
            pixels = change(pixels)
        return pixels.float() / 255

    def _cut(self, step: int, place: int, number: int) -> torch.Tensor:
        """uint8 (3, S, S) of a proposal or of the background, `MARGIN` times what the network sees."""
        if number == BACKGROUND:
            return self._background(step, place)
        fields, proposals = self.training
        return self._around(fields[int(proposals.fields[number])], proposals.boxes[number].numpy())

    def _around(self, field: Field, box: NDArray[np.floating]) -> torch.Tensor:
        crop = cut_candidate(field, box, self.field_um, round(self.input_px * MARGIN), self.margin)
        return torch.from_numpy(crop.transpose(2, 0, 1).copy())

    def _background(self, step: int, place: int) -> torch.Tensor:
        """A place of tissue, if there is one, that shows no mitotic figure and no cell that may be one."""
        random = np.random.default_rng((self.recipe.seed, step, place))
        boxes = self.training.proposals.boxes.numpy()
        for _ in range(MAX_TRIES):
            field = self.tissue[int(random.choice(len(self.tissue), p=self.tissue_fractions))]
            centre, box = random.uniform(0, field.size), boxes[random.integers(len(boxes))]
            half = (box[2:] - box[:2]) / 2
            seen = self.field_um / 2 / np.array(field.um_per_px) if self.field_um else half
            seen = seen * self.margin / MARGIN
            doubtful = np.concatenate([field.figures, field.unclear])
            crop = self._around(field, np.concatenate([centre - half, centre + half]))
            in_sight = (np.abs(doubtful - centre) < seen + half).all(1).any()
            if not in_sight and has_tissue(crop.permute(1, 2, 0).numpy()):
                break
        return crop

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
        """F1 of the validation fields before calibration, as inference computes it, and its threshold.

        The best there is, or, of a recipe that is not calibrated, that at .5.
        """
        fields, proposals = self.validation
        predicted = TorchNetwork(Normalised(network), self.device, part.precision)
        classifier = in_views(NetworkClassifier(predicted, 1.0, part.input_px), part)
        places = zip(proposals.fields.tolist(), proposals.boxes.numpy(), strict=True)
        crops = prefetch((cut_candidate(fields[i], box, part.field_um, part.input_px) for i, box in places), PREFETCHED)
        found = classify(crops, classifier, self.device.type)
        probabilities = with_score(found, proposals.scores.numpy(), part.score_weight)
        hits = proposals.labels.numpy()
        if self.recipe.calibrate:
            return best_operating_point(probabilities, hits, self.truths)
        accepted = probabilities >= 0.5
        return 2 * int(hits[accepted].sum()) / max(1, int(accepted.sum()) + self.truths), 0.5

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
    """An image (3, S, S) in which a rectangle of .02 to .15 of it may be erased, always the same by its seed.

    The "random half erasing" of Xiao et al. 2025 is taken to be what their code does: one half in normalised colours, a
    light grey, takes the place of the pixels.
    """
    seed_everything(seed)
    return v2.RandomErasing(p=probability, scale=(0.02, 0.15), value=ERASED)(image)
