"""The committed job through inference.py with the committed weights, as the platform runs it."""

import json
import os
import subprocess
import sys

import pytest
from compare import differences, main
from conftest import ROOT

import inference
from midog import __main__ as commands
from midog.job import SOCKETS

RESULT = SOCKETS["stacked-histopathology-roi-cropouts"].result_name
SAMPLE = ROOT / "test/input/track2"


def test_the_committed_job_gives_the_expected_result(tmp_path):
    command = [sys.executable, "inference.py", "--input", str(SAMPLE), "--output", str(tmp_path / "new" / "output")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the platform marks a job that writes there
    for said in ("sample_stack.tiff", "convnextv2_small", "weights", "device cpu", "um/px", "pages 16", "seconds"):
        assert said in done.stdout
    expected = json.loads((ROOT / "test/expected/track2" / RESULT).read_text())
    result = json.loads((tmp_path / "new" / "output" / RESULT).read_text())
    assert differences(expected, result) == []
    assert len({entry["confidence"] for entry in result}) == 16


def test_the_comparison_can_fail(tmp_path):
    one = [{"class": "normal", "confidence": 0.2}]
    assert differences(one, [{"class": "normal", "confidence": 0.3}])
    assert differences(one, [{"class": "atypical", "confidence": 0.2}])
    assert differences(one, one * 2)
    (tmp_path / RESULT).write_text("[]")
    assert main(ROOT / "test/expected/track2", tmp_path) == 1


def test_nothing_heavy_before_the_job_is_known():
    code = "import sys, inference; print([m for m in ('torch', 'numpy', 'PIL', 'yaml', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_inference_needs_neither_timm_nor_torchvision(tmp_path):
    code = (
        "import sys, inference; inference.main(sys.argv[1:]); "
        "print([m for m in ('timm', 'torchvision', 'SimpleITK', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, "--input", str(SAMPLE), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def failing(capfd, *arguments):
    """Run a job that must fail; the one line on stderr."""
    assert inference.main([str(argument) for argument in arguments]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_bad_input_leaves_the_output_as_it_was(job, tmp_path, capfd):
    image = next(job.glob("images/*/*.tif"))
    out = tmp_path / "out"
    out.mkdir()
    (out / RESULT).write_text("earlier")
    image.write_bytes(image.read_bytes()[:-20_000])
    assert str(image) in failing(capfd, "--input", job, "--output", out)
    assert (out / RESULT).read_text() == "earlier"
    assert [path.name for path in out.iterdir()] == [RESULT]


def test_track_1_is_not_here_yet(tmp_path, capfd):
    folder = tmp_path / "images/histopathology-roi-cropout"
    folder.mkdir(parents=True)
    (folder / "a.tiff").write_bytes(b"II*\0")
    interface = {
        "slug": "histopathology-region-of-interest-cropout",
        "relative_path": "images/histopathology-roi-cropout",
    }
    (tmp_path / "inputs.json").write_text(json.dumps([{"interface": interface, "image": {"name": "a.tiff"}}]))
    assert "Track 1" in failing(capfd, "--input", tmp_path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unwritable_output(job, tmp_path, capfd):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert str(blocked) in failing(capfd, "--input", job, "--output", blocked / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(job, tmp_path, capfd):
    (tmp_path / "out").mkdir(mode=0o500)
    assert "cannot be written" in failing(capfd, "--input", job, "--output", tmp_path / "out")


def test_missing_weights_and_cuda(job, tmp_path, capfd):
    arguments = ["--input", job, "--output", tmp_path / "out"]
    assert str(tmp_path / "none") in failing(capfd, *arguments, "--model", tmp_path / "none")
    assert "there: " in failing(capfd, *arguments, "--system", "unheard_of")
    import torch

    if not torch.cuda.is_available():
        assert "--device cpu" in failing(capfd, *arguments, "--device", "cuda")
    assert not list((tmp_path / "out").iterdir())


def test_predict_and_report_draw_every_page(job, tmp_path, capsys):
    from PIL import Image

    image = next(job.glob("images/*/*.tif"))
    assert commands.main(["predict", str(image), "--out", str(tmp_path / "a")]) == 0
    sheet = Image.open(tmp_path / "a/contact-sheet.png")
    assert sheet.size[0] == 5 * (128 + 16)
    assert commands.main(["report", str(image), str(tmp_path / "a" / RESULT), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b/contact-sheet.png").read_bytes() == (tmp_path / "a/contact-sheet.png").read_bytes()
    (tmp_path / "short.json").write_text('[{"class": "normal", "confidence": 0.1}]')
    assert commands.main(["report", str(image), str(tmp_path / "short.json"), "--out", str(tmp_path / "c")]) == 1
    assert "not as many pages" in capsys.readouterr().err
    (tmp_path / "short.json").write_text('[{"class": "red"}]')
    assert commands.main(["report", str(image), str(tmp_path / "short.json"), "--out", str(tmp_path / "c")]) == 1
    assert "short.json" in capsys.readouterr().err
