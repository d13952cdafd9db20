"""What `pip install .` gives, and what is said where a part of it is missing."""

import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

REGION = next((ROOT / "test/input/track1/images").glob("*/*"))
RESULT = ROOT / "test/expected/track1/mitotic-figures.json"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made from the source archive; both from a copy, so that nothing is left beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("midog", "resources", "model"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = f"import sys; sys.path.insert(0, 'resources'); import build_backend; build_backend.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (archive,) = out.glob("midog-*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(archive)], check=True, capture_output=True)
    (path,) = out.glob("midog-*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_package_holds_templates_weights_and_recipes(wheel):
    names = set(wheel.namelist())
    for path in [*(ROOT / "model").glob("*/*"), *(ROOT / "midog/report/templates").iterdir()]:
        inside = path.relative_to(ROOT)
        assert str(inside).replace("model/", "midog/weights/", 1) in names
    assert {"midog/py.typed", "resources/systems/sztu.yaml", "resources/train/rtmdet.py"} <= names
    assert {f"{path.relative_to(ROOT)}" for path in (ROOT / "midog").rglob("*.py")} <= names


def test_the_package_s_dependencies_are_the_pins_of_requirements_txt(wheel):
    (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    needed = re.findall(r"^Requires-Dist: (\S+?)(?:; extra == \"(\w+)\")?$", metadata, re.MULTILINE)
    pins = set(re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {pin for pin, _ in needed} <= pins
    base = {pin.split("==")[0] for pin, extra in needed if not extra}
    assert {"numpy", "tifffile", "Jinja2", "scikit-learn", "msgspec"} <= base
    assert not {"torch", "timm", "ultralytics", "distributed", "pytest"} & base
    assert {extra for _, extra in needed} == {"", "torch", "train", "pretrained", "cluster"}
    (entry,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "midog = midog.__main__:main" in entry


def without_torch(*arguments):
    """`midog` where PyTorch and what comes with it cannot be imported."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm', 'torchmetrics')));"
        "from midog.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_without_an_engine_reports_are_made_and_one_line_says_what_to_install(tmp_path):
    done = without_torch("report", REGION, RESULT, "--out", tmp_path / "report")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report/report.html").exists()
    done = without_torch("predict", REGION, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == "error: torch is not installed, which this needs; pip install 'midog[torch]'\n"
    assert not (tmp_path / "out" / REGION.name / "mitotic-figures.json").exists()


def test_version_systems_and_trainings_are_commands(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "midog", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run("--version").stdout.startswith("midog 1.")
    listed = run("systems").stdout
    assert all(path.name in listed for path in (ROOT / "model").iterdir())
    assert "--validation" in run("train", "rtmdet", "--help").stdout
    refused = run("systems", "--model", str(tmp_path))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


def test_the_call_from_python(tmp_path):
    """The README's, in a process of its own, outside the checkout."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, midog
from PIL import Image
system = midog.load("centernet_two_stages")
assert system is midog.load(track=1)
found = system.predict({str(REGION)!r})
pixels = np.asarray(Image.open({str(REGION)!r}))
again = system.predict(pixels, mpp=0.25)
assert isinstance(found, midog.Detections)
np.testing.assert_allclose(again.centres, found.centres, atol=1e-6)
crops = np.stack([pixels[:128, :128]] * 3)
assert midog.load("efficientnet_lite0").classify(crops).shape == (3,)
print(len(found), found.accepted.sum())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
