"""Labelled fields: tables, another spacing, any number of files, crops as small regions, unclear cells, damage."""

import argparse
import os
import re
from collections import OrderedDict

import cv2
import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT
from PIL import Image

from midog.detections import Detections
from midog.errors import UserError
from midog.images.slide import ArraySlide, Slide, at_spacing
from midog.images.stain import stain_normalised
from midog.system import load_system
from resources.data import on_demand
from resources.data.fields import Field, decoded_px, is_crop, read_fields
from resources.data.on_demand import OnDemandSlide
from resources.train import rtmdet
from resources.train.kit import proposals
from resources.train.kit.arguments import add_data_arguments, read_training_data
from resources.train.kit.proposals import Proposer
from resources.train.kit.workers import batches_of

TISSUE, FIGURE, HARD_NEGATIVE = (220, 160, 190), (60, 20, 90), (20, 110, 20)


def disc(pixels, x, y, colour, radius=6):
    cv2.circle(pixels, (round(x), round(y)), radius, colour, -1, cv2.LINE_AA)


def discs(pixels, colour):
    """Centres of the discs of a colour: (K, 2) px."""
    near = np.abs(pixels.astype(int) - colour).sum(2) < 120
    return cv2.connectedComponentsWithStats(near.astype(np.uint8))[3][1:]


def assert_same_points(found, expected, tolerance):
    """Two sets of points in any order."""
    assert len(found) == len(expected)
    assert all(np.hypot(*(np.asarray(found) - point).T).min() < tolerance for point in expected)


@pytest.fixture
def folder(tmp_path):
    """Three images: case a twice, at .26 and at .5 um/px, and case b without figures; the folder."""
    made = tmp_path / "set"
    made.mkdir()
    for name, side in (("one.png", 200), ("two.png", 100), ("three.png", 200)):
        pixels = np.full((side, side, 3), TISSUE, np.uint8)
        disc(pixels, 30, 60, FIGURE)
        Image.fromarray(pixels).save(made / name)
    (made / "images.csv").write_text("image,case,um_per_px\none.png,a1,0.26\ntwo.png,a2,0.5\nthree.png,,0.25\n")
    rows = ["one.png,30,60,mitotic figure", "two.png,30,60,mitotic figure", "one.png,9,9,non-mitotic figure"]
    rows += ["one.png,150,60,unclear", "one.png,201,60,mitotic figure"]
    (made / "figures.csv").write_text("\n".join(["image,x,y,label", *rows, ""]))
    return made


# --- tables -------------------------------------------------------------------------


def test_fields_are_read_and_chosen(folder, caplog):
    one, two, three = read_fields([folder])
    assert (one.um_per_px, two.um_per_px, two.size) == ((0.26, 0.26), (0.5, 0.5), (100, 100))
    assert one.figures.tolist() == [[30, 60]]
    assert one.hard_negatives.tolist() == [[9, 9]]
    assert one.unclear.tolist() == [[150, 60]]
    assert [each.getMessage() for each in caplog.records] == [
        f"{folder / 'one.png'}: labels outside the image, left out: 1"
    ]
    assert len(three.figures) == 0
    assert two.area_mm2 == pytest.approx(0.0025)
    chosen = {"a2,three.png": ["two.png", "three.png"], "-a*": ["three.png"], "-*1,three*": ["two.png"]}
    chosen |= {"um_per_px=0.2*": ["one.png", "three.png"], "-image=t*": ["one.png"]}
    for cases, names in chosen.items():
        assert [field.name for field in read_fields([f"{folder}:{cases}"])] == names


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("images.csv", "um_per_px", "spacing", "images.csv: column um_per_px is missing"),
        ("images.csv", "0.26", "fine", "images.csv: line 2: um_per_px is fine"),
        ("images.csv", "0.26", "0", "images.csv: an um_per_px is not above 0"),
        ("images.csv", "one.png", "none.png", "none.png: cannot be read"),
        ("figures.csv", "x,y", "left,top", "figures.csv: column x, y is missing"),
        ("figures.csv", "9,9", "9,", "figures.csv: line 4: y is nan"),
        ("figures.csv", "non-mitotic", "unsure", "label 'unsure figure' is unknown"),
    ],
)
def test_broken_tables(folder, name, old, new, words):
    path = folder / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=words):
        read_fields([folder])


def with_boxes(folder, *boxes):
    """The folder's table of figures with x0, y0, x1, y1 of its rows."""
    path = folder / "figures.csv"
    first, *rows = path.read_text().splitlines()
    rows = [f"{row},{box}" for row, box in zip(rows, boxes, strict=True)]
    path.write_text("\n".join([f"{first},x0,y0,x1,y1", *rows, ""]))


