"""Train Track 2's classifier: five folds, out-of-fold figures, an export that inference.py loads.

    python resources/train/atypical.py --data DIR [DIR ...] --system NAME --out DIR

The recipe is resources/systems/NAME.yaml; OUT/model/NAME/ is the export. More
than one GPU: `torchrun --nproc_per_node 4 resources/train/atypical.py ...`.
"""

import argparse
import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from msgspec import Meta  # noqa: E402
from torch import nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.engine.classifier import NetworkClassifier, Views, classify, normalise  # noqa: E402
from midog.engine.weights import choose_device, load_network  # noqa: E402
from midog.errors import UserError, exit_code  # noqa: E402
from midog.models import CLASSIFIERS, build, classifier_options, normalisation  # noqa: E402
from midog.models.classifiers import timm_pretrained  # noqa: E402
from midog.system import CROP_UM, Made, NotNegative, Positive, Pretrained  # noqa: E402
from resources.data.crops import read_crops  # noqa: E402
from resources.train.augment import Augmentation, augment  # noqa: E402
from resources.train.common import (  # noqa: E402
    Count,
    Decay,
    Plan,
    Rate,
    Seed,
    Strict,
    WeightAverage,
    cosine_with_warmup,
    distributed,
    load_checkpoint,
    prepare_out,
    read_plan,
    save_checkpoint,
    save_weights,
    seed_everything,
    write_rows,
)
from resources.train.losses import mask_loss, soft_binary_loss, subclass_loss  # noqa: E402

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.99)),  # runs of some thousand steps have no time for .999
}


class AtypicalRecipe(Strict, frozen=True):
    """How Track 2's classifier is trained.

    Attributes:
        folds, seed: of the split and of everything random.
        epochs, batch: batch is the number of crops a step over all processes.
        optimizer: "adam" (weight decay as in the paper, through the gradient) or "adamw".
        learning_rate, weight_decay: the peak, then a cosine to 0; biases and norms do not decay under adamw.
        warmup_epochs: linear rise before.
        clip_norm: the largest gradient norm.
        labels: "hard" (majority) or "votes" (share of the experts).
        weight_average: decay a step of the averaged weights; 0 keeps the network's own.
        keep: "best" (lowest validation loss) or "last" epoch.
        pretrained: name in timm whose weights are the start, or "".
        subclass_weight, mask_weight: of the auxiliary losses; 0 switches them off.
        compile: fuse the network with torch.compile, for a training on a CPU (needs a C++ compiler).
        augmentation: see `Augmentation`.
    """

    folds: Annotated[int, Meta(ge=2)]
    seed: Seed
    epochs: Count
    batch: Count
    optimizer: Literal["adam", "adamw"]
    learning_rate: Rate
    weight_decay: NotNegative
    warmup_epochs: NotNegative
    clip_norm: Positive
    labels: Literal["hard", "votes"]
    weight_average: Decay
    keep: Literal["best", "last"]
    pretrained: str
    subclass_weight: NotNegative
    mask_weight: NotNegative
    compile: bool
    augmentation: Augmentation


class Trainee(nn.Module):
    """The network with its auxiliary outputs: logits (N, 1 + subclasses), and a chromosome mask at half its fine map.

    Args:
        part: `midog.system.Classifier`; `options.num_classes` is set to 1 + subclasses.
        subclasses: how many.
        with_mask: predict the chromosomes from the second stage, at twice its resolution.
    """

    def __init__(self, part, subclasses, with_mask):
        super().__init__()
        options = part.options | {"num_classes": 1 + subclasses}
        self.network = build(CLASSIFIERS, part.network, classifier_options(part.network, options, part.input_px))
        self.mask = None
        if with_mask:
            if not hasattr(self.network, "stage_maps"):
                raise UserError(f"network {part.network}: no maps to learn masks from; set mask_weight to 0")
            self.mask = nn.Conv2d(self.network.widths[1], 4, 1)

    def forward(self, x):
        if self.mask is None:
            return self.network(x), None
        maps = self.network.stage_maps(x)
        return self.network.head(maps[-1]), nn.functional.pixel_shuffle(self.mask(maps[1]), 2)


