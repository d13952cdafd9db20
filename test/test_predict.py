"""Many images in one go: what is run, what is kept, what fails, here and on a scheduler's workers."""

import csv
import json
import os
import shutil
import signal
import threading
import time

import pytest
from compare import differences
from conftest import ROOT
from test_detect import write_random_system

from midog import __main__ as commands
from midog.images.slide import open_slide
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
    assert int(rows(out)["0.png"]["of"]) == len(result["points"]) > 0

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


def test_what_a_folder_stands_for(images, tmp_path, model, capfd):
    assert [path.name for path in expand(images)] == ["0.png", "1.png", "2.png", "broken.png"]
    assert expand(tmp_path / "none.svs") == [tmp_path / "none.svs"]
    dicom = tmp_path / "dicom"
    dicom.mkdir()
    (dicom / "level-0.dcm").touch()
    assert expand(dicom) == [dicom]
    for arguments, said in (
        ([images / "0.png", images], "two images of this name"),
        ([tmp_path / "out"], "no image in this folder"),
    ):
        (tmp_path / "out").mkdir(exist_ok=True)
        assert commands.main(["predict", *map(str, arguments), "--out", str(tmp_path / "o")]) == 1
        assert said in capfd.readouterr().err


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
    for number in range(6):  # a worker has other threads than this process, which moves the last digit
        here, there = (
            json.loads((tmp_path / place / f"{number}.png/{POINTS}").read_text()) for place in ("here", "there")
        )
        assert differences(here, there, 1e-4) == []


def test_a_system_is_read_and_built_once_for_all_images(images, model, tmp_path, monkeypatch):
    from midog import run, system
    from midog.engine import detector

    run._load.cache_clear()
    counts = {}
    for module, name in ((run, "load_system"), (system, "_check_weights"), (detector, "load_network")):
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


def test_atypical_is_part_of_a_report(images, model, tmp_path, capfd):
    assert predict(images, tmp_path / "out", model, "--atypical") == 1
    assert "--atypical: is shown in the report; give --report too" in capfd.readouterr().err
