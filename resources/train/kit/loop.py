"""The one training loop: optimiser, schedule, averages, precision, checkpoint, best-of, stop, log, resume.

What is trained is a `Task`: its network, its batches, its loss, its validation.
"""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from midog.engine.memory import keep_memory
from midog.engine.torch_engine import half_type
from midog.errors import UserError
from resources.train.kit.depthwise import FastDepthwise
from resources.train.kit.recipes import LoopRecipe
from resources.train.kit.run import (
    Processes,
    StateDict,
    load_checkpoint,
    save_checkpoint,
    seed_everything,
    write_rows,
)
from resources.train.kit.whole import WholeBatch, portions

logger = logging.getLogger(__name__)

NORM_BATCHES = 16  # steps' images that batch norm's statistics are measured on
FEW = 16  # images of a forward, below which batch norm's statistics are those of all GPUs
VALIDATE_EVERY = 5  # epochs, where no figure of an epoch decides anything
LOG_SECONDS = 60.0

Batch = TypeVar("Batch")


class Task(Protocol[Batch]):
    """What one training learns.

    Attributes:
        network: what trains, on no particular device yet.
        steps_an_epoch: optimiser steps between two validations.
        portions: what each forward of this process takes of a step's batch; the loop sets them, more where memory is
            short.
        criterion: the figure of `validate` by which an epoch is the best.
        highest: whether the highest is the best; else the lowest.
    """

    network: nn.Module
    steps_an_epoch: int
    portions: list[range]
    criterion: str
    highest: bool

    def batches(self, step: int) -> Iterator[Batch]:
        """What the forwards from an optimiser step on learn from, of `portions` each, on the host.

        The same images, changed alike, whenever and wherever a run is resumed, and however it is divided.
        """

    def on_device(self, batch: Batch) -> Batch:
        """A batch where the network is."""

    def inputs(self, batch: Batch) -> torch.Tensor:
        """What the network is called with for a batch."""

    def loss(self, network: nn.Module, batch: Batch, whole: WholeBatch) -> torch.Tensor:
        """The part of a batch in its step's loss, float32; these parts add up, and so do their gradients.

        The network, which is `network` or an average of it, runs in `training_precision`.
        """

    def validate(self, member: nn.Module) -> dict[str, float]:
        """Figures of the network or an average."""

    def weights(self, member: nn.Module) -> StateDict:
        """Those of a member that are kept."""


def memory_format_of(network: nn.Module) -> torch.memory_format:
    """Channels last, but for group norm, whose backward pass is slow there."""
    grouped = any(isinstance(module, nn.GroupNorm) for module in network.modules())
    return torch.contiguous_format if grouped else torch.channels_last


def forward_type(device: torch.device, recipe: LoopRecipe) -> torch.dtype:
    """What a training's forwards compute in."""
    if recipe.precision == "float32":
        return torch.float32
    return torch.float16 if recipe.precision == "float16" and device.type == "cuda" else half_type(device)


@contextlib.contextmanager
def training_precision(device: torch.device, recipe: LoopRecipe) -> Iterator[None]:
    """Half precision for the forwards of a training, if its recipe says so; the one policy of all trainings."""
    dtype = forward_type(device, recipe)
    half = dtype != torch.float32
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype if half else None, enabled=half))
        if half and device.type == "cpu":
            stack.enter_context(FastDepthwise())
        yield


def learning_rate_at(recipe: LoopRecipe, step: int, steps_an_epoch: int) -> float:
    """The learning rate of a step: a line up, then a cosine or steps down."""
    steps, warmup = recipe.epochs * steps_an_epoch, round(recipe.warmup_epochs * steps_an_epoch)
    if step < warmup:
        return recipe.warmup_lr + (step + 1) / warmup * (recipe.learning_rate - recipe.warmup_lr)
    if recipe.decay_epochs:
        falls = sum(step >= epoch * steps_an_epoch for epoch in recipe.decay_epochs)
        return recipe.learning_rate * recipe.decay_factor**falls
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return recipe.final_lr + cosine * (recipe.learning_rate - recipe.final_lr)