def subclass_names(crops, recipe):
    """The subclasses that the network has an output for."""
    return crops.subclass_names if recipe.subclass_weight else []


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders with labels.csv and crops/")
    parser.add_argument("--system", required=True, metavar="NAME", help="a file of resources/systems, or a path")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="checkpoints, figures, plots, export")
    parser.add_argument("--folds", default="0,1,2,3,4", metavar="K,K", help="which to train and export (%(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N crops only, to try things out")
    parser.add_argument("--resume", action="store_true", help="go on where OUT was left")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--pretrained", metavar="FILE", help="local weights with timm's names, or 'none'")
    return parser.parse_args(argv)


def read_atypical_plan(name: str) -> Plan[AtypicalRecipe]:
    """resources/systems/NAME.yaml (or a path), for Track 2."""
    return read_plan(name, 2, "classifier", AtypicalRecipe)


def split_folds(crops, recipe):
    """Fold number of every crop, stratified by label and grouped by case: int (N,)."""
    from sklearn.model_selection import StratifiedGroupKFold

    cases = len(np.unique(crops.cases))
    if cases < recipe.folds:
        raise UserError(
            f"{', '.join(crops.sets)}: {cases} cases for {recipe.folds} folds; give more data or a larger --limit"
        )
    splitter = StratifiedGroupKFold(recipe.folds, shuffle=True, random_state=recipe.seed)
    numbers = np.full(len(crops), -1)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(crops)), crops.labels.numpy(), crops.cases)):
        numbers[held_out] = number
    return numbers


def load_pretrained(network, part, recipe, given):
    """Fill the network from timm's weights by name or from a local file; its last layer stays new.

    Args:
        network: what `part`, a `midog.system.Classifier`, describes.
        recipe: `AtypicalRecipe`.
        given: --pretrained.

    Raises:
        UserError: the weights cannot be had or do not fit.
    """
    if given == "none" or not (given or recipe.pretrained):
        return
    source = given or recipe.pretrained
    try:
        if part.network == "timm":
            options = {key: value for key, value in part.options.items() if key != "num_classes"}
            options["name"] = recipe.pretrained or options["name"]
            started = timm_pretrained(file=given, **classifier_options("timm", options, part.input_px))
            last = timm.models.get_pretrained_cfg_value(options["name"], "classifier")
            heads = (last,) if isinstance(last, str) else tuple(last)
            state = started.state_dict()
        else:
            heads, state = ("head.fc", "fc", "classifier"), _state_of(given, source)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UserError(
            f"{source}: pretrained weights cannot be had ({reason[0][:120]}); "
            "download them elsewhere and give --pretrained FILE, or 'none'"
        ) from None
    state = {key: value for key, value in state.items() if not key.startswith(heads)}
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or any(not key.startswith(heads) for key in missing):
        raise UserError(f"{source}: not the weights of this network ({(unexpected or missing)[0]}); choose others")


def _state_of(given, name):
    """The tensors of a local file, or of timm's network of that name."""
    if not given:
        return timm.create_model(name, pretrained=True).state_dict()
    if given.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(given)
    return torch.load(given, map_location="cpu", weights_only=True)


def pretrained_of(recipe: AtypicalRecipe, given: str | None) -> dict[str, Pretrained]:
    """What `load_pretrained` reads, as model.yaml tells it; what timm downloads has no file to take a sha256 of."""
    if given == "none" or not (given or recipe.pretrained):
        return {}
    sha256 = hashlib.sha256(Path(given).read_bytes()).hexdigest() if given else "not recorded"
    source = Path(given).name if given else recipe.pretrained
    return {"classifier": Pretrained(source=source, sha256=sha256, licence="unknown")}


