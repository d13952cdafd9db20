"""What `pip install .` gives, and what is said where a part of it is missing."""

import re
import subprocess
import sys
import zipfile
from importlib import import_module

import pytest
from conftest import ROOT

from midog.errors import EXTRAS, exit_code
from resources import lock
from resources.benchmark.install import copy_sources

REGION = next((ROOT / "test/input/track1/images").glob("*/*"))
RESULT = ROOT / "test/expected/track1/mitotic-figures.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the package is made from, so that nothing is left beside the sources."""
    folder = tmp_path_factory.mktemp("source")
    copy_sources(folder)
    return folder


def built(source, out, *options):
    """pip's attempt to make the wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(out), str(source), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, made from the source archive."""
    out = tmp_path_factory.mktemp("wheel")
    code = f"import sys; sys.path.insert(0, 'resources'); import build_backend; build_backend.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (archive,) = out.glob("midog-*.tar.gz")
    done = built(archive, out)
    assert done.returncode == 0, done.stderr
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


def test_a_wheel_takes_the_weights_of_another_folder_and_none_of_an_earlier_build(source, tmp_path):
    exported = {f"a_system/{name}" for name in ("model.yaml", "member0.xml", "member0.bin")}
    (tmp_path / "exported/a_system").mkdir(parents=True)
    for name in exported:
        (tmp_path / "exported" / name).touch()
    earlier = source / "build/lib/midog/weights/earlier/model.yaml"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert built(source, tmp_path, "-C", f"weights={tmp_path / 'exported'}").returncode == 0
    (path,) = tmp_path.glob("midog-*.whl")
    with zipfile.ZipFile(path) as archive:
        weights = {name for name in archive.namelist() if name.startswith("midog/weights/")}
    assert weights == {f"midog/weights/{name}" for name in exported}


def test_the_lock_has_nothing_that_reports_its_use():
    assert not {name.partition("==")[0] for name in lock.entries(lock.LOCK.read_text())} & set(lock.LEFT_OUT)


def test_a_folder_without_a_system_makes_no_wheel(source, tmp_path):
    done = built(source, tmp_path, "-C", f"weights={tmp_path}")
    (said,) = (line.strip() for line in done.stderr.splitlines() if "error: /" in line)
    assert said == f"error: {tmp_path}: no system in this folder; -C weights=DIR takes what midog export-openvino wrote"
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])


def test_the_package_s_dependencies_are_the_pins_of_requirements_txt(wheel):
    (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    needed = re.findall(r"^Requires-Dist: (\S+?)(?:; extra == \"(\w+)\")?$", metadata, re.MULTILINE)
    pins = set(re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {pin for pin, _ in needed} <= pins
    packages = {name: {pin.split("==")[0] for pin, extra in needed if extra == name} for _, name in needed}
    assert set(packages) == {"", "torch", "openvino", "evaluation", "train", "pretrained", "cluster"}
    assert packages["openvino"] == {"openvino"}
    assert {"numpy", "tifffile", "Jinja2", "msgspec", "scipy", "shapely"} <= packages[""]
    large = {
        "torch",
        "timm",
        "openvino",
        "pandas",
        "scikit-learn",
        "matplotlib",
        "ultralytics",
        "distributed",
        "pytest",
    }
    assert not large & packages[""]
    assert {"torch", "timm", "torchmetrics"} | packages["evaluation"] <= packages["torch"] < packages["train"]
    (entry,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "midog = midog.__main__:main" in entry


def without(packages, *arguments):
    """`midog` where some packages cannot be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({packages!r}));"
        "from midog.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_plain_package_makes_reports_and_one_line_says_what_a_system_needs(tmp_path):
    extras = [package for packages in EXTRAS.values() for package in packages]
    done = without(extras, "report", REGION, RESULT, "--out", tmp_path / "report")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report/report.html").exists()
    done = without(extras, "predict", REGION, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr == (
        "error: torch is not installed, which this needs; pip install 'midog[torch]'; to run a system without it, "
        "'midog[openvino]', and --model with what midog export-openvino wrote\n"
    )
    assert not (tmp_path / "out" / REGION.name / "mitotic-figures.json").exists()


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("pandas", ["evaluate", "--track", "1", "--data", "here"], "evaluation"),
        ("pandas", ["tune", "--track", "1", "--data", "here", "--model", "model/rtmdet_tiny"], "evaluation"),
        ("distributed", ["predict", REGION, "--out", "here", "--scheduler", "127.0.0.1:1"], "cluster"),
    ],
)
def test_a_command_without_its_packages_ends_with_one_line(package, command, extra, tmp_path):
    done = without([package], *(tmp_path if each == "here" else each for each in command))
    assert done.returncode == 1
    assert done.stderr == f"error: {package} is not installed, which this needs; pip install 'midog[{extra}]'\n"


def test_a_missing_package_of_no_extra_is_a_bug():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        exit_code(lambda: import_module("no_such_package"))


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
