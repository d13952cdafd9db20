"""Mining hard negatives: what is mined, where it comes back, and every refusal in one line."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from midog.detections import Detections
from midog.errors import UserError
from midog.system import DataSource
from resources.data import synthetic
from resources.data.fields import add_mined, read_fields
from resources.train import mine
from resources.train.kit.export import data_sources

pytestmark = pytest.mark.usefixtures("one_thread")

FIGURE = (60.0, 60.0)
# Where a stub detects in every field, in px of .25 um, and with what score.
DETECTED = (
    (60.0, 61.0, 0.9),  # the figure, or an unclear cell
    (60.0, 109.0, 0.9),  # 12.25 um from it
    (60.0, 111.0, 0.8),  # 12.75 um
    (150.0, 20.0, 0.25),
    (20.0, 150.0, 0.24),
)


@pytest.fixture
def folder(tmp_path):
    """fine.png at .25 um/px with a figure and coarse.png at .5 with an unclear cell at the same place, each of
    50 x 50 um; the folder."""
    made = tmp_path / "set"
    made.mkdir()
    for name, side in (("fine.png", 200), ("coarse.png", 100)):
        cv2.imwrite(str(made / name), np.full((side, side, 3), 200, np.uint8))
    (made / "images.csv").write_text("image,um_per_px\nfine.png,0.25\ncoarse.png,0.5\n")
    x = (FIGURE[0] + 0.5) / 2 - 0.5
    rows = [f"fine.png,{FIGURE[0]},{FIGURE[1]},mitotic figure", f"coarse.png,{x},{x},unclear"]
    (made / "figures.csv").write_text("\n".join(["image,x,y,label", *rows, ""]))
    return made


@pytest.fixture
def detector(monkeypatch):
    """In `SystemDetector`'s place: one that finds `DETECTED`."""

    class Detector:
        def __init__(self, system, device):
            assert system.classifier is None

        def __call__(self, field):
            px = 0.25 / field.um_per_px[0]
            x, y, scores = np.array(DETECTED, np.float32).T
            boxes = (np.stack([x - 25, y - 20, x + 25, y + 20], 1) + 0.5) * px - 0.5
            return Detections.of(boxes, np.zeros(len(boxes)), field.um_per_px, scores=scores)

    monkeypatch.setattr(mine, "SystemDetector", Detector)


def run(out, *data, more=()):
    return mine.main(["--model", str(ROOT / "model"), "--data", *map(str, data), "--out", str(out), *more])


def test_what_is_mined_comes_back_where_it_was_found(folder, detector, tmp_path, capsys):
    out = tmp_path / "new" / "mined.csv"
    assert run(out, folder) == 0
    assert capsys.readouterr().out == f"{out}: 2 images, 0.01 mm2, 8 detections, 4 hard negatives (800.0 a mm2)\n"
    assert [path.name for path in out.parent.iterdir()] == ["mined.csv"]
    table = pd.read_csv(out)
    assert table.columns.tolist() == ["set", "image", "x", "y", "label", "score"]
    assert table.groupby("image").first().loc["coarse.png"].tolist() == ["set", 29.75, 55.25, "non-mitotic figure", 0.8]
    assert table.groupby("image").first().loc["fine.png"].tolist() == ["set", 60, 111, "non-mitotic figure", 0.8]
    for before, after in zip(read_fields([folder]), add_mined(read_fields([folder]), [out]), strict=True):
        assert after.hard_negatives.dtype == np.float32
        px = 0.25 / after.um_per_px[0]
        assert after.hard_negatives == pytest.approx((np.array([[60, 111], [150, 20]]) + 0.5) * px - 0.5)
        assert np.array_equal(after.figures, before.figures)


def test_the_threshold_is_the_users_down_to_the_systems_own(folder, detector, tmp_path, capsys):
    out = tmp_path / "mined.csv"
    for threshold, scores in (("0.2", {0.8, 0.25, 0.24}), ("0.3", {0.8}), ("0.95", set())):
        assert run(out, folder, more=["--system", "rtmdet_two_stages", "--threshold", threshold]) == 0
        assert {*pd.read_csv(out).score} == scores
    capsys.readouterr()
    assert run(out, folder, more=["--system", "rtmdet_two_stages", "--threshold", "0.1"]) == 1
    error = capsys.readouterr().err
    assert "score_threshold is 0.2, nothing is found below; give --threshold 0.2 or more" in error
    assert error.count("\n") == 1


