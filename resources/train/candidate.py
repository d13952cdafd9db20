"""Train stage 2 of Track 1: which of a detector's candidates are mitotic figures.

    python resources/train/candidate.py --detector MODEL/SYSTEM --data DIR[:CASE,CASE] ... --crops DIR ...
        --validation DIR[:CASE] ... --system NAME --out DIR

The crops are the detector's own proposals: true figures, look-alikes and false
positives, and labelled cells that it missed. The recipe is
`training.classifier` of resources/systems/NAME.yaml; OUT/model/NAME/ is the export: the detector
and the classifier together.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from msgspec import Meta  # noqa: E402
from torch import nn  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.calibration import Calibration, shift_to_half  # noqa: E402
from midog.engine.boxes import merge_near  # noqa: E402
from midog.engine.classifier import NetworkClassifier, Views, classify, normalise  # noqa: E402
from midog.engine.detector import find_candidates, load_detector  # noqa: E402
from midog.engine.two_stages import cut_candidate, with_score  # noqa: E402
from midog.engine.weights import choose_device, load_network  # noqa: E402
from midog.errors import UserError, exit_code  # noqa: E402
from midog.evaluation.metrics import best_operating_point, match  # noqa: E402
from midog.models import CLASSIFIERS, build, classifier_options, normalisation  # noqa: E402
from midog.system import ClassifierWeights, Fraction, Made, NotNegative, Positive, load_system  # noqa: E402
from resources.data.crops import read_crops  # noqa: E402
from resources.data.fields import Field, add_mined, read_fields  # noqa: E402
from resources.train.augment import Augmentation, augment  # noqa: E402
from resources.train.common import (  # noqa: E402
    Count,
    Decay,
    Plan,
    Rate,
    Seed,
    Strict,
    WeightAverage,
    commit,
    cosine_with_warmup,
    load_checkpoint,
    prepare_out,
    read_plan,
    save_checkpoint,
    save_weights,
    seed_everything,
    write_model,
    write_rows,
)
from resources.train.detector import DATA_ARGUMENTS, add_data_arguments, sources_of  # noqa: E402
from resources.train.losses import contrastive_loss, focal_loss  # noqa: E402

MATCH_UM = 7.5
MARGIN = 2.0  # of a stored crop's side over what the network sees, for turning and shifting
BOX_PX = 50
PAD = 64  # px around a crop whose neighbourhood is unknown


class CandidateRecipe(Strict, frozen=True):
    """How stage 2 is trained.

    Attributes:
        seed: of everything random.
        epochs, crops_an_epoch, batch: crops are drawn, so an epoch is as long as one says.
        learning_rate, final_learning_rate, weight_decay, warmup_epochs: AdamW, a linear rise, then a cosine.
        patience: stop after so many epochs without a better F1 on the validation candidates.
        weight_average: decay a step of the averaged weights; 0 keeps the network's own.
        least_score: of the detector's proposals that are learnt from.
        positive_share: of mitotic figures among what is drawn.
        alpha_mitotic, alpha_background, gamma: of the focal loss (equation 2).
        temperature, contrastive_weight: of the contrastive loss (equations 1 and 3).
        augmentation: see `Augmentation`.
        colour_jitter: brightness, contrast and saturation change by up to these shares; empty switches it off.
        mixup: probability that a crop is blended with another one.
        randaugment: operations of RandAugment, magnitude 5.
        erase: probability that a rectangle of .02 to .15 of the crop is erased.
    """

    seed: Seed
    epochs: Count
    crops_an_epoch: Count
    batch: Count
    learning_rate: Rate
    final_learning_rate: Rate
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    patience: Count
    weight_average: Decay
    least_score: Fraction
    positive_share: Annotated[float, Meta(gt=0, lt=1)]
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


@dataclass
class Candidates:
    """Crops of candidates.

    Attributes:
        images: uint8 (N, 3, S, S), `MARGIN` times what the network sees.
        labels: int64 (N,), 1 a mitotic figure.
        fields: int64 (N,), number of the field each comes from; -1 for crops.
        scores: float32 (N,), the detector's; 1 for labelled cells that it did not propose.
        boxes: float32 (N, 4), px of the field.
    """

    images: torch.Tensor
    labels: torch.Tensor
    fields: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_data_arguments(parser)
    parser.add_argument("--detector", required=True, type=Path, metavar="DIR", help="what detector.py exported")
    parser.add_argument("--field-um", type=float, metavar="UM", help="instead of the recipe's; 0 is the box itself")
    return parser.parse_args(argv)


def read_candidate_plan(name: str) -> Plan[CandidateRecipe]:
    """resources/systems/NAME.yaml (or a path), of two stages."""
    return read_plan(name, 1, "classifier", CandidateRecipe)


def crops_as_fields(folders):
    """Crops with a figure in the middle, as small fields with mirrored surroundings."""
    fields = []
    for number, crop in enumerate(read_crops(folders).images.permute(0, 2, 3, 1).numpy() if folders else ()):
        pixels = np.pad(crop, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="symmetric")
        middle = np.full((1, 2), (pixels.shape[0] - 1) / 2, np.float32)
        fields.append(Field(f"crop {number}", "", "crops", pixels, (0.25, 0.25), middle))
    return fields


def propose(detector, part, field, device):
    """The detector's merged candidates of a field: boxes (K, 4), scores (K,)."""
    tile = part.tile if max(field.size) > 256 else (256, 256)
    boxes, scores = find_candidates(field, detector, tile, part.overlap, device)
    kept = merge_near(boxes, scores, MATCH_UM / field.um_per_px[0])
    return boxes[kept], scores[kept]


