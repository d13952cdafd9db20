"""TIFF, by tifffile with imagecodecs: which page is the image and which are its pyramid, what the pages of a stack are,
where the spacing stands.

A new dialect belongs here: which pages are no picture in `_is_aside`, which make one together in `_triples`, where
their um/px stand in `_spacings`. How pixels are decoded is in `tiff_pixels.py`.
"""

import json
import logging
import math
import re
import struct
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import brief
from midog.images.level import CHANNELS_FIRST, Cache, Depth, Image, Page, UnsupportedError, seen_depth
from midog.images.resolution import (
    Spacing,
    objective_of,
    of_aperio,
    of_imagej,
    of_ome,
    of_philips,
    of_resolution_tags,
    of_ventana,
)
from midog.images.tiff_pixels import PALETTE, Picture, Plane

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

DESCRIPTION, MAX_SAMPLE_VALUE, PAGE_NAME, XMP = 270, 281, 285, 700
BYTES = {1, 2, 7}  # types of tags that may hold text
ORIENTATION, UPRIGHT = 274, 1
INCH = 2  # of ResolutionUnit, where it is left out
NOT_FOR_REGIONS = {"CMYK", "LAB"}  # inks and views of a page that a scanner does not write
SAME_FIELD = 0.01  # by how much the sides of two levels may differ in their ratio
# As scanners and libtiff name pages that do not show the slide at a magnification, in a description or PageName.
_ASIDE = re.compile(
    r"^\s*(?:label|macro|thumbnail|overview|preview|probability)(?![a-z]|\s*[:=])"
    r"|<ImageType>\s*(?:label|macro|thumbnail|overview)",
    re.IGNORECASE | re.MULTILINE,
)
_OVERLAP = re.compile(r"""\bOverlap[XY]\s*=\s*["'](\d+)""")
_ATTRIBUTE = re.compile(r"""([\w:]+)\s*=\s*["']([^"']*)["']""")
_Walk = Callable[[], Iterable["TiffPage"]]

# The library's complaint about a file is one line of ours, not a log record on stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_tiff(path: Path, cache: Cache) -> Image:
    """The largest page of full resolution, with its pyramid."""
    import tifffile

    tif = tifffile.TiffFile(path)
    try:
        return _open(path, tif, cache)
    except Exception:
        tif.close()
        raise


def read_spacings(path: Path) -> list[Spacing]:
    """What the file says of a stack's pages, unchecked, the most trusted first."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        pictures = _pictures(path, tif, partial(_walk, tif))
        return _spacings(next(each.page for each in pictures if not each.is_preview), tif.pages.first)


def first_page(path: Path) -> tuple[tuple[int, int], bool]:
    """(width, height) px of the image, and whether another one of this size is there."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        _, pictures, _ = _look(path, tif)
        image = _largest(pictures)
        return image.size, sum(each.size == image.size for each in pictures) > 1


def read_pages(path: Path) -> Iterator[Page]:
    """Every page of a stack, one after the other; a page is to be read before the next one is asked for."""
    import tifffile

    with tifffile.TiffFile(path) as tif:
        deep: Depth | None = None  # of all pages of 16 bits, since a single one may be dark
        for picture in _pictures(path, tif, partial(_walk, tif)):
            depth = _stored_depth(picture)
            if not picture.is_preview:
                _check_colours_last(picture.page, is_crop=True)
                picture.check()
                if depth.stored == 16:
                    deep = deep or _said_depth(picture.page, tif) or seen_depth(16, _stack_values(path, tif))
                    depth = deep
            remarks = [] if picture.is_preview else picture.remarks(depth)
            yield Page(picture.size, remarks, partial(_read, picture, depth), picture.is_preview)


def _read(picture: Picture, depth: Depth) -> NDArray[np.uint8]:
    return picture.level(depth, Cache()).read(0, 0, *picture.size)


def _stack_values(path: Path, tif: "TiffFile") -> Iterator[NDArray[Any]]:
    """The values of all pages of 16 bits, up to one that is damaged, which is said when it is read itself."""
    try:
        for picture in _pictures(path, tif, partial(_walk, tif)):
            if not picture.is_preview and _stored_depth(picture).stored == 16:
                yield from picture.values()
    except Exception:
        return


