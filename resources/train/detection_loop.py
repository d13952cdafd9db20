"""A plain training loop for detectors: AdamW, averaged weights beside the network's own, the best of each kept.

Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection",
arXiv 2508.19804, "Methods": warm-up and cosine, averages at several rates, and
all of these "saved at the point of lowest validation loss" as the members of an
ensemble.
"""

import copy
import os

import torch
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from midog.system import NotNegative, TileSide
from resources.train.augment import jitter_contrast, jitter_stain
from resources.train.common import (
    Count,
    Rate,
    Seed,
    Strict,
    cosine_with_warmup,
    load_checkpoint,
    save_checkpoint,
    seed_everything,
    write_rows,
)
from resources.train.tiles import TileAugmentation, collate

MOST_GRADIENT = 35.0  # norm, as in RTMDet's training
RECALIBRATION_BATCHES = 8


class LoopRecipe(Strict, frozen=True):
    """How a detector is trained here.

    Attributes:
        seed: of the weights and of every tile.
        tile: px of a training tile, width and height.
        loss: a name that the network's loss knows.
        iterations, batch: optimiser steps, and tiles for each.
        accumulate: forwards a step.
        learning_rate, first_learning_rate, warmup_iterations: a linear rise from the second to the first, then a
            cosine to 0.
        weight_decay: of AdamW, on matrices and convolutions alone.
        average_rates: of each average of the weights, the share of the network's own that enters at a step.
        validate_every, validation_tiles: iterations, and how many tiles the validation loss is measured on.
        half_precision: train in bfloat16.
        augmentation: see `TileAugmentation`.
    """

    seed: Seed
    tile: tuple[TileSide, TileSide]
    loss: str
    iterations: Count
    batch: Count
    accumulate: Count
    learning_rate: Rate
    first_learning_rate: Rate
    warmup_iterations: NotNegative
    weight_decay: NotNegative
    average_rates: tuple[Rate, ...]
    validate_every: Count
    validation_tiles: Count
    half_precision: bool
    augmentation: TileAugmentation

    def __post_init__(self) -> None:
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not fall into {self.accumulate} forwards")


