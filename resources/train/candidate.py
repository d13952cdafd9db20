"""Train stage 2 of Track 1: which of a detector's candidates are mitotic figures.

    python resources/train/candidate.py --detector MODEL/SYSTEM --data DIR[:CASE,CASE] ... --crops DIR ...
        --validation DIR[:CASE] ... --system NAME --out DIR

The crops are the detector's own proposals: true figures, look-alikes and false
positives, and labelled cells that it missed. The recipe is the `classifier`
part of resources/systems/NAME.yaml; OUT/model/NAME/ is the export: the detector
and the classifier together.
"""

import argparse
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torchvision.transforms import v2  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.engine.boxes import merge_near  # noqa: E402
from midog.engine.classifier import NetworkClassifier, Views, choose_device, classify, load_network, normalise  # noqa: E402
from midog.engine.detector import cut_candidate, find_candidates, load_detector, with_score  # noqa: E402
from midog.errors import UserError, exit_code  # noqa: E402
from midog.evaluation.metrics import best_operating_point, match  # noqa: E402
from midog.models.classifiers import NETWORKS  # noqa: E402
from midog.system import load_system, parse, read_yaml  # noqa: E402
from resources.data.crops import read_crops  # noqa: E402
from resources.data.fields import Field, add_mined, read_fields  # noqa: E402
from resources.train.atypical import Design  # noqa: E402
from resources.train.augment import Augmentation, augment  # noqa: E402
from resources.train.common import (  # noqa: E402
    WeightAverage,
    cosine_with_warmup,
    load_checkpoint,
    operating_shift,
    prepare_out,
    save_checkpoint,
    save_weights,
    seed_everything,
    write_model,
    write_rows,
)
from resources.train.detector import DATA_ARGUMENTS, add_data_arguments, names_of  # noqa: E402
from resources.train.losses import contrastive_loss, focal_loss  # noqa: E402

MATCH_UM = 7.5
MARGIN = 2.0  # of a stored crop's side over what the network sees, for turning and shifting
BOX_PX = 50
PAD = 64  # px around a crop whose neighbourhood is unknown


@dataclass(frozen=True)
class CandidateRecipe:
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

    seed: int
    epochs: int
    crops_an_epoch: int
    batch: int
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    warmup_epochs: float
    patience: int
    weight_average: float
    least_score: float
    positive_share: float
    alpha_mitotic: float
    alpha_background: float
    gamma: float
    temperature: float
    contrastive_weight: float
    augmentation: Augmentation
    colour_jitter: list
    mixup: float
    randaugment: int
    erase: float


@dataclass(frozen=True)
class CandidatePlan:
    """The `classifier` part of a system's YAML.

    Attributes:
        views: of each crop at test.
        confidence: the least score of a detector's candidate that is classified.
        context_um, score_weight: as in `midog.system.Detector`.
        member, training: the network, and how it is trained.
    """

    views: int
    confidence: float
    context_um: float
    score_weight: float
    member: Design
    training: CandidateRecipe


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
    parser.add_argument("--context-um", type=float, metavar="UM", help="instead of the recipe's; 0 is the box itself")
    return parser.parse_args(argv)


def read_candidate_plan(name):
    """resources/systems/NAME.yaml (or a path) -> the whole mapping, and its `CandidatePlan`; strict keys."""
    path = Path(name) if name.endswith(".yaml") else ROOT / "resources" / "systems" / f"{name}.yaml"
    values = read_yaml(path)
    if not isinstance(values, dict) or not isinstance(values.get("classifier"), dict):
        raise UserError(f"{path}: no classifier; choose a system of two stages")
    where = f"{path}: classifier"
    classifier = dict(values["classifier"])
    classifier["member"] = parse(Design, classifier.get("member"), f"{where}.member")
    training = dict(classifier.get("training") or {})
    training["augmentation"] = parse(Augmentation, training.get("augmentation"), f"{where}.training.augmentation")
    classifier["training"] = parse(CandidateRecipe, training, f"{where}.training")
    if classifier["member"].crop != 1:
        raise UserError(f"{where}.member: crop is {classifier['member'].crop}; 1 expected, context_um says how much")
    return values, parse(CandidatePlan, classifier, where)


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
    tile = part.tile if max(field.size) > 256 else 256
    boxes, scores = find_candidates(field, detector, tile, part.overlap, device)
    kept = merge_near(boxes, scores, MATCH_UM / field.um_per_px[0])
    return boxes[kept], scores[kept]


