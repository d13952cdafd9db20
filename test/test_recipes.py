"""Recipes: those of the project, wrong values, changes on the command line, the wrong script for a system."""

from itertools import takewhile

import pytest
import torch
import yaml
from conftest import ROOT
from conftest import training_arguments as arguments

from midog.errors import UserError
from midog.models import CLASSIFIERS, DETECTORS, build, classifier_options
from resources.train import (
    ablation,
    atypical,
    candidates,
    centernet,
    focasnet,
    mine,
    rtmdet,
    torchvision_detector,
    yolo11,
)
from resources.train.kit.arguments import add_data_arguments, parser_of
from resources.train.kit.detector import DetectorRecipe
from resources.train.kit.recipes import SYSTEMS, read_plan
from resources.train.kit.second_stage import CandidateRecipe
from resources.train.kit.subtypes import AtypicalRecipe

SCRIPTS = {"yolo11": yolo11, "rtmdet": rtmdet, "focasnet": focasnet, "centernet": centernet, "candidates": candidates}
SCRIPTS |= {"atypical": atypical, "torchvision_detector": torchvision_detector}
KINDS = {"candidates": CandidateRecipe, "atypical": AtypicalRecipe}
TRAININGS = [
    *[(name, "yolo11") for name in ("sztu", "sztu_small", "yolo11_small", "yolo11x")],
    *[(name, "torchvision_detector") for name in ("faster_rcnn", "ssd")],
    *[(name, "rtmdet") for name in ("rtmdet_s", "rtmdet_tiny")],
    *[(name, "focasnet") for name in ("focasnet", "focasnet_small")],
    ("centernet_two_stages", "centernet"),
    *[(name, "candidates") for name in ("sztu", "sztu_small", "focasnet", "focasnet_small", "rtmdet_two_stages")],
    ("centernet_two_stages", "candidates"),
    *[(name, "atypical") for name in ("convnextv2", "convnextv2_small", "efficientnet_lite0")],
]


def read(name, script, *changes, seed=None):
    return read_plan(str(name), script, KINDS.get(script, DetectorRecipe), changes, seed)


@pytest.mark.parametrize(("name", "script"), TRAININGS)
def test_recipes_of_the_project_are_read_and_their_networks_built(name, script):
    plan = read(name, script)
    with torch.device("meta"):
        if plan.part == "detector":
            build(DETECTORS, script, plan.detector.options)
        else:
            part = plan.classifier
            build(CLASSIFIERS, part.network, classifier_options(part.network, part.options, part.input_px))


def test_every_system_of_the_project_is_among_these():
    assert {path.stem for path in SYSTEMS.glob("*.yaml")} == {name for name, _ in TRAININGS}


@pytest.mark.parametrize("name", ["convnextv2", "focasnet", "sztu"])
def test_a_published_recipe_begins_with_a_table_of_the_papers_values(name):
    """Aligned: the columns of every row begin where those of its header do."""
    lines = (SYSTEMS / f"{name}.yaml").read_text().splitlines()
    comments = list(takewhile(lambda line: line.startswith("#"), lines))
    headers = [number for number, line in enumerate(comments) if line.split()[-3:] == ["paper", "here", "why"]]
    assert headers
    for first in headers:
        columns = [comments[first].index(word) for word in ("paper", "here", "why")]
        rows = list(takewhile(lambda line: line != "#", comments[first + 1 :]))
        assert len(rows) > 9
        for row in rows:
            assert all(row[column - 1 : column] in ("", " ") for column in columns)


