"""Small made-up copies of the official sets, in the layout in which each is downloaded, for rehearsals and tests.

    python -m resources.data.official_layouts midogpp data/made_up/midogpp
    python -m resources.data.prepare midogpp data/made_up/midogpp --out data/midogpp

Tissue is drawn by `synthetic.py`: two pieces of 640 x 640 px, turned, mirrored, set side by side where an image is
larger, and stained a little differently each time. Figures and look-alikes stand at known places. As in the official
files, MIDOG++'s JSON lists 50 images that are not there; in every set with labelled cells the first is listed twice,
and where there are two classes, one stands in both. They look the part; they are no data.
"""

import argparse
import json
import logging
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from midog.errors import UserError, exit_code
from midog.evaluation.provenance import MIDOGPP
from midog.files import check_writable
from resources.data import synthetic
from resources.data.class_names import HARD_NEGATIVE, MITOTIC, UNCLEAR
from resources.data.midogpp import NEVER_ANNOTATED
from resources.data.slide_runner import TEST_SLIDES

logger = logging.getLogger("resources.data.official_layouts")  # also where it is run as __main__

PIECE = 640  # px of a side of what is drawn
PIECES = 2
PATCH = 224  # px of SPIDER's and NCT-CRC-HE-100K's patches, of .5 um
FIGURES = ("metaphase", "prometaphase", "anaphase", "ring")
IMPOSTERS = ("pyknotic", "apoptotic", "lymphocyte")
HALF_BOX = 25
MARGIN = 32  # px from a cell to the edges of its image, at least
SHORTER = 64  # px that an image of the wrong size lacks
TRAIN_SLIDES = {  # some of those that are not TEST_SLIDES
    "ccmct": ("0e56fd11a762be0983f0", "c3eb4b8382b470dd63a9", "fff27b79894fe0157b08", "ac1168b2c893d2acad38"),
    "cmc": ("a8773be388e12df89edd", "deb768e5efb9d1dcbc13", "72c93e042d0171a61012", "084383c18b9060880e82"),
}
SLIDE_CLASSES = {  # as the databases name them
    "ccmct": {MITOTIC: "Mitotic figure", HARD_NEGATIVE: "Mitotic figure lookalike"},
    "cmc": {MITOTIC: "Mitosis", HARD_NEGATIVE: "Nonmitosis"},
    "tupac16": {MITOTIC: "Mitosis", HARD_NEGATIVE: "Nonmitosis"},
}
DATABASES = {
    "ccmct": "MITOS_WSI_CCMCT_ODAEL.sqlite",
    "cmc": "MITOS_WSI_CMC_CODAEL_TR_ROI.sqlite",
    "tupac16": "TUPAC_alternativeLabels_augmented_training.sqlite",
}
SCHEMA = """
CREATE TABLE Slides (uid INTEGER PRIMARY KEY, filename TEXT, width INTEGER, height INTEGER, directory TEXT);
CREATE TABLE Classes (uid INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE Annotations (uid INTEGER PRIMARY KEY, slide INTEGER, type INTEGER, agreedClass INTEGER, deleted INTEGER);
CREATE TABLE Annotations_coordinates (uid INTEGER PRIMARY KEY, coordinateX INTEGER, coordinateY INTEGER,
    slide INTEGER, annoId INTEGER, orderIdx INTEGER);
"""


class Cell(NamedTuple):
    """A labelled cell: its centre in px of the image, and its class."""

    x: int
    y: int
    label: str


class Tissue(NamedTuple):
    """An image: uint8 (H, W, 3), and its cells."""

    pixels: NDArray[np.uint8]
    cells: list[Cell]


