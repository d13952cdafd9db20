"""Public data sets become tiles: coordinates, classes, tiles without figures, a kill and a resume, bad input."""

import json
import os
import sqlite3

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from resources.data import cut, prepare
from resources.data.class_names import BACKGROUND, HARD_NEGATIVE, MITOTIC, UNCLEAR, meaning
from resources.data.fields import read_fields

TISSUE, PALE, MITOSIS, OTHER = (215, 160, 200), (235, 190, 225), (40, 20, 90), (120, 50, 20)
SIZE = 2000, 1500  # 5 x 4 tiles: left 0, 372, 744, 1116, 1488; top 0, 329, 658, 988
# The second's centre lies just left of the third column of tiles; its box, and some of its pixels, reach into it.
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
    """Two regions, the second without labels; the command that cuts all their tiles, without --out."""
    draw(tmp_path / "images/001.tiff", SIZE, FIGURES, HARD_NEGATIVES)
    draw(tmp_path / "images/002.tiff", (700, 600), um_per_px=0.25)
    cells = [(1, 1, x, y) for x, y in FIGURES] + [(1, 2, x, y) for x, y in HARD_NEGATIVES]
    (tmp_path / "MIDOG++.json").write_text(json.dumps(coco({1: SIZE, 2: (700, 600)}, cells)))
    return ["midogpp", "--json", str(tmp_path / "MIDOG++.json"), "--images", str(tmp_path / "images")]


def run(command, out, *more):
    return prepare.main([*command, "--out", str(out), *more])


def tables(out):
    return pd.read_csv(out / "images.csv"), pd.read_csv(out / "figures.csv")


def pixels_of(out, name):
    return np.array(Image.open(out / name))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_tiles(out):
    """Every label points at its cell, and every cell's pixel in a tile is near a label of its own class."""
    images, figures = tables(out)
    for name in images.image:
        pixels = pixels_of(out, name).astype(int)
        assert pixels.shape == (512, 512, 3)
        rows = figures[figures.image == name]
        for row in rows.itertuples():
            colour = pixels[round(row.y), round(row.x)]
            assert np.abs(colour - (MITOSIS if row.label == MITOTIC else OTHER)).max() < 25
            assert ((row.x0 + row.x1) / 2, (row.y0 + row.y1) / 2) == (row.x, row.y)
        if rows.empty:
            assert pixels.min() > 130
    return images, figures


def test_regions_of_midogpp(midogpp, tmp_path, capsys):
    assert run(midogpp, tmp_path / "out", "--negatives", "1000") == 0
    images, figures = check_tiles(tmp_path / "out")
    assert set(figures.label) == {MITOTIC, HARD_NEGATIVE}
    for cells, label in ((FIGURES, MITOTIC), (HARD_NEGATIVES, HARD_NEGATIVE)):
        rows = figures[figures.label == label].merge(images, on="image")
        assert {(x, y) for x, y in zip(rows.x + rows.source_x, rows.y + rows.source_y, strict=True)} == set(cells)
    # (740, 1400) is in the tile at 372, 988 only; the tile at 744, 988 has a corner of the cell and is not used
    places = set(zip(images.source_x, images.source_y, strict=True))
    assert (372, 988) in places
    assert (744, 988) not in places
    assert images.groupby("source_image").case.unique().str[0].to_dict() == {
        "001.tiff": "MIDOGpp_001",
        "002.tiff": "MIDOGpp_002",
    }
    assert images.groupby("case").um_per_px.mean().to_list() == pytest.approx([0.23, 0.25], abs=1e-4)
    assert set(images.tumor) == {"human melanoma"}
    assert (images.source_image == "002.tiff").sum() == 4
    assert "hard negatives" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.part"))
    assert not (tmp_path / "out/unfinished").exists()


def test_the_table_is_what_training_reads(midogpp, tmp_path):
    assert run(midogpp, tmp_path / "out") == 0
    _, figures = tables(tmp_path / "out")
    fields = read_fields([tmp_path / "out"])
    assert sum(len(field.figures) for field in fields) == (figures.label == MITOTIC).sum()
    assert sum(len(field.hard_negatives) for field in fields) == (figures.label == HARD_NEGATIVE).sum()
    for field in fields:
        for x, y in np.round(field.figures).astype(int):
            assert np.abs(field.pixels[y, x].astype(int) - MITOSIS).max() < 25


def test_as_many_tiles_without_figures_as_with(midogpp, tmp_path):
    assert run(midogpp, tmp_path / "out") == 0
    images, figures = tables(tmp_path / "out")
    first = images[images.source_image == "001.tiff"]
    assert 2 * first.image.isin(figures.image).sum() == len(first)
    assert (images.source_image == "002.tiff").sum() == cut.MIN_NEGATIVES
    assert run(midogpp, tmp_path / "none", "--negatives", "0") == 0
    images, figures = tables(tmp_path / "none")
    assert set(images.image) == set(figures.image)


