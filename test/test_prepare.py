"""Public data sets become tables of whole images: coordinates, classes, what is missing, bad input; and tiled files."""

import json
import sqlite3

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from midog.evaluation.labelled import read_labelled
from midog.images.slide import open_slide
from resources.data import prepare, retile
from resources.data.class_names import BACKGROUND, HARD_NEGATIVE, MITOTIC, UNCLEAR, meaning
from resources.data.fields import read_fields

TISSUE, PALE, MITOSIS, OTHER = (215, 160, 200), (235, 190, 225), (40, 20, 90), (120, 50, 20)
SIZE = 2000, 1500
FIGURES = [(600, 400), (740, 1400), (3, 5)]
HARD_NEGATIVES = [(1100, 380), (1999, 1499)]

SCHEMA = """
CREATE TABLE Slides (uid INTEGER PRIMARY KEY, filename TEXT, width INTEGER, height INTEGER, directory TEXT, uuid TEXT);
CREATE TABLE Classes (uid INTEGER PRIMARY KEY, name TEXT, color TEXT);
CREATE TABLE Persons (uid INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE Annotations (uid INTEGER PRIMARY KEY, slide INTEGER, guid TEXT, lastModified REAL, deleted INTEGER
    DEFAULT 0, type INTEGER, agreedClass INTEGER, description TEXT);
CREATE TABLE Annotations_coordinates (uid INTEGER PRIMARY KEY, coordinateX INTEGER, coordinateY INTEGER,
    slide INTEGER, annoId INTEGER, orderIdx INTEGER);
CREATE TABLE Annotations_label (uid INTEGER PRIMARY KEY, person INTEGER, class INTEGER, annoId INTEGER);
"""
SPOT, AREA, OUTLINE = 1, 2, 3
CLASSES = {1: "Granulocyte", 2: "Mitotic figure", 3: "Tumor cell", 7: "Mitotic figure lookalike", 8: "Tumor region"}


