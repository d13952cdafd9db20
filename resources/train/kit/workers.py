"""Batches made by worker processes: what is read, drawn and changed there leaves the network its processor."""

import os
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from midog.errors import UserError, brief

MAX_WORKERS = 8

Batch = TypeVar("Batch", covariant=True)


class BatchMaker(Protocol[Batch]):
    """Makes any batch by its number, the same whenever and in whatever process it is made."""

    def __call__(self, number: int) -> Batch: ...


class _Made(Dataset[Batch | UserError], Generic[Batch]):
    def __init__(self, make: BatchMaker[Batch]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self.make(number)
        except UserError as error:  # a loader would raise it with a traceback in its text
            return error


def batches_of(make: BatchMaker[Batch], numbers: Sequence[int], pinned: bool = False) -> Iterator[Batch]:
    """The batches of these numbers, in their order, made ahead by as many workers as there are processors.

    Args:
        make: `BatchMaker`.
        numbers: of the batches.
        pinned: in memory from which a GPU copies beside its work.

    Raises:
        UserError: what `make` raised; a worker died.
    """
    loader = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=numbers,
        num_workers=min(MAX_WORKERS, os.cpu_count() or 1, len(numbers)),
        pin_memory=pinned,
        worker_init_fn=_begin,
    )
    try:
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise UserError(
            f"a process that makes batches was ended ({brief(error)}); free some memory, or give a container more "
            "shared memory (docker run --shm-size 8g), and go on with --resume"
        ) from None


def _begin(_: int) -> None:
    cv2.setNumThreads(0)  # a worker a processor is enough
    torch.set_num_threads(1)