def test_tissue_without_figures_is_mined_by_a_shipped_system(tmp_path):
    """The same tile without its labels and with: what is on its figures is mined from the former alone."""
    pixels, places, _ = synthetic.region(2025)
    pixels, places = pixels[:512, 1000:1512], places - (1000, 0)
    made = {name: tmp_path / name for name in ("quiet", "labelled")}
    for folder in made.values():
        folder.mkdir()
        cv2.imwrite(str(folder / "a.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        (folder / "labels.csv").write_text("image,um_per_px\na.png,0.25\n")
    rows = [f"a.png,{x},{y},mitotic figure" for x, y in places]
    (made["labelled"] / "figures.csv").write_text("\n".join(["image,x,y,label", *rows, ""]))
    assert run(tmp_path / "mined.csv", *made.values(), more=("--system", "sztu_small")) == 0
    mined = pd.read_csv(tmp_path / "mined.csv")
    quiet, labelled = ({*zip(rows.x, rows.y, strict=True)} for rows in (mined[mined.set == name] for name in made))

    def on_figures(points):
        return {point for point in points if np.hypot(*(places - point).T).min() <= 50}

    assert on_figures(quiet)
    assert labelled == quiet - on_figures(quiet)


def write_mined(path, *rows, columns="set,image,x,y,label,score"):
    path.write_text("\n".join([columns, *rows, ""]))
    return path


def test_a_cell_is_added_once_and_a_figure_never(folder, tmp_path):
    first = write_mined(
        tmp_path / "first.csv",
        "set,fine.png,61,61,non-mitotic figure,.9",  # the figure, labelled since
        "set,fine.png,150,20,non-mitotic figure,.9",
        "set,coarse.png,30,31,non-mitotic figure,.9",  # an unclear cell
        "set,held_out.png,9,9,non-mitotic figure,.9",
        "other,coarse.png,9,9,non-mitotic figure,.9",
    )
    second = write_mined(
        tmp_path / "second.csv",
        "set,fine.png,150,49,non-mitotic figure,.9",  # 7.25 um from the first's
        "set,fine.png,150,51,non-mitotic figure,.9",
    )
    fine, coarse = add_mined(read_fields([folder]), [first, second])
    assert fine.hard_negatives.tolist() == [[150, 20], [150, 51]]
    assert coarse.hard_negatives.tolist() == []
    labelled = replace(fine, hard_negatives=np.array([[150, 35]], np.float32))
    assert add_mined([labelled], [first, second])[0].hard_negatives.tolist() == [[150, 35]]


def test_without_files_nothing_changes(folder):
    assert [len(field.hard_negatives) for field in add_mined(read_fields([folder]), [])] == [0, 0]


@pytest.mark.parametrize(
    ("row", "columns", "words"),
    [
        ("set,fine.png,1,2,non-mitotic figure", "set,image,x,y,label", "column score is missing"),
        ("set,fine.png,1,?,non-mitotic figure,.5", None, "line 2: y is ?, a number expected"),
        ("set,fine.png,inf,2,non-mitotic figure,.5", None, "line 2: x is inf, a number expected"),
        ("set,fine.png,1,2,mitotic figure,.5", None, "line 2: label 'mitotic figure', only 'non-mitotic figure'"),
        ("set,held_out.png,1,2,non-mitotic figure,.5", None, "no row for any of the images of --data"),
        ('set,"fine.png,1,2,non-mitotic figure,.5', None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_added(folder, tmp_path, row, columns, words):
    path = write_mined(tmp_path / "mined.csv", row, columns=columns or "set,image,x,y,label,score")
    with pytest.raises(UserError) as error:
        add_mined(read_fields([folder]), [path])
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(folder, tmp_path):
    with pytest.raises(UserError, match=r"none.csv: cannot be read .* make it with midog train mine"):
        add_mined(read_fields([folder]), [tmp_path / "none.csv"])


def test_a_training_names_what_it_was_given_and_lists_at_the_sets_that_their_rows_lie_in(folder, tmp_path):
    """Two lists for the first set, of which the second has rows in another set, too, and one for a set not learnt."""
    both = "set,fine.png,1,2,non-mitotic figure,.9", "two,a.png,1,2,non-mitotic figure,.9"
    lists = [write_mined(tmp_path / "a.csv", both[0]), write_mined(tmp_path / "b.csv", *both)]
    lists.append(write_mined(tmp_path / "c.csv", "other,a.png,1,2,non-mitotic figure,.9"))
    first, second, _ = (hashlib.sha256(path.read_bytes()).hexdigest() for path in lists)
    data = [str(folder), "d/two:A1,A2*", "d/three:-B1", f"{folder}:um_per_px=0.5"]
    in_set = ",".join(sorted([first, second]))
    assert data_sources(data, map(str, lists), ["c/crops"]) == (
        DataSource(set="set", mined_sha256=in_set),
        DataSource(set="two", cases=("A1", "A2*"), mined_sha256=second),
        DataSource(set="three", without=("B1",)),
        DataSource(set="set", cases=("coarse.png",), mined_sha256=in_set),
        DataSource(set="crops"),
    )
