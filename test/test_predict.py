"""Many images in one go: what is run, what is kept, what fails, here and on a scheduler's workers."""

import csv
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from datetime import datetime, timedelta
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from compare import differences
from conftest import ROOT, Killed
from images.writers import write_dicom
from test_detect import write_random_system

from midog import __main__ as commands
from midog.about import END_BYTES, identity, read_about
from midog.calibration import logit, shift_to_half, sigmoid
from midog.detections import Detections
from midog.errors import exit_code
from midog.evaluation import local_threshold
from midog.images.folder import open_stack
from midog.images.slide import open_slide
from midog.job import atypical_result
from midog.predict import expand

REGION = next((ROOT / "test/input/track1/images").glob("*/*.tif*"))
STACK = next((ROOT / "test/input/track2/images").glob("*/*.tif*"))
POINTS = "mitotic-figures.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights for Track 1."""
    folder = tmp_path_factory.mktemp("model")
    write_random_system(folder / "random")
    return folder


@pytest.fixture
def images(tmp_path):
    """Three small regions, and a file that is none."""
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    with open_slide(REGION) as slide:
        for number in range(3):
            Image.fromarray(slide.read(300 * number, 0, 400, 400)).save(folder / f"{number}.png")
    (folder / "broken.png").write_text("no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def predict(images, out, model, *more):
    return commands.main(
        ["predict", str(images), "--out", str(out), "--model", str(model), "--mpp", "0.25", *map(str, more)]
    )


def rows(out):
    with (out / "summary.csv").open() as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_a_failed_image_stops_no_other_and_done_ones_are_kept(images, model, tmp_path, capfd):
    out = tmp_path / "out"
    assert predict(images, out, model) == 1
    said = capfd.readouterr()
    assert "broken.png" in said.err
    assert said.err.splitlines()[-1].startswith("error: 1 of 4 images failed")
    assert "4 images: 3 done, 1 failed" in said.out
    made = {name: (out / name / POINTS).stat().st_mtime_ns for name in ("0.png", "1.png", "2.png")}
    assert not (out / "broken.png").exists() or not any((out / "broken.png").iterdir())
    result = json.loads((out / "0.png" / POINTS).read_text())
    figures = sum(point["name"] == "mitotic figure" for point in result["points"])
    assert int(rows(out)["0.png"]["figures"]) == figures
    assert len(result["points"]) > 0

    shutil.copy(images / "1.png", images / "broken.png")
    (out / "2.png" / POINTS).unlink()
    assert predict(images, out, model) == 0
    assert {name: row["status"] for name, row in rows(out).items()} == {
        "0.png": "done before",
        "1.png": "done before",
        "2.png": "done",
        "broken.png": "done",
    }
    assert (out / "0.png" / POINTS).stat().st_mtime_ns == made["0.png"]


def test_other_weights_or_another_spacing_make_a_new_result(images, model, tmp_path):
    out = tmp_path / "out"
    only = images / "0.png"
    assert predict(only, out, model) == 0
    assert predict(only, out, model) == 0
    assert rows(out)["0.png"]["status"] == "done before"
    assert predict(only, out, model, "--mpp", "0.26") == 0
    assert rows(out)["0.png"]["status"] == "done"
    other = tmp_path / "other"
    write_random_system(other / "random", seeds=(1,))
    assert predict(only, out, other, "--mpp", "0.26") == 0
    assert rows(out)["0.png"]["status"] == "done"
    assert json.loads((out / "0.png/about.json").read_text())["system"] == "random"


def found_in(folder, *more):
    """Name and kind of what a folder stands for."""
    return {each.name: each.crops for each in expand(folder, folder / "out", *more)}


def test_what_a_folder_stands_for(images, tmp_path, capfd):
    assert list(found_in(images)) == ["0.png", "1.png", "2.png", "broken.png"]
    assert [each.path for each in expand(tmp_path / "none.svs", tmp_path)] == [tmp_path / "none.svs"]
    dicom = tmp_path / "dicom"
    dicom.mkdir()
    (dicom / "level-0.dcm").touch()  # opening it says what is wrong with it
    assert [(each.path, each.name) for each in expand(dicom, tmp_path)] == [(dicom, "dicom")]
    for arguments, said in (
        ([images / "0.png", images], "two images of this name"),
        ([tmp_path / "out"], "no image in this folder or below it; looked for .bif"),
    ):
        (tmp_path / "out").mkdir(exist_ok=True)
        assert commands.main(["predict", *map(str, arguments), "--out", str(tmp_path / "o")]) == 1
        assert said in capfd.readouterr().err


def test_a_folder_is_searched_to_its_ground(tmp_path, capfd):
    """Hidden files, results, parts of slides and what links lead round to are no images."""
    root = tmp_path / "root"
    for name in (
        *("a.svs", "a/a.svs", "a/b c/Ä.ndpi", "._a.svs", ".hidden/b.svs", "a/.b.png", "__MACOSX/c.svs"),
        *("m.mrxs", "m/Slidedat.ini", "m/cover.jpg", "v.vms", "v(0,0).jpg", "v_macro.jpg", "0.jpg", "1/a.svs"),
        *("out/a.svs/overlay.png", "before/a.svs/about.json", "before/a.svs/overlay.png", "notes.txt"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "v.vms").write_text("[Virtual]\nImageFile=v(0,0).jpg\nMacroImage=v_macro.jpg\nNoLayers=1\n")
    (root / "a/round").symlink_to(root)
    (root / "a/up").symlink_to(tmp_path)
    (root / "itself").symlink_to(root / "itself")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.svs").touch()
    (root / "e").symlink_to(tmp_path / "elsewhere")
    assert set(found_in(root)) == {"a.svs", "a/a.svs", "a/b c/Ä.ndpi", "m.mrxs", "v.vms", "0.jpg", "1/a.svs", "e/e.svs"}
    assert commands.main(["predict", str(root), "--out", str(root / "out"), "--model", str(tmp_path / "none")]) == 1
    assert f"{root}: 8 images, in 5 folders" in capfd.readouterr().out


def test_dicom_is_a_slide_a_series(tmp_path):
    pixels = np.full((64, 64, 3), 200, np.uint8)
    for name, series in (("one/a", "1.2.3.1"), ("two/a", "1.2.3.2"), ("two/b", "1.2.3.3"), ("beside/a", "1.2.3.4")):
        path = tmp_path / f"{name}.dcm"
        path.parent.mkdir(exist_ok=True)
        write_dicom(path, pixels, series=series)
    (tmp_path / "one/a.dcm").rename(tmp_path / "one/IM_0001")
    (tmp_path / "beside/a.svs").touch()
    assert set(found_in(tmp_path)) == {"one", "two/a.dcm", "two/b.dcm", "beside/a.dcm", "beside/a.svs"}


def write_crop(path, side=128, **more):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 60, np.uint8)).save(path, **more)
    return path


