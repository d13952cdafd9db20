"""DICOM whole slides, by pydicom with imagecodecs.

OpenSlide refuses YBR_FULL, which common converters write; so they are read here.
"""

import logging
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError
from midog.images.level import Cache, GridLevel, Image, UnsupportedError

if TYPE_CHECKING:
    from pydicom import FileDataset

JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
PLAIN = "1.2.840.10008.1.2.1"
PIXEL_DATA = b"\xe0\x7f\x10\x00"

# The library's complaint about a file is one line of ours, not a log record on stderr.
logging.getLogger("pydicom").addHandler(logging.NullHandler())


def open_dicom(path: Path, cache: Cache) -> Image:
    """A folder of one slide's `.dcm` instances, or one of them, which brings the rest of its series along."""
    import pydicom

    files: list[IO[bytes]] = []
    volumes = []
    try:
        series = None if path.is_dir() else pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID
        for name in sorted((path if path.is_dir() else path.parent).glob("*.dcm")):
            files.append(name.open("rb"))
            header = pydicom.dcmread(files[-1], stop_before_pixels=True)
            if "VOLUME" in header.get("ImageType", ()) and series in (None, header.SeriesInstanceUID):
                volumes.append((header, files[-1]))
        if not volumes:
            raise UserError(f"{path}: no DICOM file with the pixels of a slide (VOLUME); name the folder that has it")
        volumes.sort(key=lambda volume: -volume[0].TotalPixelMatrixColumns)
        levels = [_level(path, header, file, cache) for header, file in volumes]
        y, x = volumes[0][0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        return Image(levels, [(float(x) * 1000, float(y) * 1000)], close=lambda: [file.close() for file in files])
    except Exception:
        for file in files:
            file.close()
        raise


def _level(path: Path, header: "FileDataset", file: IO[bytes], cache: Cache) -> GridLevel:
    import imagecodecs
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    syntax = header.file_meta.TransferSyntaxUID
    size = header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows
    segment = header.Columns, header.Rows
    frames = int(header.get("NumberOfFrames", 1))
    if syntax not in JPEG | JPEG_2000 | {PLAIN} or header.SamplesPerPixel != 3:
        raise UnsupportedError(f"{syntax.name} of {header.SamplesPerPixel} channels is not read")
    start = file.tell() + 12  # tag, type and length of the pixel data
    if file.read(4) != PIXEL_DATA:
        raise ValueError("no pixel data")
    file.seek(start)
    if syntax == PLAIN:
        count = segment[0] * segment[1] * 3
        places = [(start + frame * count, count) for frame in range(frames)]
    else:
        parse_basic_offsets(file)  # optional in the file: the fragments themselves tell
        offsets = parse_fragments(file)[1]
        places = []
        for offset in offsets:
            file.seek(offset + 4)
            places.append((offset + 8, int.from_bytes(file.read(4), "little")))
    # Anything else is left to the JPEG's own marker: converters copy RGB tiles and label them YBR_FULL.
    colours = "RGB" if header.PhotometricInterpretation == "RGB" else None

    def decode(index: int) -> NDArray[np.uint8]:
        offset, count = places[index]
        file.seek(offset)
        data = file.read(count)
        if syntax in JPEG:
            return imagecodecs.jpeg8_decode(data, colorspace=colours, outcolorspace="RGB")
        if syntax in JPEG_2000:
            return imagecodecs.jpeg2k_decode(data)
        return np.frombuffer(data, np.uint8).reshape(*segment[::-1], 3)

    level = GridLevel(path, size, segment, decode, cache)
    if not level.columns * level.rows == frames == len(places):
        raise UnsupportedError(f"{frames} frames in {len(places)} pieces do not tile {size[0]} x {size[1]} px once")
    return level