# --- which page -------------------------------------------------------------------------------------------------------


def _open(path: Path, tif: "TiffFile", cache: Cache) -> Image:
    pages, pictures, remarks = _look(path, tif)
    first = pages[0]
    _check_colours_last(first)
    image = _largest(pictures)
    image.check()
    if image.mode in NOT_FOR_REGIONS:
        raise UnsupportedError(f"the colour model {image.mode} is not read")
    place = next(place for place, page in enumerate(pages, 1) if page is image.page)
    if image is not pictures[0]:
        remarks.append(f"page {place} of {len(pages)} is read, the largest of full resolution")
    if any(each is not image and 2 * math.prod(each.size) > math.prod(image.size) for each in pictures):
        remarks.append(f"several pages of about one size, only page {place} is read")
    if overlap := max(map(int, _OVERLAP.findall(str(image.page.tags.valueof(XMP)))), default=0):
        remarks.append(
            f"tiles overlap by up to {overlap} px by Ventana's XMP and are not joined; rename the file to .bif"
        )
    pyramid = _pyramid(path, tif, image, pages, remarks)
    depth = _depth(pyramid, tif)
    levels = []
    for picture in pyramid:
        try:
            levels.append(picture.level(depth, cache))
        except Exception as error:
            if picture is image:
                raise
            remarks.append(f"level of {picture.size[0]} x {picture.size[1]} px left out ({brief(error)})")
    remarks += image.remarks(depth)
    if (turned := image.page.tags.valueof(ORIENTATION, 1)) != UPRIGHT:
        remarks.append(f"turned or mirrored by its orientation tag ({turned}), read as it is stored")
    objective = objective_of(_text(image.page)) or objective_of(_text(first))
    return Image(levels, _spacings(image.page, first), remarks=remarks, objective=objective, close=tif.close)


def _look(path: Path, tif: "TiffFile") -> tuple[list["TiffPage"], list[Picture], list[str]]:
    """All pages, the pictures of full resolution in them, and a remark where the file is damaged later on."""
    pages: list[TiffPage] = []
    pictures: list[Picture] = []
    remarks = []
    try:
        for page in _walk(tif):
            if not (isinstance(page.imagewidth, int) and isinstance(page.imagelength, int)):
                raise ValueError("a tag that is one number has several")
            pages.append(page)
    except Exception as error:
        if not pages:
            raise
        remarks.append(f"what comes after page {len(pages)} cannot be read ({brief(error)}) and is left out")
    try:
        for picture in _pictures(path, tif, lambda: pages):
            if not picture.is_preview:
                pictures.append(picture)
    except Exception as error:
        if not pictures:
            raise
        remarks.append(brief(error))
    return pages, pictures, remarks


def _largest(pictures: Sequence[Picture]) -> Picture:
    """The image of a slide or region. Ventana says which it is."""
    return max(pictures, key=lambda each: (_text(each.page).startswith("level=0 "), math.prod(each.size)))


def _pyramid(
    path: Path, tif: "TiffFile", image: Picture, pages: Sequence["TiffPage"], remarks: list[str]
) -> list[Picture]:
    """The image and what shows its field in less px, largest first."""
    smaller = []
    for index in range(len(image.page.subifds or ())):
        try:
            smaller.append(Picture(path, tif, [Plane(plane.page.pages[index]) for plane in image.planes]))
        except Exception as error:
            remarks.append(f"level {index + 1} left out ({brief(error)})")
    if len(image.planes) == 1:
        others = (page for page in pages if page is not image.page and not _is_aside(page))
        smaller += [Picture(path, tif, [Plane(page)]) for page in others]
    if "DPUfsImport" in _text(pages[0]):
        _cut_philips(image, smaller, _text(pages[0]))
    pyramid = [image]
    for picture in sorted(smaller, key=lambda each: each.size[0], reverse=True):
        (width, height), page = picture.size, picture.page
        if min(width, height) < 1 or width >= pyramid[-1].size[0]:
            continue
        ratio = (image.size[0] / width) / (image.size[1] / height)
        same_kind = (page.dtype, page.samplesperpixel) == (image.page.dtype, image.page.samplesperpixel)
        if same_kind and abs(ratio - 1) < SAME_FIELD and (page.is_tiled or page.is_reduced):  # not the whole glass
            try:
                picture.check()
                pyramid.append(picture)
            except Exception as error:
                remarks.append(f"level of {width} x {height} px left out ({brief(error)})")
    return pyramid


