"""The committed jobs through inference.py with the committed weights, as the platform runs them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from compare import differences, main
from conftest import ROOT
from scipy.spatial import KDTree
from test_detect import write_random_system

import inference
from midog import __main__ as commands
from midog.detections import Detections
from midog.errors import UserError
from midog.images.track import track_of_image
from midog.job import SOCKETS, check_detection_result
from resources.data import synthetic

RESULT = SOCKETS["stacked-histopathology-roi-cropouts"].result_name
POINTS = SOCKETS["histopathology-region-of-interest-cropout"].result_name
SAMPLE = ROOT / "test/input/track2"
REGION_JOB = ROOT / "test/input/track1"
REGION = next(REGION_JOB.glob("images/*/*"))
EXPECTED = ROOT / "test/expected/track1" / POINTS


def run_sample(job, out):
    """The log of a job as the platform starts it, but for the precision, which is a processor's own."""
    command = [sys.executable, "inference.py", "--input", str(job), "--output", str(out), "--precision", "float32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the platform marks a job that writes there
    return done.stdout


def test_the_committed_stack_gives_the_expected_result(tmp_path):
    log = run_sample(SAMPLE, tmp_path / "new" / "output")
    for said in ("sample_stack.tiff", "efficientnet_lite0", "weights", "device cpu", "um/px", "pages 16", "seconds"):
        assert said in log
    assert main(ROOT / "test/expected/track2", tmp_path / "new" / "output") == 0
    result = json.loads((tmp_path / "new" / "output" / RESULT).read_text())
    assert len({entry["confidence"] for entry in result}) == 16


@pytest.mark.skipif(not (ROOT / "model/centernet_two_stages").is_dir(), reason="no weights for Track 1")
def test_the_committed_region_gives_the_expected_result(tmp_path):
    log = run_sample(REGION_JOB, tmp_path / "new" / "output")
    for said in (
        "sample.tiff",
        "centernet_two_stages",
        "weights",
        "device cpu",
        "um/px 0.25 x 0.25",
        "candidates",
        "seconds",
    ):
        assert said in log
    assert main(ROOT / "test/expected/track1", tmp_path / "new" / "output") == 0
    result = json.loads((tmp_path / "new" / "output" / POINTS).read_text())
    check_detection_result(result)
    pixels, figures, imposters = synthetic.region(2025)
    found = Detections.from_json(result, (0.25, 0.25))
    near = KDTree(found.centres[found.accepted]).query(np.concatenate([figures, imposters]))[0] <= 30  # px: 7.5 um
    assert near[: len(figures)].mean() >= 0.7
    assert near[len(figures) :].mean() <= 0.1


@pytest.mark.parametrize("name", ["rtmdet_two_stages", "sztu_small", "rtmdet_tiny", "focasnet_small"])
def test_every_shipped_system_of_track_1_runs_the_job(name, tmp_path):
    assert inference.main(["--input", str(REGION_JOB), "--output", str(tmp_path), "--system", name]) == 0
    result = json.loads((tmp_path / POINTS).read_text())
    check_detection_result(result)
    assert len(result["points"]) >= 8


def test_the_comparison_of_stacks_can_fail(tmp_path):
    one = [{"class": "normal", "confidence": 0.2}]
    assert differences(one, one, 1e-3) == []
    assert differences(one, [{"class": "normal", "confidence": 0.3}], 1e-3)
    assert differences(one, [{"class": "atypical", "confidence": 0.2}], 1e-3)
    assert differences(one, one * 2, 1e-3)
    (tmp_path / RESULT).write_text("[]")
    assert main(ROOT / "test/expected/track2", tmp_path) == 1


def test_the_comparison_of_regions_can_fail():
    def result(*rows):
        x, y, probabilities = np.array(rows, float).reshape(-1, 3).T
        return Detections.of(np.stack([x, y, x, y], 1), probabilities, (1000, 1000)).to_json()

    def differ(first, second):
        return bool(differences(result(*first), result(*second), 0.005))

    known = [(0.1, 0.1, 0.9), (0.2, 0.1, 0.502), (0.3, 0.1, 0.1)]
    assert not differ([], [])
    assert not differ(known, known[::-1])
    assert not differ(known, [(0.1, 0.1019, 0.897), (0.2, 0.1, 0.498), (0.3, 0.1, 0.104)])
    assert not differ(known, known[:2])  # a faint one went
    assert not differ(known, [*known, (0.4, 0.1, 0.2)])  # another came
    assert differ(known, known[1:])
    assert differ(known, [*known, (0.4, 0.1, 0.6)])
    assert differ(known, [*known, known[0]])
    assert differ(known, [(0.1, 0.104, 0.9), *known[1:]])
    assert differ(known, [(0.1, 0.1, 0.89), *known[1:]])
    assert differ(known, [*known, (0.4, 0.1, 0.2), (0.5, 0.1, 0.2)])
    renamed = result(*known)
    renamed["points"][0]["name"] = "non-mitotic figure"
    assert differences(result(*known), renamed, 0.005)


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


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A folder of models with one of random weights for Track 1."""
    folder = tmp_path_factory.mktemp("model")
    write_random_system(folder / "random")
    return folder


def test_predict_follows_inference_and_report_follows_predict(random_model, tmp_path, capfd):
    from PIL import Image

    a, b, c = (tmp_path / name for name in "abc")
    assert inference.main(["--input", str(REGION_JOB), "--output", str(a), "--model", str(random_model)]) == 0
    assert commands.main(["predict", str(REGION), "--out", str(b), "--model", str(random_model), "--report"]) == 0
    b /= REGION.name
    assert (a / POINTS).read_bytes() == (b / POINTS).read_bytes()
    assert commands.main(["report", str(REGION), str(a / POINTS), "--out", str(c)]) == 0
    assert (b / "overlay.png").read_bytes() == (c / "overlay.png").read_bytes()
    assert Image.open(c / "overlay.png").size[0] == 1600
    assert capfd.readouterr().err == ""  # no progress bar where there is no terminal
    result = json.loads((a / POINTS).read_text())
    check_detection_result(result)
    assert {point["name"] for point in result["points"]} == {"mitotic figure", "non-mitotic figure"}


def test_mpp_moves_the_points_and_the_picture_follows(random_model, tmp_path, capfd):
    from PIL import Image

    from midog.images.slide import open_slide

    with open_slide(REGION) as slide:
        Image.fromarray(slide.read(0, 0, 600, 500)).save(tmp_path / "a.png")
    points = {}
    for mpp in ("0.25", "0.26"):
        out = tmp_path / mpp
        command = ["predict", str(tmp_path / "a.png"), "--out", str(out), "--model", str(random_model), "--mpp", mpp]
        assert commands.main(command) == 0
        points[mpp] = np.array([point["point"] for point in json.loads((out / "a.png" / POINTS).read_text())["points"]])
    assert capfd.readouterr().err == ""
    assert len(points["0.25"]) > 3
    np.testing.assert_allclose(points["0.26"], points["0.25"] * 0.26 / 0.25, rtol=1e-9)
    finer = ["report", str(tmp_path / "a.png"), str(tmp_path / "0.25/a.png" / POINTS), "--mpp", "0.1"]
    assert commands.main([*finer, "--out", str(tmp_path / "finer")]) == 0
    assert "outside the image" in capfd.readouterr().err  # the result was made at another resolution


def test_the_track_of_an_image(tmp_path, pages):
    import tifffile

    def track(name, *sizes, **options):
        path = tmp_path / name
        with tifffile.TiffWriter(path) as tif:
            for width, height in sizes:
                tif.write(np.zeros((height, width, 3), np.uint8), photometric="rgb", metadata=None, **options)
        return track_of_image(path)

    assert track_of_image(REGION) == 1
    assert track_of_image(next(SAMPLE.glob("images/*/*"))) == 2
    assert track("one.tif", (128, 128)) == 2
    assert track("fine.tif", (256, 256), (256, 256)) == 2
    assert track("pyramid.tif", (1600, 1200), (800, 600), (400, 300), tile=(128, 128)) == 1
    assert track("small.tif", (300, 300)) == 1
    with pytest.raises(UserError, match="--track 1"):
        track("either.tif", (900, 900), (900, 900))
    for name in ("a.svs", "a.png", "a.JPG", "a.ndpi", "a.dcm"):
        assert track_of_image(tmp_path / name) == 1

    import SimpleITK as sitk

    for name, pixels, expected in (("s.mha", pages, 2), ("r.mha", np.zeros((600, 700, 3), np.uint8), 1)):
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / name))
        assert track_of_image(tmp_path / name) == expected


def test_commands_say_what_is_wrong_in_one_line(job, random_model, tmp_path, capfd):
    stack = next(job.glob("images/*/*.tif"))
    bad = tmp_path / "bad.tif"
    bad.write_text("no image at all\n")
    for name, text in (("text", "{"), ("number", "1"), ("box", '{"type": "Multiple boxes"}')):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "point.json").write_text('{"type": "Multiple points", "version": {}, "points": []}')
    predict = ["--out", tmp_path / "out", "--model", random_model]
    cases = [
        (["predict", tmp_path / "none.tif", *predict], "none.tif"),
        (["predict", tmp_path / "none.png", *predict], "none.png"),
        (["predict", tmp_path / "none.mha", *predict], "none.mha"),
        (["predict", bad, *predict], "bad.tif"),
        (["predict", bad, *predict, "--track", "1"], "bad.tif"),
        (["predict", REGION, *predict, "--mpp", "0"], "--mpp"),
        (["predict", REGION, *predict, "--mpp", "nan"], "--mpp"),
        (["predict", stack, *predict, "--mpp", "0.5"], "leave --mpp out"),
        (["predict", stack, *predict], "Track 2"),  # no such system among the models
        (["report", REGION, EXPECTED, *predict, "--atypical"], "no single system for Track 2"),
        (["report", REGION, EXPECTED, "--out", tmp_path / "out", "--mpp", "7"], "--mpp 7"),
        *(
            (["report", REGION, tmp_path / f"{name}.json", "--out", tmp_path / "out"], f"{name}.json")
            for name in ("none", "text", "number", "box", "point")
        ),
    ]
    for arguments, said in cases:
        assert commands.main([str(argument) for argument in arguments]) == 1
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert said in lines[0]


def test_predict_and_report_draw_every_page(job, tmp_path, capsys):
    from PIL import Image

    image = next(job.glob("images/*/*.tif"))
    assert commands.main(["predict", str(image), "--out", str(tmp_path / "a"), "--report"]) == 0
    made = tmp_path / "a" / image.name
    sheet = Image.open(made / "contact-sheet.png")
    assert sheet.size[0] == 5 * (128 + 16)
    assert commands.main(["report", str(image), str(made / RESULT), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b/contact-sheet.png").read_bytes() == (made / "contact-sheet.png").read_bytes()
    (tmp_path / "short.json").write_text('[{"class": "normal", "confidence": 0.1}]')
    assert commands.main(["report", str(image), str(tmp_path / "short.json"), "--out", str(tmp_path / "c")]) == 1
    assert "not as many pages" in capsys.readouterr().err
    (tmp_path / "short.json").write_text('[{"class": "red"}]')
    assert commands.main(["report", str(image), str(tmp_path / "short.json"), "--out", str(tmp_path / "c")]) == 1
    assert "short.json" in capsys.readouterr().err
