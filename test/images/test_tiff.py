"""Which page of a TIFF is the image, what belongs to it, and what becomes of its pixels."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from writers import SHORT, write_tiff

from midog.errors import UserError
from midog.images.level import over_white
from midog.images.slide import open_slide
from midog.images.track import track_of_image

RGB = {"photometric": "rgb", "metadata": None}
TILES = {"tile": (64, 64), "compression": "zlib", **RGB}
CM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}  # .25 um/px
SUBFILE_TYPE, MAX_SAMPLE_VALUE, PAGE_NAME = 255, 281, 285


def waves(width, height, phase=0.0):
    """Smooth colours, which a lossy codec keeps: uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    colours = [np.sin(x / 19 + y / 31 + phase), np.cos(x / 23 - y / 17), np.sin((x + y) / 40)]
    return (130 + 90 * np.stack(colours, axis=-1)).astype(np.uint8)


PICTURE = waves(200, 160)
HALF = np.ascontiguousarray(PICTURE[::2, ::2])
GLASS = waves(60, 180, phase=2.0)  # what a macro shows


@pytest.fixture
def shows(opened):
    """Opens a file, checks what it shows, and gives the slide and what was logged, but for a missing resolution."""

    def shows(path, wanted=PICTURE, off=0.0, levels=None):
        slide, logged = opened(path)
        assert slide.size == wanted.shape[1::-1]
        assert np.abs(slide.read(0, 0, *slide.size).astype(int) - wanted).mean() <= off
        if levels is not None:
            assert [level.size for level in slide._image.levels] == levels
        return slide, [line for line in logged if "no resolution" not in line]

    return shows


def refused(path, *words):
    with pytest.raises(UserError) as error:
        open_slide(path).read(0, 0, 8, 8)
    assert "\n" not in str(error.value)
    for word in (str(path), *words, ";"):
        assert word in str(error.value)


# --- which page -----------------------------------------------------------------------------

BIG = waves(300, 400, phase=2.0)  # larger than the image
ASIDE = {
    "Ventana": (BIG, {"description": "Label_Image"}),
    "Philips": (BIG, {"description": "Macro -offset=(0.0,0.0)-pixelsize=(0.0315,0.0315)"}),
    "Aperio": (BIG, {"description": "Aperio Image Library v11\r\nmacro 300x400", "subfiletype": 9}),
    "PerkinElmer": (BIG, {"description": "<PerkinElmer-QPI-ImageDescription><ImageType>Overview</ImageType>"}),
    "name of the page": (BIG, {"extratags": [(PAGE_NAME, 2, 0, "Thumbnail", True)]}),
    "reduced": (GLASS, {"subfiletype": 1}),
    "reduced by the old tag": (GLASS, {"extratags": [(SUBFILE_TYPE, 3, 1, 2, True)]}),
}


@pytest.mark.parametrize("kind", ASIDE)
@pytest.mark.parametrize("names", ["level={} mag=40 quality=95", ""])
def test_the_image_may_come_after_other_pages(tmp_path, shows, kind, names):
    pixels, aside = ASIDE[kind]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, **RGB, **CM, **aside)
        for number, level in enumerate((PICTURE, HALF)):
            file.write(level, description=names.format(number) or None, **TILES)
        file.write(pixels, **RGB, **aside)
    slide, logged = shows(tmp_path / "a.tif", levels=[(200, 160), (100, 80)])
    assert logged == []
    assert slide.resolution.source == "assumed"  # the tags that say .25 um/px are the other page's


def test_what_says_nothing_of_itself_loses_by_its_size_and_that_is_said(tmp_path, shows):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GLASS, description="scanned with MPP = 0.5", **RGB)
        file.write(PICTURE, **TILES)
        file.write(HALF, **TILES)
    slide, logged = shows(tmp_path / "a.tif", levels=[(200, 160), (100, 80)])
    assert slide.um_per_px == (0.5, 0.5)  # a description on page 0 is the file's
    assert logged == ["a.tif: page 2 of 3 is read, the largest of full resolution"]
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(PICTURE, **TILES)
        file.write(waves(210, 150), **TILES)
    assert shows(tmp_path / "b.tif")[1] == ["b.tif: several pages of about one size, only page 1 is read"]