def test_spacing_where_the_image_tells_none(midogpp, tmp_path, capsys):
    draw(tmp_path / "images/002.png", (700, 600), um_per_px=0.25)
    Image.open(tmp_path / "images/002.png").save(tmp_path / "images/003.png")  # Pillow drops the resolution
    content = coco({2: (700, 600), 3: (700, 600)}, [(2, 1, 300, 300)])
    for image in content["images"]:
        image["file_name"] = image["file_name"].replace("tiff", "png")
    (tmp_path / "MIDOG++.json").write_text(json.dumps(content))
    assert run(midogpp, tmp_path / "out", "--mpp", "0.5") == 0
    images, _ = tables(tmp_path / "out")
    assert images.groupby("source_image").um_per_px.mean().to_list() == pytest.approx([0.25, 0.5], abs=1e-4)
    assert "003.png: no resolution" in capsys.readouterr().err


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
    assert run(command, tmp_path / "out", "--negatives", "1000") == 0
    images, figures = check_tiles(tmp_path / "out")
    rows = figures.merge(images, on="image")
    found = set(zip(rows.x + rows.source_x, rows.y + rows.source_y, rows.label, strict=True))
    assert found == {(600, 400, MITOTIC), (300, 1200, MITOTIC), (1100, 380, HARD_NEGATIVE)}
    assert set(figures.x1 - figures.x0) == {50}
    # the tile of the cell without agreement is neither with figures nor without; the granulocyte's is background
    places = set(zip(images.source_x, images.source_y, strict=True))
    assert (1488, 988) not in places
    assert (1488, 0) in places
    assert set(images.case) == {"a 1", "b"}
    told = capsys.readouterr().out
    assert "class 'Mitotic figure': 2 cells, taken as mitotic figure" in told
    assert "class 'Mitotic figure lookalike': 1 cells, taken as non-mitotic figure" in told
    assert "class 'Granulocyte': 1 cells, taken as background" in told
    assert "class 'without agreement': 1 cells, taken as unclear" in told


def test_an_early_database_marks_no_deleted_cells(tmp_path):
    draw(tmp_path / "slides/a.tiff", (700, 600), [(300, 200)])
    path = tmp_path / "cells.sqlite"
    database(path, [(1, "a.tiff", 700, 600)], [(1, 2, SPOT, 0, [(300, 200)])])
    with sqlite3.connect(path) as file:
        file.execute("ALTER TABLE Annotations DROP COLUMN deleted")
    file.close()
    command = ["slide-runner", "--database", str(path), "--slides", str(tmp_path / "slides")]
    assert run(command, tmp_path / "out") == 0
    assert len(check_tiles(tmp_path / "out")[1]) > 0


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


def test_a_killed_run_resumes_to_the_same_folder(midogpp, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    replace, calls = os.replace, []
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append(paths), replace(*paths)))
    assert run(midogpp, tmp_path / "whole") == 0
    last = len(calls) - 1

    for stop in (1, 5, last // 2, last - 1, last):
        out = tmp_path / str(stop)
        calls.clear()

        def killed_before(*paths, stop=stop):
            calls.append(paths)
            if len(calls) > stop:
                raise Killed
            replace(*paths)

        monkeypatch.setattr(os, "replace", killed_before)
        with pytest.raises(Killed):
            run(midogpp, out)
        assert not (out / "images.csv").exists()
        monkeypatch.setattr(os, "replace", replace)
        assert run(midogpp, out) == 0
        assert contents(out) == contents(tmp_path / "whole")


def test_finished_images_are_not_cut_again(midogpp, tmp_path, monkeypatch, capsys):
    read = []
    open_slide = cut.open_slide

    def told(path, *arguments, **options):
        read.append(path.name)
        return open_slide(path, *arguments, **options)

    monkeypatch.setattr(cut, "open_slide", told)
    (tmp_path / "images/002.tiff").rename(tmp_path / "held back")
    (tmp_path / "images/002.tiff").write_bytes(b"no image")
    assert run(midogpp, tmp_path / "out") == 1
    assert "002.tiff" in capsys.readouterr().err
    (tmp_path / "held back").rename(tmp_path / "images/002.tiff")
    assert run(midogpp, tmp_path / "out") == 0
    assert run(midogpp, tmp_path / "out") == 0
    assert read == ["001.tiff", "002.tiff", "002.tiff"]
    assert run(midogpp, tmp_path / "out", "--negatives", "3") == 1
    assert "another --out" in capsys.readouterr().err


def test_labels_beside_the_image_are_told(midogpp, tmp_path, capsys):
    draw(tmp_path / "images/003.tiff", (400, 300))
    content = coco({3: (400, 300)}, [(3, 1, 450, 100)])  # in the tile, but beyond the image
    (tmp_path / "MIDOG++.json").write_text(json.dumps(content))
    assert run(midogpp, tmp_path / "out") == 0
    assert "labels outside the image, left out: 1" in capsys.readouterr().err
    assert tables(tmp_path / "out")[1].empty
    assert run(midogpp, tmp_path / "nothing", "--negatives", "0") == 1
    assert "nothing to train on" in capsys.readouterr().err


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

    (tmp_path / "used").mkdir()
    (tmp_path / "used/images.csv").write_text("image\n")
    assert "is not empty" in told(midogpp, "used")
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
    with pytest.raises(SystemExit):
        run(midogpp, tmp_path / "out", "--negatives", "-1")
