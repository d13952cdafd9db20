"""The official sets as they are downloaded become tables: made-up copies of each, hand-worked files of each format."""

import json
import sqlite3

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from midog.errors import set_up_logging
from midog.images.slide import open_slide
from resources.data import official_layouts, prepare
from resources.data.cells import boxes_around, checked_cells
from resources.data.class_names import HARD_NEGATIVE, MITOTIC, UNCLEAR
from resources.data.fields import read_fields
from resources.data.slide_runner import TEST_SLIDES

LABELLED = ("midogpp", "ccmct", "cmc", "tupac16", "icpr2012", "atypia14", "gzmh")
NO_FIGURES = ("spider", "nct-crc")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Every set as it is downloaded, prepared: the folder of both, and the cells of each."""
    folder = tmp_path_factory.mktemp("sets")
    cells = {name: official_layouts.write(name, folder / "raw" / name, images=4) for name in LABELLED + NO_FIGURES}
    cells["midog25"] = official_layouts.write("midog25", folder / "raw/midog25", images=16)
    for name in cells:
        assert prepare.main([name, str(folder / "raw" / name), "--out", str(folder / "data" / name)]) == 0
    return folder, cells


def blank(path, size=(80, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (215, 160, 200)).save(path)


def run(out, *command):
    return prepare.main([*map(str, command), "--out", str(out)])


def refused(capsys, out, *command):
    """The line that a command ends with."""
    capsys.readouterr()
    assert run(out, *command) == 1
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, told
    assert lines[0].startswith("error: ")
    assert not (out / "images.csv").exists()
    return lines[0]


def tables(out):
    return pd.read_csv(out / "images.csv", dtype={"case": str}), pd.read_csv(out / "figures.csv")


# --- made-up copies ----------------------------------------------------------------


@pytest.mark.parametrize("name", LABELLED)
def test_a_set_as_downloaded_becomes_tables_of_its_cells(made_up, name):
    folder, cells = made_up
    out = folder / "data" / name
    images, figures = tables(out)
    assert sorted(path.name for path in out.iterdir()) == ["figures.csv", "images.csv"]  # nothing is cut or copied
    assert len(images) == 4 * (2 if name in ("icpr2012", "atypia14") else 1)
    assert {"case", "tumor", "laboratory", "scanner", "um_per_px", "width", "height"} <= set(images)
    found = sorted((each.image, round(each.x), round(each.y), each.label) for each in figures.itertuples())
    expected = [
        (next(image for image in images.image if image.endswith(f"/{each.image}")), each.x, each.y, each.label)
        for each in cells[name].itertuples()
    ]
    assert found == sorted(expected)
    fields = read_fields([out])
    for field in fields:
        darkness = [field.read(int(x) - 8, int(y) - 8, 16, 16).min() for x, y in field.figures]
        assert len(darkness) >= 3
        assert max(darkness) < 90  # of chromosomes, and not of the tissue around


@pytest.mark.parametrize("name", NO_FIGURES)
def test_tissue_without_figures(made_up, name):
    images, figures = tables(made_up[0] / "data" / name)
    assert figures.empty
    assert len(images) == 4
    assert set(images.um_per_px) == {0.5}
    assert images.image.str.contains({"spider": "images/00000[0246].png", "nct-crc": "/DEB/"}[name]).all()
    assert all(len(field.figures) == 0 for field in read_fields([made_up[0] / "data" / name]))


def test_the_crops_of_track_2(made_up):
    table = pd.read_csv(made_up[0] / "data/midog25/labels.csv")
    assert (len(table), table.label.sum(), table.case.nunique()) == (16, 6, 3)
    with Image.open(made_up[0] / "data/midog25" / table.file[0]) as crop:
        assert crop.size == (128, 128)


def test_published_splits(made_up):
    for name in ("ccmct", "cmc"):
        images, _ = tables(made_up[0] / "data" / name)
        assert list(images.case[images.split == "test"]) == [TEST_SLIDES[name][0]]
    for name, tests in (("icpr2012", ["A02", "H02"]), ("gzmh", ["GZMH_003"])):
        images, _ = tables(made_up[0] / "data" / name)
        assert list(images.case[images.split == "test"]) == tests


def test_a_copy_is_the_same_again_and_as_large_as_asked_for(tmp_path):
    for place in ("one", "two"):
        cells = official_layouts.write("ccmct", tmp_path / place, images=1, size=(1920, 1280))
    slide = "WSI/0e56fd11a762be0983f0.svs"
    assert (tmp_path / "one" / slide).read_bytes() == (tmp_path / "two" / slide).read_bytes()
    with open_slide(tmp_path / "one" / slide) as opened:
        assert (opened.size, opened.um_per_px) == ((1920, 1280), (0.25, 0.25))
    assert len(cells) == 6 * 7  # of six pieces


@pytest.mark.parametrize("name", official_layouts.SAYS_SIZE)
def test_an_image_of_another_size_is_refused(tmp_path, capsys, name):
    official_layouts.write(name, tmp_path / "raw", images=1, wrong_size=True)
    line = refused(capsys, tmp_path / "out", name, tmp_path / "raw")
    assert "576 x 640 px, but its labels are for 640 x 640" in line


def test_copies_that_cannot_be_made(tmp_path, capsys):
    for more, line in (
        (["--size", "512", "640"], "too small"),
        (["--wrong-size"], "says no size"),
    ):
        assert official_layouts.main(["icpr2012", str(tmp_path), *more]) == 1
        assert line in capsys.readouterr().err


# --- cells -------------------------------------------------------------------------


def cells(*rows):
    return boxes_around(pd.DataFrame(rows, columns=["image", "x", "y", "label"]))


def test_cells_twice_in_both_classes_and_too_large(tmp_path, capsys):
    figures = cells(
        ("a", 100, 100, MITOTIC),
        ("a", 106, 108, MITOTIC),  # 10 px from the first: the same
        ("a", 111, 100, MITOTIC),  # 11 px from the first, but 9.4 from the second: the same again
        ("b", 100, 100, HARD_NEGATIVE),  # another image
        ("b", 200, 100, HARD_NEGATIVE),
        ("b", 203, 100, MITOTIC),
        ("b", 300, 100, UNCLEAR),
        ("b", 300, 100, HARD_NEGATIVE),  # a class is more than none
        ("b", 400, 100, MITOTIC),
        ("b", 411, 100, HARD_NEGATIVE),  # 11 px: two cells
        ("b", 900, 100, MITOTIC),
    )
    figures.loc[10, "x1"] = 1100
    set_up_logging()
    kept = checked_cells(tmp_path / "labels", figures)
    assert list(kept.itertuples(index=False, name=None)) == list(
        cells(
            ("a", 100, 100, MITOTIC),
            ("b", 100, 100, HARD_NEGATIVE),
            ("b", 200, 100, UNCLEAR),
            ("b", 300, 100, HARD_NEGATIVE),
            ("b", 400, 100, MITOTIC),
            ("b", 411, 100, HARD_NEGATIVE),
        ).itertuples(index=False, name=None)
    )
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path}/labels: annotations of more than 200 px, left out: 1, the first on b at 900, 100",
        f"warning: {tmp_path}/labels: cells listed twice, taken once: 3, the first on a at 106, 108",
        f"warning: {tmp_path}/labels: cells in both classes, taken as unclear: 1, the first on b at 200, 100",
    ]


# --- MIDOG++ -----------------------------------------------------------------------


def test_images_that_were_never_annotated_are_no_tissue_without_figures(tmp_path, capsys):
    official_layouts.write("midogpp", tmp_path / "raw", images=1)
    blank(tmp_path / "raw/images/160.tiff", (6200, 4650))  # MIDOG 2021 has it
    assert run(tmp_path / "out", "midogpp", tmp_path / "raw") == 0
    assert list(tables(tmp_path / "out")[0].case) == ["MIDOGpp_001"]
    told = capsys.readouterr().out
    assert "never annotated and not in the official download, left out: 50 of 51 images (151.tiff to 200.tiff)" in told
    assert "not there" not in told


def test_width_and_height_read_as_corners_are_refused(tmp_path, capsys):
    official_layouts.write("midogpp", tmp_path / "raw", images=1)
    path = tmp_path / "raw/MIDOG++.json"
    content = json.loads(path.read_text())
    for each in content["annotations"]:
        each["bbox"] = [each["bbox"][0], each["bbox"][1], each["bbox"][0] + 900, each["bbox"][1] + 900]
    path.write_text(json.dumps(content))
    assert "not x0, y0, x1, y1 of a cell" in refused(capsys, tmp_path / "out", "midogpp", tmp_path / "raw")


def test_files_that_are_not_where_they_should_be(tmp_path, capsys):
    raw = tmp_path / "raw"
    official_layouts.write("midogpp", raw, images=1)
    command = "midogpp", raw
    blank(raw / "old/001.tiff")
    assert "has this name, too" in refused(capsys, tmp_path / "out", *command)
    (raw / "old/001.tiff").unlink()
    (raw / "MIDOG_2021.json").write_text("{}")
    assert "found MIDOG++.json, MIDOG_2021.json; name it with --json" in refused(capsys, tmp_path / "out", *command)
    (raw / "MIDOG_2021.json").unlink()
    (raw / "images/001.tiff").unlink()
    assert "001.tiff: not found (nor 0 more)" in refused(capsys, tmp_path / "out", *command)
    assert "no such folder" in refused(capsys, tmp_path / "out", "midogpp", tmp_path / "none")
    line = refused(capsys, tmp_path / "out", "midogpp", "--json", raw / "MIDOG++.json")
    assert "or --json and --images" in line


# --- SlideRunner and TUPAC16 ---------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("ALTER TABLE Annotations DROP COLUMN agreedClass", "table Annotations has no agreedClass"),
        ("DROP TABLE Annotations_coordinates", "table Annotations_coordinates is missing"),
    ],
)
def test_a_database_of_another_version(tmp_path, capsys, change, line):
    official_layouts.write("cmc", tmp_path / "raw", images=1)
    file = sqlite3.connect(next((tmp_path / "raw").glob("*.sqlite")))
    file.execute(change)
    file.commit()
    file.close()
    assert line in refused(capsys, tmp_path / "out", "cmc", tmp_path / "raw")


def test_one_of_several_databases_is_named(tmp_path, capsys):
    raw = tmp_path / "raw"
    official_layouts.write("tupac16", raw, images=2)
    name = official_layouts.DATABASES["tupac16"]
    (raw / "TUPAC_stitched.sqlite").write_bytes((raw / name).read_bytes())
    assert "name the file with --database" in refused(capsys, tmp_path / "out", "tupac16", raw)
    assert run(tmp_path / "out", "tupac16", raw, "--database", raw / name) == 0
    images, _ = tables(tmp_path / "out")
    assert list(images.case) == ["TUPAC16_01", "TUPAC16_24"]
    assert list(images.scanner) == ["Aperio ScanScope XT", "Leica SCN400"]


def test_the_csv_files_of_tupac16_have_y_before_x(tmp_path):
    for name in ("01/01.tif", "01/02.tif", "24/01.tif", "99/01.tif"):  # nobody labelled the last patient
        blank(tmp_path / "raw/mitoses_image_data" / name)
    for name, text in (("mitoses", "10,70\n40,20\n"), ("nonmitoses", "30,50,0.9\n")):
        folder = tmp_path / f"raw/TUPAC_AL/{name}_ground_truth"
        (folder / "01").mkdir(parents=True)
        (folder / "01/01.csv").write_text(text)
    (folder / "24").mkdir()
    (folder / "24/01.csv").write_text("")
    assert run(tmp_path / "out", "tupac16", tmp_path / "raw") == 0
    images, figures = tables(tmp_path / "out")
    assert list(images.case) == ["TUPAC16_01", "TUPAC16_01", "TUPAC16_24"]
    assert list(zip(figures.x, figures.y, figures.label, strict=True)) == [
        (70, 10, MITOTIC),
        (20, 40, MITOTIC),
        (50, 30, HARD_NEGATIVE),
    ]


# --- ICPR 2012 and MITOS-ATYPIA 14 ---------------------------------------------------


def test_a_line_of_pixels_is_a_figure(tmp_path, capsys):
    raw = tmp_path / "raw"
    for name in ("training_aperio/A03_01.bmp", "evaluation_aperio/A00_08.bmp", "training_hamamatsu/H03_01.bmp"):
        blank(raw / name)
    Image.new("RGB", (80, 60), "yellow").save(raw / "training_aperio/A03_01.jpg")  # with the figures painted over
    (raw / "training_aperio/A03_01.csv").write_text("10,20,12,20,11,23\n\n40,30,\n")
    (raw / "evaluation_aperio/A00_08.csv").write_text("")
    assert run(tmp_path / "out", "icpr2012", raw) == 0
    images, figures = tables(tmp_path / "out")
    assert figures.loc[:, "x":"y1"].to_numpy().tolist() == [
        [11, 21, 9.5, 19.5, 12.5, 23.5],
        [40, 30, 39.5, 29.5, 40.5, 30.5],
    ]
    assert list(images.case) == ["A00", "A03"]
    assert list(images.slide) == ["Paris ICPR 00", "Paris 03"]  # the second is ATYPIA's glass, too
    assert list(images.split) == ["test", "train"]
    assert list(images.um_per_px) == [0.2456, 0.2456]
    assert "fields without csv, left out: 1 of 3, the first H03_01" in capsys.readouterr().out
    assert read_fields([tmp_path / "out:A03"])[0].read(0, 0, 2, 1).tolist() == [[[215, 160, 200]] * 2]

    (raw / "training_aperio/A03_01.csv").write_text("10,20,12\n")
    assert "line 1: 3 numbers" in refused(capsys, tmp_path / "bad", "icpr2012", raw)
    (raw / "training_aperio/A03_01.csv").write_text("10,20\n")
    (raw / "training_aperio/A03_01.bmp").unlink()
    assert "A03_01.bmp: not found (nor 0 more)" in refused(capsys, tmp_path / "bad", "icpr2012", raw)
    assert "unpack the archives" in refused(capsys, tmp_path / "bad", "icpr2012", raw / "training_hamamatsu")


def test_the_score_says_the_majority(tmp_path, capsys):
    raw = tmp_path / "raw"
    for name in ("A03_00Aa", "A03_00Ab", "A03_00A"):
        blank(raw / f"A03/frames/x{20 if name.endswith('A') else 40}/{name}.tiff")
    (raw / "A03/mitosis").mkdir()
    (raw / "A03/mitosis/A03_00Aa_mitosis.csv").write_text("10,20,0.65\n40,20,0.2\n70,20,0.5\n")
    (raw / "A03/mitosis/A03_00Aa_not_mitosis.csv").write_text("10,50,0.2\n40,50\n")
    assert run(tmp_path / "out", "atypia14", raw) == 0
    images, figures = tables(tmp_path / "out")
    assert list(images.slide) == ["Paris 03"]
    labels = [MITOTIC, HARD_NEGATIVE, UNCLEAR, HARD_NEGATIVE, HARD_NEGATIVE]
    assert list(figures.label) == labels
    assert figures.score.to_list()[:4] == [0.65, 0.2, 0.5, 0.2]
    told = capsys.readouterr()
    assert (
        "score is not as their file says, labelled by it: 2, the first on A03/frames/x40/A03_00Aa.tiff at 40, 20"
        in told.err
    )
    assert "frames without csv, left out: 1 of 2, the first A03_00Ab" in told.out
    (raw / "A03/mitosis/A03_00Aa_mitosis.csv").write_text("x,y,score\n")
    assert "lines of x,y,score expected" in refused(capsys, tmp_path / "bad", "atypia14", raw)


# --- GZMH, SPIDER, NCT-CRC-HE-100K ---------------------------------------------------


def test_damaged_annotations_of_gzmh(tmp_path, capsys):
    raw = tmp_path / "raw"
    official_layouts.write("gzmh", raw, images=1)
    path = raw / "Annotations/001_0.xml"
    text = path.read_text()
    for damaged in (text[:-5], text.replace("xmin", "left")):
        path.write_text(damaged)
        assert "001_0.xml: not an annotation of Pascal VOC" in refused(capsys, tmp_path / "out", "gzmh", raw)
    path.unlink()
    assert "no .xml below it" in refused(capsys, tmp_path / "out", "gzmh", raw)


def test_spider_without_necrosis_and_nct_crc_without_debris(tmp_path, capsys):
    path = tmp_path / "SPIDER-skin/metadata.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"class": "Fat", "image_name": "1.png"}]))
    assert "none of the classes is necrosis: Fat" in refused(capsys, tmp_path / "out", "spider", tmp_path)
    path.write_text(json.dumps([{"label": "Necrosis"}]))
    assert "records of class, slide_id" in refused(capsys, tmp_path / "out", "spider", tmp_path)
    path.unlink()
    assert "no metadata.json" in refused(capsys, tmp_path / "out", "spider", tmp_path)
    assert "no DEB/*.tif" in refused(capsys, tmp_path / "out", "nct-crc", tmp_path)


def test_patches_that_are_not_there_are_counted(tmp_path, capsys):
    official_layouts.write("spider", tmp_path / "raw", images=2)
    (tmp_path / "raw/SPIDER-colorectal/images/000000.png").unlink()
    assert run(tmp_path / "out", "spider", tmp_path / "raw") == 0
    assert "not there and without labels, left out: 1 of 2 images" in capsys.readouterr().out


# --- Track 2 -------------------------------------------------------------------------


@pytest.fixture
def votes(tmp_path):
    """Four crops and the table of their votes: the command, and the table's path and text."""
    for number in range(1, 5):
        blank(tmp_path / f"raw/AtNorM-MD/{number}.png", (128, 128))
    path = tmp_path / "raw/AtNorM-MD_expert_votes.csv"
    text = "image,expert1,expert2,expert3\n1.png,NMF,NMF,NMF\n2.png,AMF,NMF,AMF\n3.png,NMF,,NMF\n4.png,AMF,AMF,AMF\n"
    path.write_text(text)
    return ("atnorm", tmp_path / "raw"), path, text


