"""Image files that are open only while they are read: any number of them in bounded memory.

A process keeps the files read last open, and the pixels decoded last in one cache for all of them. A worker of a
training is a process of its own, which begins with none open: a file's position is not to be shared.
"""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from midog.images.level import Cache
from midog.images.slide import Slide, open_slide

MAX_OPEN = 64  # files
CACHE_BYTES = 512 << 20  # of decoded pixels

_opened: OrderedDict[tuple[Path, float], Slide] = OrderedDict()
_caches: list[Cache] = []


def _slide(path: Path, um_per_px: float) -> Slide:
    """A file, open."""
    key = path, um_per_px
    if key not in _opened:
        if not _caches:
            _caches.append(Cache(CACHE_BYTES))
        _opened[key] = open_slide(path, um_per_px, cache=_caches[0])
        if len(_opened) > MAX_OPEN:
            _opened.popitem(last=False)[1].close()
    _opened.move_to_end(key)
    return _opened[key]


def _forget() -> None:
    _opened.clear()
    _caches.clear()


os.register_at_fork(after_in_child=_forget)


class OnDemandSlide(Slide):
    """An image file as a `Slide`.

    Args:
        path: see `midog.images.slide.open_slide`.
        um_per_px: of both axes.
        part: (left, top, width, height) of it that counts, px; all of it without.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, path: Path, um_per_px: float, part: tuple[int, int, int, int] | None = None) -> None:
        slide = _slide(path, um_per_px)
        self.left, self.top, width, height = part or (0, 0, *slide.size)
        super().__init__((width, height), slide.um_per_px)
        self.path, self.segment = path, slide.segment

    def _read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        return _slide(self.path, self.um_per_px[0]).read(self.left + x, self.top + y, width, height)