def test_crops_of_a_folder_are_one_image(tmp_path):
    for name, side in (("a/1.png", 64), ("a/2.jpg", 256), ("a/3.tif", 128), ("b/1.png", 128), ("b/region.png", 600)):
        write_crop(tmp_path / name, side)
    (tmp_path / "a/._1.png").write_bytes(b"\0\5\x16\7")
    cut = write_crop(tmp_path / "b/cut.png")
    cut.write_bytes(cut.read_bytes()[:-40])
    assert found_in(tmp_path) == {"a": 3, "b/region.png": 0, "b/cut.png": 0, "b": 1}
    assert set(found_in(tmp_path, 1).values()) == {0}
    assert found_in(tmp_path / "a") == {"a": 3}


class Stub:
    """A system of either track: it finds a figure at (9, 8), and P(atypical) is how red a crop is."""

    made = SimpleNamespace(reliability=((0.9, 0.8, 60),))
    system = SimpleNamespace(system="stub", version="1", detector=None, classifier=None, made=made)
    subtype_errors = (("A", 0.8, 0.9),)
    runs_on = "cpu (nothing, float32)"

    def __init__(self, track):
        self.track = track

    def open(self, path, mpp=None):
        return open_stack(path) if self.track == 2 else open_slide(path, mpp, refuse_implausible=True)

    def result(self, path, image, progress=None):
        if self.track == 2:
            return atypical_result(crop[0, 0, 0] / 255 for crop in image)
        return Detections.of([[9, 8, 9, 8]], [0.9], image.um_per_px).to_json()

    def classify_figures(self, slide, found):
        return found.with_atypical([0.7] * found.accepted.sum())


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr("midog.predict.load", lambda system, track, model, device, precision: Stub(track))