def test_tiles_that_overlap_are_said(tmp_path, shows):
    for overlap in (0, 3):
        xmp = f'<iScan ScanRes="0.5"/><TileJointInfo FlagJoined="1" OverlapX="{overlap}" OverlapY="0"/>'.encode()
        note = {"description": "level=0 mag=40 quality=95", "extratags": [(700, 1, len(xmp), xmp, True)]}
        tifffile.imwrite(tmp_path / "a.tif", PICTURE, **TILES, **note)
        slide, logged = shows(tmp_path / "a.tif")
        assert slide.um_per_px == (0.5, 0.5)
        assert [f"by up to {overlap} px" in line for line in logged] == [True] * (overlap > 0)


def test_a_track_is_told_by_the_image_and_not_by_the_first_page(tmp_path):
    big = waves(600, 520)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GLASS, description="Label_Image", **RGB)
        file.write(big, **TILES)
    planes = np.moveaxis(big, -1, 0)
    tifffile.imwrite(tmp_path / "b.ome.tif", planes, photometric="minisblack", metadata={"axes": "CYX"})
    assert [track_of_image(tmp_path / name) for name in ("a.tif", "b.ome.tif")] == [1, 1]


@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "CZYX", "TCYX", "CTYX"])
@pytest.mark.parametrize("levels", [0, 1])
def test_three_grey_pages_of_ome_are_red_green_and_blue(tmp_path, shows, axes, levels):
    several = [PICTURE, 255 - PICTURE] if len(axes) == 4 else [PICTURE]

    def arranged(pictures):
        planes = np.moveaxis(np.stack(pictures), -1, 0 if axes[0] == "C" else 1)
        return planes.squeeze(1) if len(axes) == 3 else planes

    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        grey = {"photometric": "minisblack", "tile": (64, 64)}
        file.write(arranged(several), subifds=levels, metadata={"axes": axes}, **grey)
        for _ in range(levels):
            file.write(arranged([each[::2, ::2] for each in several]), subfiletype=1, **grey)
    sizes = [(200, 160), (100, 80)][: 1 + levels]
    slide, logged = shows(tmp_path / "a.ome.tif", levels=sizes)
    np.testing.assert_array_equal(slide._image.levels[-1].read(0, 0, *sizes[-1]), HALF if levels else PICTURE)
    assert logged[-1] == "a.ome.tif: 8-bit grey of three planes, taken as red, green and blue, read as 8-bit RGB"
    assert len(logged) == len(several)


def test_planes_where_ome_says_they_are(tmp_path, shows):
    """Blue, red, green; then that they lie in other files."""
    xml = '<OME><Image><Pixels DimensionOrder="XYCZT" SizeX="200" SizeY="160" SizeC="3" SizeZ="1" SizeT="1">'
    for channel, page in enumerate((1, 2, 0)):
        xml += f'<TiffData FirstC="{channel}" IFD="{page}"><UUID FileName="{channel}.tif"/></TiffData>'
    one = xml.replace('FileName="1', 'FileName="0').replace('FileName="2', 'FileName="0') + "</Pixels></Image></OME>"
    for name, text in (("a.tif", one), ("b.tif", xml + "</Pixels></Image></OME>")):
        with tifffile.TiffWriter(tmp_path / name) as file:
            for channel in (2, 0, 1):
                file.write(PICTURE[..., channel], description=text if channel == 2 else None, metadata=None)
    shows(tmp_path / "a.tif")
    refused(tmp_path / "b.tif", "its colours lie in several files")


