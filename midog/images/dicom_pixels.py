"""A frame of a DICOM slide as RGB, whatever its transfer syntax and whatever its label gets wrong.

Decoders are imagecodecs'. A codestream that says how its colours are stored is believed; only where it does not,
PhotometricInterpretation counts, which converters copy from elsewhere.
"""

import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.images.level import Depth, UnsupportedError, conversions, to_rgb

if TYPE_CHECKING:
    from pydicom import FileDataset

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"  # transfer syntaxes, all little-endian
NATIVE = {IMPLICIT, EXPLICIT}
RLE = {"1.2.840.10008.1.2.5"}
JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}
LOSSLESS_JPEG = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
JPEG_2000 = {f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203)}  # the latter three HTJ2K
JPEG_XL = {f"1.2.840.10008.1.2.4.{number}" for number in (110, 111, 112)}

MONOCHROME = {"MONOCHROME1", "MONOCHROME2"}
PLAIN_COLOURS = {"RGB", "YBR_FULL"} | MONOCHROME  # of codecs that know samples and no colours

APP0, APP14, SOS = 0xE0, 0xEE, 0xDA  # JPEG's markers
START_OF_FRAME = range(0xC0, 0xC4)
J2K_START, J2K_CODING = b"\xff\x4f\xff\x51", 0xFF52


class Pixels:
    """How the frames of a file are decoded.

    Attributes:
        depth: of a sample; may be set to what the values need.
    """

    def __init__(self, header: "FileDataset") -> None:
        """By a file's header.

        Raises:
            UnsupportedError: for pixels of another kind.
        """
        syntax = header.file_meta.TransferSyntaxUID
        colours, channels = str(header.PhotometricInterpretation), int(header.SamplesPerPixel)
        stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
        if syntax not in NATIVE | RLE | JPEG | LOSSLESS_JPEG | JPEG_LS | JPEG_2000 | JPEG_XL:
            raise UnsupportedError(f"the transfer syntax {syntax.name} is not read")
        known = colours in PLAIN_COLOURS or syntax in JPEG | JPEG_2000 | JPEG_XL and colours != "PALETTE COLOR"
        if not known or channels != (1 if colours in MONOCHROME else 3):
            raise UnsupportedError(f"the colour model {colours} of {channels} channels is not read")
        if header.get("PixelRepresentation", 0) != 0:
            raise UnsupportedError("signed pixels are not read")
        highest = int(header.get("HighBit", stored - 1)) + 1
        if allocated not in (8, 16) or not 8 <= stored <= allocated or allocated == 16 and highest != stored:
            raise UnsupportedError(f"{stored} bits up to the {highest}th of {allocated} are not read, 8 to 16 expected")
        self.depth = Depth(allocated, stored, "BitsStored")
        self._is_grey, self._is_inverted = colours in MONOCHROME, colours == "MONOCHROME1"
        self._samples = _samples(header, syntax, colours)

    @property
    def remarks(self) -> list[str]:
        """What becomes of the pixels, a line each."""
        plain = self.depth.stored == self.depth.used == 8
        return conversions(Depth() if plain else self.depth, "grey" if self._is_grey else "RGB")

    def values(self, data: bytes) -> NDArray[Any]:
        """The samples of a frame's bytes as stored."""
        return self._samples(data)[0]

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """A frame's bytes -> uint8 (H, W, 3) RGB."""
        samples, is_ycbcr = self._samples(data)
        if samples.dtype == np.uint8:
            rgb = to_rgb(samples)
        elif samples.max() >> self.depth.used:
            raise ValueError(f"values of more than {self.depth.used} bits")
        else:
            rgb = to_rgb(samples, self.depth.table)
        if self._is_inverted:
            return 255 - rgb
        return _from_ycbcr(rgb) if is_ycbcr else rgb