def test_figures_have_the_boxes_of_their_table(folder):
    with_boxes(folder, "20,50,44,70", ",,,", "1,1,17,17", ",,,", "190,50,212,70")
    one, two, three = read_fields([folder])
    assert one.figure_boxes.tolist() == [[20, 50, 44, 70]]
    assert two.figure_boxes.shape == (1, 4)
    assert np.isnan(two.figure_boxes).all()
    assert three.figure_boxes.shape == (0, 4)
    finer = two.at(0.25)
    assert np.isnan(finer.figure_boxes).all()
    np.testing.assert_allclose(one.at(0.13).figure_boxes, [[40.5, 100.5, 88.5, 140.5]], atol=1e-4)


@pytest.mark.parametrize("box", ["20,50,20,70", "20,,44,70", "44,50,20,70", "a,50,44,70"])
def test_half_a_box_is_refused(folder, box):
    with_boxes(folder, "20,50,44,70", box, ",,,", ",,,", ",,,")
    with pytest.raises(UserError, match=r"figures.csv: line 3: box .*: x0, y0, x1, y1 with x0 < x1 and y0 < y1"):
        read_fields([folder])


def test_labels_for_an_image_of_another_size_are_refused(folder):
    """Their coordinates would be those of other places."""
    path = folder / "images.csv"
    path.write_text("image,um_per_px,width,height\none.png,0.25,400,400\n")
    with pytest.raises(UserError, match=r"one.png: 200 x 200 px, but its labels are for 400 x 400; give the image"):
        read_fields([folder])


def test_selections_that_choose_nothing(folder, tmp_path):
    for selection, words in (
        (f"{folder}:c", "case c is not there"),
        (f"{folder}:-a*,three*", "no image is left"),
        (f"{folder}:b=1", "no column b"),
    ):
        with pytest.raises(UserError, match=words):
            read_fields([selection])
    with pytest.raises(UserError, match="no images.csv"):
        read_fields([tmp_path])


# --- at another spacing -------------------------------------------------------------


@pytest.mark.parametrize("um_per_px", [0.25, 0.5, 0.8])
def test_a_field_at_another_spacing_shows_its_cells_where_it_has_them(um_per_px):
    """The same millimetres, the same pixels as inference reads, and the way back to the file; its own spacing is .5."""
    pixels = np.full((210, 307, 3), TISSUE, np.uint8)
    places = np.array([(40, 30), (200, 50), (260, 170)], np.float32)
    for place in places:
        disc(pixels, *place, FIGURE, 8)
    slide = ArraySlide(pixels, (0.5, 0.5))
    corner = 70, 90
    field = Field("a", "a", "set", slide, places, places[:1] + 20, places[1:] + 20, corner)
    seen = field.at(um_per_px)
    assert seen.um_per_px == (um_per_px, um_per_px)
    assert (seen is field) == (um_per_px == 0.5)
    np.testing.assert_array_equal(seen.read(3, 4, 50, 60), at_spacing(slide, um_per_px).read(3, 4, 50, 60))
    assert_same_points(seen.figures, discs(seen.read(0, 0, *seen.size), FIGURE), 0.6)
    for name in ("figures", "hard_negatives", "unclear"):
        own, others = getattr(field, name), getattr(seen, name)
        np.testing.assert_allclose(seen.points_mm(others), field.points_mm(own), atol=1e-6)
        np.testing.assert_allclose(seen.in_file(others), own + corner, atol=1e-3)
        np.testing.assert_allclose(seen.from_file(own + corner), others, atol=1e-3)


def test_a_field_has_the_colours_that_inference_sees(caplog):
    amounts = np.random.default_rng(0).uniform(0, 0.6, (120, 160, 2))
    pixels = (255 * 10 ** -(amounts @ [[0.6, 0.7, 0.3], [0.1, 0.9, 0.3]])).astype(np.uint8)
    slide, places = ArraySlide(pixels, (0.5, 0.5)), np.array([(40, 30)], np.float32)
    field = Field("a.png", "a", "set", slide, places)
    assert field.normalised("none") is field
    seen = field.normalised("macenko").at(0.25)
    expected = at_spacing(stain_normalised(slide), 0.25)
    np.testing.assert_array_equal(seen.read(30, 40, 50, 60), expected.read(30, 40, 50, 60))
    assert seen.figures.tolist() == [[80.5, 60.5]]
    pale = Field("pale.png", "a", "set", ArraySlide(np.full((90, 90, 3), 240, np.uint8)))
    assert pale.normalised("macenko") is pale
    assert [each.getMessage()[:18] for each in caplog.records] == ["pale.png, 90 x 90 "]


