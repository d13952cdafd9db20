"""Small files that the usual libraries do not write, for tests: TIFF with any tag in it, DICOM slides."""

import struct
from itertools import product

import numpy as np

BYTES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 16: "Q"}
RATIONAL, ASCII, SHORT, LONG = 5, 2, 3, 4


def write_tiff(path, pixels, tags=None, byteorder="<", big=False, tiles=(), tile=64):
    """A page of uint8 or uint16 (H, W, C), whose tags can be overruled and left out (None); returns the path.

    Args:
        tags: {code: (type, values)}; bytes for ASCII, flat pairs for rationals.
        tiles: encoded ones of `tile` px, in which the pixels are instead of one plain strip.
    """
    height, width, channels = pixels.shape
    segments = tiles or [pixels.astype(np.dtype(pixels.dtype).newbyteorder(byteorder)).tobytes()]
    data, counts = b"".join(segments), [len(each) for each in segments]
    header = 16 if big else 8
    offsets = [header + sum(counts[:number]) for number in range(len(counts))]
    entries = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8 * pixels.itemsize] * channels),
        259: (SHORT, [1]),
        262: (SHORT, [2 if channels > 1 else 1]),
        277: (SHORT, [channels]),
    }
    if tiles:
        entries |= {322: (SHORT, [tile]), 323: (SHORT, [tile]), 324: (LONG, offsets), 325: (LONG, counts)}
    else:
        entries |= {273: (LONG, offsets), 278: (LONG, [height]), 279: (LONG, counts)}
    entries = {code: entry for code, entry in (entries | (tags or {})).items() if entry is not None}
    number, room = ("Q", 8) if big else ("I", 4)
    data += b"\0" * (len(data) % 2)
    start = header + len(data)
    after = start + (8 if big else 2) + len(entries) * (20 if big else 12) + room
    table, beyond = b"", b""
    for code, (kind, values) in sorted(entries.items()):
        if isinstance(values, bytes):
            content, count = values, len(values)
        else:
            layout = BYTES[kind] * (len(values) // len(BYTES[kind]))
            content, count = struct.pack(byteorder + layout, *values), len(values) // len(BYTES[kind])
        table += struct.pack(byteorder + "HH" + number, code, kind, count)
        if len(content) <= room:
            table += content.ljust(room, b"\0")
        else:
            table += struct.pack(byteorder + number, after + len(beyond))
            beyond += content + b"\0" * (len(content) % 2)
    mark = b"II" if byteorder == "<" else b"MM"
    head = mark + struct.pack(byteorder + ("HHHQ" if big else "HI"), *((43, 8, 0, start) if big else (42, start)))
    count = struct.pack(byteorder + ("Q" if big else "H"), len(entries))
    path.write_bytes(head + data + count + table + b"\0" * room + beyond)
    return path


def write_dicom(
    path,
    pixels,
    tile=64,
    encode=None,
    syntax="1.2.840.10008.1.2.1",
    photometric="RGB",
    planar=0,
    order="rows",
    spacing_mm=0.00025,
    spacing_in="shared",
    series="1.2.3.4",
):
    """A slide's level out of uint8 (H, W, 3); returns the path.

    Args:
        encode: (tile, tile, 3) -> bytes for encapsulated pixels; None for plain ones.
        order: of the frames: "rows" (TILED_FULL), or TILED_SPARSE by "rows sparse" or "columns sparse".
        spacing_in: "shared" or "frames" groups; anything else leaves it out.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import generate_uid

    height, width = pixels.shape[:2]
    down, across = -(-height // tile), -(-width // tile)
    padded = np.pad(pixels, ((0, down * tile - height), (0, across * tile - width), (0, 0)), constant_values=255)
    places = list(product(range(down), range(across)))
    if order == "columns sparse":
        places.sort(key=lambda place: place[::-1])
    frames = [padded[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y, x in places]
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.ImageType = series, ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    data.DimensionOrganizationType = "TILED_SPARSE" if "sparse" in order else "TILED_FULL"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, photometric, planar
    data.NumberOfFrames, data.Rows, data.Columns = len(frames), tile, tile
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = height, width
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    measures, shared, groups = Dataset(), Dataset(), [Dataset() for _ in frames]
    measures.PixelSpacing = [spacing_mm, spacing_mm]
    for group in {"shared": [shared], "frames": groups}.get(spacing_in, []):
        group.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    if "sparse" in order:
        for group, (y, x) in zip(groups, places, strict=True):
            position = Dataset()
            position.ColumnPositionInTotalImagePixelMatrix = x * tile + 1
            position.RowPositionInTotalImagePixelMatrix = y * tile + 1
            group.PlanePositionSlideSequence = [position]
    if any(len(group) for group in groups):
        data.PerFrameFunctionalGroupsSequence = groups
    if encode is None:
        plain = np.stack(frames) if planar == 0 else np.moveaxis(np.stack(frames), -1, 1)
        data.PixelData = plain.tobytes() + b"\0" * (plain.size % 2)
    else:
        data.PixelData = encapsulate([encode(frame) for frame in frames])
        data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)
    return path
