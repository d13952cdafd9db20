import hashlib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from msgspec.structs import replace

from midog.calibration import Calibration
from midog.errors import UserError
from midog.system import OWN_MODEL, System, as_yaml, find_system, load_system, model_folder, parse, read_system


def write_system(folder, name="mine", track=2, members=2):
    """A system of files that only look like weights; its folder."""
    folder = folder / name
    folder.mkdir(parents=True)
    listed = []
    for fold in range(members):
        content = f"weights {fold}".encode()
        (folder / f"fold{fold}.safetensors").write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        listed.append({"weights": f"fold{fold}.safetensors", "sha256": sha256, "calibration": {"shift": 0.5}})
    values = {"system": name, "track": track, "version": "1.0"}
    if track == 2:
        values["classifier"] = {"network": "convnextv2", "options": {}, "field_um": 19.2, "input_px": 64, "views": 8}
        values["classifier"]["members"] = listed
    else:
        values["detector"] = {
            "network": "yolo11",
            "options": {},
            "tile": [512, 256],
            "overlap": 0.2,
            "um_per_px": 0.25,
            "score_threshold": 0.2,
            "nms_iou": 0.3,
            "merge": {"distance_um": 7.5},
            "views": 4,
            "members": listed,
        }
    values["made"] = {"data": [{"set": "icpr12", "cases": ["A0*"], "without": ["A01"]}, {"set": "ami_br"}]}
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    return folder


def change_yaml(folder, change):
    path = folder / "model.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def test_a_system_is_what_its_yaml_says(tmp_path):
    system = load_system(write_system(tmp_path))
    assert (system.system, system.classifier.views, len(system.members)) == ("mine", 8, 2)
    assert system.members[1].calibration == Calibration(1, 0.5)
    assert find_system(tmp_path, None, 2) == find_system(tmp_path, "mine", 2) == system
    detector = load_system(write_system(tmp_path, "other", track=1)).detector
    assert (detector.views, detector.fusion, detector.tile) == (4, "average", (512, 256))