# --- any number of files ------------------------------------------------------------


@pytest.fixture
def little(monkeypatch):
    """Room for three files and half of the pixels of one; nothing is open."""
    monkeypatch.setattr(on_demand, "MAX_OPEN", 3)
    monkeypatch.setattr(on_demand, "CACHE_BYTES", 100 * 120 * 3 // 2)
    monkeypatch.setattr(on_demand, "_opened", OrderedDict())
    monkeypatch.setattr(on_demand, "_caches", [])


@pytest.fixture
def files(tmp_path):
    """Ten tiled files of noise, 120 x 100 px, by their paths."""
    made = {}
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (100, 120, 3), np.uint8)
        made[tmp_path / f"{number}.tif"] = pixels
        tifffile.imwrite(
            tmp_path / f"{number}.tif", pixels, photometric="rgb", compression="lzw", tile=(32, 32), metadata=None
        )
    return made


def descriptors(folder):
    """Numbers of this process's open files of a folder, by their names."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # that of the listing itself
            continue
        if os.path.dirname(path) == str(folder):
            found[os.path.basename(path)] = int(number)
    return found


def test_more_files_than_may_be_open_are_read_right_in_bounded_memory(little, files, tmp_path):
    slides = {path: OnDemandSlide(path, 0.25) for path in files}
    parts = {path: OnDemandSlide(path, 0.25, (10, 20, 50, 60)) for path in files}
    random = np.random.default_rng(0)
    for _ in range(150):
        path = [*files][random.integers(len(files))]
        x, y = random.integers(0, (40, 50))
        np.testing.assert_array_equal(slides[path].read(x, y, 60, 40), files[path][y : y + 40, x : x + 60])
        np.testing.assert_array_equal(parts[path].read_reflected(-1, 0, 2, 1)[0], files[path][20, [11, 10]])
        assert len(descriptors(tmp_path)) <= 3
        assert 0 < sum(each.nbytes for each in on_demand._caches[0]._kept.values()) <= on_demand.CACHE_BYTES
    with pytest.raises(ValueError, match="not inside"):
        parts[path].read(0, 0, 51, 60)


def test_a_worker_opens_files_of_its_own(little, files, tmp_path):
    """A position that both move would give either the other's bytes."""
    path = next(iter(files))
    slide = OnDemandSlide(path, 0.25)
    slide.read(0, 0, 8, 8)
    own = descriptors(tmp_path)[path.name]
    position = os.lseek(own, 0, os.SEEK_CUR)

    def make(number):
        there = len(on_demand._opened)
        return os.getpid(), there, slide.read(64, 64, 56, 36)

    for worker, there, pixels in batches_of(make, range(1)):
        assert worker != os.getpid()
        assert there == 0
        np.testing.assert_array_equal(pixels, files[path][64:, 64:])
    assert os.lseek(own, 0, os.SEEK_CUR) == position
    assert len(on_demand._opened) == 1


@pytest.mark.parametrize(
    ("segment", "decoded"),
    [((1, 1), 512 * 512), ((256, 256), 512 * 512), ((7000, 16), 7000 * 512), ((7000, 5400), 37_800_000)],
)
def test_what_a_window_costs_by_hand(segment, decoded):
    """Of an image of 7,000 x 5,400 px: mapped, in tiles, in strips, in one piece."""
    slide = Slide((7000, 5400), (0.25, 0.25))
    slide.segment = segment
    assert decoded_px(slide) == decoded


# --- crops as regions ---------------------------------------------------------------

CELLS = [(40, 200, 1), (90, 215, -1), (60, 170, 0), (300, 30, 0), (330, 60, 1), (575, 470, 1), (545, 430, -1)]


@pytest.fixture
def image():
    """An image of 600 x 500 px with `CELLS`, whose surroundings are not the same anywhere."""
    pixels = np.random.default_rng(0).integers(170, 220, (500, 600, 3), np.uint8)
    for x, y, label in CELLS:
        disc(pixels, x, y, HARD_NEGATIVE if label < 0 else FIGURE)
    return pixels