def test_imagej_s_pages_behind_a_single_one(tmp_path, shows):
    """Three greys are one picture's colours; of several pictures the first is read."""
    planes = np.moveaxis(PICTURE, -1, 0)
    for name, pages, said in (
        ("a.tif", planes, "images=3\nchannels=3"),
        ("b.tif", [PICTURE] * 4, "images=4\nslices=4"),
    ):
        pages = np.stack(pages)
        note = {"description": f"ImageJ=1.53t\n{said}\n", "metadata": None}
        tifffile.imwrite(tmp_path / name, pages[0], photometric="rgb" if pages.ndim == 4 else "minisblack", **note)
        with open(tmp_path / name, "ab") as file:
            file.write(pages[1:].tobytes())
        assert len(tifffile.TiffFile(tmp_path / name).pages) == 1
    assert "taken as red, green and blue" in shows(tmp_path / "a.tif")[1][0]
    assert shows(tmp_path / "b.tif")[1] == ["b.tif: several pages of about one size, only page 1 is read"]


def test_colours_that_come_first_are_refused(tmp_path):
    planes = np.moveaxis(PICTURE, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", planes[None].repeat(4, 0), photometric="minisblack", metadata={"axes": "ICYX"})
    for name in ("a.tif", "b.tif"):
        refused(tmp_path / name, "(N, H, W, 3)")


# --- Philips --------------------------------------------------------------------------------


def philips(*levels):
    """The XML of levels of (mm a px, columns, rows)."""
    text = '<DataObject ObjectType="DPUfsImport"><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE"><Array>'
    for spacing, columns, rows in levels:
        text += '<DataObject ObjectType="PixelDataRepresentation">'
        text += f'<Attribute Name="DICOM_PIXEL_SPACING">&quot;{spacing}&quot; &quot;{spacing}&quot;</Attribute>'
        text += f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_COLUMNS">{columns}</Attribute>'
        text += f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_ROWS">{rows}</Attribute></DataObject>'
    return text + "</Array></Attribute></DataObject>"


def padded(pixels, fill, tile=64):
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=fill)


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("says_its_size", [True, False])
def test_philips_padding_is_no_tissue(tmp_path, shows, fill, says_its_size):
    sizes = [(200, 160), (100, 80), (50, 40)] if says_its_size else [(256, 192), (128, 128), (64, 64)]
    levels = [PICTURE, HALF, HALF[::2, ::2]]
    xml = philips(*((0.0005 * 2**number, *size) for number, size in enumerate(sizes)))
    with tifffile.TiffWriter(tmp_path / "a.tiff") as file:
        file.write(GLASS, description="Macro", **RGB)
        for number, level in enumerate(levels):
            note = {"description": xml if number == 0 else None, "metadata": None}
            jpeg = {"compression": "jpeg", "compressionargs": {"level": 98}}
            file.write(padded(level, fill), photometric="rgb", tile=(64, 64), **jpeg, **note)
    move_first(tmp_path / "a.tiff", 1)
    wanted = PICTURE if says_its_size else padded(PICTURE, 255)
    true = [(200, 160), (100, 80), (50, 40)] if says_its_size else [(256, 192), (128, 96), (64, 48)]
    slide, logged = shows(tmp_path / "a.tiff", wanted, off=3, levels=true)
    assert (slide.um_per_px, logged) == ((0.5, 0.5), [])
    beyond = np.abs(slide._image.levels[-1].read(0, 0, *true[-1])[44:].astype(int) - 255)
    assert beyond.size == 0 or np.median(beyond) == 0


def move_first(path, number):
    """Let the chain of pages begin at one and end before it."""
    data = bytearray(path.read_bytes())
    places, at = [4], struct.unpack("<I", data[4:8])[0]
    pages = []
    while at:
        pages.append(at)
        places.append(at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0])
        (at,) = struct.unpack("<I", data[places[-1] : places[-1] + 4])
    order = [*range(number, len(pages)), *range(number)]
    data[4:8] = struct.pack("<I", pages[order[0]])
    for this, following in zip(order, [*order[1:], None], strict=True):
        place = places[this + 1]
        data[place : place + 4] = struct.pack("<I", 0 if following is None else pages[following])
    path.write_bytes(data)