@pytest.mark.parametrize("path", sorted((ROOT / "resources/systems").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_one_and_comes_back_from_yaml(path):
    system = read_system(path)
    assert system.system == path.stem
    assert parse(System, yaml.safe_load(yaml.safe_dump(as_yaml(system))), path) == replace(system, folder=Path())
    assert not system.members


@pytest.mark.parametrize("path", sorted((ROOT / "model").glob("*/model.yaml")), ids=lambda path: path.parent.name)
def test_every_shipped_system_loads_and_says_what_it_learned_from(path):
    system = load_system(path.parent)
    assert system.made.code
    assert system.made.data
    assert parse(System, yaml.safe_load(yaml.safe_dump(as_yaml(system))), path) == replace(system, folder=Path())


def test_equal_weights_are_stored_once():
    shas = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (ROOT / "model").glob("*/*.safetensors")]
    assert len(set(shas)) == len(shas)


def test_which_cases_are_no_test(tmp_path):
    system = load_system(write_system(tmp_path))
    known = [("icpr12", "A00"), ("icpr12", "A01"), ("icpr12", "H00"), ("ami_br", "7"), ("cmc", "A00")]
    assert [system.trained_on(*each) for each in known] == [True, False, False, True, False]


TISSUE = {"haematoxylin": [0.6, 0.8, 0.0], "eosin": [0.0, 0.96, 0.28], "brightness": 150.5, "images": 3}
TISSUE |= {"area_mm2": 0.05, "nucleus_um": [5.5, 7.25, 10.0], "white_level": 240.0}


def test_what_the_training_data_look_like_comes_back_from_yaml(tmp_path):
    folder = write_system(tmp_path)
    assert load_system(folder).made.tissue is None
    change_yaml(folder, lambda values: values["made"].update(tissue=TISSUE))
    system = load_system(folder)
    assert (system.made.tissue.nucleus_um, system.made.tissue.eosin) == ((5.5, 7.25, 10.0), (0.0, 0.96, 0.28))
    assert as_yaml(system)["made"]["tissue"] == {
        key: tuple(value) if isinstance(value, list) else value for key, value in TISSUE.items()
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"haematoxylin": [0.6, 0.6, 0.0]}, "made.tissue: .*haematoxylin is 0.84.* long; a unit vector expected"),
        ({"eosin": [-0.28, 0.96, 0.0]}, r"made.tissue.eosin\[0\]: -0.28: expected float >= 0.0"),
        ({"nucleus_um": [5.5, 5.0, 10.0]}, "made.tissue: .*nucleus_um: 10th percentile, median"),
        ({"nucleus_um": [0, 5.0, 10.0]}, r"made.tissue.nucleus_um\[0\]: 0: expected float > 0.0"),
        ({"white_level": 256}, "made.tissue.white_level: 256: expected float <= 255"),
        ({"brightness": float("nan")}, "made.tissue.brightness: nan: expected float"),
        ({"images": 0}, "made.tissue.images: 0: expected int >= 1"),
        ({"colour": 1}, "made.tissue: unknown key colour"),
    ],
)
def test_bad_tissue_is_one_line_that_names_it(tmp_path, change, said):
    folder = write_system(tmp_path)
    change_yaml(folder, lambda values: values["made"].update(tissue=TISSUE | change))
    with pytest.raises(UserError, match=said):
        load_system(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": 3}, "detector.views: 3: 1 or 2 or 4 or 8 expected"),
        ({"fusion": "mean"}, "detector.fusion: 'mean': average or weighted_box_fusion expected"),
        ({"members": []}, "detector has no members: a recipe; train it"),
        ({"members": [{"weights": "fold0.safetensors"}]}, r"detector.members\[0\]: key sha256 is missing"),
        ({"members": [{"weights": "fold0.safetensors", "sha256": "0" * 64}]}, "fold0.safetensors: sha256"),
        ({"members": [{"weights": "../fold0.safetensors", "sha256": "0" * 64}]}, r"members\[0\].weights: '../fold0"),
        ({"calibration": {"colour": 1}}, "detector.calibration: unknown key colour"),
        ({"calibration": {"scale": 0}}, "detector.calibration: .*a scale above 0"),
        ({"merge": {}}, "detector.merge: .*either distance_um or iou"),
        ({"merge": {"distance_um": 7.5, "iou": 0.5}}, "detector.merge: .*either distance_um or iou"),
        ({"merge": {"distance_um": 0}}, "detector.merge.distance_um: 0: expected float > 0.0"),
        ({"merge": {"iou": 0}}, "detector.merge.iou: 0: expected float > 0.0"),
        ({"tile": 500}, r"detector.tile\[0\]: 500: expected int that's a multiple of 32"),
        ({"tile": [512]}, "detector.tile: "),
        ({"overlap": 1.0}, "detector.overlap: 1.0: expected float <= 0.9"),
        ({"overlap": -3}, "detector.overlap: -3: expected float >= 0.0"),
        ({"score_threshold": 7}, "detector.score_threshold: 7: expected float <= 1.0"),
        ({"nms_iou": 0}, "detector.nms_iou: 0: expected float > 0.0"),
        ({"um_per_px": 0}, "detector.um_per_px: 0: expected float >= 0.05"),
        ({"merge": {"distance_um": float("inf")}}, "detector.merge.distance_um: inf: expected float <= 1000000.0"),
        ({"score_threshold": float("nan")}, "detector.score_threshold: nan: expected float"),
        ({"um_per_px": "fine"}, "detector.um_per_px: 'fine': expected float, got str"),
        ({"confidence": 0.2}, "detector: unknown key confidence"),
    ],
)
def test_a_bad_detector_is_one_line_that_names_it(tmp_path, change, said):
    folder = write_system(tmp_path, track=1)
    change_yaml(folder, lambda values: values["detector"].update(change))
    with pytest.raises(UserError, match=said) as error:
        load_system(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(colour="red"), "unknown key colour"),
        (lambda v: v.update(folder="/"), "unknown key folder"),
        (lambda v: v["classifier"]["members"][1].update(colour="red"), r"members\[1\]: unknown key colour"),
        (lambda v: v.pop("version"), "key version is missing"),
        (lambda v: v.update(track=3), "track: 3: 1 or 2 expected"),
        (lambda v: v.update(track=1), "no detector, which Track 1 needs"),
        (lambda v: v.pop("classifier"), "a classifier and no detector expected for Track 2"),
        (lambda v: v["classifier"].update(views="8"), "classifier.views: '8': 1 or 2 or 4 or 8 expected"),
        (lambda v: v["classifier"].update(field_um=40), "classifier.field_um is 40; above 0, to 32 expected"),
        (lambda v: v["classifier"].update(input_px=0), "classifier.input_px: 0: expected int >= 8"),
        (lambda v: v["classifier"]["members"][0].update(field_um=33), "classifier.field_um is 33; above 0, to 32"),
        (lambda v: v["classifier"].update(field_um=0), "classifier.field_um is 0; above 0"),
        (
            lambda v: (v["classifier"].update(field_um=0), v["classifier"]["members"][0].update(field_um=8)),
            "classifier: .*exclude each other",
        ),
        (lambda v: v["classifier"].update(members=[]), "classifier has no members"),
        (lambda v: v["classifier"]["members"][0].update(weights="fold7.safetensors"), "fold7.safetensors: weights not"),
        (lambda v: v["classifier"]["members"][0].update(sha256="0" * 64), "fold0.safetensors: sha256"),
        (lambda v: v["made"]["data"].append({"cases": []}), r"made.data\[2\]: key set is missing"),
        (lambda v: v.update(members=[], views=1), "in the format before 1.0 .*export it again"),
    ],
)
def test_bad_yaml_is_one_line_that_names_it(tmp_path, change, said):
    folder = write_system(tmp_path)
    change_yaml(folder, change)
    with pytest.raises(UserError, match=said) as error:
        load_system(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_broken_files(tmp_path):
    folder = write_system(tmp_path)
    (folder / "fold1.safetensors").unlink()
    with pytest.raises(UserError, match="fold1.safetensors: weights not found"):
        load_system(folder)
    (folder / "model.yaml").write_text("members: [")
    with pytest.raises(UserError, match="cannot be read as YAML") as error:
        load_system(folder)
    assert "\n" not in str(error.value)


def test_the_choice_of_a_system(tmp_path):
    with pytest.raises(UserError, match="no single system for Track 2.*there: none"):
        find_system(tmp_path, None, 2)
    write_system(tmp_path, "one")
    write_system(tmp_path, "other_track", track=1)
    assert find_system(tmp_path, None, 2).system == "one"
    write_system(tmp_path, "two")
    with pytest.raises(UserError, match="choose one with --system"):
        find_system(tmp_path, None, 2)
    write_system(tmp_path, "efficientnet_lite0")
    assert find_system(tmp_path, None, 2).system == "efficientnet_lite0"
    with pytest.raises(UserError, match="there: efficientnet_lite0, one, other_track, two"):
        find_system(tmp_path, "three", 2)
    with pytest.raises(UserError, match="is for Track 1, the job for Track 2"):
        find_system(tmp_path, "other_track", 2)
    with pytest.raises(UserError, match="rtmdet_s: a recipe without weights; train it with"):
        find_system(tmp_path, "rtmdet_s", 1)
    assert find_system(tmp_path, "other_track", None).track == 1


def test_a_track_is_seen_however_it_is_written(tmp_path):
    folder = write_system(tmp_path, "efficientnet_lite0", track=1)
    path = folder / "model.yaml"
    path.write_text(path.read_text().replace("track: 1", "track: 1  # figures"))
    with pytest.raises(UserError, match="no single system for Track 2"):
        find_system(tmp_path, None, 2)
    with pytest.raises(UserError, match="is for Track 1, the job for Track 2"):
        find_system(tmp_path, "efficientnet_lite0", 2)


def test_our_own_weights_stand_in_for_a_mount_without_a_system(tmp_path, monkeypatch, caplog, no_command_line):
    monkeypatch.setattr("midog.system.PLATFORM_MODEL", tmp_path)
    assert model_folder(None) == OWN_MODEL
    assert not caplog.records
    (tmp_path / "README.md").write_text("# as a starter pack has it")
    (tmp_path / "a").mkdir()
    assert model_folder(None) == OWN_MODEL
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "holds no NAME/model.yaml" in record.getMessage()
    (tmp_path / "a" / "model.yaml").write_text("")
    assert model_folder(None) == tmp_path
    assert model_folder("x").name == "x"
