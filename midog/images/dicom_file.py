"""One DICOM file of a slide: what it is part of, where its frames lie, and what it says of each one's place.

pydicom takes 12 s and 400 MB for the places of 100,000 frames, which a slide may have; so the per-frame groups and the
pixels are walked here, in 1 s, and only the header before them is left to it.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.images.dicom_pixels import IMPLICIT, NATIVE
from midog.images.resolution import number

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

NEEDED = "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored"

PER_FRAME, EXTENDED_OFFSETS, PIXEL_DATA = 0x52009230, 0x7FE00001, 0x7FE00010
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_SPACING, OPTICAL_PATH, Z_OFFSET, COLUMN, ROW = 0x00280030, 0x00480106, 0x0040074A, 0x0048021E, 0x0048021F
SEQUENCES = {0x00289110, 0x00480207, 0x0048021A}  # that these stand in: measures, optical path, place
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # 32-bit lengths
UNDEFINED = 0xFFFFFFFF
CODESTREAMS = b"\xff\xd8", b"\xff\x4f", b"\xff\x0a"  # how a JPEG, a JPEG 2000 and a JPEG XL start
CUT = "the file ends before its pixels do"

Values = dict[int, bytes]


@dataclass(frozen=True)
class Instance:
    """A file, as far as the header that stands before its per-frame groups and pixels tells.

    Attributes:
        header_end: where that ends, bytes.
        series: what the files of a slide share.
        source: what the files of a level share, where it is in several parts.
        order: of these parts.
        size, segment: (width, height) of the level and of a frame, px.
        frames: how many.
    """

    path: Path
    header: "FileDataset"
    header_end: int

    def _first_of(self, *names: str, default: Any) -> Any:
        values = (self.header.get(name) for name in names)
        return next((value for value in values if value not in (None, "")), default)

    @property
    def series(self) -> str:
        return self._first_of("SeriesInstanceUID", default=self.path.name)

    @property
    def source(self) -> str:
        names = "SOPInstanceUIDOfConcatenationSource", "ConcatenationUID", "SOPInstanceUID"
        return self._first_of(*names, default=self.path.name)

    @property
    def order(self) -> int:
        return int(self._first_of("ConcatenationFrameOffsetNumber", "InConcatenationNumber", default=0))

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.segment
        return self.header.get("TotalPixelMatrixColumns") or width, self.header.get("TotalPixelMatrixRows") or height

    @property
    def segment(self) -> tuple[int, int]:
        return self.header.Columns, self.header.Rows

    @property
    def frames(self) -> int:
        return int(self._first_of("NumberOfFrames", default=1))


def read_instance(path: Path) -> Instance:
    """Its header; whatever pydicom raises where it is damaged."""
    from pydicom.filereader import read_partial

    with path.open("rb") as file:
        header = read_partial(file, stop_when=lambda tag, *_: tag >= PER_FRAME)
        return Instance(path, header, file.tell())


def first_item(dataset: "Dataset", *sequences: str) -> "Dataset":
    """The first item of a sequence in a dataset, of one in that, and so on; an empty one where there is none."""
    from pydicom import Dataset

    for name in sequences:
        dataset = next(iter(dataset.get(name) or ()), Dataset())
    return dataset


def numbers(dataset: "Dataset", name: str) -> list[float]:
    """The decimal strings of an element, NaN for what is no number: pydicom raises where these are read."""
    element = dataset.get_item(name)
    return parsed(element.value) if element is not None and isinstance(element.value, bytes) else []


def parsed(decimal_strings: bytes) -> list[float]:
    """DICOM's text of several numbers, NaN for what is none."""
    text = decimal_strings.decode("latin-1").strip(" \0")
    return [number(part) for part in text.split("\\")] if text else []


