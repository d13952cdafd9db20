"""Damaged files of every format: whatever stands in them, the answer is pixels or one line.

A file's number is its seed. `python test/images/test_fuzz.py FOLDER NUMBER ...` writes some of them to look at.
"""

import json
import logging
import os
import random
import re
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from writers import write_dicom

from midog import __main__
from midog.detections import Detections
from midog.errors import UserError
from midog.images.slide import open_slide
from midog.images.stack import Stack
from midog.job import read_job
from midog.report.binding import bind

ROOT = Path(__file__).resolve().parents[2]
SECONDS, BYTES = 20, 2 << 30
FORMATS = ["a.tif", "a.btf", "a.ome.tif", "imagej.tif", "philips.tiff", "a.svs", "a.mha", "compressed.mha", "plain.dcm"]
FORMATS += ["jpeg.dcm", "a.png", "a.jpg", "stack.tif", "stack.mha", "inputs.json", "about.json", "one.json", "two.json"]

SOCKET = {"slug": "histopathology-region-of-interest-cropout", "relative_path": "images/a"}
INPUTS = [{"file": None, "value": None, "image": {"name": "case 17.tiff"}, "interface": SOCKET}]
ABOUT = {"image": {"name": "a.tif", "bytes": 3}, "um_per_px_given": 0.25, "system": "s", "version": "1.0"}
POINTS = [{"name": "mitotic figure", "point": [0.01, 0.02, 0], "probability": 0.9}]
ONE = {"name": "figures", "type": "Multiple points", "points": POINTS * 2, "version": {"major": 1, "minor": 0}}
TWO = [{"class": "atypical", "confidence": 0.75}, {"class": "normal", "confidence": 0.25}]
JSON = {"inputs.json": INPUTS, "about.json": ABOUT, "one.json": ONE, "two.json": TWO}


def as_jpeg(frame):
    return imagecodecs.jpeg8_encode(frame, colorspace="rgb", outcolorspace="ycbcr")


JPEG = {"encode": as_jpeg, "syntax": "1.2.840.10008.1.2.4.50", "photometric": "YBR_FULL_422"}


# --- whole files -----------------------------------------------------------------------


def write_whole(folder, name):
    """A sound file of a format, a few kB."""
    y, x = np.mgrid[:90, :120]
    pixels = (128 + 90 * np.stack([np.sin(x / 9 + y / 13), np.cos(x / 7), np.sin(y / 5)], -1)).astype(np.uint8)
    pages = np.stack([pixels[:32, at : at + 32] for at in (0, 32, 64)])
    path = folder / name
    tags = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER", "photometric": "rgb"}
    jpeg = {"tile": (32, 32), "compression": "jpeg"}
    if name in JSON:
        path.write_text(json.dumps(JSON[name]))
    elif name.startswith("stack"):
        tifffile.imwrite(path, pages, compression="lzw", metadata=None, **tags)
        if name.endswith("mha"):
            sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(page, isVector=True) for page in pages]), str(path))
    elif name.endswith(".mha"):
        image = sitk.GetImageFromArray(pixels, isVector=True)
        image.SetSpacing((0.00025, 0.00025))
        sitk.WriteImage(image, str(path), useCompression=name.startswith("c"))
    elif name.endswith(".dcm"):
        plain = {"order": "columns sparse", "spacing_in": "frames"}
        write_dicom(path, pixels, 32, **(plain if name.startswith("p") else JPEG))
    elif name in ("a.png", "a.jpg"):
        exif = Image.Exif()
        exif[0x0128], exif[0x011A], exif[0x011B], exif[0x0112] = 2, 101_600, 101_600, 6
        Image.fromarray(pixels).save(path, exif=exif, dpi=(72, 72))
    elif name in ("imagej.tif", "a.ome.tif"):
        kind = {"imagej": True} if name == "imagej.tif" else {"photometric": "rgb", "tile": (32, 32)}
        metadata = {"axes": "YXS", "unit": "um"} if name == "imagej.tif" else {"axes": "YXS", "PhysicalSizeX": 0.25}
        tifffile.imwrite(path, pixels, resolution=(4, 4), metadata=metadata, **kind)
    elif name in ("a.svs", "philips.tiff"):
        note = "Aperio Image Library v11\r\n120x90 (32x32) JPEG/RGB Q=70|AppMag = 20|MPP = 0.25"
        xml = '<DataObject><Attribute Name="DICOM_PIXEL_SPACING">"0.00025" "0.00025"</Attribute></DataObject>'
        description = note if name == "a.svs" else xml
        tifffile.imwrite(path, pixels, description=description, metadata=None, photometric="rgb", **jpeg)
    else:
        big = {"bigtiff": True, "byteorder": ">"} if name == "a.btf" else {}
        kind = {"subifds": 1, **jpeg} if big else {"compression": "lzw"}
        with tifffile.TiffWriter(path, **big) as file:
            file.write(pixels, metadata=None, **kind, **tags)
            file.write(pixels[::2, ::2].copy(), subfiletype=1, metadata=None, **jpeg, photometric="rgb")
    return path


