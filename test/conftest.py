"""Shared by the tests: the project's root, small jobs and stacks."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from midog.images.slide import open_slide
from resources.data import synthetic

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def no_command_line(monkeypatch):
    """Commands that ran before leave their log on stderr."""
    monkeypatch.setattr(logging.getLogger("midog"), "handlers", [])


@pytest.fixture
def opened(caplog, no_command_line):
    """Opens a slide; with it comes a list of what was logged."""

    def opened(path, **options):
        caplog.clear()
        slide = open_slide(path, **options)
        return slide, [record.getMessage() for record in caplog.records if record.name.startswith("midog.")]

    return opened


@pytest.fixture(scope="session")
def pages():
    """Five procedural crops, one of each kind: uint8 (5, 128, 128, 3)."""
    return synthetic.stack(5, seed=1)[0]


@pytest.fixture
def job(tmp_path, pages):
    """A Track 2 job of five pages; the folder."""
    folder = tmp_path / "job"
    synthetic.write_job(folder, pages)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two procedural fields of 256 px with a figure in each quarter, and crops of figures; their folders."""
    root = tmp_path_factory.mktemp("data")
    pages = synthetic.stack(8, seed=4)[0].reshape(2, 2, 2, 128, 128, 3).transpose(0, 1, 3, 2, 4, 5)
    (root / "fields").mkdir()
    images, figures = [], []
    for number, pixels in enumerate(pages.reshape(2, 256, 256, 3)):
        Image.fromarray(pixels).save(root / "fields" / f"{number}.png")
        images.append(f"{number}.png,case{number},0.25")
        for x, y in ((64, 64), (192, 64), (64, 192), (192, 192)):
            figures.append(f"{number}.png,{x},{y},{'non-' * (x == y == 192)}mitotic figure")
    (root / "fields/images.csv").write_text("\n".join(["image,case,um_per_px", *images, ""]))
    (root / "fields/figures.csv").write_text("\n".join(["image,x,y,label", *figures, ""]))
    (root / "crops/crops").mkdir(parents=True)
    for number, crop in enumerate(synthetic.stack(2, seed=5)[0]):
        Image.fromarray(crop).save(root / f"crops/crops/{number}.png")
    (root / "crops/labels.csv").write_text("file,label\ncrops/0.png,0\ncrops/1.png,1\n")
    return root


@pytest.fixture(scope="module")
def one_thread():
    """Several, and other programs beside, wait for each other longer than a tiny network computes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Killed(BaseException):
    """Stands for a kill, which no handler catches."""


def training_arguments(data, system, out, *more, crops="crops"):
    """What Track 1's trainings are called with on the folders of `data`."""
    said = ["--data", f"{data}/fields:case0", "--crops", f"{data}/{crops}", "--validation", f"{data}/fields:case1"]
    said += ["--pretrained", "none"]  # recipes name weights to download
    return [*said, "--system", str(system), "--out", str(out), "--device", "cpu", *more]