class Frames:
    """The frames of a file, mapped.

    Attributes:
        count: how many.
        places: int64 (N, 2), column and row of each one's first pixel as the file counts, None where it does not say.
        depths, optical_paths: of each that has a place, um along the optical axis and a name; 0 and "" if not said.
        spacing: mm between rows and between columns by the first one's own group; empty if not said.
    """

    def __init__(self, instance: Instance) -> None:
        """Walk a file.

        Raises:
            ValueError: it is cut short, or its frames cannot be told apart.
        """
        header = instance.header
        syntax = header.file_meta.TransferSyntaxUID
        self.count = instance.frames
        with instance.path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            groups, offsets, start = self._walk(instance.header_end, syntax != IMPLICIT)
            self._describe(groups)
            if syntax in NATIVE:
                size = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
                if start + size * self.count > len(self._data):
                    raise ValueError(CUT)
                self._starts = start + size * np.arange(self.count)
                self._lengths = np.full(self.count, size)
                self._first = np.arange(self.count + 1)
            else:
                self._find_pieces(start, offsets)
        except struct.error:
            self.close()
            raise ValueError(CUT) from None
        except Exception:
            self.close()
            raise

    def read(self, index: int) -> bytes:
        """A frame as it is encoded; empty where the file leaves it out."""
        pieces = slice(self._first[index], self._first[index + 1])
        places = zip(self._starts[pieces].tolist(), self._lengths[pieces].tolist(), strict=True)
        return b"".join(self._data[start : start + length] for start, length in places)

    def close(self) -> None:
        """Release the file."""
        self._data.close()

    def _walk(self, at: int, explicit: bool) -> tuple[list[Values], list[int], int]:
        """The values of every per-frame group, the extended offset table, if any, and where the pixels start."""
        groups: list[Values] = []
        offsets: list[int] = []
        while True:
            tag, kind, start, length = _element(self._data, at, explicit)
            if tag == PIXEL_DATA:
                return groups, offsets, start
            at = start + length
            if tag == PER_FRAME or length == UNDEFINED:
                items, at = _items(self._data, start, length, explicit and kind != b"UN")
                groups = items if tag == PER_FRAME else groups
            elif tag == EXTENDED_OFFSETS:
                offsets = np.frombuffer(self._data[start:at], "<u8").tolist()

    def _describe(self, groups: list[Values]) -> None:
        placed = [group for group in groups if COLUMN in group and ROW in group]
        if len(placed) not in (0, self.count):
            raise ValueError(f"{len(placed)} places for {self.count} frames")
        values = b"".join(group[COLUMN] + group[ROW] for group in placed)
        self.places = np.frombuffer(values, "<i4").reshape(-1, 2).astype(np.int64) if placed else None
        self.depths = [sum(parsed(group.get(Z_OFFSET, b""))) for group in placed]
        self.optical_paths = [group.get(OPTICAL_PATH, b"").decode("latin-1").strip(" \0") for group in placed]
        self.spacing = parsed(groups[0].get(PIXEL_SPACING, b"")) if groups else []

    def _find_pieces(self, at: int, offsets: list[int]) -> None:
        """Where the pieces of encapsulated pixels lie, and which of them each frame has."""
        _, _, start, length = _element(self._data, at, True)
        offsets = offsets or np.frombuffer(self._data[start : start + length], "<u4").tolist()
        begin = at = start + length
        starts, lengths = [], []
        while at < len(self._data):
            tag, _, start, length = _element(self._data, at, True)
            if tag == SEQUENCE_END:
                break
            if tag != ITEM:
                raise ValueError("the pixels are not in pieces")
            starts.append(start)
            lengths.append(length)
            at = start + length
        if at > len(self._data):
            raise ValueError(CUT)
        while len(lengths) > self.count and lengths[-1] == 0:
            starts.pop()
            lengths.pop()
        self._starts, self._lengths = np.array(starts, np.int64), np.array(lengths, np.int64)
        self._first = self._first_pieces([begin + 8 + offset for offset in offsets])

    def _first_pieces(self, offsets: list[int]) -> NDArray[np.int64]:
        """The index of each frame's first piece, and the number of pieces.

        A frame is one piece as a rule. Only where it is not are the offset tables asked, and then looks: tables wrap at
        4 GB, and converters leave them out or wrong.
        """
        starts = self._starts.tolist()
        if len(starts) == self.count:
            return np.arange(self.count + 1)
        if self.count == 1:
            return np.array([0, len(starts)])
        begins = [start for start in starts if self._data[start : start + 2] in CODESTREAMS]
        for known in (offsets, begins):
            if len(known) == self.count and set(known) <= set(starts) and known == sorted(set(known)):
                return np.append(np.searchsorted(self._starts, known), len(starts))
        raise ValueError(f"{len(starts)} pieces for {self.count} frames")


def _element(data: mmap.mmap, at: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """Tag, type (empty where it is implicit), start and length of the value at a place."""
    group, element, length = struct.unpack_from("<HHI", data, at)
    tag = group << 16 | element
    if group == 0xFFFE or not explicit:
        return tag, b"", at + 8, length
    kind = data[at + 4 : at + 6]
    if kind in LONG:
        return tag, kind, at + 12, struct.unpack_from("<I", data, at + 8)[0]
    return tag, kind, at + 8, length >> 16


def _items(data: mmap.mmap, at: int, length: int, explicit: bool) -> tuple[list[Values], int]:
    """The values of every item of a sequence, those of sequences inside included, and where the sequence ends."""
    items = []
    end = len(data) if length == UNDEFINED else at + length
    while at < end:
        tag, _, at, length = _element(data, at, explicit)
        if tag == SEQUENCE_END:
            break
        values, at = _values(data, at, length, explicit)
        items.append(values)
    return items, at


def _values(data: mmap.mmap, at: int, length: int, explicit: bool) -> tuple[Values, int]:
    values: Values = {}
    end = len(data) if length == UNDEFINED else at + length
    while at < end:
        tag, kind, start, length = _element(data, at, explicit)
        if tag == ITEM_END:
            return values, start
        at = start + length
        if tag in SEQUENCES or length == UNDEFINED:
            items, at = _items(data, start, length, explicit and kind != b"UN")
            for item in items:
                values |= item
        elif tag in (PIXEL_SPACING, OPTICAL_PATH, Z_OFFSET, COLUMN, ROW):
            values[tag] = data[start:at]
    return values, at