def test_tiles_that_philips_leaves_out_are_white(tmp_path, shows):
    tiles = [imagecodecs.zlib_encode(padded(PICTURE, 0)[:64, :64])] + [b""] * 11
    note = {"description": philips((0.00025, 256, 192)), "compression": "zlib", "tile": (64, 64)}
    tifffile.imwrite(tmp_path / "a.tiff", iter(tiles), shape=(192, 256, 3), dtype=np.uint8, **RGB, **note)
    wanted = np.full((192, 256, 3), 255, np.uint8)
    wanted[:64, :64] = PICTURE[:64, :64]
    shows(tmp_path / "a.tiff", wanted)


# --- damage ---------------------------------------------------------------------------------


def test_a_damaged_chain_or_level_costs_what_it_holds_and_no_more(tmp_path, shows):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, level in enumerate((PICTURE, HALF, HALF[::2, ::2])):
            file.write(np.ascontiguousarray(level), subfiletype=number > 0, **TILES)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        offsets = tif.pages[2].tags["TileOffsets"]
        after = tif.pages[1].offset + 2 + 12 * len(tif.pages[1].tags)
    chain = data[:after] + struct.pack("<I", 10 * len(data)) + data[after + 4 :]
    loop = data[:after] + data[4:8] + data[after + 4 :]
    level = data[: offsets.valueoffset] + struct.pack("<I", 10 * len(data)) + data[offsets.valueoffset + 4 :]
    for changed, said in ((chain, ["after page 2"]), (loop, []), (level, ["level of 50 x 40 px left out"])):
        (tmp_path / "b.tif").write_bytes(changed)
        _, logged = shows(tmp_path / "b.tif", levels=[(200, 160), (100, 80)])
        assert [words in line for words, line in zip(said, logged, strict=True)] == [True] * len(said)


# --- transparency ---------------------------------------------------------------------------


def test_colours_on_white_by_hand():
    """100 at 50 % of 255 is 50, and half of white is 127; multiplied already, 50 stays; nothing is above white."""
    rgb = np.array([[[100, 0, 255]] * 3], np.uint8)
    assert over_white(rgb, np.array([[128, 0, 255]], np.uint8)).tolist() == [
        [[177, 127, 255], [255, 255, 255], [100, 0, 255]]
    ]
    assert over_white(rgb, np.array([[128, 0, 255]], np.uint8), associated=True).tolist() == [
        [[227, 127, 255], [255, 255, 255], [100, 0, 255]]
    ]