class DetectionLoop:
    """Train from the checkpoint, if there is one, to the end: `DetectionLoop(...).run()`.

    Args:
        network: what trains.
        loss: callable (network, images float (N, 3, H, W) in [0, 1], truths a list of float (K, 4) px) -> scalar.
        recipe: `LoopRecipe`.
        tiles, validation: `resources.train.tiles.TileDataset`.
        folder: for the checkpoint and the log.
        device: torch.device.
    """

    def __init__(self, network, loss, recipe, tiles, validation, folder, device):
        self.recipe, self.loss, self.tiles, self.folder, self.device = recipe, loss, tiles, folder, device
        grouped = any(isinstance(module, torch.nn.GroupNorm) for module in network.modules())
        # Group norm's backward pass is slow where channels come last.
        self.layout = torch.contiguous_format if grouped else torch.channels_last
        self.network = network.to(device, memory_format=self.layout)
        self.averages = [copy.deepcopy(self.network).eval() for _ in recipe.average_rates]
        self.validation = validation
        matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
            recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self.done, self.rows = 0, []
        self.best_losses = [float("inf")] * (1 + len(self.averages))
        self.best = [None] * len(self.best_losses)

    @property
    def members(self):
        """The network's own weights, then each average."""
        return [self.network, *self.averages]

    def resume(self):
        state = load_checkpoint(self.folder / "checkpoint.pt")
        if state:
            for member, weights in zip(self.members, state["members"], strict=True):
                member.load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            self.done, self.rows = state["done"], state["rows"]
            self.best_losses, self.best = state["best_losses"], state["best"]

    def save(self):
        save_checkpoint(
            self.folder / "checkpoint.pt",
            {
                "members": [member.state_dict() for member in self.members],
                "optimizer": self.optimizer.state_dict(),
                "done": self.done,
                "rows": self.rows,
                "best_losses": self.best_losses,
                "best": self.best,
            },
        )

    def run(self):
        """Returns the state dict of every member at its lowest validation loss."""
        recipe = self.recipe
        self.resume()
        loader = iter(self._loader(self.done * recipe.batch, recipe.iterations * recipe.batch))
        bar = tqdm(desc="training", initial=self.done, total=recipe.iterations, unit="step", disable=None)
        total = 0.0
        while self.done < recipe.iterations:
            total += self._step(loader)
            self.done += 1
            bar.update()
            if self.done % recipe.validate_every == 0 or self.done == recipe.iterations:
                since = self.done - (self.rows[-1]["iteration"] if self.rows else 0)
                self._validate(total / since)
                total = 0.0
                bar.set_postfix(loss=f"{self.rows[-1]['training_loss']:.3f}", best=f"{min(self.best_losses):.3f}")
                if bar.disable:
                    print(", ".join(f"{name} {value:.4g}" for name, value in self.rows[-1].items()), flush=True)
        bar.close()
        return self.best

    def _loader(self, start, stop):
        return torch.utils.data.DataLoader(
            self.tiles,
            self.recipe.batch // self.recipe.accumulate,
            sampler=range(start, stop),
            num_workers=min(8, os.cpu_count()),
            collate_fn=collate,
        )

    def _learning_rate(self):
        recipe = self.recipe
        if self.done < recipe.warmup_iterations:
            share = (self.done + 1) / recipe.warmup_iterations
            return recipe.first_learning_rate + share * (recipe.learning_rate - recipe.first_learning_rate)
        return recipe.learning_rate * cosine_with_warmup(self.done, recipe.iterations, recipe.warmup_iterations)

    def _step(self, loader):
        recipe = self.recipe
        seed_everything(recipe.seed, self.done)  # so that a resumed run draws what it would have drawn
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(recipe.accumulate):
            images, truths = self._prepare(next(loader))
            how = recipe.augmentation
            images = jitter_stain(images, how.stain) if how.stain else images
            images = jitter_contrast(images, how.contrast) if how.contrast else images
            loss = self._loss(self.network, images, truths) / recipe.accumulate
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), MOST_GRADIENT)
        self.optimizer.step()
        with torch.no_grad():
            for average, rate in zip(self.averages, recipe.average_rates, strict=True):
                # The first weights are noise: forget them soon.
                rate = max(rate, 3 / (self.done + 4))
                torch._foreach_lerp_(list(average.parameters()), list(self.network.parameters()), rate)
        return total

    def _loss(self, network, images, truths):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.half_precision):
            return self.loss(network, images.contiguous(memory_format=self.layout), truths)

    def _prepare(self, batch):
        """Images float in [0, 1], and each one's boxes as corners in px."""
        images = batch["img"].to(self.device, non_blocking=True).float() / 255
        boxes = batch["bboxes"].to(self.device) * images.new_tensor(images.shape[:1:-1]).repeat(2)
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        return images, [corners[batch["batch_idx"] == number] for number in range(len(images))]

    def _validate(self, training_loss):
        row = {"iteration": self.done, "training_loss": training_loss}
        for number, member in enumerate(self.members):
            if number:
                self._recalibrate(member)
            row[f"validation_loss_{number}"] = loss = self._validation_loss(member)
            if loss < self.best_losses[number]:
                self.best_losses[number] = loss
                self.best[number] = {name: value.clone() for name, value in member.state_dict().items()}
        self.rows.append(row)
        write_rows(self.folder / "iterations.csv", self.rows)
        self.save()

    def _recalibrate(self, average):
        """Batch norm's running statistics belong to the weights of each step, not to their average: measure them."""
        batch = self.recipe.batch // self.recipe.accumulate
        starts = range(0, RECALIBRATION_BATCHES * batch, batch)
        images = (self._prepare(collate([self.tiles[start + i] for i in range(batch)]))[0] for start in starts)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.half_precision):
            update_bn(images, average)

    @torch.no_grad()
    def _validation_loss(self, member):
        member.eval()
        batch, tiles = self.recipe.batch // self.recipe.accumulate, self.recipe.validation_tiles
        total = 0.0
        for start in range(0, tiles, batch):  # drawn anew, because 1,000 large tiles would not stay in memory
            items = [self.validation[number] for number in range(start, min(start + batch, tiles))]
            total += self._loss(member, *self._prepare(collate(items))).item() * len(items)
        return total / tiles