def make_optimizer(trainee, recipe):
    matrices = [parameter for parameter in trainee.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in trainee.parameters() if parameter.ndim <= 1]
    decay_others = recipe.weight_decay if recipe.optimizer == "adam" else 0.0
    groups = [{"params": matrices}, {"params": others, "weight_decay": decay_others}]
    return OPTIMIZERS[recipe.optimizer](groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


class FoldTrainer:
    """Train one fold from its checkpoint, if there is one, to its end.

    Args:
        plan, crops: what to train, on what.
        training, held_out: int arrays of crops.
        folder: where the fold's checkpoint, log and weights go.
        device: torch.device.
        rank, world: this process of torchrun's group.
        pretrained: --pretrained.
        fold: its number, part of every seed.
    """

    def __init__(self, plan, crops, training, held_out, folder, device, rank, world, pretrained, fold):
        self.plan, self.recipe, self.crops, self.device = plan, plan.training, crops, device
        self.training, self.held_out, self.folder, self.fold = training, held_out, folder, fold
        self.rank, self.world = rank, world
        recipe = self.recipe
        seed_everything(recipe.seed, "start", fold)
        self.trainee = Trainee(plan.system.classifier, len(subclass_names(crops, recipe)), recipe.mask_weight > 0)
        load_pretrained(self.trainee.network, plan.system.classifier, recipe, pretrained)
        self.normalisation = normalisation(self.trainee.network)
        self.trainee.to(device, memory_format=torch.channels_last)
        self.average = WeightAverage(self.trainee, recipe.weight_average)
        self.optimizer = make_optimizer(self.trainee, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.parallel = self.trainee
        if world > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.trainee)
        if recipe.compile:
            torch.compiler.reset()
            self.parallel = torch.compile(self.parallel)
        self.steps_an_epoch = max(1, len(training) // recipe.batch)
        self.rows, self.best_loss, self.best = [], float("inf"), None

    def resume(self):
        state = load_checkpoint(self.folder / "checkpoint.pt")
        if state:
            self.trainee.load_state_dict(state["trainee"])
            self.average.average.load_state_dict(state["average"])
            self.average.steps = state["steps"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.rows, self.best_loss, self.best = state["rows"], state["best_loss"], state["best"]

    def save(self):
        save_checkpoint(
            self.folder / "checkpoint.pt",
            {
                "trainee": self.trainee.state_dict(),
                "average": self.average.average.state_dict(),
                "steps": self.average.steps,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rows": self.rows,
                "best_loss": self.best_loss,
                "best": self.best,
            },
        )

    def run(self):
        """Train to the end; returns the weights to keep, as fp32 tensors."""
        done = len(self.rows)
        epochs = range(done, self.recipe.epochs)
        bar = tqdm(epochs, f"fold {self.fold}", initial=done, total=self.recipe.epochs, disable=None)
        for epoch in bar:
            loss = self._train_epoch(epoch)
            if self.rank == 0:
                figures = self._validate()
                if figures["validation_loss"] < self.best_loss:
                    self.best_loss = figures["validation_loss"]
                    if self.recipe.keep == "best":
                        self.best = {key: value.clone() for key, value in self._weights().items()}
                self.rows.append({"epoch": epoch + 1, "training_loss": loss} | figures)
                self.save()
                write_rows(self.folder / "epochs.csv", self.rows)
                bar.set_postfix(loss=f"{loss:.3f}", auc=f"{figures['validation_auc']:.3f}")
                if bar.disable:
                    said = ", ".join(f"{name} {figure:.4g}" for name, figure in self.rows[-1].items())
                    print(f"fold {self.fold}: {said}", flush=True)
        return self.best if self.recipe.keep == "best" else self._weights()

    def _weights(self):
        return self.average.average.network.state_dict()

    def _train_epoch(self, epoch):
        recipe, steps = self.recipe, self.steps_an_epoch
        generator = np.random.default_rng((recipe.seed, self.fold, epoch))
        order = torch.from_numpy(generator.permutation(self.training))
        seed_everything(recipe.seed, self.fold, epoch, self.rank)
        self.trainee.train()
        total = 0.0
        for step in range(steps):
            rate = cosine_with_warmup(epoch * steps + step, recipe.epochs * steps, recipe.warmup_epochs * steps)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate
            chosen = order[step * recipe.batch : (step + 1) * recipe.batch][self.rank :: self.world]
            total += self._step(chosen)
        return total / steps

    def _step(self, chosen):
        recipe, crops, part = self.recipe, self.crops, self.plan.system.classifier
        images = crops.images[chosen].to(self.device).float() / 255
        masks = crops.masks[chosen].to(self.device).float()
        images, masks = augment(images, masks, part.field_um / CROP_UM, part.input_px, recipe.augmentation)
        targets = (crops.votes if recipe.labels == "votes" else crops.labels.float())[chosen].to(self.device)
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, half):
            logits, mask_logits = self.parallel(normalise(images, *self.normalisation))
        loss = soft_binary_loss(logits[:, 0], targets)
        if logits.shape[1] > 1:
            shares = crops.subclasses[chosen].to(self.device)
            loss = loss + recipe.subclass_weight * subclass_loss(logits[:, 1:], shares)
        if mask_logits is not None:
            masked = crops.masked[chosen].to(self.device)
            loss = loss + recipe.mask_weight * mask_loss(mask_logits, masks, masked)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.trainee.parameters(), recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update()
        return loss.item()

    def _validate(self):
        from sklearn.metrics import roc_auc_score

        labels = self.crops.labels[self.held_out].numpy()
        probabilities = predict(self.average.average.network, self.plan, 1, self.crops, self.held_out, self.device)
        p = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
        loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()
        auc = roc_auc_score(labels, p) if 0 < labels.sum() < len(labels) else float("nan")
        return {"validation_loss": float(loss), "validation_auc": float(auc)}


def predict(network, plan, views, crops, rows, device):
    """P(atypical) before calibration, as inference computes it: float32 (len(rows),)."""
    part = plan.system.classifier
    classifier = Views(NetworkClassifier(network, part.field_um / CROP_UM, part.input_px), views)
    return classify((crops.images[row].permute(1, 2, 0).numpy() for row in rows), classifier, device)


def train_fold(plan, crops, numbers, fold, arguments, device, rank, world):
    """Train one fold unless its weights are there; returns when they are a file."""
    folder = arguments.out / f"fold{fold}"
    if (folder / "weights.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    training, held_out = np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)
    trainer = FoldTrainer(plan, crops, training, held_out, folder, device, rank, world, arguments.pretrained, fold)
    trainer.resume()
    weights = trainer.run()
    if rank == 0:
        save_weights(weights, folder / "weights.safetensors")
        (folder / "checkpoint.pt").unlink()


def predict_held_out(plan, crops, numbers, fold, out, device):
    """The held-out crops' probabilities from the fold's weights as exported: held_out.csv with 1 view and all views."""
    path = out / f"fold{fold}" / "held_out.csv"
    if path.exists():
        return
    part = plan.system.classifier
    options = part.options | {"num_classes": 1 + len(subclass_names(crops, plan.training))}
    options = classifier_options(part.network, options, part.input_px)
    network = load_network(CLASSIFIERS, part.network, options, path.with_name("weights.safetensors")).to(device)
    rows = np.flatnonzero(numbers == fold)
    table = pd.DataFrame({"file": crops.files[rows], "case": crops.cases[rows], "domain": crops.domains[rows]})
    table["fold"], table["label"] = fold, crops.labels[rows].numpy()
    table["one_view"] = predict(network, plan, 1, crops, rows, device)
    table["raw"] = predict(network, plan, part.views, crops, rows, device)
    table.to_csv(path, index=False)


def run(arguments):
    from resources.train.atypical_report import report_and_export

    plan = read_atypical_plan(arguments.system)
    try:
        folds = sorted({int(number) for number in arguments.folds.split(",")})
        if not folds or not set(folds) <= set(range(plan.training.folds)):
            raise ValueError
    except ValueError:
        raise UserError(f"--folds {arguments.folds}: numbers from 0 to {plan.training.folds - 1} expected") from None
    device = choose_device(arguments.device)
    rank, world = distributed()
    if world > 1 and device.type == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if rank == 0:
        said = {"data": arguments.data, "limit": arguments.limit, "plan": plan.as_yaml()}
        prepare_out(arguments.out, arguments.resume, said)
    if world > 1:
        torch.distributed.barrier()
    crops = read_crops(arguments.data, arguments.limit)
    numbers = split_folds(crops, plan.training)
    for fold in folds:
        train_fold(plan, crops, numbers, fold, arguments, device, rank, world)
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if rank == 0:
        for fold in folds:
            predict_held_out(plan, crops, numbers, fold, arguments.out, device)
        made = Made(pretrained=pretrained_of(plan.training, arguments.pretrained))
        plan = Plan(msgspec.structs.replace(plan.system, made=made), plan.part, plan.training)
        report_and_export(plan, crops, folds, subclass_names(crops, plan.training), arguments.out)


def main(argv=None):
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