# --- damage ------------------------------------------------------------------------------


def near_the_front(chance, length):
    """A place, half of them among the first 600 bytes and a quarter among the last: there the headers are."""
    at = chance.choice((600, 600, length, -600))
    return chance.randrange(max(0, length + at), length) if at < 0 else chance.randrange(min(at, length))


def flip(chance, data):
    for _ in range(chance.choice((1, 1, 3, 20))):
        data[near_the_front(chance, len(data))] ^= 1 << chance.randrange(8)


def cut(chance, data):
    del data[chance.randrange(len(data)) :]


def insert(chance, data):
    at = near_the_front(chance, len(data))
    data[at:at] = chance.randbytes(chance.choice((1, 2, 4, 300)))


def leave_out(chance, data):
    at = near_the_front(chance, len(data))
    del data[at : at + chance.choice((1, 2, 4, 300))]


def overwrite(chance, data):
    """An integer field, set to what its reader may not expect."""
    size = chance.choice((1, 2, 4, 8))
    at = near_the_front(chance, len(data)) // 2 * 2
    value = chance.choice((b"\0" * size, b"\xff" * size, b"\xff" * (size - 1) + b"\x7f", b"\x01" + b"\0" * (size - 1)))
    data[at : at + size] = value


ODD_NUMBERS = [b"0", b"-1", b"65535", b"4294967296", b"1e400", b"NaN", b"9" * 400, b"", b"0.5", b"x", b"1 1 1 1"]


def change_number(chance, data):
    """One that is written in figures."""
    found = list(re.finditer(rb"\d+", data[:4000]))
    if found:
        start, end = chance.choice(found).span()
        data[start:end] = chance.choice(ODD_NUMBERS)


ODD_VALUES = ["null", "[]", "{}", '""', "-1", "1e400", "NaN", "-Infinity", "9" * 400, "true", '"\\ud800"', '"\\u0000"']
ODD_VALUES += ['"../.."', '"' + "a" * 5000 + '"', "[" * 9999 + "]" * 9999, '{"a": ' * 9999 + "1" + "}" * 9999]


def change_value(chance, data):
    """One of a JSON file: a text, number, list or mapping for another."""
    found = list(re.finditer(rb'"[^"]*"|-?[\d.]+|null|\[[^\[\]]*\]|\{[^{}]*\}', data[:4000]))
    if found:
        start, end = chance.choice(found).span()
        data[start:end] = chance.choice(ODD_VALUES).encode()


DAMAGES = [flip, cut, insert, leave_out, overwrite, overwrite]


def write_damaged(folder, whole, number):
    """The damaged file of a number in a folder of its own, and how it was damaged."""
    chance = random.Random(number)
    name = FORMATS[number % len(FORMATS)]
    damages = [change_value] * 8 + DAMAGES if name in JSON else DAMAGES + [change_number] * (4 if "mha" in name else 1)
    data = bytearray(whole[name])
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        damage = chance.choice(damages)
        if data:
            damage(chance, data)
            done.append(damage.__name__)
    folder.mkdir()
    (folder / name).write_bytes(data)
    if name in ("inputs.json", "about.json"):
        image = folder / ("images/a/a.tif" if name == "inputs.json" else "a.tif")
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(whole["a.tif"])
    return folder / name, f"{number} {name} ({', '.join(done)})"