def cut(pixels, x, y, both_sides):
    """A crop of 128 px around a cell, black beyond the image: at its end, or half of that on each side."""
    left, top = x - 64, y - 64
    first, last = np.maximum((left, top), 0), np.minimum((left + 128, top + 128), (600, 500))
    inside = pixels[first[1] : last[1], first[0] : last[0]]
    start = (128 - (last - first)) // 2 if both_sides else first - (left, top)
    crop = np.zeros((128, 128, 3), np.uint8)
    crop[start[1] : start[1] + inside.shape[0], start[0] : start[0] + inside.shape[1]] = inside
    return crop, inside


@pytest.mark.parametrize("both_sides", [False, True])
def test_crops_are_regions_with_every_cell_that_lies_in_them(tmp_path, image, both_sides):
    """Black borders are left out, and figures are where they are drawn, in px of the file too."""
    rows, tissue = [], {}
    for number, (x, y, label) in enumerate(CELLS):
        crop, tissue[f"{number}.png"] = cut(image, x, y, both_sides)
        Image.fromarray(crop).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{label},case{number % 2},a.tiff,{x},{y}")
    rows.append("none.png,,case0,a.tiff,1,1")  # of no label
    (tmp_path / "labels.csv").write_text("\n".join(["file,label,case,source_image,x,y", *rows, ""]))
    fields = read_fields([tmp_path])
    assert [each.name for each in fields] == [*tissue]
    for field in fields:
        pixels = field.read(0, 0, *field.size)
        np.testing.assert_array_equal(pixels, tissue[field.name])
        for points, colour in ((field.figures, FIGURE), (field.hard_negatives, HARD_NEGATIVE)):
            middles = discs(pixels, colour)
            whole = middles[((middles > 6) & (middles < np.array(field.size) - 7)).all(1)]
            assert all(np.hypot(*(points - middle).T).min() < 1.5 for middle in whole)
            assert len(points) <= len(middles)
        file = np.asarray(Image.open(tmp_path / field.name))
        for x, y in field.in_file(field.figures).astype(int):
            assert np.abs(file[y, x].astype(int) - FIGURE).sum() < 60
    assert [len(each.figures) for each in fields] == [2, 2, 2, 2, 2, 1, 1]
    assert [len(each.hard_negatives) for each in fields] == [1, 1, 1, 0, 0, 1, 1]
    assert len(read_fields([f"{tmp_path}:case1"])) == 3


def test_crops_of_unknown_places_have_their_own_figure_alone(tmp_path, image):
    for number, (x, y, _) in enumerate(CELLS[3:5]):
        Image.fromarray(image[max(0, y - 64) : y + 64, x - 64 : x + 64]).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,0\n1.png,-1\n")
    one, two = read_fields([tmp_path])
    assert one.figures.tolist() == [[63.5, 46.5]]
    assert (len(two.figures), len(two.hard_negatives)) == (0, 1)
    assert one.um_per_px == (0.25, 0.25)


# --- cells of unclear class ---------------------------------------------------------


def test_an_unclear_cell_is_no_proposal_to_learn_from(monkeypatch):
    """A detector that finds a figure, a place 2 um from the unclear cell, and one far from both."""
    found = np.array([(50, 50), (158, 100), (150, 180)], np.float32)

    class Detector:
        def __init__(self, system, device):
            self.part = system.detector

        def __call__(self, slide):
            boxes = np.concatenate([found - 25, found + 25], 1)
            return Detections.of(boxes, np.zeros(3), slide.um_per_px, scores=np.full(3, 0.5))

    monkeypatch.setattr(proposals, "SystemDetector", Detector)
    proposer = Proposer(load_system(ROOT / "model/sztu_small"), 0.1, torch.device("cpu"))
    points = [np.array([place], np.float32) for place in ((50, 50), (20, 180), (150, 100))]
    slide = ArraySlide(np.zeros((200, 200, 3), np.uint8))
    got = proposer.gather([Field("a", "a", "set", slide, *points)], as_inference=False)
    middles = (got.boxes[:, :2] + got.boxes[:, 2:]) / 2
    assert {(*map(int, place), int(label)) for place, label in zip(middles, got.labels, strict=True)} == {
        (50, 50, 1),
        (20, 180, 0),
        (150, 180, 0),
    }


# --- crops ------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "expected"), [((160, 160), True), ((161, 160), False), ((100, 161), False)])
def test_a_crop_is_no_larger_than_40_um(size, expected):
    slide = ArraySlide(np.zeros((*size, 3), np.uint8), (0.25, 0.25))
    assert is_crop(Field("a", "a", "set", slide)) == expected