def _cut_philips(image: Picture, smaller: Sequence[Picture], xml: str) -> None:
    """Take Philips' padding off, which fills each level up to whole tiles.

    The XML has a part for each level, in the file's order; what it says of level 0's own size is padded as well in
    most files, so black is taken off its tiles, too.
    """
    shown = []
    for part in xml.split("PixelDataRepresentation")[1:]:
        steps = of_philips(part)
        columns, rows = (
            re.search(rf"PIXEL_DATA_REPRESENTATION_{side}[^>]*>\s*(\d+)", part) for side in ("COLUMNS", "ROWS")
        )
        shown.append((steps[0].um_per_px[0] if steps else math.nan, columns, rows))
    tiled = [picture for picture in smaller if picture.page.is_tiled]
    for picture in (image, *tiled):
        picture.is_padded = True
    step, columns, rows = shown[0] if shown else (math.nan, None, None)
    if columns and rows and image.page.is_tiled:
        described = int(columns[1]), int(rows[1])
        tile = image.page.tilewidth, image.page.tilelength
        if all(0 <= whole - own < side for whole, own, side in zip(image.size, described, tile, strict=True)):
            image.size = described
    for picture, (own_step, *_) in zip(tiled, shown[1:], strict=False):
        if own_step >= step:
            width, height = (side // round(own_step / step) for side in image.size)
            picture.size = min(width, picture.size[0]), min(height, picture.size[1])


# --- what the pages are -----------------------------------------------------------------------------------------------


def _walk(tif: "TiffFile") -> Iterator["TiffPage"]:
    """The pages; tifffile's own list grows with them, and ends in silence where the file is damaged."""
    import tifffile

    page, visited = tif.pages.first, set()
    while True:
        yield page
        visited.add(page.offset)
        following = _following(tif, page)
        if following == 0 or following in visited:
            return
        tif.filehandle.seek(following)
        page = tifffile.TiffPage(tif, index=len(visited))


def _following(tif: "TiffFile", page: "TiffPage") -> int:
    """Where the page after this one stands, 0 for nowhere."""
    layout, file = tif.tiff, tif.filehandle
    file.seek(page.offset)
    (tags,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    file.seek(tags * layout.tagsize, 1)
    (following,) = struct.unpack(layout.offsetformat, file.read(layout.offsetsize))
    return int(following)


def _is_aside(page: "TiffPage") -> bool:
    """Whether it is a mask, or shows the slide's label or the whole of it."""
    text = f"{_text(page)}\n{page.tags.valueof(PAGE_NAME, '')}"
    return page.is_mask or page.is_mrc or _ASIDE.search(text) is not None


def _is_preview(page: "TiffPage") -> bool:
    return page.is_reduced or _is_aside(page)


def _pictures(path: Path, tif: "TiffFile", walk: _Walk) -> Iterator[Picture]:
    """Everything in the file, in its order: pages, or three of them that are one picture's colours.

    Raises:
        ValueError: after what is there, if the file itself names more.
    """
    is_all_previews = all(_is_preview(page) for page in walk())
    planes: Iterable[Plane] = _planes(tif, walk)
    triples: dict[int, tuple[int, ...]] = {}
    known: list[Plane] = []
    if _CHANNELS.search(_text(tif.pages.first)):
        planes = known = list(planes)
        triples = {triple[0]: triple for triple in _triples(_text(tif.pages.first), known)}
    inside = {place for triple in triples.values() for place in triple}
    for place, plane in enumerate(planes):
        is_preview = not is_all_previews and _is_preview(plane.page)
        if place in triples:
            yield Picture(path, tif, [known[each] for each in triples[place]], is_preview)
        elif place not in inside:
            yield Picture(path, tif, [plane], is_preview)


def _planes(tif: "TiffFile", walk: _Walk) -> Iterator[Plane]:
    first = tif.pages.first
    named = _named(first)
    if named == 1 or _following(tif, first):
        count = 0
        for page in walk():
            yield Plane(page)
            count += 1
        if count < named:
            raise ValueError(f"{count} of {named} pages that its description names are there")
        return
    yield Plane(first)
    if not first.is_final:
        raise UnsupportedError(f"1 of {named} pages that its description names can be found")
    for place in range(1, named):
        if first.dataoffsets[0] + (place + 1) * first.nbytes > tif.filehandle.size:
            raise ValueError(f"{place} of {named} pages that its description names are there")
        yield Plane(first, place * first.nbytes)


def _named(page: "TiffPage") -> int:
    """How many pages ImageJ's or tifffile's description names; both may write them behind one single page."""
    if _text(page).startswith("ImageJ="):
        numbers = _imagej_numbers(_text(page))
        if page.planarconfig == 2 and numbers["channels"] == page.samplesperpixel:
            return numbers["slices"] * numbers["frames"]
        return numbers["images"]
    shape = _shaped(page).get("shape", ())
    return max(1, math.prod(shape) // max(1, math.prod(page.shape)))


def _imagej_numbers(description: str) -> dict[str, int]:
    found = re.findall(r"^(images|channels|slices|frames)=(\d+)", description, re.MULTILINE)
    return {"images": 1, "channels": 1, "slices": 1, "frames": 1} | {key: max(1, int(text)) for key, text in found}


def _shaped(page: "TiffPage") -> dict[str, Any]:
    """What tifffile writes of an array: its shape, and perhaps its axes."""
    try:
        found = json.loads(page.shaped_description or "{}")
        return found if all(isinstance(side, int) for side in found["shape"]) else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _check_colours_last(page: "TiffPage", is_crop: bool = False) -> None:
    """Refuse grey pages that are one colour each of a picture, and pages whose sides are mixed up with colours."""
    found = _shaped(page)
    shape, axes = found.get("shape", ()), found.get("axes", "")
    turned = False
    if page.samplesperpixel == 1 and len(shape) >= 3 and tuple(shape[-2:]) == page.shape:
        many = shape[-3] in ((3, 4) if len(shape) > 3 else (3,))
        turned = many and (len(axes) != len(shape) or axes[-3] in "CS")
    if is_crop:
        turned = turned or page.imagelength in (3, 4) and page.imagewidth > 16
        turned = turned or page.samplesperpixel == 1 and page.imagelength == 3 * page.imagewidth
    if turned:
        raise UnsupportedError(CHANNELS_FIRST)


_CHANNELS = re.compile(r"""^channels=3\s*$|\bSizeC\s*=\s*["']3["']""", re.MULTILINE)
_PIXELS = re.compile(r"<(?:\w+:)?Pixels\s([^>]*)>(.*?)</(?:\w+:)?Pixels>", re.DOTALL)
_TIFF_DATA = re.compile(r"<(?:\w+:)?TiffData\b([^>]*)>")


def _triples(description: str, planes: Sequence[Plane]) -> list[tuple[int, ...]]:
    """The places of three grey pages each that are red, green and blue of one picture, as ImageJ and OME say."""
    found: list[tuple[int, ...]] = []
    try:
        if description.startswith("ImageJ="):
            numbers = _imagej_numbers(description)
            order = re.search(r"^order=([czt]{3})", description, re.MULTILINE)
            sizes = {"C": numbers["channels"], "Z": numbers["slices"], "T": numbers["frames"]}
            if math.prod(sizes.values()) == len(planes):
                found = _in_order(order[1].upper() if order else "CZT", sizes)
        for attributes, inside in _PIXELS.findall(description):
            found += _ome_triples(dict(_ATTRIBUTE.findall(attributes)), inside, len(planes))
    except (KeyError, ValueError):  # a description that says less, or nonsense
        return []
    pages = [[planes[place].page for place in triple] for triple in found if max(triple) < len(planes)]
    if any(page.samplesperpixel != 1 or page.shape != triple[0].shape for triple in pages for page in triple):
        return []
    return found if len(pages) == len(found) else []


def _ome_triples(pixels: dict[str, str], inside: str, count: int) -> list[tuple[int, ...]]:
    sizes = {axis: int(pixels[f"Size{axis}"]) for axis in "CZT"}
    total, order = math.prod(sizes.values()), pixels["DimensionOrder"][2:]
    if sizes["C"] != 3 or re.search(r"""SamplesPerPixel\s*=\s*["']3""", inside):
        return []
    if len(set(re.findall(r"""FileName\s*=\s*["']([^"']*)""", inside))) > 1:
        raise UnsupportedError("its colours lie in several files")
    if total > count:
        return []
    place: dict[int, int] = {}
    for text in _TIFF_DATA.findall(inside):
        data = dict(_ATTRIBUTE.findall(text))
        start, step = 0, 1
        for axis in order:
            start += step * int(data.get(f"First{axis}", 0))
            step *= sizes[axis]
        pages = int(data.get("PlaneCount") or data.get("NumPlanes") or (1 if "IFD" in data else total))
        place |= {start + each: int(data.get("IFD", 0)) + each for each in range(min(pages, total))}
    return [tuple(place[each] for each in triple) for triple in _in_order(order, sizes)]


def _in_order(order: str, sizes: dict[str, int]) -> list[tuple[int, ...]]:
    """The numbers of the planes of each picture, which are counted along the axes of `order`, the first fastest."""
    slowest_first = order[::-1]
    numbers = np.arange(math.prod(sizes.values())).reshape([sizes[axis] for axis in slowest_first])
    together = np.moveaxis(numbers, slowest_first.index("C"), -1).reshape(-1, sizes["C"])
    return [tuple(each) for each in together.tolist()] if sizes["C"] == 3 else []


# --- what the file says -----------------------------------------------------------------------------------------------


def _depth(pyramid: Sequence[Picture], tif: "TiffFile") -> Depth:
    """By what the file says; else by the values of the smallest level that can be decoded."""
    stored = _stored_depth(pyramid[0])
    if stored.stored != 16:
        return stored
    if said := _said_depth(pyramid[0].page, tif):
        return said
    for picture in reversed(pyramid):
        try:
            return seen_depth(16, picture.values())
        except Exception:  # is said where the level is read itself
            continue
    return stored


def _stored_depth(picture: Picture) -> Depth:
    page = picture.page
    bits = 8 if page.photometric == PALETTE else page.bitspersample
    return Depth(bits, bits)


def _said_depth(page: "TiffPage", tif: "TiffFile") -> Depth | None:
    """By OME's SignificantBits or TIFF's MaxSampleValue; that all 16 bits are used is what both say unasked."""
    said = re.search(r"""SignificantBits\s*=\s*["'](\d+)""", _text(tif.pages.first))
    places = [(int(said[1]) if said else 0, "SignificantBits")]
    highest = int(np.max(page.tags.valueof(MAX_SAMPLE_VALUE, 0)))
    places.append((highest.bit_length() if highest & (highest + 1) == 0 else 0, "MaxSampleValue"))
    return next((Depth(16, bits, where) for bits, where in places if 8 <= bits < 16), None)


def _spacings(page: "TiffPage", first: "TiffPage") -> list[Spacing]:
    """What a page says, and what the first page says of the file: but its resolution tags are its own.

    The tags come first, since SimpleITK takes them; then each description's dialect.
    """
    unit, x, y = (page.tags.valueof(name) for name in ("ResolutionUnit", "XResolution", "YResolution"))
    spacings = of_resolution_tags(INCH if unit is None else unit, x, y)
    for text in dict.fromkeys((_text(page), _text(first))):
        for spacing in (of_imagej(text, x, y), of_ome(text), of_philips(text), of_aperio(text)):
            spacings += spacing
    return spacings + of_ventana(f"{page.tags.valueof(XMP)}{first.tags.valueof(XMP)}")


def _text(page: "TiffPage") -> str:
    """The description, in whatever encoding."""
    tag = page.tags.get(DESCRIPTION)
    if tag is None or isinstance(tag.value, str) and tag.value.isascii():
        return tag.value if tag else ""
    if tag.dtype not in BYTES:
        return ""
    page.parent.filehandle.seek(tag.valueoffset)
    data = page.parent.filehandle.read(tag.count)
    for encoding in ("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8", "latin-1"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding).rstrip("\0")
    return ""