def test_votes_become_labels(votes, tmp_path, capsys):
    command, path, text = votes
    path.write_text(text + "1.png,NMF,NMF,NMF\n3.png,AMF,AMF,NMF\n")  # one twice, one in both classes
    assert run(tmp_path / "out", *command) == 0
    table = pd.read_csv(tmp_path / "out/labels.csv")
    assert list(table.file) == ["crops/1.png", "crops/2.png", "crops/4.png"]
    assert list(table.label) == [0, 1, 1]
    assert np.allclose(table.vote_atypical, [0, 0.6667, 1])
    assert list(table.n_votes) == [3, 3, 3]
    assert list(table.case) == ["AtNorM-MD_1", "AtNorM-MD_2", "AtNorM-MD_4"]
    told = capsys.readouterr().err
    assert "crops listed twice, taken once: 1, the first 1.png" in told
    assert "crops in both classes, left out: 1, the first 3.png" in told


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("3.png,NMF,,NMF", "3.png,NMF,maybe,NMF", "expert2 is 'maybe' in a row"),
        ("3.png,NMF,,NMF", "3.png,NMF,AMF,", "line 4: as many say atypical as normal"),
        ("3.png,NMF,,NMF", "3.png,,,", "line 4: no label"),
        ("3.png", "5.png", "5.png: not found (nor 0 more)"),
        ("expert", "reader", "expert1, expert2, ... expected"),
    ],
)
def test_bad_votes(votes, tmp_path, capsys, old, new, line):
    command, path, text = votes
    path.write_text(text.replace(old, new))
    assert line in refused(capsys, tmp_path / "out", *command)


def test_a_crop_of_midog25_listed_twice(tmp_path, capsys):
    official_layouts.write("midog25", tmp_path / "raw", images=8)
    path = tmp_path / "raw/MIDOG25.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    assert run(tmp_path / "out", "midog25", tmp_path / "raw") == 0
    assert "crops listed twice, taken once: 1, the first 1.png" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "out/labels.csv")) == 8