def test_at_a_threshold_of_1_there_are_labelled_cells_alone_and_nothing_is_searched(monkeypatch):
    """But where the second stage is judged, as at inference."""
    searched = []

    class Detector:
        def __init__(self, system, device):
            pass

        def __call__(self, slide):
            searched.append(slide)
            return Detections.of([[130, 130, 180, 180]], [0], slide.um_per_px, scores=[0.5])

    monkeypatch.setattr(proposals, "SystemDetector", Detector)
    proposer = Proposer(load_system(ROOT / "model/sztu_small"), 1.0, torch.device("cpu"))
    points = [np.array([place], np.float32) for place in ((50, 50), (20, 180), (150, 100))]
    field = Field("a", "a", "set", ArraySlide(np.zeros((200, 200, 3), np.uint8), (0.25, 0.25)), *points)
    got = proposer.gather([field], as_inference=False)
    assert ((got.boxes[:, :2] + got.boxes[:, 2:]) / 2).tolist() == [[50, 50], [20, 180]]
    assert (got.labels.tolist(), got.scores.tolist(), searched) == ([1, 0], [1, 1], [])
    got = proposer.gather([field], as_inference=True)
    assert (got.labels.tolist(), got.scores.tolist(), len(searched)) == ([0], [0.5], 1)


# --- damaged files ------------------------------------------------------------------


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("damage", ["truncated", "missing", "too_small"])
def test_a_bad_image_ends_a_training_in_one_line_that_names_it(data, tmp_path, damage, capfd):
    """A truncated one is found by a worker, in the middle."""
    made = tmp_path / "data"
    for name in ("fields", "crops"):
        (made / name).mkdir(parents=True)
    for table in ("images.csv", "figures.csv"):
        text = (data / "fields" / table).read_text()
        (made / "fields" / table).write_text(text.replace(".png", ".jpg"))
    for number in range(2):
        pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"fields/{number}.jpg", quality=90)
    path = made / "fields/0.jpg"
    change = ["training.detector.epochs=1", "training.detector.steps_an_epoch=2", "training.detector.batch=2"]
    change += [f"training.detector.tile=[{320 if damage == 'too_small' else 64},64]"]
    said = ["--data", f"{made}/fields:case0", "--validation", f"{made}/fields:case1", "--pretrained", "none"]
    said += ["--system", "rtmdet_tiny", "--out", str(tmp_path / "out"), "--device", "cpu", "--set", *change]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "missing":
        path.unlink()
    assert rtmdet.main(said) == 1
    error = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(error) == 1
    expected = {
        "truncated": rf"error: {path}: .*damaged",
        "missing": rf"error: {path}: cannot be read \(No such file or directory\)",
        "too_small": r"error: tile 320 x 64 px: no image is as large, the largest are 256 px wide and 256 px high",
    }
    assert re.match(expected[damage], error[0])


def test_what_a_worker_finds_wrong_is_the_user_s_line():
    def make(number):
        if number == 2:
            raise UserError("a.jpg: damaged; copy it again")
        return number

    batches = batches_of(make, range(8))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(UserError, match=r"^a.jpg: damaged; copy it again$"):
        next(batches)


# --- what a training reads ----------------------------------------------------------


def test_a_split_says_what_is_learnt_and_judged(folder, tmp_path):
    """Its fold for tests is in neither; without it, or with both ways at once, there is one line."""

    def read(*more):
        parser = argparse.ArgumentParser()
        add_data_arguments(parser)
        return read_training_data(parser.parse_args(["--data", str(folder), *more]))

    split = tmp_path / "split.csv"
    split.write_text("set,case,fold\nset,a1,train\nset,a2,validation\nset,three.png,test\n")
    for more, learnt, judged in (((), "one.png", "two.png"), (("--fold", "train"), "two.png", "one.png")):
        data = read("--split", str(split), *more)
        assert [[each.name for each in group] for group in data] == [[learnt], [judged], []]
        assert [each.um_per_px[0] for each in data.at(0.25).validation] == [0.25 if judged == "two.png" else 0.26]
    for more in ((), ("--split", str(split), "--validation", str(folder))):
        with pytest.raises(UserError, match="either --split FILE or --validation DIR expected"):
            read(*more)
    with pytest.raises(UserError, match="no mitotic figure to validate on"):
        read("--validation", f"{folder}:three.png")


def test_crops_are_not_validated_on_where_there_is_a_field(data):
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    for held_out, names in ((("fields:case1", "crops"), ["1.png"]), (("crops",), ["0.png", "1.png"])):
        said = ["--data", f"{data}/fields:case0", "--validation", *(f"{data}/{each}" for each in held_out)]
        validation = read_training_data(parser.parse_args(said)).validation
        assert [each.name.rpartition("/")[2] for each in validation] == names