def gather(fields, number_of, detector, part, plan, device, labelled):
    """Cut the candidates of fields.

    Args:
        fields: list of `Field`.
        number_of: what goes into `Candidates.fields`, a function of the place in the list.
        detector, part: the detector and its settings.
        plan: `CandidatePlan`.
        labelled: add labelled cells where they were labelled, whether proposed or not.
    """
    images, labels, numbers, scores, boxes = [], [], [], [], []
    size = round(plan.member.size * MARGIN)

    def add(field, number, box, label, score):
        images.append(cut_candidate(field, box, plan.context_um, size, MARGIN))
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
        plan: `CandidatePlan`.
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
        self.network = NETWORKS[plan.member.network](**plan.member.options)
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
        images, _ = augment(images, blank, 1 / MARGIN, self.plan.member.size, recipe.augmentation)
        targets = labels.float()
        mixed = torch.rand(len(images), device=self.device) < recipe.mixup
        weight = torch.where(mixed, torch.rand(len(images), device=self.device), 1.0)
        other = torch.randperm(len(images), device=self.device)
        images = weight[:, None, None, None] * images + (1 - weight[:, None, None, None]) * images[other]
        targets = weight * targets + (1 - weight) * targets[other]
        images = erase(images, recipe.erase)
        with torch.autocast(self.device.type, torch.bfloat16):
            features, logits = features_and_logits(self.network, normalise(images))
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
    """P(mitotic figure) before calibration, as inference computes it: float32 (N,)."""
    classifier = Views(NetworkClassifier(network, 1 / MARGIN, plan.member.size), views)
    network.eval()
    probabilities = classify(iter(candidates.images.permute(0, 2, 3, 1).numpy()), classifier, device, tqdm.write)
    return with_score(probabilities, candidates.scores, plan.score_weight)


def train(arguments):
    values, plan = read_candidate_plan(arguments.system)
    if arguments.context_um is not None:
        plan = replace(plan, context_um=arguments.context_um)
    if arguments.seed is not None:
        plan = replace(plan, training=replace(plan.training, seed=arguments.seed))
    stage1 = load_system(arguments.detector)
    part = stage1.detector
    device = choose_device(arguments.device)
    fields = add_mined(read_fields(arguments.data), arguments.mined)
    held_out = read_fields(arguments.validation)
    said = {name: getattr(arguments, name) for name in DATA_ARGUMENTS}
    prepare_out(arguments.out, arguments.resume, said | {"detector": asdict(part), "plan": asdict(plan)})

    def cut(confidence):
        return load_detector(stage1, device, confidence), part, plan, device

    training = _cached(
        arguments.out / "training.npz", lambda: _training(arguments, fields, cut(plan.training.least_score))
    )
    # Validation is what inference sees: candidates from the system's own confidence on.
    validation = _cached(
        arguments.out / "validation.npz",
        lambda: gather(held_out, lambda place: place, *cut(plan.confidence), labelled=False),
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
    export(arguments, values, plan, stage1, best, validation, truths, device)


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


def export(arguments, values, plan, stage1, weights, validation, truths, device):
    """Write OUT/model/<system>/: the detector as it is, the classifier, and model.yaml."""
    folder = arguments.out / "model" / values["system"]
    folder.mkdir(parents=True, exist_ok=True)
    for each in stage1.detector.members:
        shutil.copyfile(stage1.folder / each.weights, folder / each.weights)
    sha256 = save_weights(weights, folder / "classifier.safetensors")
    network = load_network(plan.member.network, plan.member.options, folder / "classifier.safetensors").to(device)
    probabilities = predict(network, plan, plan.views, validation, device)
    f1, threshold = best_operating_point(probabilities, validation.labels.numpy(), truths)
    member = asdict(plan.member) | {"calibration": {"scale": 1.0, "shift": operating_shift(threshold)}}
    member |= {"weights": "classifier.safetensors", "sha256": sha256}
    detector = asdict(stage1.detector)
    detector |= {name: getattr(plan, name) for name in ("confidence", "context_um", "score_weight")}
    write_model(
        folder,
        {
            "system": values["system"],
            "version": values["version"],
            "track": 1,
            "views": plan.views,
            "data": names_of(arguments),
            "detector": detector,
            "members": [member],
            "training": {"detector": stage1.training["detector"], "classifier": asdict(plan.training)},
            "metrics": stage1.metrics | {"validation_f1_two_stages": round(f1, 4)},
        },
    )
    print(f"validation F1 {f1:.4f} at {threshold:.3f} before calibration; export {folder}", flush=True)


def main(argv=None):
    return exit_code(train, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