class Loop:
    """Train from the checkpoint, if there is one, to the end: `Loop(...).run()`.

    Args:
        task: `Task`.
        recipe: `LoopRecipe`.
        folder: for checkpoint.pt and epochs.csv.
        device: torch.device.
        processes: of torchrun.
        title: of the progress bar.
        micro_batch: images of a forward, at most; 0 is as many as memory has room for.
    """

    def __init__(
        self,
        task: Task[Any],
        recipe: LoopRecipe,
        folder: Path,
        device: torch.device,
        processes: Processes | None = None,
        title: str = "training",
        micro_batch: int = 0,
    ) -> None:
        self.task, self.recipe, self.folder, self.device, self.title = task, recipe, folder, device, title
        self.processes = processes or Processes()
        if recipe.batch < self.processes.world:
            raise UserError(f"batch {recipe.batch} for {self.processes.world} processes; give torchrun fewer of them")
        share = -(-recipe.batch // self.processes.world)
        self.micro_batch = min(micro_batch, share) or share
        task.portions = portions(recipe.batch, self.processes, self.micro_batch)
        layout = memory_format_of(task.network)
        self.network = task.network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.averages = {
            number: ModelEmaV3(
                self.network, 1 - momentum, use_warmup=True, warmup_gamma=recipe.ema_warmup, warmup_power=1.0
            )
            for number, momentum in enumerate(recipe.ema_momentum)
            if momentum < 1
        }
        if self.processes.world > 1 and device.type == "cuda" and len(task.portions[0]) < FEW:
            # After the averages, which one process alone measures the statistics of.
            task.network = self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.trainee: nn.Module = _WithLoss(task)
        if self.processes.world > 1:
            self.trainee = nn.parallel.DistributedDataParallel(self.trainee)
        self.optimizer = _optimizer(self.network, recipe)
        self.schedule = LambdaLR(self.optimizer, lambda step: learning_rate_at(recipe, step, task.steps_an_epoch))
        self.scaler = torch.amp.GradScaler(device.type, enabled=forward_type(device, recipe) == torch.float16)
        members = len(recipe.ema_momentum)
        self.rows: list[dict[str, Any]] = []
        self.best_figures: list[float | None] = [None] * members
        self.best_epoch = 0
        self.kept: list[StateDict] = []

    @property
    def members(self) -> list[nn.Module]:
        """The network or an average of it for each `ema_momentum`."""
        numbers = range(len(self.recipe.ema_momentum))
        return [self.averages[number].module if number in self.averages else self.network for number in numbers]

    def run(self) -> list[StateDict]:
        """Train; the weights to keep, one state dict a member.

        A loss that is not finite ends the training with a warning: what is kept is what the last epoch left.

        Raises:
            UserError: the first epoch's loss is not finite already.
        """
        keep_memory()
        self._resume()
        steps = self.task.steps_an_epoch
        done, total = len(self.rows) * steps, self.recipe.epochs * steps
        self.bar = tqdm(
            desc=self.title,
            initial=done,
            total=total,
            unit="step",
            disable=None if self.processes.is_first else True,
        )
        self.begun, self.told = (time.monotonic(), done), time.monotonic()
        self.batches = self.task.batches(done)
        for epoch in range(len(self.rows), self.recipe.epochs):
            if self.processes.first(0 < self.recipe.patience <= epoch - self.best_epoch):
                break
            loss = self._train_epoch(epoch)
            if loss is None or not self.processes.first(not self.processes.is_first or self._end_epoch(epoch, loss)):
                break
        self.bar.close()
        return self.kept

    def _train_epoch(self, epoch: int) -> float | None:
        """The mean loss, or None after a loss that is not finite."""
        self.network.train()
        total = 0.0
        for step in range(epoch * self.task.steps_an_epoch, (epoch + 1) * self.task.steps_an_epoch):
            loss = self._fitting_step(step)
            if not math.isfinite(loss):
                self._diverged(epoch, step, loss)
                return None
            total += loss
            self.bar.update()
            if time.monotonic() - self.told > LOG_SECONDS:
                self._tell(step + 1, loss)
        return total / self.task.steps_an_epoch

    def _fitting_step(self, step: int) -> float:
        """`_step`, in forwards of half as many images whenever a GPU's memory runs out."""
        while True:
            try:
                return self._step(step)
            except torch.OutOfMemoryError:
                pass  # what the error holds of the forward is free only after this block
            self._halve_forwards(step)

    def _halve_forwards(self, step: int) -> None:
        count, half = max(map(len, self.task.portions)), -(-self.micro_batch // 2)
        if self.processes.world > 1:  # the other processes wait for this one's part, and know nothing of it
            raise UserError(
                f"{self.folder}: the memory of {self.device} is too small for {count} images a forward; "
                f"go on with --resume --micro-batch {max(1, half)}, or --set a smaller tile and another --out"
            )
        if count == 1:
            raise UserError(
                f"{self.folder}: the memory of {self.device} is too small for 1 image a forward; "
                "give a smaller tile with --set, and another --out"
            )
        self.micro_batch = half
        self.task.portions = portions(self.recipe.batch, self.processes, half)
        logger.warning(
            "%s: the memory of %s is too small for %d images a forward: %d forwards a step from here on",
            *(self.folder, self.device, count, len(self.task.portions)),
        )
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batches = self.task.batches(step)

    def _step(self, step: int) -> float:
        """One optimiser step, unless its loss is not finite; the loss, of the whole batch."""
        self.optimizer.zero_grad(set_to_none=True)
        batches = [next(self.batches) for _ in self.task.portions]
        whole = WholeBatch(self.processes, len(batches))
        if len(batches) > 1:
            with whole.noting(self.network):
                for number, batch in enumerate(batches):
                    self._forward(self.network, batch, whole, step, number)
        total = 0.0
        for number, batch in enumerate(batches):
            with self._gradients_met(number + 1 == len(batches)):
                loss = self._forward(None, batch, whole, step, number)
                total += self.processes.sum(loss.detach()).item()  # here: on a loss of one's own all stop together
                if not math.isfinite(total):
                    return total
                # DistributedDataParallel takes the mean over the processes, of parts that add up.
                self.scaler.scale(loss * self.processes.world).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        for average in self.averages.values():
            average.update(self.network, step + 2)  # timm counts from 1, and begins to average at 2
        return total

    def _forward(
        self, network: nn.Module | None, batch: Any, whole: WholeBatch, step: int, number: int
    ) -> torch.Tensor:
        """A batch's part of the loss, with what the network drops the same whenever it is called.

        Args:
            network: None is the one whose gradients meet those of the other processes.
            batch, number: of the step's forwards.
            whole, step: of all of them.
        """
        whole.begin(number)
        seed_everything(self.recipe.seed, step, self.task.portions[number].start)
        batch = self.task.on_device(batch)
        return self.task.loss(network, batch, whole) if network else self.trainee(batch, whole)

    def _gradients_met(self, last: bool) -> contextlib.AbstractContextManager[object]:
        """The processes' gradients meet in the last forward of a step."""
        alone = last or not isinstance(self.trainee, nn.parallel.DistributedDataParallel)
        return contextlib.nullcontext() if alone else self.trainee.no_sync()  # type: ignore[operator]

    def _end_epoch(self, epoch: int, loss: float) -> bool:
        """Validate every member, keep what is to be kept, write the checkpoint and the log.

        Returns:
            False, and nothing is kept or written, if the figure that chooses is not finite for a member.
        """
        row: dict[str, Any] = {"epoch": epoch + 1, "training_loss": loss}
        several = len(self.members) > 1
        members = self.members if self._is_validated(epoch) else []
        criteria = []
        for number, member in enumerate(members):
            if number in self.averages:
                self._measure_norms(member)
            with torch.no_grad():
                figures = self.task.validate(member.eval())
            row |= {f"{name}_{number}" if several else name: value for name, value in figures.items()}
            criteria.append(figures[self.task.criterion])
        if not all(map(math.isfinite, criteria)):
            self._diverged(epoch, (epoch + 1) * self.task.steps_an_epoch - 1, math.nan)
            return False
        for number, (member, figure) in enumerate(zip(members, criteria, strict=True)):
            self._keep(number, member, figure, epoch + 1)
        self.rows.append(row)
        self._save()
        write_rows(self.folder / "epochs.csv", self.rows)
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in list(row.items())[1:4]})
        said = ", ".join(f"{name} {value:.4g}" for name, value in list(row.items())[1:])
        steps = (epoch + 1) * self.task.steps_an_epoch
        logger.info("%s: epoch %d of %d, %s; %s", self.title, epoch + 1, self.recipe.epochs, said, self._left(steps))
        return True

    def _is_validated(self, epoch: int) -> bool:
        """Every epoch whose figures decide something; else now and then, for the reader, and what is kept: the last."""
        recipe = self.recipe
        decides = recipe.keep == "best" or recipe.patience > 0
        return decides or epoch % VALIDATE_EVERY == 0 or epoch + 1 == recipe.epochs

    def _keep(self, number: int, member: nn.Module, figure: float, epoch: int) -> None:
        best = self.best_figures[number]
        better = best is None or (figure > best if self.task.highest else figure < best)
        if better:
            self.best_figures[number], self.best_epoch = figure, epoch
        if better or self.recipe.keep == "last":
            weights = {name: value.detach().cpu().clone() for name, value in self.task.weights(member).items()}
            self.kept[number : number + 1] = [weights]

    def _measure_norms(self, average: nn.Module) -> None:
        """Batch norm's running statistics belong to the weights of each step, not to their average: measure them."""
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in average.modules()):
            return
        batches = islice(self.task.batches(0), NORM_BATCHES * len(self.task.portions))  # a short training has fewer
        with training_precision(self.device, self.recipe):
            update_bn((self.task.inputs(self.task.on_device(each)) for each in batches), average)

    def _diverged(self, epoch: int, step: int, loss: float) -> None:
        if epoch == 0:
            raise UserError(
                f"{self.folder}: the loss is {loss} at step {step + 1}, before the first good validation; "
                "give a lower learning_rate with --set, and another --out"
            )
        if self.processes.is_first:
            logger.warning(
                "%s: the loss is %s at step %d; stopped, with the weights of the epochs up to %d; "
                "give a lower learning_rate with --set, and another --out",
                *(self.folder, loss, step + 1, max(e for e in range(epoch) if self._is_validated(e)) + 1),
            )

    def _tell(self, done: int, loss: float) -> None:
        """A line now and then: on the terminal where there is no bar, in the log file always."""
        self.told = time.monotonic()
        if self.processes.is_first:
            total = self.recipe.epochs * self.task.steps_an_epoch
            level = logging.INFO if self.bar.disable else logging.DEBUG
            logger.log(level, "%s: step %d of %d, loss %.4g; %s", self.title, done, total, loss, self._left(done))

    def _left(self, done: int) -> str:
        """The time left, at the pace so far."""
        then, before = self.begun
        left = self.recipe.epochs * self.task.steps_an_epoch - done
        seconds = (time.monotonic() - then) / max(1, done - before) * left
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

    def _resume(self) -> None:
        state = load_checkpoint(self.folder / "checkpoint.pt")
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        for average, weights in zip(self.averages.values(), state["averages"], strict=True):
            average.module.load_state_dict(weights)
        for name in ("optimizer", "schedule", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.rows, self.kept = state["rows"], state["kept"]
        self.best_figures, self.best_epoch = state["best_figures"], state["best_epoch"]

    def _save(self) -> None:
        state = {"network": self.network.state_dict()}
        state |= {"averages": [average.module.state_dict() for average in self.averages.values()]}
        state |= {name: getattr(self, name).state_dict() for name in ("optimizer", "schedule", "scaler")}
        state |= {name: getattr(self, name) for name in ("rows", "kept", "best_figures", "best_epoch")}
        save_checkpoint(self.folder / "checkpoint.pt", state)


class _WithLoss(nn.Module):
    """The network with its loss as one module, which is what DistributedDataParallel needs."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.network, self.task = task.network, task

    def forward(self, batch: Any, whole: WholeBatch) -> torch.Tensor:
        return self.task.loss(self.network, batch, whole)


def _optimizer(network: nn.Module, recipe: LoopRecipe) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": 1.0, "betas": recipe.betas, "weight_decay": recipe.weight_decay}  # lr: scheduled
    if recipe.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), **settings)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), 1.0, recipe.betas[0], weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(param_groups_weight_decay(network, recipe.weight_decay), **settings)