@pytest.mark.parametrize(
    ("script", "change", "words"),
    [
        ("yolo11", {"sampling": {"figures": 1}}, "training.detector.* invalid enum value 'figures'"),
        ("yolo11", {"sampling": "even"}, "training.detector.sampling: 'even': invalid"),
        ("yolo11", {"tile": [100, 128]}, r"training.detector.tile.*: 100: expected int that's a multiple of 32"),
        ("yolo11", {"batch": 0}, "training.detector.batch: 0: expected int >= 1"),
        ("yolo11", {"steps_an_epoch": 0}, "training.detector.steps_an_epoch: 0: expected int >= 1"),
        (
            "yolo11",
            {"precision": "half"},
            "training.detector.precision: 'half': float32 or bfloat16 or float16 expected",
        ),
        ("yolo11", {"ema_momentum": []}, "training.detector.ema_momentum"),
        ("yolo11", {"ema_momentum": [0.0]}, "training.detector.ema_momentum.*: expected float > 0"),
        ("yolo11", {"iterations": 9}, "training.detector: unknown key iterations"),
        ("candidates", {"augmentation": {"turn": 1}}, "training.classifier.augmentation: unknown key turn"),
        ("candidates", {"augmentation": {"crop": 0}}, "training.classifier.augmentation.crop: 0: expected float > 0"),
        ("candidates", {"background": 2.0}, "training.classifier.background: 2.0: expected float <= 1"),
        ("candidates", {"input_px": 4}, "training.classifier.input_px: 4: expected int >= 8"),
        ("candidates", {"learning_rate": -1.0}, "training.classifier.learning_rate: -1.0: expected float > 0"),
    ],
)
def test_recipes_that_cannot_be_followed(tmp_path, script, change, words):
    values = yaml.safe_load((SYSTEMS / "sztu_small.yaml").read_text())
    values["training"]["classifier" if script == "candidates" else "detector"] |= change
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=words) as error:
        read(path, script)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_any_value_can_be_changed_and_the_seed():
    changes = ["training.detector.batch=8", "detector.options.cbam=false", "training.detector.augmentation.stain=0.5"]
    plan = read("focasnet_small", "focasnet", *changes, seed=7)
    before = read("focasnet_small", "focasnet")
    assert (plan.training.batch, plan.training.seed, plan.training.augmentation.stain) == (8, 7, 0.5)
    assert plan.detector.options == before.detector.options | {"cbam": False}
    assert before.training.seed == 0
    recorded = plan.as_yaml()
    assert recorded["training"]["detector"]["batch"] == 8
    assert recorded["training"]["detector"]["seed"] == 7
    assert recorded["detector"]["options"]["cbam"] is False


def test_an_option_given_twice_adds_to_itself():
    parser = parser_of("", "rtmdet")
    add_data_arguments(parser)
    said = "--system rtmdet_tiny --out out --set a=1 b=2 --set c=3 --data x --data y --validation z --mined m --mined n"
    for _ in range(2):  # and a second command begins with nothing
        arguments = parser.parse_args(said.split())
        assert arguments.changes == ["a=1", "b=2", "c=3"]
        assert (arguments.data, arguments.mined, arguments.crops) == (["x", "y"], ["m", "n"], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.detector.batch", "--set training.detector.batch: KEY=VALUE expected"),
        ("training.detektor.batch=8", "--set training.detektor.batch=8: KEY=VALUE expected"),
        ("detector.options.cbam=[", "--set detector.options.cbam=[: KEY=VALUE expected"),
        ("=8", "unknown key"),
        ("batch=8", "unknown key batch"),
        ("training.detector.btch=8", "training.detector: unknown key btch"),
        ("training.detector.batch=many", "training.detector.batch: 'many': expected int"),
        ("training.detector.seed=-1", "training.detector.seed: -1: expected int >= 0"),
        ("training.detector.loss=dice", "loss 'dice' is unknown; known: focasnet"),
        ("detector.options.backbone=34", "refuses its options"),
        ("detector.options.width=wide", "refuses its options"),
        ("detector.options.size=18", "refuses its options"),
    ],
)
def test_changes_that_are_none_end_in_one_line(data, tmp_path, capsys, change, words):
    out = tmp_path / "refused"
    assert focasnet.main(arguments(data, "focasnet_small", out, "--set", change)) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "script", "right"),
    [
        ("yolo11_small", "rtmdet", "yolo11"),
        ("rtmdet_tiny", "yolo11", "rtmdet"),
        ("focasnet", "rtmdet", "focasnet or python -m resources.train.candidates"),
        ("rtmdet_two_stages", "rtmdet", "candidates"),
        ("rtmdet_tiny", "candidates", "rtmdet"),
        ("convnextv2", "focasnet", "atypical"),
        ("sztu_small", "atypical", "yolo11 or python -m resources.train.candidates"),
    ],
)
def test_the_wrong_script_names_the_right_one(name, script, right):
    with pytest.raises(UserError) as error:
        read(name, script)
    assert str(error.value).endswith(f"{name}.yaml: {script} does not train it; use python -m resources.train.{right}")


@pytest.mark.parametrize("name", ["rtmdet_xl", "none.yaml"])
def test_an_unknown_system_lists_those_that_the_script_trains(name):
    with pytest.raises(UserError) as error:
        read(name, "yolo11")
    known = "sztu, sztu_small, yolo11_small, yolo11x"
    assert str(error.value) == f"{name}: no such system; give --system a .yaml file or one of {known}"


@pytest.mark.parametrize("script", [*SCRIPTS.values(), mine, ablation])
def test_help_names_the_options(script, capsys):
    with pytest.raises(SystemExit) as done:
        script.main(["--help"])
    assert done.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert script.__doc__.partition("\n")[0] in said
    assert "--out" in said
    for name, each in TRAININGS:
        if script is SCRIPTS[each]:
            assert all(option in said for option in (name, "--resume", "--seed N", "--set"))


def test_scripts_are_short():
    for path in (ROOT / "resources/train").glob("*.py"):
        assert len(path.read_text().splitlines()) < 100, path