ALPHA = np.tile(np.arange(200, dtype=np.uint8), (160, 1))
ON_WHITE = over_white(PICTURE, ALPHA)


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg2000", "webp"])
@pytest.mark.parametrize("planar", [False, True])
def test_alpha_of_a_tiff(tmp_path, shows, compression, planar):
    multiplied = (PICTURE.astype(int) * ALPHA[..., None] // 255).astype(np.uint8)
    kinds = {"unassalpha": (PICTURE, ON_WHITE), "assocalpha": (multiplied, ON_WHITE), "unspecified": (PICTURE, PICTURE)}
    for kind, (stored, wanted) in kinds.items():
        pixels = np.dstack([stored, ALPHA])
        if planar:
            if compression == "webp":
                continue
            pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
        arguments = {"compressionargs": {"level": 101} if compression == "webp" else None}
        layout = {"planarconfig": "separate" if planar else "contig", "tile": (64, 64), **arguments}
        tifffile.imwrite(tmp_path / "a.tif", pixels, extrasamples=[kind], compression=compression, **RGB, **layout)
        (line,) = shows(tmp_path / "a.tif", wanted, off=1)[1]
        assert ("shown on white" in line) == (kind != "unspecified")
        assert ("without its fourth channel" in line) == (kind == "unspecified")


def test_alpha_of_16_bits_of_grey_and_of_pictures(tmp_path, shows):
    deep, grey = np.dstack([PICTURE, ALPHA]).astype(np.uint16) * 257, np.dstack([PICTURE[..., 0], ALPHA])
    grey_on_white = over_white(np.repeat(grey[..., :1], 3, axis=2), ALPHA)
    tifffile.imwrite(tmp_path / "a.tif", deep, extrasamples=["unassalpha"], **RGB)
    tifffile.imwrite(tmp_path / "b.tif", grey, photometric="minisblack", extrasamples=["unassalpha"], metadata=None)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(grey.astype(np.uint16) * 257))
    Image.fromarray(grey, "LA").save(tmp_path / "c.png")
    for name in ("a.tif", "b.tif", "a.png", "b.png", "c.png"):
        (line,) = shows(tmp_path / name, ON_WHITE if name.startswith("a") else grey_on_white)[1]
        assert ("grey" in line) == (not name.startswith("a"))
        assert "with alpha, shown on white" in line
    palette = Image.fromarray(PICTURE).quantize(8)
    palette.save(tmp_path / "d.png", transparency=bytes([255, 128, 0]))
    colours = palette.convert("RGB")
    alpha = np.array([255, 128, 0, *[255] * 253], np.uint8)[np.asarray(palette)]
    shows(tmp_path / "d.png", over_white(np.asarray(colours), alpha))


# --- depth ----------------------------------------------------------------------------------

TWELVE = np.round(PICTURE * (4095 / 255)).astype(np.uint16)


def test_twelve_bits_in_sixteen(tmp_path, shows):
    said = {
        "MaxSampleValue": {"extratags": [(MAX_SAMPLE_VALUE, 3, 3, (4095,) * 3, True)], **RGB},
        "SignificantBits": {"photometric": "rgb", "metadata": {"axes": "YXS", "SignificantBits": 12}},
        "no value is above 4095": RGB,
    }
    for place, options in said.items():
        for layout in ({}, {"tile": (64, 64), "compression": "zlib"}, {"byteorder": ">", "compression": "lzw"}):
            tifffile.imwrite(tmp_path / "a.ome.tif", TWELVE, ome="Sig" in place, **options, **layout)
            (line,) = shows(tmp_path / "a.ome.tif")[1]
            assert line == f"a.ome.tif: 12-bit in 16 ({place}) RGB, read as 8-bit RGB"


