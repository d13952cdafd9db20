"""What every network here is, whatever engine runs it: numpy in and out, its precision, batches that fit in memory."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from midog import system as schema
from midog.errors import UserError

logger = logging.getLogger(__name__)

MAX_THREADS = 16  # the platform allows 128 processes and threads, whatever the host's core count
CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Network = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]


class Stored(NamedTuple):
    """A network as a system has it.

    Attributes:
        kind: of network.
        name, options: what it is built from.
        path: of its weights.
        precision: of the system's part.
    """

    kind: Literal["detector", "classifier"]
    name: str
    options: Mapping[str, Any]
    path: Path
    precision: schema.Precision


class Engine(Protocol):
    """What loads networks on a device. Every one of them takes float32 (N, 3, H, W) RGB in [0, 1].

    A detector's gives boxes (N, 4, P) px and logits (N, 1, P), or the logits of a map (N, 1, H / stride, W / stride); a
    classifier's gives logits (N, 1 or more). All are float32. Where memory does not suffice, it raises MemoryError.

    Attributes:
        name: of the engine, for the log.
        device: "cpu" or "cuda".
    """

    name: str
    device: str

    def type_of(self, precision: schema.Precision) -> str:
        """What networks compute in: "float32", "bfloat16" or "float16"."""

    def load(self, stored: Stored) -> Network:
        """A network with its weights.

        Raises:
            UserError: unknown network or option, broken file, other names or shapes.
        """


def processor_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by instructions of its own (AVX512-BF16 or AMX), as Linux tells."""
    try:
        with CPU_INFO.open(encoding="ascii", errors="replace") as lines:  # no further than the first of many processors
            flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return False
    return not BFLOAT16_FLAGS.isdisjoint(flags)


def to_batch(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """uint8 (H, W, 3), all of one size -> float32 (N, 3, H, W) in [0, 1], whose channels lie beside each other."""
    pixels: NDArray[np.float32] = np.divide(np.stack(images), 255, dtype=np.float32)
    return pixels.transpose(0, 3, 1, 2)


def in_batches(
    items: Iterable[Item], forward: Callable[[list[Item]], Iterable[Answer]], batch: int, what: str
) -> Iterator[Answer]:
    """Yield the answer to each item, in order; when memory runs out, the batch is halved and nothing is lost.

    Args:
        items: tiles or crops.
        forward: items to as many answers; MemoryError where they are too many.
        batch: items a forward.
        what: they are, for the warning.

    Raises:
        UserError: memory runs out for a single item.
    """
    items = iter(items)
    while block := list(islice(items, batch)):
        start = 0
        while start < len(block):
            try:
                answers = forward(block[start : start + batch])
            except MemoryError:
                if batch == 1:
                    raise UserError(f"memory ran out for one of the {what}; free some, or give --device cpu") from None
                batch //= 2
                logger.warning("memory ran out; the batch is halved to %d %s", batch, what)
                continue
            yield from answers
            start += batch