# --- reading, in a process of its own ------------------------------------------------------


def read(path):
    """All that is done with a file."""
    if path.name == "inputs.json":
        read_job(path.parent)
    elif path.name == "about.json":
        resolution = bind(path.with_name("one.json"), path.with_name("a.tif"), None, True, None).resolution
        open_slide(path.with_name("a.tif"), resolution and resolution.um_per_px[0]).close()
        str(resolution)
    elif path.suffix == ".json":
        track, result = __main__.read_result(path)
        if track == 1:
            Detections.from_json(result).to_table()
    elif path.name.startswith("stack"):
        for _, _ in zip(Stack(path), range(50), strict=False):
            pass
    else:
        with open_slide(path) as slide:
            slide.overview(200)
            x, y = (side // 3 for side in slide.size)
            slide.read(x, y, min(64, slide.size[0] - x), min(64, slide.size[1] - y))


def serve():
    """Reads the files that are named on stdin; a line on each. What else is written is caught, from C libraries too."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    logging.disable()  # the project's own warnings
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        for stream in (1, 2):
            os.dup2(noise.fileno(), stream)
        answers.write("ready\n")
        for line in sys.stdin:
            answer = answer_to(Path(line.rstrip("\n")))
            noise.seek(0)
            if written := " ".join(noise.read().split()):
                answer = f"{answer}, and a library writes: {written[:300]}"
            noise.seek(0)
            noise.truncate()
            answers.write(answer + "\n")


def answer_to(path):
    """What becomes of reading a file: "read", "refused", or what is wrong."""
    try:
        read(path)
    except UserError as error:
        said = str(error)
        fine = str(path.parent) in said and "\n" not in said and ";" in said
        return "refused" if fine else f"not one line that names the file and the remedy: {said!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return "read"


class Reader:
    """A process that reads files until one of them ends it."""

    def __init__(self):
        self.process = None

    def answer(self, path):
        """As `answer_to`; a crash or a hang, too."""
        if self.process is None:
            command = [sys.executable, __file__, "serve"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert self._line(600) == "ready"
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{path}\n")
        answer = self._line(SECONDS)
        if answer is None:
            self.process.kill()
        if not answer:
            answer = f"crash {self.process.wait()}" if answer == "" else f"hang, more than {SECONDS} s"
            self.close()
        return answer

    def _line(self, seconds):
        """The next line, nothing at the end, None where none comes in time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.process.stdout.readline().rstrip("\n") if selector.select(seconds) else None

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
            self.process = None


def findings(folder, numbers):
    """What is wrong with reading the damaged files of these numbers, a line each."""
    (folder / "whole").mkdir()
    whole = {name: write_whole(folder / "whole", name).read_bytes() for name in FORMATS}
    reader, found = Reader(), []
    for name in FORMATS:
        if name not in ("inputs.json", "about.json"):
            assert reader.answer(folder / "whole" / name) == "read", name
    for number in numbers:
        path, said = write_damaged(folder / str(number), whole, number)
        answer = reader.answer(path)
        if answer not in ("read", "refused"):
            found.append(f"{said}: {answer}")
        shutil.rmtree(folder / str(number))
    reader.close()
    return found


def test_damaged_files_are_read_or_refused(tmp_path):
    assert findings(tmp_path, range(100)) == []


def test_a_piece_without_end_does_not_end_the_process(tmp_path):
    """OpenSlide would ask for the memory that a tag of another type promises."""
    path = write_whole(tmp_path, "a.svs")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.filehandle.seek(tif.pages[0].tags["TileByteCounts"].offset + 2)
        tif.filehandle.write(b"\x10\0")
    reader = Reader()
    assert reader.answer(path) == "refused"
    reader.close()


@pytest.mark.fuzz
def test_many_damaged_files_are_read_or_refused(tmp_path):
    assert findings(tmp_path, range(100, 2100)) == []


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        with tempfile.TemporaryDirectory() as sound:
            whole = {name: write_whole(Path(sound), name).read_bytes() for name in FORMATS}
        for number in map(int, sys.argv[2:]):
            print(write_damaged(Path(sys.argv[1]) / str(number), whole, number)[1])