def _from_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), JFIF's YCbCr -> RGB."""
    import PIL.Image

    image = PIL.Image.frombytes("YCbCr", pixels.shape[1::-1], pixels.tobytes())
    return np.asarray(image.convert("RGB"))


def _samples(header: "FileDataset", syntax: str, colours: str) -> Callable[[bytes], tuple[NDArray[Any], bool]]:
    """A function of a frame's bytes that gives (H, W) or (H, W, 3), and whether that is YCbCr."""
    import imagecodecs

    is_ycbcr = colours == "YBR_FULL"
    if syntax in JPEG:
        return partial(_jpeg, colours=colours)
    if syntax in JPEG_2000:
        return partial(_jpeg_2000, colours=colours)
    if syntax in JPEG_XL:
        return lambda data: (imagecodecs.jpegxl_decode(data), False)
    if syntax in JPEG_LS:
        return lambda data: (imagecodecs.jpegls_decode(data), is_ycbcr)
    if syntax in LOSSLESS_JPEG:  # whose colours libjpeg cannot convert
        kept = None if colours in MONOCHROME else "RGB"
        return lambda data: (imagecodecs.jpeg8_decode(data, colorspace=kept, outcolorspace=kept), is_ycbcr)

    rows, columns, channels = int(header.Rows), int(header.Columns), int(header.SamplesPerPixel)
    dtype = np.dtype("u1" if header.BitsAllocated == 8 else "<u2")
    planar = syntax in RLE or header.get("PlanarConfiguration", 0) == 1

    def plain(data: bytes) -> tuple[NDArray[Any], bool]:
        raw = imagecodecs.dicomrle_decode(data, dtype) if syntax in RLE else data
        values = np.frombuffer(raw, dtype, rows * columns * channels)
        if planar:
            return np.moveaxis(values.reshape(channels, rows, columns), 0, -1), is_ycbcr
        return values.reshape(rows, columns, channels), is_ycbcr

    return plain


def _jpeg(data: bytes, colours: str) -> tuple[NDArray[Any], bool]:
    import imagecodecs

    if colours in MONOCHROME:
        return imagecodecs.jpeg8_decode(data), False
    stored = None if _names_its_colours(data) else "RGB" if colours == "RGB" else "YCBCR"
    return imagecodecs.jpeg8_decode(data, colorspace=stored, outcolorspace="RGB"), False


def _names_its_colours(jpeg: bytes) -> bool:
    """Whether a JPEG tells RGB from YCbCr: by JFIF's or Adobe's marker, by its components' names, by coarser chroma."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at + 1] != SOS:
        marker, (length,) = jpeg[at + 1], struct.unpack_from(">H", jpeg, at + 2)
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        content = jpeg[at + 4 : at + 2 + length]
        if marker == APP0 and content.startswith(b"JFIF\0") or marker == APP14 and content.startswith(b"Adobe"):
            return True
        if marker in START_OF_FRAME and (content[6::3] == b"RGB" or len(set(content[7::3])) > 1):
            return True
        at += 2 + length
    return False


def _jpeg_2000(data: bytes, colours: str) -> tuple[NDArray[Any], bool]:
    import imagecodecs

    pixels = imagecodecs.jpeg2k_decode(data)
    return pixels, colours.startswith("YBR") and _leaves_its_colours(data)


def _leaves_its_colours(codestream: bytes) -> bool:
    """Whether the decoder gives a JPEG 2000's components as they are.

    It undoes a multiple-component transform, and takes components of fewer pixels for the chroma of YCbCr.
    """
    at = codestream.index(J2K_START) + 2
    (components,) = struct.unpack_from(">H", codestream, at + 38)
    steps = codestream[at + 40 : at + 40 + 3 * components]
    if set(steps[1::3] + steps[2::3]) != {1}:
        return False
    while True:
        marker, length = struct.unpack_from(">HH", codestream, at)
        if marker == J2K_CODING:
            return codestream[at + 8] == 0
        at += 2 + length
