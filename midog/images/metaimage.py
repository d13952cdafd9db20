"""MetaImage (`.mha`), by numpy: uncompressed pixels are mapped, compressed ones are one stream."""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from midog.images.level import (
    ArrayLevel,
    Cache,
    GridLevel,
    Image,
    Level,
    Page,
    UnsupportedError,
    conversions,
    depth_table,
    to_rgb,
)

CHUNK_BYTES = 64 << 10  # of a compressed stream that are read at once


@dataclass(frozen=True)
class _Header:
    """What the header says, and where the pixels begin.

    Attributes:
        fields: the header's lines by key, as text.
        size: (width, height, ...), px; what follows the first two are pages.
        dtype, channels: of a pixel.
        start: bytes from the file's beginning to the pixels.
    """

    fields: dict[str, str]
    size: tuple[int, ...]
    dtype: np.dtype[np.uint8 | np.uint16]
    channels: int
    start: int

    @property
    def pages(self) -> int:
        return math.prod(self.size[2:])

    @property
    def page_shape(self) -> tuple[int, int, int]:
        return self.size[1], self.size[0], self.channels

    @property
    def page_bytes(self) -> int:
        return math.prod(self.page_shape) * self.dtype.itemsize

    @property
    def bits(self) -> int:
        return self.dtype.itemsize * 8

    @property
    def is_compressed(self) -> bool:
        return _is_true(self.fields.get("CompressedData", "False"))

    @property
    def spacings(self) -> list[tuple[float, float]]:
        found = self._numbers("ElementSpacing")
        return [(found[0] * 1000, found[1] * 1000)] if found else []

    @property
    def origin_mm(self) -> tuple[float, float]:
        found = self._numbers("Offset", "Position", "Origin")
        return (found[0], found[1]) if found else (0.0, 0.0)

    def _numbers(self, *keys: str) -> list[float] | None:
        """The numbers of the first key that is there, one a dimension."""
        key = next((key for key in keys if key in self.fields), None)
        if key is None:
            return None
        numbers = [float(part) for part in self.fields[key].split()]
        if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{key} = {self.fields[key]}: a number for each of {len(self.size)} dimensions expected")
        return numbers


def open_metaimage(path: Path, cache: Cache) -> Image:
    """One plane. Compressed, it is one segment."""
    header = _read_header(path)
    if header.pages != 1:
        sizes = header.fields["DimSize"]
        raise UnsupportedError(f"{len(header.size)} dimensions ({sizes}), one plane expected")
    turn = [float(part) for part in header.fields.get("TransformMatrix", "").split()]
    if turn not in ([], np.eye(len(header.size)).ravel().tolist()):
        raise UnsupportedError("the image is turned (TransformMatrix)")
    table = depth_table(header.bits)

    def decode(_: int) -> NDArray[np.uint8]:
        with open(path, "rb") as file:
            file.seek(header.start)
            return to_rgb(_to_page(next(_inflate(file, header.page_bytes)), header), table)

    level: Level
    if header.is_compressed:
        size = header.size[0], header.size[1]
        level = GridLevel(path, size, size, decode, cache)
    else:
        level = ArrayLevel(np.memmap(path, header.dtype, "r", header.start, header.page_shape), table)
    return Image([level], header.spacings, header.origin_mm, conversions(header.bits, header.channels))


def read_spacings(path: Path) -> list[tuple[float, float]]:
    """(x, y) um/px as the file says, unchecked; empty where it says nothing."""
    return _stack_header(path).spacings


def first_page(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) px of a page, and whether there are several."""
    header = _read_header(path)
    return (header.size[0], header.size[1]), header.pages > 1


def read_pages(path: Path) -> Iterator[Page]:
    """Every page of a stack, one after the other; of a compressed one, only this page is in memory."""
    header = _stack_header(path)
    size = header.size[0], header.size[1]
    table = depth_table(header.bits)
    with open(path, "rb") as file:
        file.seek(header.start)
        stream = _inflate(file, header.page_bytes) if header.is_compressed else _pieces(file, header.page_bytes)

        def read() -> NDArray[np.uint8]:
            return to_rgb(_to_page(next(stream), header), table)

        for _ in range(header.pages):
            yield Page(size, header.bits, header.channels in (2, 4), read)


def _stack_header(path: Path) -> _Header:
    header = _read_header(path)
    if len(header.size) > 3:
        raise UnsupportedError(f"{len(header.size)} dimensions, 2 or 3 (pages) expected")
    return header


def _read_header(path: Path) -> _Header:
    fields = {}
    with open(path, "rb") as file:
        while "ElementDataFile" not in fields:
            key, equals, value = file.readline(4096).decode("latin-1").partition("=")
            if not equals:
                raise ValueError("no MetaImage header")
            fields[key.strip()] = value.strip()
        start = file.tell()
    size = tuple(int(side) for side in fields["DimSize"].split())
    if len(size) < 2 or min(size) < 1:
        raise ValueError(f"DimSize is {fields['DimSize']!r}")
    channels = int(fields.get("ElementNumberOfChannels", 1))
    item_bytes = {"MET_UCHAR": 1, "MET_USHORT": 2}.get(fields["ElementType"])
    if fields["ElementDataFile"] != "LOCAL" or not _is_true(fields.get("BinaryData", "True")):
        raise UnsupportedError("the pixels are not in the file itself, as bytes")
    if item_bytes is None or channels not in (1, 2, 3, 4):
        raise UnsupportedError(f"pixels of {channels} x {fields['ElementType']}")
    big_endian = any(_is_true(fields.get(f"{key}ByteOrderMSB", "False")) for key in ("BinaryData", "Element"))
    return _Header(fields, size, np.dtype(f"{'>' if big_endian else '<'}u{item_bytes}"), channels, start)


def _is_true(text: str) -> bool:
    return text.lower() == "true"


def _to_page(data: bytes | bytearray, header: _Header) -> NDArray[np.uint8 | np.uint16]:
    return np.frombuffer(data, header.dtype).reshape(header.page_shape)


def _inflate(file: IO[bytes], count: int) -> Iterator[bytes | bytearray]:
    """The decompressed stream in pieces of `count` bytes; no more than one of them is in memory."""
    decoder = zlib.decompressobj()
    while True:
        piece = bytearray()
        while len(piece) < count:
            data = decoder.unconsumed_tail or file.read(CHUNK_BYTES)
            more = decoder.decompress(data, count - len(piece))
            if not more and not data:
                raise ValueError("the file ends before its pixels do")
            piece += more
        yield piece


def _pieces(file: IO[bytes], count: int) -> Iterator[bytes | bytearray]:
    while True:
        data = file.read(count)
        if len(data) < count:
            raise ValueError("the file ends before its pixels do")
        yield data
