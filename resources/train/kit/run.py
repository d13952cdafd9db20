"""A training's run: its folder, its log, its seeds, its checkpoints, its processes."""

import csv
import io
import logging
import os
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml

from midog.errors import UserError
from midog.files import check_writable, sha256_of, write_file, write_with

ROOT = Path(__file__).resolve().parents[3]
LOG_NAME = "train.log"
LONGEST_WAIT = timedelta(days=2)  # of a process for another one

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Processes:
    """The group of processes that torchrun started; one where it did not.

    Attributes:
        rank, world: this process's number, and how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that validates and writes."""
        return self.rank == 0

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of a scalar over the processes."""
        if self.world == 1:
            return part
        together = part.detach().clone().to(_group_device())
        torch.distributed.all_reduce(together)
        return together.to(part.device)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, in their order: (N, ...) of any N -> (sum of N, ...)."""
        if self.world == 1:
            return rows
        counts = self._counts(len(rows))
        padded = rows.new_zeros(max(counts), *rows.shape[1:]).to(_group_device())
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)

    def before(self, count: int) -> int:
        """How many rows the processes before this one have.

        Args:
            count: this one's.
        """
        return sum(self._counts(count)[: self.rank]) if self.world > 1 else 0

    def _counts(self, count: int) -> list[int]:
        counts = [torch.zeros((), dtype=torch.int64, device=_group_device()) for _ in range(self.world)]
        torch.distributed.all_gather(counts, torch.tensor(count, device=_group_device()))
        return [int(each) for each in counts]

    def first(self, value: bool) -> bool:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        told = torch.tensor(int(value), device=_group_device())
        torch.distributed.broadcast(told, 0)
        return bool(told.item())

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def end(self) -> None:
        """Leave the group, after all have come here."""
        if self.world > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Join torchrun's group where there is one; this process, and its device."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Processes(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # The first process validates, and looks for candidates on whole slides, while the others wait: longer than the ten
    # minutes after which NCCL would take it for dead. torchrun ends them where it is.
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    processes = Processes(torch.distributed.get_rank(), world)
    if not processes.is_first:
        for name in ("midog", "resources"):
            logging.getLogger(name).setLevel(logging.WARNING)  # the first says the same
    return processes, device


def _group_device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


def seed_everything(*parts: object) -> None:
    """Seed torch from any values, the same on every machine: ("convnextv2", fold 0, epoch 3), say."""
    torch.manual_seed(zlib.crc32(repr(parts).encode()))


def prepare_out(out: Path, resume: bool, record: Mapping[str, Any]) -> None:
    """Make OUT, note in recipe.yaml what its run is, and begin or go on with its log; or refuse to mix two runs.

    Args:
        out: the folder.
        resume: --resume.
        record: everything that the run depends on.

    Raises:
        UserError: OUT holds a run and `resume` is not set, or another run; it cannot be written.
    """
    path = out / "recipe.yaml"
    text = yaml.safe_dump(dict(record), sort_keys=False)
    if path.exists():
        if not resume:
            raise UserError(f"{out}: holds a run already; give --resume, or another --out")
        if path.read_text() != text:
            different = _difference(yaml.safe_load(path.read_text()), yaml.safe_load(text))
            raise UserError(f"{path}: was another recipe or other data ({different}); give another --out")
    check_writable(out)
    if not path.exists():
        write_file(path, text)
    log = logging.FileHandler(out / LOG_NAME)
    log.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name in ("midog", "resources"):
        logger = logging.getLogger(name)
        for old in [each for each in logger.handlers if isinstance(each, logging.FileHandler)]:
            logger.removeHandler(old)  # of a run before in the same process
        logger.addHandler(log)
        logger.setLevel(logging.DEBUG)


def _difference(old: Any, new: Any, key: str = "") -> str:
    """The first key at which two records differ, and both values."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                return _difference(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    return f"{key} was {str(old)[:80]}, is {str(new)[:80]}"


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    buffer = io.BytesIO()  # torch's own writer hides what a disk says
    torch.save(dict(state), buffer)
    write_with(path, lambda part: part.write_bytes(buffer.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint of ours (tensors and plain values only), or None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); delete it to start this part anew") from None


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write mappings with the same keys as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def given_sha256(path: Path, option: str) -> str:
    """The sha256 of a file that an option gave.

    Raises:
        UserError: it cannot be read; the line names the option.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {option} another file") from None


def commit() -> str:
    """The commit of this repository, short; empty where git or the repository is not there."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
