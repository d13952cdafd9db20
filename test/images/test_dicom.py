import random
import shutil
import struct
from functools import partial

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

from midog.errors import UserError
from midog.images.dicom import is_dicom, series_of

PLAIN = {ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian}
JPEG_XL_LOSSLESS = "1.2.840.10008.1.2.4.110"
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
pytestmark = pytest.mark.usefixtures("no_command_line")  # tests here look at stderr

TILE, COLUMNS, ROWS = 64, 4, 3
TILES = range(COLUMNS * ROWS)
SHUFFLED = random.Random(0).sample(TILES, len(TILES))


@pytest.fixture(scope="module")
def picture():
    """Smooth colours, uint8 (150, 200, 3)."""
    y, x = np.mgrid[:150, :200]
    waves = [np.sin(x / 19 + y / 31), np.cos(x / 23 - y / 17), np.sin(x / 40 + y / 55)]
    return (128 + 90 * np.stack(waves, axis=-1)).round().astype(np.uint8)


def whole(slide):
    return slide.read(0, 0, *slide.size)


def cut(pixels):
    """Its tiles, row by row, those at the edges padded with black."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.zeros((rows * TILE, columns * TILE, *pixels.shape[2:]), pixels.dtype)
    padded[:height, :width] = pixels
    return [np.ascontiguousarray(part) for row in np.split(padded, rows) for part in np.split(row, columns, axis=1)]


def dataset(**elements):
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def place(tile, columns=COLUMNS, path=None, **elements):
    """A per-frame group."""
    row, column = divmod(tile, columns)
    position = {"ColumnPositionInTotalImagePixelMatrix": 1 + column * TILE,
                "RowPositionInTotalImagePixelMatrix": 1 + row * TILE, **elements}  # fmt: skip
    group = dataset(PlanePositionSlideSequence=[dataset(**position)])
    if path:
        group.OpticalPathIdentificationSequence = [dataset(OpticalPathIdentifier=path)]
    return group


def packed(pieces, table=b""):
    """An offset table and pieces of pixels; pydicom packs no empty ones."""
    items = (struct.pack("<HHI", 0xFFFE, 0xE000, len(each)) + each for each in (table, *map(even, pieces)))
    return b"".join(items)


def even(data):
    return data + b"\0" * (len(data) % 2)


def write(path, frames, groups=None, syntax=ExplicitVRLittleEndian, size=(200, 150), spacing=(0.00025, 0.00025),
          pixel_data=None, **elements):  # fmt: skip
    """A file of frames that are encoded already, in the order of the tiles or where their groups say."""
    file = dataset(
        SOPClassUID=VLWholeSlideMicroscopyImageStorage, SOPInstanceUID=generate_uid(), SeriesInstanceUID="1.2.3",
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], Modality="SM", Rows=TILE, Columns=TILE,
        DimensionOrganizationType="TILED_SPARSE" if groups else "TILED_FULL", NumberOfFrames=len(frames),
        TotalPixelMatrixColumns=size[0], TotalPixelMatrixRows=size[1], SamplesPerPixel=3, PlanarConfiguration=0,
        PhotometricInterpretation="RGB", BitsAllocated=8, BitsStored=8, PixelRepresentation=0,
    )  # fmt: skip
    measures = [dataset(PixelSpacing=list(spacing))] if spacing else []
    file.SharedFunctionalGroupsSequence = [dataset(PixelMeasuresSequence=measures)]
    if groups:
        file.PerFrameFunctionalGroupsSequence = groups
        file["PerFrameFunctionalGroupsSequence"].is_undefined_length = groups[0].is_undefined_length_sequence_item
    for name, value in elements.items():
        setattr(file, name, value)
    file.HighBit = file.BitsStored - 1
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = HTJ2KLossless if syntax == JPEG_XL_LOSSLESS else syntax  # pydicom writes no XL
    if syntax in PLAIN:
        file.PixelData = b"".join(frames)
        file["PixelData"].VR = "OW"
    else:
        file.PixelData = packed(frames) if pixel_data is None else pixel_data
        file["PixelData"].VR = "OB"
        file["PixelData"].is_undefined_length = True
    file.save_as(path, enforce_file_format=True)
    if syntax == JPEG_XL_LOSSLESS:
        path.write_bytes(path.read_bytes().replace(HTJ2KLossless.encode(), JPEG_XL_LOSSLESS.encode(), 1))
    return path


def write_whole(path, pixels, encode=np.ndarray.tobytes, order=None, **options):
    """A file of a picture: every tile, or those of an order with their places."""
    tiles = cut(pixels)
    columns = -(-pixels.shape[1] // TILE)
    chosen = range(len(tiles)) if order is None else order
    groups = None if order is None else [place(tile, columns) for tile in order]
    return write(path, [encode(tiles[tile]) for tile in chosen], groups, size=pixels.shape[1::-1], **options)


# --- pixels -------------------------------------------------------------------


def ycbcr(pixels):
    return np.asarray(Image.fromarray(pixels).convert("YCbCr"))


def planar(pixels):
    return np.moveaxis(pixels, -1, 0).tobytes()


def rle(pixels):
    return RLELosslessEncoder.encode(
        pixels, rows=TILE, columns=TILE, samples_per_pixel=3, number_of_frames=1, bits_allocated=8, bits_stored=8,
        pixel_representation=0, photometric_interpretation="RGB", planar_configuration=0,
    )  # fmt: skip


def jpeg(pixels, stored="ycbcr", marked=True, subsampling="444"):
    data = imagecodecs.jpeg8_encode(pixels, 95, colorspace="rgb", outcolorspace=stored, subsampling=subsampling)
    if marked:
        return data
    assert data[3] in (0xE0, 0xEE)
    return data[:2] + data[4 + int.from_bytes(data[4:6]) :]


def lossless_jpeg(pixels):
    data = imagecodecs.jpeg8_encode(pixels, lossless=True, colorspace="rgb", outcolorspace="rgb")
    return data[:2] + JFIF + data[2:]


def jpeg_2000(pixels, transformed):
    return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, mct=transformed)


def of_ycbcr(encode, **options):
    return lambda pixels: encode(ycbcr(pixels), **options)


KINDS = {  # transfer syntax, PhotometricInterpretation, encoder, mean difference
    "explicit": (ExplicitVRLittleEndian, "RGB", np.ndarray.tobytes, 0),
    "implicit": (ImplicitVRLittleEndian, "RGB", np.ndarray.tobytes, 0),
    "planar": (ExplicitVRLittleEndian, "RGB", planar, 0),
    "ycbcr": (ExplicitVRLittleEndian, "YBR_FULL", of_ycbcr(np.ndarray.tobytes), 2),
    "rle": (RLELossless, "RGB", rle, 0),
    "rle_ycbcr": (RLELossless, "YBR_FULL", of_ycbcr(rle), 2),
    "jpeg_ls": (JPEGLSLossless, "RGB", imagecodecs.jpegls_encode, 0),
    "jpeg_xl": (JPEG_XL_LOSSLESS, "RGB", partial(imagecodecs.jpegxl_encode, lossless=True), 0),
    "lossless_jpeg": (JPEGLosslessSV1, "RGB", lossless_jpeg, 0),
    "lossless_jpeg_ycbcr": (JPEGLosslessSV1, "YBR_FULL", of_ycbcr(lossless_jpeg), 2),
    "jpeg": (JPEGBaseline8Bit, "YBR_FULL_422", jpeg, 3),
    "jpeg_420": (JPEGBaseline8Bit, "YBR_FULL_422", partial(jpeg, subsampling="420"), 3),
    "jpeg_labelled_rgb": (JPEGBaseline8Bit, "RGB", jpeg, 3),
    "jpeg_labelled_ycbcr": (JPEGBaseline8Bit, "YBR_FULL_422", partial(jpeg, stored="rgb"), 3),
    "unmarked_rgb": (JPEGBaseline8Bit, "RGB", partial(jpeg, stored="rgb", marked=False), 3),
    "unmarked_ycbcr": (JPEGBaseline8Bit, "YBR_FULL_422", partial(jpeg, marked=False), 3),
    "unmarked_420_labelled_rgb": (JPEGBaseline8Bit, "RGB", partial(jpeg, marked=False, subsampling="420"), 3),
    "jpeg_2000": (JPEG2000Lossless, "YBR_RCT", partial(jpeg_2000, transformed=True), 0),
    "jpeg_2000_labelled_rgb": (JPEG2000Lossless, "RGB", partial(jpeg_2000, transformed=True), 0),
    "jpeg_2000_rgb": (JPEG2000Lossless, "RGB", partial(jpeg_2000, transformed=False), 0),
    "jpeg_2000_labelled_ycbcr": (JPEG2000Lossless, "YBR_FULL", partial(jpeg_2000, transformed=True), 0),
    "jpeg_2000_ycbcr": (JPEG2000Lossless, "YBR_FULL", of_ycbcr(jpeg_2000, transformed=False), 2),
    "jpeg_2000_ycbcr_labelled_ict": (JPEG2000Lossless, "YBR_ICT", of_ycbcr(jpeg_2000, transformed=False), 2),
    "htj2k": (HTJ2KLossless, "RGB", partial(imagecodecs.htj2k_encode, reversible=True), 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [None, SHUFFLED])
def test_a_picture_reads_back(tmp_path, picture, kind, order, opened):
    syntax, colours, encode, difference = KINDS[kind]
    path = write_whole(tmp_path / "a.dcm", picture, encode, order, syntax=syntax, PhotometricInterpretation=colours,
                       PlanarConfiguration=int(kind == "planar"))  # fmt: skip
    slide, warnings = opened(path)
    with slide:
        assert slide.size == (200, 150)
        assert slide.um_per_px == pytest.approx((0.25, 0.25))
        assert np.abs(whole(slide).astype(int) - picture).mean() <= difference
        for x, y, width, height in ((1, 3, 5, 7), (63, 63, 66, 66), (199, 149, 1, 1)):
            np.testing.assert_array_equal(slide.read(x, y, width, height), whole(slide)[y : y + height, x : x + width])
    assert warnings == []


def test_deep_and_grey_pixels_become_rgb_with_one_warning(tmp_path, picture, opened):
    grey = picture[..., 0]
    twelve = picture.astype(np.uint16) * 16 + 7
    jpeg_8, jpeg_12 = (partial(imagecodecs.jpeg8_encode, level=98, bitspersample=bits) for bits in (8, 12))
    deep = {"BitsAllocated": 16, "BitsStored": 12}
    mono = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}
    inverted = mono | {"PhotometricInterpretation": "MONOCHROME1"}
    for name, pixels, encode, options, wanted, tolerance in (
        ("12-bit in 16", twelve, np.ndarray.tobytes, deep, picture, 1),
        ("12-bit in 16", twelve, partial(jpeg_2000, transformed=True), deep | {"syntax": JPEG2000Lossless}, picture, 1),
        ("12-bit in 16", twelve, jpeg_12, deep | {"syntax": JPEGExtended12Bit}, picture, 3),
        ("12-bit in 16", twelve, np.ndarray.tobytes, deep | {"BitsStored": 16}, picture, 1),
        ("16-bit", picture.astype(np.uint16) * 257, np.ndarray.tobytes, deep | {"BitsStored": 16}, picture, 0),
        ("grey", grey, np.ndarray.tobytes, mono, grey[..., None], 0),
        ("grey", 255 - grey, np.ndarray.tobytes, inverted, grey[..., None], 0),
        ("grey", grey, jpeg_8, mono | {"syntax": JPEGBaseline8Bit}, grey[..., None], 3),
    ):  # fmt: skip
        slide, warnings = opened(write_whole(tmp_path / "a.dcm", pixels, encode, **options))
        with slide:
            assert np.abs(whole(slide).astype(int) - wanted).mean() <= tolerance
        assert len(warnings) == 1
        assert name in warnings[0]


# --- places -------------------------------------------------------------------


def test_tiles_that_are_missing_are_white(tmp_path, picture, opened):
    tiles = [tile.tobytes() for tile in cut(picture)]
    wanted = picture.copy()
    wanted[:64, 64:128] = 255
    sparse = [tile for tile in SHUFFLED if tile != 1]
    write(tmp_path / "a.dcm", [tiles[tile] for tile in sparse], [place(tile) for tile in sparse])
    emptied = [b"" if tile == 1 else jpeg_2000(pixels, True) for tile, pixels in enumerate(cut(picture))]
    write(tmp_path / "b.dcm", emptied, syntax=JPEG2000Lossless, SeriesInstanceUID="1.2.4")
    for name in ("a.dcm", "b.dcm"):
        slide, warnings = opened(tmp_path / name)
        np.testing.assert_array_equal(whole(slide), wanted)
        assert warnings == []
        slide.close()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_places_are_found_in_any_encoding_of_sequences(tmp_path, picture, syntax, undefined, opened):
    tiles = [tile.tobytes() for tile in cut(picture)]
    groups = [place(tile, ZOffsetInSlideCoordinateSystem=0.5, path="1") for tile in SHUFFLED]
    private = dataset(PixelSpacing=[1, 1], PixelData=b"\0\0", BitsAllocated=8)
    for group in groups:
        group.FrameContentSequence = [dataset(DimensionIndexValues=[1, 2])]
        for sequence in group:
            sequence.is_undefined_length = undefined
            sequence.value[0].is_undefined_length_sequence_item = undefined
        group.is_undefined_length_sequence_item = undefined
    write(tmp_path / "a.dcm", [tiles[tile] for tile in SHUFFLED], groups, syntax, WaveformSequence=[private])
    with opened(tmp_path / "a.dcm")[0] as slide:
        np.testing.assert_array_equal(whole(slide), picture)


def test_places_that_count_from_0_or_stand_in_a_full_grid(tmp_path, picture, opened):
    tiles = [tile.tobytes() for tile in cut(picture)]
    from_0 = [place(tile) for tile in SHUFFLED]
    for group in from_0:
        position = group.PlanePositionSlideSequence[0]
        position.ColumnPositionInTotalImagePixelMatrix -= 1
        position.RowPositionInTotalImagePixelMatrix -= 1
    shuffled, full = [tiles[tile] for tile in SHUFFLED], "TILED_FULL"
    write(tmp_path / "from_0.dcm", shuffled, from_0, SeriesInstanceUID="1")
    write(
        tmp_path / "3d.dcm", shuffled, list(map(place, SHUFFLED)), SeriesInstanceUID="2", DimensionOrganizationType="3D"
    )
    write(
        tmp_path / "full.dcm",
        shuffled,
        list(map(place, SHUFFLED)),
        SeriesInstanceUID="3",
        DimensionOrganizationType=full,
    )
    write(tmp_path / "nonsense.dcm", tiles, [place(0)] * 12, SeriesInstanceUID="4", DimensionOrganizationType=full)
    for path in tmp_path.iterdir():
        slide, warnings = opened(path)
        np.testing.assert_array_equal(whole(slide), picture, err_msg=path.name)
        assert warnings == []
        slide.close()
    write(tmp_path / "none.dcm", tiles, SeriesInstanceUID="5", DimensionOrganizationType="TILED_SPARSE")
    slide, warnings = opened(tmp_path / "none.dcm")
    np.testing.assert_array_equal(whole(slide), picture)
    assert "row by row" in warnings[0]


def test_of_focal_planes_the_middle_one_and_of_optical_paths_the_first_is_read(tmp_path, picture, opened):
    good = [tile.tobytes() for tile in cut(picture)]
    bad = [(~tile).tobytes() for tile in cut(picture)]
    two_paths = {"OpticalPathSequence": [dataset(OpticalPathIdentifier=name) for name in ("bright", "dark")]}
    write(tmp_path / "full.dcm", [*bad, *good, *bad] + [*bad] * 3, SeriesInstanceUID="1", TotalPixelMatrixFocalPlanes=3,
          NumberOfOpticalPaths=2, **two_paths)  # fmt: skip
    groups, frames = [], []
    for path in ("bright", "dark"):
        for depth in (2, -2, 0):
            for tile in SHUFFLED:
                groups.append(place(tile, path=path, ZOffsetInSlideCoordinateSystem=depth))
                frames.append((good if (path, depth) == ("bright", 0) else bad)[tile])
    write(tmp_path / "sparse.dcm", frames, groups, SeriesInstanceUID="2", **two_paths)
    for number, depth in enumerate((-1, 0, 1)):
        origin = [dataset(ZOffsetInSlideCoordinateSystem=depth)]
        for path in two_paths["OpticalPathSequence"]:
            frames = good if (depth, path.OpticalPathIdentifier) == (0, "bright") else bad
            write(tmp_path / f"files_{path.OpticalPathIdentifier}_{number}.dcm", frames, SeriesInstanceUID="3",
                  TotalPixelMatrixOriginSequence=origin, OpticalPathSequence=[path])  # fmt: skip
    for name in ("full.dcm", "sparse.dcm", "files_bright_0.dcm"):
        slide, (paths, planes) = opened(tmp_path / name)
        np.testing.assert_array_equal(whole(slide), picture)
        assert "2 optical paths, the first (bright)" in paths
        assert "3 focal planes, the middle one" in planes
        slide.close()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_level_in_several_files(tmp_path, picture, sparse, opened):
    tiles = [tile.tobytes() for tile in cut(picture)]
    order = SHUFFLED if sparse else TILES
    for number, offset in enumerate((0, 5, 10), 1):
        part = order[offset : offset + 5]
        write(
            tmp_path / f"{9 - number}.dcm", [tiles[tile] for tile in part], list(map(place, part)) if sparse else None,
            SOPInstanceUIDOfConcatenationSource="1.2.3.4", InConcatenationNumber=number, InConcatenationTotalNumber=3,
            ConcatenationFrameOffsetNumber=offset,
        )  # fmt: skip
    shutil.copy(tmp_path / "8.dcm", tmp_path / "copy of 8.dcm")
    (only,) = series_of(tmp_path)
    for path in (tmp_path, only, tmp_path / "7.dcm"):
        slide, warnings = opened(path)
        np.testing.assert_array_equal(whole(slide), picture)
        assert warnings == []
        slide.close()
    for name in ("6.dcm", "7.dcm"):
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match="copy all files") as error:
            opened(tmp_path)
        assert str(tmp_path) in str(error.value)


# --- folders and pyramids -----------------------------------------------------


def test_two_series_in_a_folder_are_two_slides(tmp_path, picture, opened):
    half = np.asarray(Image.fromarray(picture).resize((100, 75), Image.Resampling.BOX))
    write_whole(tmp_path / "b1", picture, spacing=(0.0005, 0.0005), SeriesInstanceUID="1")
    write_whole(tmp_path / "b2", half, spacing=(0.001, 0.001), SeriesInstanceUID="1")
    write_whole(tmp_path / "a.dcm", ~half, SeriesInstanceUID="2")
    assert series_of(tmp_path) == [tmp_path / "a.dcm", tmp_path / "b1"]
    with pytest.raises(UserError, match=r"2 slides.*a\.dcm, b1"):
        opened(tmp_path)
    with opened(tmp_path / "a.dcm")[0] as slide:
        np.testing.assert_array_equal(whole(slide), ~half)
        np.testing.assert_array_equal(slide.overview(100), ~half)
    for name in ("b1", "b2"):
        slide, warnings = opened(tmp_path / name)
        assert slide.um_per_px == pytest.approx((0.5, 0.5))
        np.testing.assert_array_equal(whole(slide), picture)
        np.testing.assert_array_equal(slide.overview(100), half)
        assert warnings == []
        slide.close()


def test_what_else_is_in_a_folder_is_no_level(tmp_path, picture, opened):
    small = np.full((75, 100, 3), 90, np.uint8)
    write_whole(tmp_path / "1.2.840.1", picture)
    for kind in ("THUMBNAIL", "LABEL", "OVERVIEW"):
        write_whole(tmp_path / f"{kind}.dcm", small, ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"])
    write_whole(tmp_path / "segmentation.dcm", small, SOPClassUID=SegmentationStorage)
    write_whole(tmp_path / "radiology.dcm", small, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", SeriesInstanceUID="9")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "._a.dcm").write_bytes(b"Mac OS X")
    (tmp_path / "a.svs").write_bytes(b"II*\0")
    (tmp_path / "subfolder.dcm").mkdir()
    assert is_dicom(tmp_path / "1.2.840.1")
    assert not is_dicom(tmp_path / "a.svs")
    assert series_of(tmp_path) == [tmp_path / "1.2.840.1"]
    for path in (tmp_path, tmp_path / "1.2.840.1", tmp_path / "LABEL.dcm"):
        slide, warnings = opened(path)
        np.testing.assert_array_equal(whole(slide), picture)
        assert len(slide._image.levels) == 1
        assert warnings == []
        slide.close()
    with pytest.raises(UserError, match="VOLUME"):
        opened(tmp_path / "radiology.dcm")


def test_a_level_shows_the_same_field(tmp_path, picture, opened):
    half = np.full((75, 100, 3), 100, np.uint8)
    other = np.full((75, 75, 3), 90, np.uint8)
    write_whole(tmp_path / "0.dcm", picture)
    write_whole(tmp_path / "level.dcm", half, spacing=(0.0005, 0.0005))
    write_whole(tmp_path / "zoomed.dcm", half, spacing=(0.00025, 0.00025), SeriesInstanceUID="1.2.3")
    write_whole(tmp_path / "square.dcm", other, spacing=None)
    slide, (warning,) = opened(tmp_path)
    assert [level.size for level in slide._image.levels] == [(200, 150), (100, 75)]
    assert (slide.overview(100) == 100).all()
    assert "square.dcm" in warning
    assert "zoomed.dcm" in warning
    with opened(tmp_path / "zoomed.dcm")[0] as slide:
        assert slide.size == (100, 75)
        assert slide.um_per_px == pytest.approx((0.25, 0.25))


def test_a_broken_file_beside_a_good_one_is_a_warning(tmp_path, picture, opened):
    half = np.asarray(Image.fromarray(picture).resize((100, 75), Image.Resampling.BOX))
    write_whole(tmp_path / "a.dcm", picture)
    good = write_whole(tmp_path / "half.dcm", half, spacing=(0.0005, 0.0005)).read_bytes()
    for name, data, said in (
        ("half.dcm", good[:-500], "the level of 100 x 75 px"),
        ("half.dcm", good[:500], "half.dcm"),
        ("half.dcm", b"no DICOM", "half.dcm"),
    ):
        (tmp_path / name).write_bytes(data)
        slide, (warning,) = opened(tmp_path)
        np.testing.assert_array_equal(whole(slide), picture)
        assert said in warning
        slide.close()
    (tmp_path / "a.dcm").unlink()
    with pytest.raises(UserError, match=r"half\.dcm cannot be read"):
        opened(tmp_path)


# --- spacing ------------------------------------------------------------------


def test_spacing(tmp_path, picture, opened):
    per_frame = [place(tile) for tile in TILES]
    for group in per_frame:
        group.PixelMeasuresSequence = [dataset(PixelSpacing=[0.0005, 0.0004])]
    lens = {"OpticalPathSequence": [dataset(OpticalPathIdentifier="1", ObjectiveLensPower=20)]}
    tiles = [tile.tobytes() for tile in cut(picture)]
    for options, wanted, source in (
        ({"spacing": (0.0005, 0.0004)}, (0.4, 0.5), "PixelSpacing"),
        ({"spacing": None, "groups": per_frame}, (0.4, 0.5), "PixelSpacing"),
        ({"spacing": None, "ImagedVolumeWidth": 0.1, "ImagedVolumeHeight": 0.06}, (0.5, 0.4), "ImagedVolume"),
        ({"spacing": (1, 1), "ImagedVolumeWidth": 0.1, "ImagedVolumeHeight": 0.06}, (0.5, 0.4), "ImagedVolume"),
        ({"spacing": None, **lens}, (0.25, 0.25), "objective 20x"),
        ({"spacing": (0, 0)}, (0.25, 0.25), "no resolution"),
    ):
        slide, warnings = opened(write(tmp_path / "a.dcm", tiles, **options))
        assert slide.um_per_px == pytest.approx(wanted)
        assert source in slide.resolution.where
        assert len(warnings) == (slide.resolution.source == "assumed")
        slide.close()


@pytest.mark.parametrize(("written", "wanted"), [(b"0,00050\\0,0004 ", (0.4, 0.5)), (b"fine\\coarse    ", None)])
def test_a_spacing_that_is_no_number(tmp_path, picture, written, wanted, opened):
    path = write_whole(tmp_path / "a.dcm", picture, spacing=(0.12345, 0.123456))
    data = path.read_bytes()
    assert data.count(b"0.12345\\0.123456") == 1
    path.write_bytes(data.replace(b"0.12345\\0.123456", written.ljust(16)))
    slide, warnings = opened(path)
    assert slide.um_per_px == pytest.approx(wanted or (0.25, 0.25))
    assert len(warnings) == (wanted is None)
    slide, warnings = opened(path, um_per_px=0.3)
    assert (slide.um_per_px, warnings) == ((0.3, 0.3), [])


# --- how frames are packed ----------------------------------------------------


def test_frames_in_pieces_with_and_without_offset_tables(tmp_path, picture, opened):
    frames = [jpeg_2000(tile, True) for tile in cut(picture)]
    extended, offsets, lengths = encapsulate_extended(frames)
    packings = {
        "table": encapsulate(frames),
        "no table": encapsulate(frames, has_bot=False),
        "pieces": encapsulate(frames, fragments_per_frame=3),
        "pieces, no table": encapsulate(frames, fragments_per_frame=3, has_bot=False),
        "empty last piece": packed([*frames, b""]),
        "wrong table": encapsulate(frames).replace(offsets[8:12], b"\xff\xff\xff\x7f", 1),
    }
    path = tmp_path / "a.dcm"
    for name, data in packings.items():
        write(path, frames, syntax=JPEG2000Lossless, pixel_data=data)
        with opened(path)[0] as slide:
            np.testing.assert_array_equal(whole(slide), picture, err_msg=name)
    tables = {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    write(path, frames, syntax=JPEG2000Lossless, pixel_data=extended, **tables)
    with opened(path)[0] as slide:
        np.testing.assert_array_equal(whole(slide), picture)
    one = [jpeg(cut(picture)[0])]
    write(path, one, syntax=JPEGBaseline8Bit, size=(64, 64), pixel_data=encapsulate(one, fragments_per_frame=4))
    with opened(path)[0] as slide:
        assert np.abs(whole(slide).astype(int) - picture[:64, :64]).mean() < 3


# --- what is refused ----------------------------------------------------------

SYNTAX = {"deflated": DeflatedExplicitVRLittleEndian, "big_endian": ExplicitVRBigEndian, "video": MPEG2MPML}
REFUSED = {
    "deflated": "Deflated",
    "big_endian": "Big Endian",
    "video": "MPEG2",
    "palette": "PALETTE COLOR",
    "signed": "signed",
    "off_grid": "grid",
    "too_few": "11 frames",
    "cut": "ends before",
    "no_rows": "Rows",
    "places": "places for",
    "pieces": "pieces for",
    "volume": "VOLUME",
    "text": "not a DICOM",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_read_is_one_line_that_says_so(tmp_path, picture, kind, capfd, opened):
    frames = [tile.tobytes() for tile in cut(picture)]
    options = {"syntax": SYNTAX.get(kind, ExplicitVRLittleEndian)}
    if kind == "off_grid":
        options["groups"] = [place(tile, ColumnPositionInTotalImagePixelMatrix=7 + 3 * tile) for tile in TILES]
    elif kind == "places":
        options["groups"] = [place(tile) for tile in TILES[1:]]
    elif kind == "too_few":
        frames.pop()
    elif kind == "pieces":
        options |= {"syntax": RLELossless, "pixel_data": encapsulate(frames[:-1])}
    options |= {
        "palette": {"PhotometricInterpretation": "PALETTE COLOR", "SamplesPerPixel": 1},
        "signed": {"PixelRepresentation": 1},
        "no_rows": {"Rows": None},
        "volume": {"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]},
    }.get(kind, {})
    path = write(tmp_path / "a.dcm", frames, **options)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "text":
        path.write_text("no image at all\n")
    with pytest.raises(UserError, match=REFUSED[kind]) as error:
        opened(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["jpeg", "jpeg_2000", "rle", "implicit"])
def test_truncated_and_flipped_bytes_never_leak(tmp_path, picture, kind, capfd, opened):
    syntax, colours, encode, _ = KINDS[kind]
    path = write_whole(tmp_path / "a.dcm", picture, encode, SHUFFLED, syntax=syntax, PhotometricInterpretation=colours)
    good = path.read_bytes()
    chance = random.Random(0)
    damaged = [good[: int(len(good) * share)] for share in (0.001, 0.01, 0.03, 0.1, 0.5, 0.95)]
    for _ in range(40):
        data = bytearray(good)
        for _ in range(3):
            data[chance.randrange(min(len(data), chance.choice((1500, 10**9))))] = chance.randrange(256)
        damaged.append(bytes(data))
    for number, data in enumerate(damaged):
        path.write_bytes(data)
        try:
            with opened(path)[0] as slide:
                slide.read(0, 0, min(200, slide.size[0]), min(150, slide.size[1]))
        except UserError:
            continue
        assert number > 5
    assert capfd.readouterr().err == ""
