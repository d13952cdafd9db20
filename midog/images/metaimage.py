"""MetaImage (`.mha`), by numpy: uncompressed pixels are mapped, compressed ones are one stream."""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from midog.images.level import (
    CHANNELS_FIRST,
    DROPPED,
    ArrayLevel,
    Cache,
    Depth,
    GridLevel,
    Image,
    Level,
    Page,
    UnsupportedError,
    conversions,
    seen_depth,
    to_rgb,
)
from midog.images.resolution import Spacing, number, of_axes

CHUNK_BYTES = 64 << 10  # of a compressed stream that are read at once
BAND_BYTES = 4 << 20  # that are looked at at once
TURN_TOLERANCE = 1e-6  # of a direction's numbers, which are rounded on the way through other units


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
    def is_channels_first(self) -> bool:
        """Whether it looks as if the colours were a dimension of their own, or rows and columns were the channels."""
        return (self.channels == 1 and self.size[2:3] == (3,)) or self.size[1] == 3

    @property
    def page_shape(self) -> tuple[int, int, int]:
        return self.size[1], self.size[0], self.channels

    @property
    def page_bytes(self) -> int:
        return math.prod(self.page_shape) * self.dtype.itemsize

    @property
    def colours(self) -> int:
        """The channels that are a colour; MetaImage has no word for what a second or a fourth means."""
        return 3 if self.channels >= 3 else 1

    def remarks(self, depth: Depth) -> list[str]:
        """What becomes of the pixels, a line each."""
        extra = {2: DROPPED.format("second"), 4: DROPPED.format("fourth")}.get(self.channels, "")
        return conversions(depth, {1: "grey", 3: "RGB"}[self.colours], extra)

    @property
    def is_compressed(self) -> bool:
        return _is_true(self.fields.get("CompressedData", "False"))

    @property
    def spacings(self) -> list[Spacing]:
        found = self._numbers("ElementSpacing")
        return of_axes(found[0] * 1000, found[1] * 1000, "ElementSpacing") if found else []

    @property
    def origin_mm(self) -> tuple[float, float]:
        found = self._numbers("Offset", "Position", "Origin")
        if not all(map(math.isfinite, found)):
            raise ValueError("the offset is no place")
        return (found[0], found[1]) if found else (0.0, 0.0)

    @property
    def is_turned(self) -> bool:
        found = self._numbers("TransformMatrix", "Rotation", "Orientation")
        straight = np.eye(len(self.size)).ravel()
        return bool(found) and not (
            len(found) == len(straight) and np.allclose(found, straight, rtol=0, atol=TURN_TOLERANCE)
        )

    def _numbers(self, *keys: str) -> list[float]:
        """The numbers of the first key that is there, one a dimension at least; NaN for what is none."""
        key = next((key for key in keys if key in self.fields), "")
        numbers = [number(part) for part in self.fields.get(key, "").split()]
        if len(numbers) == 1:
            raise ValueError(f"{key} = {self.fields[key]}: a number for each of {len(self.size)} dimensions expected")
        return numbers


def open_metaimage(path: Path, cache: Cache) -> Image:
    """One plane. Compressed, it is one segment."""
    header = _read_header(path)
    if header.pages != 1:
        sizes = header.fields["DimSize"]
        first = f"; {CHANNELS_FIRST}" if header.is_channels_first else ""
        raise UnsupportedError(f"{len(header.size)} dimensions ({sizes}), one plane expected{first}")
    if header.is_turned:
        raise UnsupportedError("the image is turned (TransformMatrix)")
    depth = _depth(path, header)
    convert = partial(to_rgb, table=depth.table)

    def decode(_: int) -> NDArray[np.uint8]:
        with open(path, "rb") as file:
            file.seek(header.start)
            return convert(_to_page(next(_inflate(file, header.page_bytes)), header))

    level: Level
    if header.is_compressed:
        size = header.size[0], header.size[1]
        level = GridLevel(path, size, size, decode, cache)
    else:
        level = ArrayLevel(np.memmap(path, header.dtype, "r", header.start, header.page_shape), convert)
    return Image([level], header.spacings, header.origin_mm, header.remarks(depth))


def read_spacings(path: Path) -> list[Spacing]:
    """What the file says, unchecked; empty where it says nothing."""
    return _stack_header(path).spacings


def first_page(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) px of a page, and whether there are several."""
    header = _read_header(path)
    return (header.size[0], header.size[1]), header.pages > 1


def read_pages(path: Path) -> Iterator[Page]:
    """Every page of a stack, one after the other; of a compressed one, only this page is in memory."""
    header = _stack_header(path)
    size = header.size[0], header.size[1]
    depth = _depth(path, header)
    remarks = header.remarks(depth)
    with open(path, "rb") as file:
        stream = _stream(file, header, header.page_bytes)

        def read() -> NDArray[np.uint8]:
            return to_rgb(_to_page(next(stream), header), depth.table)

        for _ in range(header.pages):
            yield Page(size, remarks, read)


def _depth(path: Path, header: _Header) -> Depth:
    """Of all pages together, since a single one may be dark."""

    def values() -> Iterator[NDArray[np.uint8 | np.uint16]]:
        rows = header.size[1] * header.pages
        at_once = header.size[1] if header.page_bytes <= BAND_BYTES else 1
        with open(path, "rb") as file:
            stream = _stream(file, header, header.page_bytes // header.size[1] * at_once)
            for _ in range(rows // at_once):
                yield np.frombuffer(next(stream), header.dtype).reshape(-1, header.channels)[:, : header.colours]

    return seen_depth(header.dtype.itemsize * 8, values())


def _stack_header(path: Path) -> _Header:
    header = _read_header(path)
    if header.is_channels_first:
        raise UnsupportedError(CHANNELS_FIRST)
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
        first = f"; {CHANNELS_FIRST}" if 3 in size else ""
        raise UnsupportedError(f"pixels of {channels} x {fields['ElementType']} are not read{first}")
    big_endian = any(_is_true(fields.get(f"{key}ByteOrderMSB", "False")) for key in ("BinaryData", "Element"))
    return _Header(fields, size, np.dtype(f"{'>' if big_endian else '<'}u{item_bytes}"), channels, start)


def _stream(file: IO[bytes], header: _Header, count: int) -> Iterator[bytes | bytearray]:
    """The pixels in pieces of `count` bytes."""
    file.seek(header.start)
    return _inflate(file, count) if header.is_compressed else _pieces(file, count)


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