def draw(path, size=SIZE, figures=(), hard_negatives=(), um_per_px=0.23):
    """A region of chequered tissue with a square of 9 px for each cell."""
    y, x = np.ogrid[: size[1], : size[0]]
    pixels = np.array([TISSUE, PALE], np.uint8)[(x // 64 + y // 64) % 2]
    for centres, colour in ((figures, MITOSIS), (hard_negatives, OTHER)):
        for x, y in centres:
            pixels[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = colour
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, dpi=(25400 / um_per_px,) * 2)


def coco(sizes, cells):
    """The JSON of MIDOG++: sizes by number of the image, cells as (image, category, x, y)."""
    images = [
        {"license": 1, "file_name": f"{n:03}.tiff", "id": n, "width": w, "height": h, "tumor_type": "human melanoma"}
        for n, (w, h) in sizes.items()
    ]
    annotations = [
        {"bbox": [x - 25, y - 25, x + 25, y + 25], "category_id": category, "image_id": image, "id": n}
        for n, (image, category, x, y) in enumerate(cells)
    ]
    categories = [{"id": 1, "name": "mitotic figure"}, {"id": 2, "name": "not mitotic figure"}]
    return {"images": images, "categories": categories, "annotations": annotations}


def database(path, slides, annotations):
    """A SlideRunner file; annotations as (slide, class, type, deleted, points)."""
    with sqlite3.connect(path) as file:
        file.executescript(SCHEMA)
        file.executemany("INSERT INTO Slides (uid, filename, width, height) VALUES (?, ?, ?, ?)", slides)
        file.executemany("INSERT INTO Classes (uid, name) VALUES (?, ?)", CLASSES.items())
        for uid, (slide, agreed, kind, deleted, points) in enumerate(annotations, 1):
            row = uid, slide, deleted, kind, agreed
            file.execute("INSERT INTO Annotations (uid, slide, deleted, type, agreedClass) VALUES (?, ?, ?, ?, ?)", row)
            for order, (x, y) in enumerate(points, 1):
                file.execute(
                    "INSERT INTO Annotations_coordinates (coordinateX, coordinateY, slide, annoId, orderIdx)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (x, y, slide, uid, order),
                )
    file.close()


@pytest.fixture
def midogpp(tmp_path):
    """Two regions, the second without labels; the command that makes their tables, without --out."""
    draw(tmp_path / "images/001.tiff", SIZE, FIGURES, HARD_NEGATIVES)
    draw(tmp_path / "images/002.tiff", (700, 600), um_per_px=0.25)
    cells = [(1, 1, x, y) for x, y in FIGURES] + [(1, 2, x, y) for x, y in HARD_NEGATIVES]
    (tmp_path / "MIDOG++.json").write_text(json.dumps(coco({1: SIZE, 2: (700, 600)}, cells)))
    return ["midogpp", "--json", str(tmp_path / "MIDOG++.json"), "--images", str(tmp_path / "images")]


def run(command, out, *more):
    return prepare.main([*command, "--out", str(out), *more])


def tables(out):
    return pd.read_csv(out / "images.csv"), pd.read_csv(out / "figures.csv")


def check_tables(out):
    """Every label points at its cell in the file that the table names, and nothing but tables was written."""
    images, figures = tables(out)
    assert sorted(path.name for path in out.iterdir()) == ["figures.csv", "images.csv"]
    for row in images.itertuples():
        with Image.open(out / row.image) as image:
            pixels = np.array(image).astype(int)
            assert image.size == (row.width, row.height)
        for cell in figures[figures.image == row.image].itertuples():
            assert ((cell.x0 + cell.x1) / 2, (cell.y0 + cell.y1) / 2) == (cell.x, cell.y)
            if cell.label != UNCLEAR:
                colour = pixels[round(cell.y), round(cell.x)]
                assert np.abs(colour - (MITOSIS if cell.label == MITOTIC else OTHER)).max() < 25
    return images, figures


def places(figures):
    return set(zip(figures.x, figures.y, figures.label, strict=True))


def test_regions_of_midogpp(midogpp, tmp_path, capsys):
    assert run(midogpp, tmp_path / "out") == 0
    images, figures = check_tables(tmp_path / "out")
    assert list(images.image) == ["../images/001.tiff", "../images/002.tiff"]
    assert list(images.case) == ["MIDOGpp_001", "MIDOGpp_002"]
    assert images.um_per_px.to_list() == pytest.approx([0.23, 0.25], abs=1e-4)
    assert set(images.tumor) == {"human melanoma"}
    assert places(figures) == {(*each, MITOTIC) for each in FIGURES} | {
        (*each, HARD_NEGATIVE) for each in HARD_NEGATIVES
    }
    assert "2 images; 3 mitotic figures and 2 hard negatives" in capsys.readouterr().out
    assert run(midogpp, tmp_path / "out") == 1
    assert "give another --out" in capsys.readouterr().err


def test_the_tables_are_what_training_reads(midogpp, tmp_path):
    assert run(midogpp, tmp_path / "out") == 0
    first, second = read_fields([tmp_path / "out"])
    assert (first.name, first.size, first.case) == ("001.tiff", SIZE, "MIDOGpp_001")
    assert len(second.figures) == 0
    for field in (first, first.at(0.25), first.at(0.46)):
        for points, colour in ((field.figures, MITOSIS), (field.hard_negatives, OTHER)):
            for x, y in np.round(points).astype(int):
                assert np.abs(field.read_reflected(x, y, 1, 1)[0, 0].astype(int) - colour).max() < 25


def test_images_without_labels_that_are_not_there(midogpp, tmp_path, capsys):
    (tmp_path / "images/002.tiff").unlink()
    assert run(midogpp, tmp_path / "out") == 0
    assert "not there and without labels, left out: 1 of 2 images" in capsys.readouterr().out
    assert list(check_tables(tmp_path / "out")[0].case) == ["MIDOGpp_001"]
    (tmp_path / "images/001.tiff").unlink()
    assert run(midogpp, tmp_path / "none") == 1
    assert "001.tiff: not found (nor 0 more)" in capsys.readouterr().err


def test_spacing_where_the_image_tells_none(midogpp, tmp_path, capsys):
    draw(tmp_path / "images/002.png", (700, 600), um_per_px=0.25)
    Image.open(tmp_path / "images/002.png").save(tmp_path / "images/003.png")  # Pillow drops the resolution
    content = coco({2: (700, 600), 3: (700, 600)}, [(2, 1, 300, 300)])
    for image in content["images"]:
        image["file_name"] = image["file_name"].replace("tiff", "png")
    (tmp_path / "MIDOG++.json").write_text(json.dumps(content))
    assert run(midogpp, tmp_path / "out", "--mpp", "0.5") == 0
    images, _ = tables(tmp_path / "out")
    assert images.um_per_px.to_list() == pytest.approx([0.25, 0.5], abs=1e-4)
    assert "003.png: no resolution" in capsys.readouterr().err


def test_images_in_strips_become_tiles(midogpp, tmp_path, capsys):
    assert run(midogpp, tmp_path / "out") == 0
    draw(tmp_path / "images/001.tiff", (9000, 1500), FIGURES, HARD_NEGATIVES)  # a window of it decodes 4 million pixels
    Image.open(tmp_path / "images/001.tiff").save(
        tmp_path / "images/001.tiff", compression="tiff_lzw", dpi=(110435,) * 2
    )
    table = pd.read_csv(tmp_path / "out/images.csv").assign(width=[9000, 700])
    table.to_csv(tmp_path / "out/images.csv", index=False)
    assert retile.main([str(tmp_path / "out"), str(tmp_path / "tiled")]) == 0
    assert "1 of 2 images in tiles" in capsys.readouterr().out
    images, figures = tables(tmp_path / "tiled")
    assert list(images.image) == ["images/001.tiff", "../images/002.tiff"]
    assert places(figures) == places(tables(tmp_path / "out")[1])
    with open_slide(tmp_path / "images/001.tiff") as source, open_slide(tmp_path / "tiled/images/001.tiff") as slide:
        assert slide.segment == (512, 512)
        assert slide.um_per_px == pytest.approx(source.um_per_px, abs=1e-4)
        difference = slide.read(0, 0, *slide.size).astype(int) - source.read(0, 0, *source.size)
        assert np.abs(difference).mean() < 2
    before = (tmp_path / "tiled/images/001.tiff").stat().st_mtime_ns
    assert retile.main([str(tmp_path / "out"), str(tmp_path / "tiled")]) == 0  # what is there is not written again
    assert (tmp_path / "tiled/images/001.tiff").stat().st_mtime_ns == before


def test_slides_of_a_slide_runner_database(tmp_path, capsys):
    draw(tmp_path / "slides/a 1.tiff", SIZE, [(600, 400), (300, 1200)], [(1100, 380)])
    draw(tmp_path / "slides/b.tiff", (700, 600))
    Image.new("RGB", (700, 600), "white").save(tmp_path / "slides/glass.tiff")
    corners = [(275, 1175), (325, 1225)]
    annotations = [
        (1, 2, SPOT, 0, [(600, 400)]),
        (1, 2, AREA, 0, corners),
        (1, 7, SPOT, 0, [(1100, 380)]),
        (1, 1, SPOT, 0, [(1700, 200)]),
        (1, 0, SPOT, 0, [(1900, 1400)]),  # the experts did not agree
        (1, 2, SPOT, 1, [(1800, 700)]),  # deleted
        (1, 8, OUTLINE, 0, [(0, 0), (1999, 0), (1999, 1499)]),
        (1, 0, OUTLINE, 0, [(0, 0), (1999, 0), (1999, 1499)]),
    ]
    slides = [(1, "a 1.tiff", *SIZE), (2, "b.tiff", None, None), (3, "glass.tiff", 700, 600)]
    database(tmp_path / "cells.sqlite", slides, annotations)
    command = ["slide-runner", "--database", str(tmp_path / "cells.sqlite"), "--slides", str(tmp_path / "slides")]
    assert run(command, tmp_path / "out") == 0
    images, figures = check_tables(tmp_path / "out")
    known = {(600, 400, MITOTIC), (300, 1200, MITOTIC), (1100, 380, HARD_NEGATIVE)}
    assert places(figures) == known | {(1900, 1400, UNCLEAR)}
    assert set(figures.x1 - figures.x0) == {50}
    assert list(images.case) == ["a 1", "b", "glass"]
    assert list(read_fields([tmp_path / "out"])[0].unclear.ravel()) == [1900, 1400]
    told = capsys.readouterr().out
    assert "class 'Mitotic figure': 2 cells, taken as mitotic figure" in told
    assert "class 'Mitotic figure lookalike': 1 cells, taken as non-mitotic figure" in told
    assert "class 'Granulocyte': 1 cells, taken as background" in told
    assert "class 'without agreement': 1 cells, taken as unclear" in told


@pytest.mark.parametrize("root", ["", "C:\\TUPAC\\"])
def test_files_of_one_name_in_the_directories_of_a_database(root, tmp_path):
    """As TUPAC16's: a directory a patient, which is the case."""
    path = tmp_path / "cells.sqlite"
    slides = [(1, "25.tiff", 700, 600), (2, "25.tiff", 700, 600), (3, "26.tiff", 700, 600)]
    database(path, slides, [(1, 2, SPOT, 0, [(300, 200)]), (2, 2, SPOT, 0, [(90, 80)])])
    with sqlite3.connect(path) as file:
        file.executemany(
            "UPDATE Slides SET directory = ? WHERE uid = ?", [(f"{root}0{min(n, 2)}", n) for n in (1, 2, 3)]
        )
    file.close()
    (tmp_path / "slides").mkdir()
    draw(tmp_path / "slides/01/25.tiff", (700, 600), [(300, 200)])
    draw(tmp_path / "slides/02/25.tiff", (700, 600), [(90, 80)])
    draw(tmp_path / "slides/02/26.tiff", (700, 600))
    command = ["slide-runner", "--database", str(path), "--slides", str(tmp_path / "slides")]
    assert run(command, tmp_path / "out") == 0
    images, _ = check_tables(tmp_path / "out")
    assert list(images.image) == ["../slides/01/25.tiff", "../slides/02/25.tiff", "../slides/02/26.tiff"]
    assert [str(case) for case in images.case] == ["1", "2", "2"]  # pandas takes them for numbers; read_tables does not
    assert [field.name for field in read_fields([tmp_path / "out"])] == ["01/25.tiff", "02/25.tiff", "02/26.tiff"]
    truths = read_labelled(1, [str(tmp_path / "out")]).truths
    assert [len(truth["annotations"]) for truth in truths.values()] == [1, 1, 0]
    assert retile.main([str(tmp_path / "out"), str(tmp_path / "tiled")]) == 0


def test_an_early_database_marks_no_deleted_cells(tmp_path):
    draw(tmp_path / "slides/a.tiff", (700, 600), [(300, 200)])
    path = tmp_path / "cells.sqlite"
    database(path, [(1, "a.tiff", 700, 600)], [(1, 2, SPOT, 0, [(300, 200)])])
    with sqlite3.connect(path) as file:
        file.execute("ALTER TABLE Annotations DROP COLUMN deleted")
    file.close()
    command = ["slide-runner", "--database", str(path), "--slides", str(tmp_path / "slides")]
    assert run(command, tmp_path / "out") == 0
    assert places(check_tables(tmp_path / "out")[1]) == {(300, 200, MITOTIC)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mitotic figure", MITOTIC),
        ("Mitotic Figures", MITOTIC),
        ("Mitosis", MITOTIC),
        ("Mitose", MITOTIC),
        ("atypical mitotic figure", MITOTIC),
        ("not mitotic figure", HARD_NEGATIVE),
        ("non-mitotic figure", HARD_NEGATIVE),
        ("Nonmitosis", HARD_NEGATIVE),
        ("Mitosis-like", HARD_NEGATIVE),
        ("Mitotic figure look-alike", HARD_NEGATIVE),
        ("hard negative", HARD_NEGATIVE),
        ("possible mitosis", UNCLEAR),
        ("Other/ambiguous", UNCLEAR),
        ("Mast cell", BACKGROUND),
        ("Eosinophils", BACKGROUND),
    ],
)
def test_class_names(name, expected):
    assert meaning(name) == expected


def test_labels_beside_the_image_are_told(midogpp, tmp_path, capsys):
    draw(tmp_path / "images/003.tiff", (400, 300))
    content = coco({3: (400, 300)}, [(3, 1, 450, 100)])
    (tmp_path / "MIDOG++.json").write_text(json.dumps(content))
    assert run(midogpp, tmp_path / "out") == 0
    assert "labels outside the image, left out: 1" in capsys.readouterr().err
    assert tables(tmp_path / "out")[1].empty


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda content: content["categories"][1].update(name="granulocyte"), "category 'granulocyte' is unknown"),
        (lambda content: content["annotations"][0].update(bbox=[575, 375, 50, 50]), "not x0, y0, x1, y1"),
        (lambda content: content["annotations"][0].update(category_id=3), "download it again"),
        (lambda content: content.pop("images"), "download it again"),
        (lambda content: content["images"][0].update(width=999), "at its full size"),
        (lambda content: content["images"][0].update(file_name="9.tiff"), "9.tiff: not found"),
        (lambda content: content["images"][1].update(file_name="001.tiff"), "two images of this name"),
    ],
)
def test_bad_regions(midogpp, tmp_path, capsys, change, line):
    path = tmp_path / "MIDOG++.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert run(midogpp, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert line in told
    assert not (tmp_path / "out/images.csv").exists()


def test_other_bad_input(midogpp, tmp_path, capsys):
    def told(command, out="out", *more):
        assert run(command, tmp_path / out, *more) == 1
        return capsys.readouterr().err

    (tmp_path / "MIDOG++.json").write_text("{")
    assert "not JSON" in told(midogpp)

    path = tmp_path / "cells.sqlite"
    command = ["slide-runner", "--database", str(path), "--slides", str(tmp_path / "images")]
    assert "not found" in told(command)
    path.write_bytes(b"no database, but long enough to be looked at")
    assert "not a database of SlideRunner" in told(command)
    path.unlink()
    database(path, [(1, "001.tiff", *SIZE)], [(1, 3, SPOT, 0, [(600, 400)])])
    assert "no mitotic figure" in told(command)
