import hashlib

import pytest
import yaml

from midog.errors import UserError
from midog.system import Calibration, find_system, load_system, model_folder


def write_system(folder, name="mine", track=2, members=2, **changes):
    folder = folder / name
    folder.mkdir(parents=True)
    listed = []
    for fold in range(members):
        content = f"weights {fold}".encode()
        (folder / f"fold{fold}.safetensors").write_bytes(content)
        listed.append(
            {
                "network": "convnextv2",
                "options": {},
                "crop": 0.6,
                "size": 64,
                "weights": f"fold{fold}.safetensors",
                "sha256": hashlib.sha256(content).hexdigest(),
                "calibration": {"scale": 1, "shift": 0.5},
            }
        )
    values = {"system": name, "version": "1.0", "track": track, "views": 8, "members": listed}
    values |= {"data": ["ami_br"], "training": {}, "metrics": {}} | changes
    (folder / "model.yaml").write_text(yaml.safe_dump(values))
    return folder


def change_yaml(folder, change):
    path = folder / "model.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


def test_a_system_is_what_its_yaml_says(tmp_path):
    system = load_system(write_system(tmp_path))
    assert (system.system, system.views, len(system.members)) == ("mine", 8, 2)
    assert system.members[1].calibration == Calibration(1, 0.5)
    assert find_system(tmp_path, None, 2) == find_system(tmp_path, "mine", 2) == system


def write_detector(folder):
    """A system for Track 1 of two detectors; its folder."""
    folder = write_system(folder, track=1)
    change_yaml(folder, make_detector)
    return folder


def make_detector(values):
    """The classifiers' files become a detector's."""
    members = [{name: each[name] for name in ("weights", "sha256")} for each in values["members"]]
    numbers = {"tile": 512, "overlap": 0.2, "um_per_px": 0.25, "confidence": 0.2, "nms_iou": 0.3}
    numbers |= {"merge_iou": 0, "merge_um": 7.5, "context_um": 0, "score_weight": 0}
    values["detector"] = {"network": "yolo11", "options": {}, "views": 4, "fusion": "average", **numbers}
    values["detector"] |= {"members": members, "calibration": {"scale": 1, "shift": 0.5}}
    values["members"] = []


def test_a_detector_is_what_its_yaml_says(tmp_path):
    detector = load_system(write_detector(tmp_path)).detector
    assert (detector.views, detector.fusion, detector.calibration) == (4, "average", Calibration(1, 0.5))
    assert [each.weights for each in detector.members] == ["fold0.safetensors", "fold1.safetensors"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": 3}, "detector: views is 3; 1, 2, 4 or 8 expected"),
        ({"fusion": "mean"}, "detector: fusion is 'mean'; average or weighted_box_fusion expected"),
        ({"members": []}, "detector: no list of members"),
        ({"members": [{"weights": "fold0.safetensors"}]}, r"detector.members\[0\]: key sha256 is missing"),
        ({"members": [{"weights": "fold0.safetensors", "sha256": "0" * 64}]}, "fold0.safetensors: sha256"),
        ({"calibration": {"colour": 1}}, "detector.calibration: unknown key colour"),
    ],
)
def test_a_bad_detector_is_one_line_that_names_it(tmp_path, change, said):
    folder = write_detector(tmp_path)
    change_yaml(folder, lambda values: values["detector"].update(change))
    with pytest.raises(UserError, match=said) as error:
        load_system(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(colour="red"), "unknown key colour"),
        (lambda v: v["members"][1].update(colour="red"), r"members\[1\]: unknown key colour"),
        (lambda v: v["members"][0]["calibration"].update(colour=1), "calibration: unknown key colour"),
        (lambda v: v.pop("views"), "key views is missing"),
        (lambda v: v.update(views=3), "views is 3"),
        (lambda v: v.update(views="8"), "an int expected|a int expected"),
        (lambda v: v.update(members=[]), "no list of members"),
        (lambda v: v["members"][0].update(weights="fold7.safetensors"), "fold7.safetensors: weights not found"),
        (lambda v: v["members"][0].update(sha256="0" * 64), "fold0.safetensors: sha256"),
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
    write_system(tmp_path, "convnextv2_small")
    assert find_system(tmp_path, None, 2).system == "convnextv2_small"
    with pytest.raises(UserError, match="there: convnextv2_small, one, other_track, two"):
        find_system(tmp_path, "three", 2)
    with pytest.raises(UserError, match="is for Track 1, the job for Track 2"):
        find_system(tmp_path, "other_track", 2)


def test_our_own_weights_stand_in_for_an_empty_mount(tmp_path, monkeypatch):
    monkeypatch.setattr("midog.system.PLATFORM_MODEL", tmp_path)
    assert model_folder(None).name == "model"
    (tmp_path / "a").mkdir()
    assert model_folder(None) == tmp_path
    assert model_folder("x").name == "x"