def test_what_says_twelve_bits_is_believed_of_a_dark_image_too(tmp_path, shows):
    dark = {"a.tif": (TWELVE // 8, PICTURE / 8), "b.tif": (TWELVE // 8, PICTURE / 2)}  # 9 bits; without a word, 10
    for name, (pixels, wanted) in dark.items():
        said = [(MAX_SAMPLE_VALUE, 3, 1, 4095, True)] if name == "a.tif" else []
        tifffile.imwrite(tmp_path / name, pixels, extratags=said, **RGB)
        shows(tmp_path / name, wanted, off=1)
    tifffile.imwrite(tmp_path / "c.tif", TWELVE * 15, extratags=[(MAX_SAMPLE_VALUE, 3, 1, 60_000, True)], **RGB)
    assert "16-bit RGB" in shows(tmp_path / "c.tif", PICTURE * (15 / 16), off=1)[1][0]  # the highest, not the most


@pytest.mark.parametrize("planar", [False, True])
def test_opacity_is_no_colour_of_16_bits(tmp_path, shows, planar):
    pixels = np.dstack([TWELVE, np.full((160, 200), 65_535, np.uint16)])
    layout = {"planarconfig": "separate" if planar else "contig", "extrasamples": ["unassalpha"]}
    pixels = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if planar else pixels
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, **RGB, **layout)
        assert "12-bit in 16" in shows(tmp_path / "a.tif")[1][0]


def test_other_depths_in_sixteen(tmp_path, shows):
    for bits in (8, 10, 14):
        deep = np.round(PICTURE * ((2**bits - 1) / 255)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", deep, **RGB)
        assert f"{bits}-bit in 16" in shows(tmp_path / "a.tif")[1][0]


def test_depth_is_seen_in_the_coarsest_level_that_is_whole(tmp_path, shows, monkeypatch):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, level in enumerate((TWELVE, TWELVE[::2, ::2], TWELVE[::4, ::4])):
            file.write(np.ascontiguousarray(level), subfiletype=number > 0, **TILES)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        start = tif.pages[2].dataoffsets[0]
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[:start] + b"\xff" * 60 + data[start + 60 :])
    assert "12-bit in 16" in shows(tmp_path / "a.tif")[1][0]


def test_twelve_bits_of_pictures_and_metaimages(tmp_path, shows):
    png = imagecodecs.png_encode(TWELVE)
    (tmp_path / "a.png").write_bytes(png)
    chunk = struct.pack(">I", 3) + b"sBIT" + bytes([12] * 3)
    (tmp_path / "b.png").write_bytes(png[:33] + chunk + struct.pack(">I", imagecodecs.zlib_crc32(chunk[4:])) + png[33:])
    full = imagecodecs.png_encode(PICTURE.astype(np.uint16) * 257)
    (tmp_path / "c.png").write_bytes(
        full[:33] + chunk + struct.pack(">I", imagecodecs.zlib_crc32(chunk[4:])) + full[33:]
    )
    header = "ObjectType = Image\nNDims = 2\nDimSize = 200 160\nElementType = MET_USHORT\nElementNumberOfChannels = 3\n"
    data = imagecodecs.zlib_encode(TWELVE.tobytes())
    (tmp_path / "a.mha").write_bytes(header.encode() + b"ElementDataFile = LOCAL\n" + TWELVE.tobytes())
    (tmp_path / "b.mha").write_bytes(header.encode() + b"CompressedData = True\nElementDataFile = LOCAL\n" + data)
    for name in ("a.png", "b.png", "a.mha", "b.mha"):
        (line,) = shows(tmp_path / name)[1]
        assert f"12-bit in 16 ({'sBIT' if name == 'b.png' else 'no value is above 4095'})" in line
    assert "16-bit RGB" in shows(tmp_path / "c.png")[1][0]  # scaled up, as the chunk's standard wants it


# --- colours and compressions ---------------------------------------------------------------


def write_tiles(path, tiles, compression, photometric, channels=3):
    """A page of encoded tiles of 64 px, 200 x 160 px in all."""
    tags = ImageFileDirectory_v2()
    data = b"".join(tiles)
    offsets = [8 + sum(map(len, tiles[:number])) for number in range(len(tiles))]
    values = {256: 200, 257: 160, 258: (8,) * channels, 259: compression, 262: photometric, 277: channels}
    values |= {322: 64, 323: 64, 324: tuple(offsets), 325: tuple(map(len, tiles))}
    for code, value in values.items():
        tags[code] = value
    start = 8 + len(data) + len(data) % 2
    path.write_bytes(struct.pack("<2sHI", b"II", 42, start) + data.ljust(start - 8, b"\0") + tags.tobytes(start))


def cut(pixels):
    whole = padded(pixels, 255)
    return [np.ascontiguousarray(whole[y : y + 64, x : x + 64]) for y in (0, 64, 128) for x in (0, 64, 128, 192)]


YCBCR = np.asarray(Image.fromarray(PICTURE).convert("YCbCr"))
J2K = {
    "Aperio": (YCBCR, 33003, 2, {"codecformat": "j2k"}),
    "Aperio, labelled YCbCr": (YCBCR, 33003, 6, {"codecformat": "j2k"}),
    "Aperio RGB": (PICTURE, 33005, 2, {"codecformat": "j2k"}),
    "labelled YCbCr": (YCBCR, 34712, 6, {"codecformat": "j2k"}),
    "labelled YCbCr, in JP2 that says so": (YCBCR, 34712, 6, {"codecformat": "jp2", "colorspace": "SYCC"}),
    "labelled YCbCr, in JP2 that does not": (YCBCR, 34712, 6, {"codecformat": "jp2", "colorspace": "SRGB"}),
    "its own transform, labelled YCbCr": (PICTURE, 34712, 6, {"codecformat": "j2k", "mct": True}),
    "its own transform, Aperio": (PICTURE, 33003, 2, {"codecformat": "j2k", "mct": True}),
}


@pytest.mark.parametrize("kind", J2K)
def test_colours_of_jpeg_2000(tmp_path, shows, kind):
    pixels, compression, photometric, form = J2K[kind]
    tiles = [imagecodecs.jpeg2k_encode(tile, level=0, **{"mct": False, **form}) for tile in cut(pixels)]
    write_tiles(tmp_path / "a.tif", tiles, compression, photometric)
    assert shows(tmp_path / "a.tif", off=2)[1] == []


def test_colours_of_coarser_chroma_in_jpeg_2000(tmp_path, shows):
    """FFmpeg writes 4:2:0, which the decoder itself makes RGB; of its 219 levels of light, by a tenth too dark."""
    cv2 = pytest.importorskip("cv2")
    tiles = []
    for tile in cut(PICTURE):
        path = tmp_path / "a.avi"
        video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"MJ2C"), 1, (64, 64))
        if not video.isOpened():
            pytest.skip("OpenCV has no encoder for JPEG 2000")
        video.write(tile[..., ::-1].copy())
        video.release()
        data = path.read_bytes()
        start = data.index(b"\xff\x4f\xff\x51")
        tiles.append(data[start : data.index(b"\xff\xd9", start) + 2])
    write_tiles(tmp_path / "a.tif", tiles, 33003, 2)
    shows(tmp_path / "a.tif", off=20)