def gather(fields, number_of, detector, part, plan, device, labelled):
    """Cut the candidates of fields.

    Args:
        fields: list of `Field`.
        number_of: what goes into `Candidates.fields`, a function of the place in the list.
        detector, part: the detector and its settings.
        plan: `Plan` of a `CandidateRecipe`.
        labelled: add labelled cells where they were labelled, whether proposed or not.
    """
    images, labels, numbers, scores, boxes = [], [], [], [], []
    classifier = plan.system.classifier
    size = round(classifier.input_px * MARGIN)

    def add(field, number, box, label, score):
        images.append(cut_candidate(field, box, classifier.field_um, size, MARGIN))
        labels.append(label)
        numbers.append(number)
        scores.append(score)
        boxes.append(box)

    for place, field in enumerate(tqdm(fields, "candidates", disable=None)):
        number = number_of(place)
        found, score = propose(detector, part, field, device)
        centres = (found[:, :2] + found[:, 2:]) / 2
        hit = np.zeros(len(found), bool)
        taken = match(field.figures, centres, MATCH_UM / field.um_per_px[0])
        hit[taken[taken >= 0]] = True
        for box, centre, each, is_hit in zip(found, centres, score, hit, strict=True):
            if number < 0 and not is_hit:
                away = np.abs(centre - field.figures[0])
                if away.max() > PAD or np.hypot(*away) < BOX_PX / 2:
                    continue  # in the mirrored margin, or on the figure after all
            add(field, number, box, int(is_hit), each)
        if labelled:
            for points, label in ((field.figures, 1), (field.look_alikes, 0)):
                for point in points:
                    add(field, number, np.concatenate([point - BOX_PX / 2, point + BOX_PX / 2]), label, 1.0)
    return Candidates(
        torch.from_numpy(np.array(images, np.uint8).reshape(-1, size, size, 3).transpose(0, 3, 1, 2).copy()),
        torch.tensor(labels, dtype=torch.int64),
        np.array(numbers, np.int64),
        np.array(scores, np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
    )


def features_and_logits(network, images):
    """Pooled features (N, D) and the logit (N,) of a batch, for our networks and timm's."""
    if hasattr(network, "stage_maps"):
        last = network.stage_maps(images)[-1]
        return last.mean((2, 3)), network.head(last)[:, 0]
    maps = network.forward_features(images)
    return network.forward_head(maps, pre_logits=True), network.forward_head(maps)[:, 0]


class CandidateTrainer:
    """Train stage 2 from its checkpoint, if there is one, to its end.

    Args:
        plan: `Plan` of a `CandidateRecipe`.
        training, validation: `Candidates`.
        truths: mitotic figures in the validation fields, found by the detector or not.
        folder: for the checkpoint and the log.
        device: torch.device.
    """

    def __init__(self, plan, training, validation, truths, folder, device):
        self.plan, self.recipe, self.training, self.validation = plan, plan.training, training, validation
        self.truths, self.folder, self.device = truths, folder, device
        recipe = self.recipe
        seed_everything(recipe.seed, "start")
        part = plan.system.classifier
        options = classifier_options(part.network, part.options, part.input_px)
        self.network = build(CLASSIFIERS, part.network, options)
        self.normalisation = normalisation(self.network)
        self.network.to(device, memory_format=torch.channels_last)
        self.average = WeightAverage(self.network, recipe.weight_average)
        matrices = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.network.parameters() if parameter.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
            recipe.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=recipe.weight_decay,
        )
        self.weights = self._sampling_weights()
        self.rows, self.best_f1, self.best = [], -1.0, None
        self.colours = []
        if recipe.colour_jitter:
            self.colours.append(v2.ColorJitter(*recipe.colour_jitter))
        if recipe.randaugment:
            self.colours.append(v2.RandAugment(num_ops=recipe.randaugment, magnitude=5))

    def _sampling_weights(self):
        """Chance of each crop to be drawn: figures from fields and from crops half each, the rest evenly."""
        labels, from_crops = self.training.labels.numpy(), self.training.fields < 0
        weights = np.zeros(len(labels))
        positive = [(labels == 1) & ~from_crops, (labels == 1) & from_crops]
        positive = [group for group in positive if group.any()]
        for group in positive:
            weights[group] = self.recipe.positive_share / len(positive) / group.sum()
        weights[labels == 0] = (1 - self.recipe.positive_share) / (labels == 0).sum()
        return torch.from_numpy(weights)

    def resume(self):
        state = load_checkpoint(self.folder / "checkpoint.pt")
        if state:
            self.network.load_state_dict(state["network"])
            self.average.average.load_state_dict(state["average"])
            self.average.steps = state["steps"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.rows, self.best_f1, self.best = state["rows"], state["best_f1"], state["best"]

    def save(self):
        save_checkpoint(
            self.folder / "checkpoint.pt",
            {
                "network": self.network.state_dict(),
                "average": self.average.average.state_dict(),
                "steps": self.average.steps,
                "optimizer": self.optimizer.state_dict(),
                "rows": self.rows,
                "best_f1": self.best_f1,
                "best": self.best,
            },
        )

    def run(self):
        """Train to the end or until patience is over; returns the best weights."""
        recipe, done = self.recipe, len(self.rows)
        bar = tqdm(range(done, recipe.epochs), "stage 2", initial=done, total=recipe.epochs, disable=None)
        for epoch in bar:
            if epoch - max((row["epoch"] for row in self.rows if row["best"]), default=0) >= recipe.patience:
                break
            loss = self._train_epoch(epoch)
            probabilities = predict(self.average.average, self.plan, 1, self.validation, self.device)
            f1, threshold = best_operating_point(probabilities, self.validation.labels.numpy(), self.truths)
            better = f1 > self.best_f1
            if better:
                self.best_f1 = f1
                self.best = {key: value.clone() for key, value in self.average.average.state_dict().items()}
            row = {"epoch": epoch + 1, "training_loss": loss, "validation_f1": f1, "threshold": threshold}
            self.rows.append(row | {"best": better})
            self.save()
            write_rows(self.folder / "epochs.csv", self.rows)
            bar.set_postfix(loss=f"{loss:.3f}", f1=f"{f1:.3f}")
            if bar.disable:
                print(", ".join(f"{name} {value:.4g}" for name, value in self.rows[-1].items()), flush=True)
        return self.best

    def _train_epoch(self, epoch):
        recipe = self.recipe
        steps = max(1, recipe.crops_an_epoch // recipe.batch)
        batch = min(recipe.batch, len(self.weights))
        seed_everything(recipe.seed, epoch)
        self.network.train()
        total = 0.0
        for step in range(steps):
            rate = cosine_with_warmup(epoch * steps + step, recipe.epochs * steps, recipe.warmup_epochs * steps)
            floor = recipe.final_learning_rate
            for group in self.optimizer.param_groups:
                group["lr"] = floor + (recipe.learning_rate - floor) * rate
            total += self._step(torch.multinomial(self.weights, batch, replacement=False))
        return total / steps

    def _step(self, chosen):
        recipe = self.recipe
        labels = self.training.labels[chosen].to(self.device)
        images = self.training.images[chosen]
        for change in self.colours:
            images = torch.stack([change(image) for image in images])
        images = images.to(self.device).float() / 255
        blank = images.new_zeros(len(images), 1, *images.shape[2:])
        images, _ = augment(images, blank, 1 / MARGIN, self.plan.system.classifier.input_px, recipe.augmentation)
        targets = labels.float()
        mixed = torch.rand(len(images), device=self.device) < recipe.mixup
        weight = torch.where(mixed, torch.rand(len(images), device=self.device), 1.0)
        other = torch.randperm(len(images), device=self.device)
        images = weight[:, None, None, None] * images + (1 - weight[:, None, None, None]) * images[other]
        targets = weight * targets + (1 - weight) * targets[other]
        images = erase(images, recipe.erase)
        with torch.autocast(self.device.type, torch.bfloat16):
            features, logits = features_and_logits(self.network, normalise(images, *self.normalisation))
        loss = focal_loss(logits, targets, recipe.gamma, recipe.alpha_mitotic, recipe.alpha_background)
        if recipe.contrastive_weight:
            whole = ~mixed  # a blend has no class
            loss = loss + recipe.contrastive_weight * contrastive_loss(
                features[whole], labels[whole], recipe.temperature
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.average.update()
        return loss.item()


def erase(images, probability):
    """Erase a rectangle of .02 to .15 of some images of a batch."""
    if not probability:
        return images
    drop = v2.RandomErasing(p=probability, scale=(0.02, 0.15))
    return torch.stack([drop(image) for image in images])


def predict(network, plan, views, candidates, device):
    """P(mitotic figure) before calibration, as inference computes it: float64 (N,)."""
    part = plan.system.classifier
    classifier = Views(NetworkClassifier(network, 1 / MARGIN, part.input_px), views)
    network.eval()
    probabilities = classify(iter(candidates.images.permute(0, 2, 3, 1).numpy()), classifier, device)
    return with_score(probabilities, candidates.scores, part.score_weight)


def train(arguments):
    plan = read_candidate_plan(arguments.system)
    if arguments.field_um is not None:
        if not arguments.field_um >= 0:
            raise UserError(f"--field-um {arguments.field_um:g}: 0 or more expected")
        plan = plan.with_part(field_um=arguments.field_um)
    if arguments.seed is not None:
        plan = plan.with_training(seed=arguments.seed)
    stage1 = load_system(arguments.detector)
    part = stage1.detector
    device = choose_device(arguments.device)
    fields = add_mined(read_fields(arguments.data), arguments.mined)
    held_out = read_fields(arguments.validation)
    said = {name: getattr(arguments, name) for name in DATA_ARGUMENTS}
    prepare_out(arguments.out, arguments.resume, said | {"detector": msgspec.to_builtins(part), "plan": plan.as_yaml()})

    def cut(score_threshold):
        return load_detector(stage1, device, score_threshold), part, plan, device

    training = _cached(
        arguments.out / "training.npz", lambda: _training(arguments, fields, cut(plan.training.least_score))
    )
    # Validation is what inference sees: candidates from the system's own threshold on.
    validation = _cached(
        arguments.out / "validation.npz",
        lambda: gather(held_out, lambda place: place, *cut(plan.system.detector.score_threshold), labelled=False),
    )
    truths = sum(len(field.figures) for field in held_out)
    print(
        f"training crops {len(training.labels)}, mitotic figures {int(training.labels.sum())}; validation candidates "
        f"{len(validation.labels)}, of which {int(validation.labels.sum())} of {truths} mitotic figures",
        flush=True,
    )
    trainer = CandidateTrainer(plan, training, validation, truths, arguments.out, device)
    trainer.resume()
    best = trainer.run()
    export(arguments, plan, stage1, best, validation, truths, device)


def _training(arguments, fields, cut):
    ours = gather(fields, lambda place: place, *cut, labelled=True)
    crops = crops_as_fields(arguments.crops)
    if not crops:
        return ours
    more = gather(crops, lambda place: -1, *cut, labelled=True)
    return Candidates(
        torch.cat([ours.images, more.images]),
        torch.cat([ours.labels, more.labels]),
        *(np.concatenate([getattr(ours, name), getattr(more, name)]) for name in ("fields", "scores", "boxes")),
    )


def _cached(path, make):
    """Candidates from a file, or made and stored there, so that a resumed run does not look for them again."""
    if not path.exists():
        made = make()
        part = path.with_suffix(".part.npz")
        np.savez(part, **{name: np.asarray(value) for name, value in vars(made).items()})
        part.replace(path)
    stored = np.load(path)
    return Candidates(
        torch.from_numpy(stored["images"]),
        torch.from_numpy(stored["labels"]),
        *(stored[name] for name in ("fields", "scores", "boxes")),
    )


def export(arguments, plan, stage1, weights, validation, truths, device):
    """Write OUT/model/<system>/: the detector as it is, the classifier, and model.yaml."""
    name, part = plan.system.system, plan.system.classifier
    folder = arguments.out / "model" / name
    folder.mkdir(parents=True, exist_ok=True)
    for each in stage1.detector.members:
        shutil.copyfile(stage1.path_of(each), folder / each.weights)
    sha256 = save_weights(weights, folder / "classifier.safetensors")
    options = classifier_options(part.network, part.options, part.input_px)
    network = load_network(CLASSIFIERS, part.network, options, folder / "classifier.safetensors").to(device)
    probabilities = predict(network, plan, part.views, validation, device)
    f1, threshold = best_operating_point(probabilities, validation.labels.numpy(), truths)
    calibration = Calibration(shift=shift_to_half(threshold))
    member = ClassifierWeights(weights="classifier.safetensors", sha256=sha256, calibration=calibration)
    detector = msgspec.structs.replace(
        stage1.detector,
        score_threshold=plan.system.detector.score_threshold,
        members=tuple(msgspec.structs.replace(each, shared="") for each in stage1.detector.members),
    )
    made = Made(
        code=commit(),
        data=tuple(dict.fromkeys((*stage1.made.data, *sources_of(arguments)))),
        pretrained=stage1.made.pretrained,
        metrics=stage1.made.metrics | {"validation_f1_two_stages": round(f1, 4)},
    )
    write_model(
        folder,
        msgspec.structs.replace(
            plan.system,
            detector=detector,
            classifier=msgspec.structs.replace(part, members=(member,)),
            training=stage1.training | {"classifier": msgspec.to_builtins(plan.training)},
            made=made,
        ),
    )
    print(f"validation F1 {f1:.4f} at {threshold:.3f} before calibration; export {folder}", flush=True)


def main(argv=None):
    return exit_code(train, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