class Request(NamedTuple):
    """What is to be written: see `write`."""

    name: str
    folder: Path
    images: int
    size: tuple[int, int]
    seed: int
    wrong_size: bool

    def tissue(self, number: int) -> Tissue:
        """The image of a number; its cells once each."""
        return _tissue(self.seed, number, self.size)

    def side(self, number: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What is written of an image: the first lacks some columns where the wrong size is asked for."""
        return pixels[:, :-SHORTER] if self.wrong_size and number == 0 else pixels


def write(
    name: str,
    folder: Path,
    images: int | None = None,
    size: tuple[int, int] = (PIECE, PIECE),
    seed: int = 2025,
    wrong_size: bool = False,
) -> pd.DataFrame:
    """Write a made-up copy of a set; the same arguments give the same files.

    Args:
        name: of `NAMES`.
        folder: to write to, made where missing; what `prepare NAME FOLDER` reads.
        images: how many; regions or slides, fields of each scanner, patches of each class, or crops (midog25). Without
            it the set's own of `IMAGES`.
        size: (width, height) of the images, px, at least 640; patches and crops have their own.
        seed: of all that is drawn.
        wrong_size: the first image is 64 px narrower than its labels say; of sets that say it.

    Returns:
        DataFrame (image, x, y, label): the cells that `prepare` finds; `image` is the name of the file, with the
        directory where names repeat. Without rows for sets without cells, and for midog25.

    Raises:
        UserError: no such set, images that are too small, a wrong size of a set that says none, a full disk.
    """
    if name not in NAMES:
        raise UserError(f"{name}: no such set; one of {', '.join(NAMES)} expected")
    if min(size) < PIECE:
        raise UserError(f"{folder}: {size[0]} x {size[1]} px are too small; {PIECE} x {PIECE} or more expected")
    if wrong_size and name not in SAYS_SIZE:
        raise UserError(f"{folder}: {name} says no size of its images; of {', '.join(SAYS_SIZE)} it can be wrong")
    check_writable(folder)
    request = Request(name, folder, images or IMAGES[name], size, seed, wrong_size)
    try:
        cells = LAYOUTS[name](request)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); free the disk or use another folder"
        ) from None
    return pd.DataFrame(
        [(image, *cell) for image, found in cells.items() for cell in found], columns=["image", "x", "y", "label"]
    )


@cache
def _piece(seed: int) -> tuple[NDArray[np.uint8], list[Cell]]:
    pixels, figures, imposters = synthetic.region(seed, (PIECE, PIECE), FIGURES, IMPOSTERS)
    cells = [
        Cell(int(x), int(y), label)
        for places, label in ((figures, MITOTIC), (imposters, HARD_NEGATIVE))
        for x, y in places
    ]
    return pixels, cells


def _tissue(seed: int, number: int, size: tuple[int, int]) -> Tissue:
    """An image of turned and mirrored pieces, with the cells that are not at its edges."""
    width, height = size
    piece, cells = _piece(seed + number % PIECES)
    quarters, mirrored = number // PIECES % 4, number // PIECES // 4 % 2 == 1
    piece = np.rot90(piece, quarters)
    for _ in range(quarters):
        cells = [Cell(cell.y, PIECE - 1 - cell.x, cell.label) for cell in cells]
    if mirrored:
        piece, cells = piece[:, ::-1], [cell._replace(x=PIECE - 1 - cell.x) for cell in cells]
    columns, rows = -(-width // PIECE), -(-height // PIECE)
    row = np.hstack([piece[:, :: 1 - 2 * (column % 2)] for column in range(columns)])
    pixels = np.vstack([row[:: 1 - 2 * (number % 2)] for number in range(rows)])[:height, :width]
    placed = [
        Cell(
            column * PIECE + (PIECE - 1 - cell.x if column % 2 else cell.x),
            line * PIECE + (PIECE - 1 - cell.y if line % 2 else cell.y),
            cell.label,
        )
        for line in range(rows)
        for column in range(columns)
        for cell in cells
    ]
    inside = [each for each in placed if MARGIN <= each.x < width - MARGIN and MARGIN <= each.y < height - MARGIN]
    generator = np.random.default_rng([seed, number])
    stains = (np.linspace(0, 1, 256)[:, None] ** generator.uniform(0.85, 1.2, 3) * 255).round().astype(np.uint8)
    return Tissue(np.ascontiguousarray(np.stack([stains[pixels[..., c], c] for c in range(3)], -1)), inside)


def _listed(cells: Sequence[Cell], number: int) -> tuple[list[Cell], list[Cell]]:
    """What the labels of an image list, and what is known of its cells: in the first image one stands there twice, and
    one in both classes, where there are two."""
    listed, known = list(cells), list(cells)
    if number == 0:
        listed.append(cells[0])
        if cells[-1].label == HARD_NEGATIVE:
            listed.append(cells[-1]._replace(label=MITOTIC))
            known[-1] = cells[-1]._replace(label=UNCLEAR)
    return listed, known


def _figures_of(tissue: Tissue) -> list[Cell]:
    return [cell for cell in tissue.cells if cell.label == MITOTIC]


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _midogpp(request: Request) -> dict[str, list[Cell]]:
    """MIDOG++.json, and images/001.tiff and so on: the first of each domain, the second of each, ..."""
    first = [1, *(last + 1 for last, *_ in MIDOGPP[:-1])]
    domains = [number for number in first if number not in NEVER_ANNOTATED]
    numbers = [domains[n % len(domains)] + n // len(domains) for n in range(request.images)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    known: dict[str, list[Cell]] = {}
    for number, name in enumerate(numbers):
        tissue = request.tissue(number)
        synthetic.write_region_tiff(request.folder / f"images/{name:03}.tiff", request.side(number, tissue.pixels))
        images.append(_entry(name, *request.size))
        listed, known[f"{name:03}.tiff"] = _listed(tissue.cells, number)
        annotations += [
            {
                "bbox": [cell.x - HALF_BOX, cell.y - HALF_BOX, cell.x + HALF_BOX, cell.y + HALF_BOX],
                "category_id": 1 if cell.label == MITOTIC else 2,
                "image_id": name,
                "id": 1000 * name + n,
            }
            for n, cell in enumerate(listed)
        ]
    images += [_entry(name, 6200, 4650) for name in NEVER_ANNOTATED]
    categories = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}]
    content = {"info": {}, "licenses": [], "images": images, "categories": categories, "annotations": annotations}
    (request.folder / "MIDOG++.json").write_text(json.dumps(content))
    return known


def _entry(number: int, width: int, height: int) -> dict[str, Any]:
    """Of an image in the JSON."""
    return {"license": 1, "file_name": f"{number:03}.tiff", "id": number, "width": width, "height": height}


def _slides(request: Request) -> dict[str, list[Cell]]:
    """A SlideRunner database, and the Aperio files that it names; as the official ones are split, some are test."""
    train, test = TRAIN_SLIDES[request.name], TEST_SLIDES[request.name]
    names = [*train, *test]
    if request.images > len(names):
        raise UserError(f"{request.folder}: {request.name} has names for {len(names)} slides; ask for fewer")
    order = [*train[:3], test[0], *train[3:], *test[1:]]
    rows, known = [], {}
    for number, name in enumerate(order[: request.images]):
        tissue = request.tissue(number)
        _write_svs(request.folder / f"WSI/{name}.svs", request.side(number, tissue.pixels))
        listed, known[f"{name}.svs"] = _listed(tissue.cells, number)
        rows.append(("", f"{name}.svs", listed))
    _write_database(request, rows)
    return known


def _tupac16(request: Request) -> dict[str, list[Cell]]:
    """A SlideRunner database with a directory a patient, and their images; patients above 23 are another centre's."""
    rows, known = [], {}
    for number in range(request.images):
        patient = f"{1 + number // 2 + 23 * (number % 2):02}"
        tissue = request.tissue(number)
        synthetic.write_region_tiff(request.folder / patient / "01.tif", request.side(number, tissue.pixels))
        listed, known[f"{patient}/01.tif"] = _listed(tissue.cells, number)
        rows.append((patient, "01.tif", listed))
    _write_database(request, rows)
    return known


def _write_database(request: Request, slides: Sequence[tuple[str, str, Sequence[Cell]]]) -> None:
    """A database of (directory, file name, cells), every cell a point."""
    path = request.folder / DATABASES[request.name]
    path.unlink(missing_ok=True)
    classes = SLIDE_CLASSES[request.name]
    numbers = {label: number for number, label in enumerate(classes, 1)}
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(SCHEMA)
        database.executemany("INSERT INTO Classes VALUES (?, ?)", enumerate(classes.values(), 1))
        uid = 0
        for slide, (directory, name, cells) in enumerate(slides, 1):
            database.execute("INSERT INTO Slides VALUES (?, ?, ?, ?, ?)", (slide, name, *request.size, directory))
            for cell in cells:
                uid += 1
                database.execute("INSERT INTO Annotations VALUES (?, ?, 1, ?, 0)", (uid, slide, numbers[cell.label]))
                database.execute(
                    "INSERT INTO Annotations_coordinates VALUES (?, ?, ?, ?, ?, 1)", (uid, cell.x, cell.y, slide, uid)
                )


def _write_svs(path: Path, pixels: NDArray[np.uint8]) -> None:
    height, width = pixels.shape[:2]
    said = f"Aperio Image Library v11\r\n{width}x{height} (256x256) JPEG/RGB Q=85|AppMag = 40|MPP = 0.2500"
    synthetic.write_region_tiff(path, pixels, description=said)


def _icpr2012(request: Request) -> dict[str, list[Cell]]:
    """Fields of both scanners, a csv with a line a figure, a JPEG with the figures painted over; a third is test."""
    known = {}
    for scanner, place in (("A", "aperio"), ("H", "hamamatsu")):
        for number in range(request.images):
            tissue = request.tissue(number)
            part = "training" if number % 3 < 2 else "evaluation"
            path = request.folder / f"{part}_{place}" / f"{scanner}{number % 5:02}_{number // 5:02}.bmp"
            _save(path, tissue.pixels)
            listed, known[path.name] = _listed(_figures_of(tissue), number)
            shapes = [_disc(cell) for cell in listed]
            path.with_suffix(".csv").write_text("".join(",".join(map(str, each.ravel())) + "\n" for each in shapes))
            painted = tissue.pixels.copy()
            for x, y in np.concatenate(shapes):
                painted[y, x] = 255, 255, 0
            _save(path.with_suffix(".jpg"), painted)
    return known


def _disc(cell: Cell) -> NDArray[np.int_]:
    """Pixels x, y, int (N, 2), of a disc around a cell."""
    y, x = np.mgrid[-14:15, -14:15]
    return np.stack([x, y], -1)[x * x + y * y <= 14 * 14] + (cell.x, cell.y)


def _atypia14(request: Request) -> dict[str, list[Cell]]:
    """Frames of both scanners in folders of cases, csv files with scores, and each frame at x20."""
    known = {}
    for scanner in "AH":
        for number in range(request.images):
            case = f"{scanner}{3 + number:02}"
            name, folder = f"{case}_00Aa", request.folder / f"Training/{case}"
            tissue = request.tissue(number)
            _save(folder / f"frames/x40/{name}.tiff", tissue.pixels)
            _save(folder / f"frames/x20/{name[:-1]}.tiff", tissue.pixels[::2, ::2])
            listed, known[f"{name}.tiff"] = _listed(tissue.cells, number)
            (folder / "mitosis").mkdir(exist_ok=True)
            for label, scores, kind in ((MITOTIC, (1.0, 0.8, 0.65), ""), (HARD_NEGATIVE, (0.0, 0.2), "not_")):
                cells = [cell for cell in listed if cell.label == label]
                lines = [f"{cell.x},{cell.y},{scores[n % len(scores)]}\n" for n, cell in enumerate(cells)]
                (folder / f"mitosis/{name}_{kind}mitosis.csv").write_text("".join(lines))
    return known


def _gzmh(request: Request) -> dict[str, list[Cell]]:
    """Fields with annotations of Pascal VOC, and the lists of each part; a third is test."""
    known, parts = {}, {"trainval": "", "test": ""}
    for path in ("Annotations", "ImageSets/Main"):
        (request.folder / path).mkdir(parents=True, exist_ok=True)
    for number in range(request.images):
        name = f"{1 + number:03}_0"
        tissue = request.tissue(number)
        _save(request.folder / f"JPEGImages/{name}.png", request.side(number, tissue.pixels))
        listed, known[f"{name}.png"] = _listed(_figures_of(tissue), number)
        objects = "".join(
            f"<object><name>mitosis</name><bndbox><xmin>{cell.x - 16}</xmin><ymin>{cell.y - 16}</ymin>"
            f"<xmax>{cell.x + 16}</xmax><ymax>{cell.y + 16}</ymax></bndbox></object>"
            for cell in listed
        )
        width, height = request.size
        (request.folder / f"Annotations/{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )
        parts["test" if number % 3 == 2 else "trainval"] += f"{name}\n"
    for part, names in parts.items():
        (request.folder / f"ImageSets/Main/{part}.txt").write_text(names)
    return known


def _patches(request: Request, number: int) -> NDArray[np.uint8]:
    """A patch of .5 um/px: uint8 (224, 224, 3)."""
    return request.tissue(number).pixels[: 2 * PATCH : 2, : 2 * PATCH : 2]


def _spider(request: Request) -> dict[str, list[Cell]]:
    """Patches of two classes, with one of the context of each, and the records."""
    folder, records = request.folder / "SPIDER-colorectal", []
    for number in range(2 * request.images):
        name, context = f"{number:06}.png", f"{number:06}_2_3.png"
        _save(folder / "images" / name, _patches(request, number))
        _save(folder / "images" / context, _patches(request, number + 1))
        records.append(
            {
                "slide_id": f"slide_{number // 4:03}",
                "image_name": name,
                "context_info": {"2_3": context},
                "class": ("Necrosis", "Muscle")[number % 2],
                "split": "test" if number // 4 % 3 == 2 else "train",
            }
        )
    (folder / "metadata.json").write_text(json.dumps(records))
    return {}


def _nct_crc(request: Request) -> dict[str, list[Cell]]:
    """Patches of debris and of muscle."""
    for number in range(request.images):
        for tissue in ("DEB", "MUS"):
            name = f"NCT-CRC-HE-100K/{tissue}/{tissue}-{number:08}.tif"
            _save(request.folder / name, _patches(request, number))
    return {}


def _midog25(request: Request) -> dict[str, list[Cell]]:
    """A table of figures with three experts' votes, and the crops; six figures an image, of every kind in turn."""
    generator = np.random.default_rng(request.seed)
    drawn = [synthetic.crop(generator, kind) for kind in synthetic.KINDS]
    numbers = [last for last, *_ in MIDOGPP if last not in NEVER_ANNOTATED]
    domains = {last: domain for last, *domain in MIDOGPP}
    rows = []
    for number in range(request.images):
        kind, turn = number % len(drawn), number // len(drawn)
        pixels = np.rot90(drawn[kind], turn % 4)[:: 1 - 2 * (turn // 4 % 2)]
        _save(request.folder / f"MIDOG25/{number + 1}.png", np.ascontiguousarray(pixels))
        image, in_turn = number // 6, len(numbers)
        tumor, origin, scanner = domains[numbers[image % in_turn]]
        atypical = synthetic.KINDS[kind] in synthetic.ATYPICAL
        said = "AMF" if atypical else "NMF"
        divided = number % 7 == 0
        rows.append(
            {
                "image_id": f"{number + 1}.png",
                "filename": f"{numbers[image % in_turn] - image // in_turn:03}.tiff",
                "coordinateX": 400 + 150 * (number % 6),
                "coordinateY": 400,
                "Tumor": tumor,
                "Scanner": scanner,
                "Origin": origin,
                "Species": tumor.partition(" ")[0].title(),
                "expert1": said,
                "expert2": ("NMF" if atypical else "AMF") if divided else said,
                "expert3": said if divided else "",
                "majority": said,
            }
        )
    pd.DataFrame(rows).to_csv(request.folder / "MIDOG25.csv", index=False)
    return {}


LAYOUTS: dict[str, Callable[[Request], dict[str, list[Cell]]]] = {
    "midogpp": _midogpp,
    "midog25": _midog25,
    "ccmct": _slides,
    "cmc": _slides,
    "tupac16": _tupac16,
    "icpr2012": _icpr2012,
    "atypia14": _atypia14,
    "gzmh": _gzmh,
    "spider": _spider,
    "nct-crc": _nct_crc,
}
NAMES = tuple(LAYOUTS)
IMAGES = dict.fromkeys(NAMES, 5) | {"midogpp": 10, "midog25": 72, "icpr2012": 6, "gzmh": 6, "tupac16": 6, "spider": 8}
SAYS_SIZE = ("midogpp", "ccmct", "cmc", "tupac16", "gzmh")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.data.official_layouts",
        description="Write a small made-up copy of an official set in the layout in which it is downloaded.",
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("out", type=Path, metavar="DIR", help="folder to write, made where missing")
    parser.add_argument(
        "--images", type=int, metavar="N", help="regions, fields of a scanner, patches of a class, crops"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=(PIECE, PIECE), metavar=("W", "H"), help="of the images, px (640 640)"
    )
    parser.add_argument("--seed", type=int, default=2025, metavar="N", help="another one, other tissue (%(default)s)")
    parser.add_argument("--wrong-size", action="store_true", help="the first image is narrower than its labels say")
    arguments = parser.parse_args(argv)
    if (arguments.images is not None and arguments.images < 1) or arguments.seed < 0:
        parser.error("--images 1 or more and --seed 0 or more expected")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    size = arguments.size[0], arguments.size[1]
    cells = write(arguments.name, arguments.out, arguments.images, size, arguments.seed, arguments.wrong_size)
    logger.info(
        f"{arguments.out}: {arguments.name} as it is downloaded, made up; {(cells.label == MITOTIC).sum()} mitotic "
        f"figures and {(cells.label == HARD_NEGATIVE).sum()} look-alikes"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