def test_crops_have_one_result_and_a_table(stub, tmp_path, capfd):
    folder, out = tmp_path / "crops", tmp_path / "out"
    write_crop(folder / "b.png", dpi=(101_600, 101_600))
    write_crop(folder / "a.png")
    write_crop(folder / "sub/c.png", 100)
    command = ["predict", str(folder), "--out", str(out), "--report"]
    assert commands.main(command) == 0
    assert f"{folder}: 2 crops of crops as one stack, 1 crops of sub as one stack" in capfd.readouterr().out
    assert len(json.loads((out / "crops/multiple-mitotic-figure-classification.json").read_text())) == 2
    table = "file,class,p_atypical,um_per_px,um_per_px_source\n"
    crops = "a.png,normal,0.235294,0.25,assumed\nb.png,normal,0.235294,0.25,read\n"
    assert (out / "crops/crops.csv").read_text() == table + crops
    assert (out / "sub/crops.csv").read_text() == table + "c.png,normal,0.235294,0.32,assumed\n"
    assert {row["status"] for row in rows(out).values()} == {"done, resolution assumed"}
    assert (out / "crops/contact-sheet.png").exists()
    assert commands.main(command) == 0
    assert [row["status"] for row in rows(out).values()] == ["done before, resolution assumed"] * 2
    result = out / "crops/multiple-mitotic-figure-classification.json"
    assert commands.main(["report", str(folder), str(result), "--out", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn/contact-sheet.png").read_bytes() == (out / "crops/contact-sheet.png").read_bytes()
    write_crop(folder / "0.png")
    assert commands.main(["report", str(folder), str(result), "--out", str(tmp_path / "drawn")]) == 1
    assert "--any-image" in capfd.readouterr().err
    assert commands.main(command) == 0
    assert rows(out)["crops"]["status"] == "done, resolution assumed"


def test_what_was_assumed_stays_with_the_result(images, stub, tmp_path, capfd):
    out = tmp_path / "out"
    only = images / "0.png"
    command = ["predict", str(only), "--out", str(out), "--report"]
    for status in ("done, resolution assumed", "done before, resolution assumed"):
        assert commands.main(command) == 0
        row = rows(out)["0.png"]
        assert (row["status"], row["um_per_px"], row["um_per_px_source"]) == (status, "0.25", "assumed")
        assert "0.png: no resolution in the file: 0.25 um/px taken" in capfd.readouterr().err
    assert "Resolution: 0.25 um/px, assumed" in (out / "0.png/report.html").read_text()
    about = json.loads((out / "0.png/about.json").read_text())
    assert about["image"] == {"name": "0.png"} | identity([only])
    assert about["resolution"]["source"] == "assumed"
    assert about["warnings"] == ["0.png: no resolution in the file: 0.25 um/px taken; name another with --mpp"]
    assert datetime.fromisoformat(about["date"]).utcoffset() == timedelta(0)
    # what a result does not depend on makes no new one; what older versions left is made anew
    about |= {"date": "2020-01-01T00:00:00+00:00", "program": "0", "image": about["image"] | {"name": "other.png"}}
    (out / "0.png/about.json").write_text(json.dumps(about))
    os.utime(only, (0, 0))
    assert commands.main(command) == 0
    assert rows(out)["0.png"]["status"].startswith("done before")
    del about["resolution"]
    (out / "0.png/about.json").write_text(json.dumps(about))
    assert commands.main(command) == 0
    assert rows(out)["0.png"]["status"] == "done, resolution assumed"


def test_a_resolution_that_no_scanner_has_is_refused(images, stub, tmp_path, capfd):
    from PIL import Image

    path = tmp_path / "a.tif"
    Image.open(images / "0.png").save(path, dpi=(25_400 / 0.05,) * 2)
    command = ["predict", "--track", "1", str(path), "--out", str(tmp_path / "out")]
    assert commands.main(command) == 1
    assert "a.tif: the file says 0.05 um/px" in capfd.readouterr().err
    assert commands.main([*command, "--mpp", "0.25"]) == 0
    assert rows(tmp_path / "out")["a.tif"]["um_per_px_source"] == "given"


def test_one_name_in_two_folders_and_a_broken_one_between(images, stub, tmp_path):
    (images / "broken.png").unlink()
    for name in ("a/0.png", "b/0.png", "b/c/0.png"):
        (images / name).parent.mkdir(exist_ok=True)
        shutil.copy(images / "0.png", images / name)
    (images / "b/0.png").write_bytes(b"no image")
    (images / "dicom").mkdir()
    (images / "dicom/a.dcm").write_bytes(b"no slide")
    out = tmp_path / "out"
    assert commands.main(["predict", str(images), "--out", str(out), "--mpp", "0.25"]) == 1
    failed = {name for name, row in rows(out).items() if row["status"] == "failed"}
    assert failed == {"b/0.png", "dicom"}
    assert {name for name in rows(out) if (out / name / POINTS).exists()} == set(rows(out)) - failed
    assert {"0.png", "a/0.png", "b/c/0.png"} <= set(rows(out)) - failed


def test_a_name_that_is_no_text_is_drawn_and_told(images, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("midog"), "propagate", False)  # pytest-xdist cannot send what pytest records
    path = os.fsencode(tmp_path) + b"/F\xe4lle.png"  # as Windows wrote it long ago
    try:
        shutil.copy(os.fsencode(images / "0.png"), path)
    except OSError:
        pytest.skip("no such name on this disk")
    out = tmp_path / "out"
    assert commands.main(["predict", os.fsdecode(path), "--out", str(out), "--mpp", "0.25", "--report"]) == 0
    assert list(rows(out)) == [r"F\udce4lle.png"]


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(images, stub, tmp_path, capfd, monkeypatch):
    (images / "broken.png").unlink()
    out, command = tmp_path / "out", ["predict", str(images), "--out", str(tmp_path / "out"), "--mpp", ".25"]
    real = Stub.result

    def interrupted(self, path, *more):
        if path.name == "1.png":
            raise KeyboardInterrupt
        return real(self, path, *more)

    monkeypatch.setattr(Stub, "result", interrupted)
    assert commands.main(command) == 130
    assert capfd.readouterr().err == "stopped; the same command goes on\n"
    assert list(rows(out)) == ["0.png"]
    assert "Not finished when this page was written: 1 of 3 so far" in (out / "index.html").read_text()
    monkeypatch.setattr(Stub, "result", real)
    assert commands.main(command) == 0
    assert [row["status"] for row in rows(out).values()] == ["done before", "done", "done"]
    said = [line.partition("  ")[2] for line in (out / "predict.log").read_text().splitlines()]
    assert said[2] == "stopped"
    assert re.fullmatch(r"1 of 3, 0 failed, about 0:00:0\d left: 0\.png, done", said[1])
    assert said[-1] == "3 of 3, 0 failed: 2.png, done"


def test_how_a_command_ends(capfd, no_command_line):
    def stop():
        raise KeyboardInterrupt

    assert [exit_code(lambda: None), exit_code(lambda: 3), exit_code(stop)] == [0, 3, 130]
    assert capfd.readouterr().err == "stopped\n"


def test_an_image_that_vanishes_in_the_middle_fails_in_one_line(images, stub, tmp_path, capfd, monkeypatch):
    (images / "broken.png").unlink()
    real = Stub.result

    def vanishing(self, path, *more):
        if path.name == "1.png":
            path.unlink()
        return real(self, path, *more)

    monkeypatch.setattr(Stub, "result", vanishing)
    assert commands.main(["predict", str(images), "--out", str(tmp_path / "out"), "--mpp", ".25"]) == 1
    failed = f"{images / '1.png'}: cannot be read (No such file or directory); check the path"
    end = "error: 1 of 3 images failed, see above; mend them and run the same again"
    assert capfd.readouterr().err.splitlines() == [f"warning: failed: {failed}", end]
    assert {name: row["status"] for name, row in rows(tmp_path / "out").items()} == {
        "0.png": "done",
        "1.png": "failed",
        "2.png": "done",
    }
    assert rows(tmp_path / "out")["1.png"]["message"] == failed


def test_numbers_need_no_report_and_are_made_once(images, stub, tmp_path, monkeypatch):
    only, out = images / "0.png", tmp_path / "out"
    command = ["predict", str(only), "--out", str(out), "--mpp", ".25"]
    assert commands.main(command) == 0
    row = rows(out)["0.png"]
    assert (row["size"], row["figures"], row["hotspot_count"]) == ("400 x 400", "1", "1")
    assert (row["atypical_count"], row["system"]) == ("", str(Stub.system))
    assert not (out / "0.png/report.html").exists()
    calls = []
    real = Stub.classify_figures
    monkeypatch.setattr(Stub, "classify_figures", lambda *each: calls.append(each) or real(*each))
    assert commands.main([*command, "--atypical"]) == 0
    counted = rows(out)["0.png"]
    assert (counted["status"], counted["atypical_count"], counted["atypical"]) == ("done before", "1", "")
    assert {**counted, "atypical_count": "", "system": "", "seconds": ""} == {
        **row,
        "status": "done before",
        "system": "",
        "seconds": "",
    }
    with monkeypatch.context() as patch:
        patch.setattr("midog.predict.open_slide", None)  # as it is known, no slide is opened
        assert commands.main([*command, "--atypical"]) == 0
    assert rows(out)["0.png"] == counted
    assert commands.main([*command, "--atypical", "--report"]) == 0
    drawn = (out / "0.png/report.html").stat().st_mtime_ns
    assert {**rows(out)["0.png"], "seconds": ""} == {**counted, "seconds": ""}
    assert (out / "0.png/thumbnail.jpg").exists()
    assert len(calls) == 2  # without and with report
    assert commands.main([*command, "--atypical", "--report"]) == 0
    assert (out / "0.png/report.html").stat().st_mtime_ns == drawn
    about = json.loads((out / "0.png/about.json").read_text())
    assert (about["counts"]["share"]["atypical"], about["reliability"]) == (1, [[0.9, 0.8, 60]])
    assert about["counts"]["share"]["corrected"][0] == 1
    assert read_about(out / "0.png/mitotic-figures.json").subtype_errors == Stub.subtype_errors
    new = {"counts", "drawn", "local_threshold", "reliability", "seconds", "size_px", "subtype_errors", "subtypes"}
    (out / "0.png/about.json").write_text(json.dumps({key: about[key] for key in about.keys() - new}))  # of version 1.7
    assert commands.main(command) == 0
    assert {**rows(out)["0.png"], "seconds": ""} == {**row, "status": "done before", "seconds": ""}


def test_a_report_that_was_not_finished_is_drawn_though_an_older_one_is_there(images, stub, tmp_path, monkeypatch):
    only, out = images / "0.png", tmp_path / "out"
    command = ["predict", str(only), "--out", str(out), "--report", "--mpp"]
    assert commands.main([*command, ".25"]) == 0

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("midog.report.draw.draw", killed)
        with pytest.raises(Killed):
            commands.main([*command, ".5"])
    assert not (out / "0.png/report.html").exists()
    assert commands.main([*command, ".5"]) == 0
    assert rows(out)["0.png"]["status"] == "done before"
    assert "0.5" in re.search("Resolution</dt>.*", (out / "0.png/report.html").read_text())[0]


def test_a_local_threshold_decides_and_binds_the_result(images, stub, tmp_path, capfd):
    only, out, path = images / "0.png", tmp_path / "out", tmp_path / "local_threshold.json"
    found = local_threshold.find([0.9] * 30, range(30), [False] * 30, system="stub", version="1")
    found = msgspec.structs.replace(found, threshold=0.95, shift=shift_to_half(0.95))
    path.write_text(json.dumps(msgspec.to_builtins(found)))
    command = ["predict", str(only), "--out", str(out), "--mpp", ".25"]
    assert commands.main(command) == 0
    for status in ("done", "done before"):
        assert commands.main([*command, "--local-threshold", str(path)]) == 0
        assert (rows(out)["0.png"]["status"], rows(out)["0.png"]["figures"]) == (status, "0")
    (point,) = json.loads((out / "0.png" / POINTS).read_text())["points"]
    assert point["probability"] == pytest.approx(float(sigmoid(logit(0.9) + found.shift)), abs=1e-12)
    assert point["point"] == pytest.approx([9 * 0.00025, 8 * 0.00025, 0])
    about = json.loads((out / "0.png/about.json").read_text())
    assert (about["local_threshold"]["threshold"], about["reliability"]) == (found.threshold, [])
    assert commands.main(command) == 0
    assert (rows(out)["0.png"]["status"], rows(out)["0.png"]["figures"]) == ("done", "1")
    path.write_text(path.read_text().replace('"stub"', '"other"'))
    capfd.readouterr()
    assert commands.main([*command, "--local-threshold", str(path)]) == 1
    assert "the threshold of other, weights 1" in capfd.readouterr().err


def test_an_image_is_known_by_its_ends(tmp_path):
    large, small = tmp_path / "large", tmp_path / "small"
    small.write_bytes(b"abc")
    large.write_bytes(bytes(2 * END_BYTES) + b"abc")
    assert identity([small]) == {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    known = identity([large])
    with large.open("r+b") as file:
        file.seek(END_BYTES + 1)
        file.write(b"x")  # in the middle: only the date tells
    os.utime(large, (0, 0))
    assert identity([large]) == known | {"modified": 0}
    with large.open("r+b") as file:
        file.write(b"x")
    assert identity([large])["sha256"] != known["sha256"]
    assert identity([small, large]) != identity([large, small])
    assert identity([small, large])["bytes"] == 2 * END_BYTES + 6


def test_no_scheduler_is_said_in_one_line(images, model, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("midog.predict.SCHEDULER_SECONDS", 1)
    assert predict(images, tmp_path / "out", model, "--scheduler", "tcp://127.0.0.1:9") == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "no Dask scheduler answers" in lines[0]


def test_a_killed_worker_loses_only_its_own_image(images, model, tmp_path, monkeypatch):
    """Two workers, one of them killed while it has an image: all results are there, as if run here."""
    from distributed import Client, LocalCluster

    (images / "broken.png").unlink()
    for number in range(3, 6):
        shutil.copy(images / "0.png", images / f"{number}.png")
    assert predict(images, tmp_path / "here", model) == 0
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (
        LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        killed = []

        def kill():
            while not killed:
                for worker, tasks in client.processing().items():
                    if tasks and worker in pids:
                        os.kill(pids[worker], signal.SIGKILL)
                        killed.append(worker)
                        return
                time.sleep(0.02)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        assert predict(images, tmp_path / "there", model, "--scheduler", cluster.scheduler_address) == 0
        killer.join(5)
    assert killed
    assert {row["status"] for row in rows(tmp_path / "there").values()} == {"done"}
    tables = [[{**row, "seconds": ""} for row in rows(tmp_path / place).values()] for place in ("here", "there")]
    assert tables[0] == tables[1]
    for number in range(6):  # a worker has other threads than this process, which moves the last digit
        here, there = (
            json.loads((tmp_path / place / f"{number}.png/{POINTS}").read_text()) for place in ("here", "there")
        )
        assert differences(here, there, 1e-4) == []


def test_a_system_is_read_and_built_once_for_all_images(images, model, tmp_path, monkeypatch):
    from midog import run, system
    from midog.engine import torch_engine

    run._load.cache_clear()
    counts = {}
    for module, name in ((run, "load_system"), (system, "_check_weights"), (torch_engine, "load_network")):
        real = getattr(module, name)

        def counted(*arguments, real=real, name=name):
            counts[name] = counts.get(name, 0) + 1
            return real(*arguments)

        monkeypatch.setattr(module, name, counted)
    (images / "broken.png").unlink()
    assert predict(images, tmp_path / "out", model) == 0
    assert counts == {"load_system": 1, "_check_weights": 1, "load_network": 1}


def test_a_system_that_was_written_anew_is_loaded_anew(model, tmp_path):
    from midog.run import load

    shutil.copytree(model / "random", tmp_path / "random")
    first = load("random", model=tmp_path)
    assert load("random", 1, tmp_path) is first
    path = tmp_path / "random/model.yaml"
    path.write_text(path.read_text().replace("version: '0'", "version: '1.1'"))
    assert load("random", model=tmp_path).system.version == "1.1"


@pytest.fixture
def run_sh(tmp_path):
    """run.sh beside an environment that only prints: the arguments of midog predict, a line each."""
    here = tmp_path / "the house"
    (here / "midog").mkdir(parents=True)
    shutil.copy(ROOT / "run.sh", here)
    (here / "environment.sh").touch()
    (here / "midog/__main__.py").write_text("import sys\nprint(*sys.argv[1:], sep='\\n')\n")

    def run(*arguments, cwd=tmp_path):
        done = subprocess.run([here / "run.sh", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
        return done.stdout.replace(str(here), "HERE").splitlines() if done.returncode == 0 else done.stderr

    return run


def test_run_sh_takes_any_name_and_any_option(run_sh, tmp_path):
    folder = tmp_path / "Fälle v1.2"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for given, cwd in ((".", folder), (f"{folder.name}/", tmp_path), ("link", tmp_path), (str(folder), folder)):
        assert run_sh(given, cwd=cwd) == ["predict", str(folder), "--out", f"HERE/output/{folder.name}", "--report"]
    of_file = ["predict", f"{folder}/-a b.tif", "--out", "HERE/output/-a b", "--report"]
    assert run_sh("./-a b.tif", cwd=folder) == run_sh("--", "-a b.tif", cwd=folder) == of_file
    more = ["--mpp", ".25", "--atypical"]
    assert run_sh("a.tif", *more) == ["predict", f"{tmp_path}/a.tif", "--out", "HERE/output/a", "--report", *more]
    assert run_sh("a.tif", "o ut", *more)[2:] == ["--out", "o ut", "--report", *more]
    assert run_sh("--help")[0].startswith("usage: ./run.sh")
    assert run_sh("--help")[-2:] == ["predict", "--help"]
    assert "--mpp stands where FILE is expected" in run_sh("--mpp", ".25", "a.tif")