def test_a_palette_of_8_bits_is_read_as_libtiff_reads_it(tmp_path, shows):
    image = Image.fromarray(PICTURE).quantize(256)
    colours = np.array(image.getpalette(), np.uint16).reshape(256, 3).T
    for factor in (1, 257):
        tifffile.imwrite(tmp_path / "a.tif", np.asarray(image), photometric="palette", colormap=colours * factor)
        shows(tmp_path / "a.tif", np.asarray(image.convert("RGB")))


def test_ycbcr_without_jpeg(tmp_path, shows):
    """Whole or in planes; chroma that is coarser is refused by its name."""
    for layout in ({}, {"compression": "zlib", "tile": (64, 64)}):
        tifffile.imwrite(tmp_path / "a.tif", YCBCR, photometric="ycbcr", subsampling=(1, 1), metadata=None, **layout)
        assert shows(tmp_path / "a.tif", off=2)[1] == []
    write_tiles(tmp_path / "b.tif", [imagecodecs.zlib_encode(tile) for tile in cut(YCBCR)], 8, 6)
    refused(tmp_path / "b.tif", "YCBCR", "ADOBE_DEFLATE (8)")


@pytest.mark.parametrize(
    ("compression", "photometric", "words"),
    [(34676, 2, ["SGILOG (34676)", "RGB"]), (9999, 2, ["9999"]), (8, 32845, ["LOGLUV"]), (8, 5, ["CMYK"])],
)
def test_what_is_not_read_is_named(tmp_path, compression, photometric, words):
    channels = 4 if photometric == 5 else 3
    tiles = [imagecodecs.zlib_encode(np.zeros((64, 64, channels), np.uint8))] * 12
    write_tiles(tmp_path / "a.tif", tiles, compression, photometric, channels)
    refused(tmp_path / "a.tif", *words, "is not read")


def test_an_orientation_tag_is_said(tmp_path, shows):
    _, logged = shows(write_tiff(tmp_path / "a.tif", PICTURE, {274: (SHORT, [6])}))
    assert logged == ["a.tif: turned or mirrored by its orientation tag (6), read as it is stored"]
