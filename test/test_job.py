import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog import job as jobs
from midog.detections import MM_PER_PX, Detections
from midog.errors import UserError


def test_a_job_is_read_from_slug_path_and_name_alone(job):
    entries = json.loads((job / "inputs.json").read_text())
    entries[0]["pk"] = 4711
    entries[0]["socket"]["a_key_of_tomorrow"] = {"x": None}
    (job / "inputs.json").write_text(json.dumps(entries))
    read = jobs.read_job(job)
    assert read.socket.track == 2
    assert read.image_name == "sample_stack.tiff"
    assert read.image_path.name == "3f6c1f0e-sample.tif"


def test_track_1s_folder_is_not_its_slug(tmp_path):
    folder = tmp_path / "images" / "histopathology-roi-cropout"
    folder.mkdir(parents=True)
    (folder / "x.tiff").write_bytes(b"II*\0")
    slug = "histopathology-region-of-interest-cropout"
    write_inputs(tmp_path, slug=slug, path="images/histopathology-roi-cropout")
    assert jobs.read_job(tmp_path).socket == jobs.Socket(1, "mitotic-figures.json")


def write_inputs(folder, slug="stacked-histopathology-roi-cropouts", path="images", name="a.tiff"):
    entry = {"interface": {"slug": slug, "relative_path": path}, "image": {"name": name}}
    (folder / "inputs.json").write_text(json.dumps([entry]))


@pytest.mark.parametrize("keys", [("socket",), ("interface",), ("socket", "interface")])
def test_a_socket_goes_by_either_name(job, keys):
    (entry,) = json.loads((job / "inputs.json").read_text())
    socket = entry.pop("socket")
    older = {"slug": "of-an-older-file", "relative_path": "images"}
    entry |= {key: socket if key == keys[0] else older for key in keys}
    (job / "inputs.json").write_text(json.dumps([entry]))
    assert jobs.read_job(job).image_path.name == "3f6c1f0e-sample.tif"


def test_a_socket_without_a_handler_is_named_whatever_it_holds(job):
    entries = json.loads((job / "inputs.json").read_text())
    entries.append({"image": None, "value": 3, "socket": {"slug": "tumour-type", "relative_path": "tumour.json"}})
    (job / "inputs.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="no handler for tumour-type; supported, one a job: histo"):
        jobs.read_job(job)
    (job / "inputs.json").write_text(json.dumps(entries[:1] * 2))
    with pytest.raises(UserError, match="no handler for stacked-.*, stacked-"):
        jobs.read_job(job)


def test_hidden_files_beside_the_image_are_none(job):
    image = next(job.glob("images/*/*.tif"))
    (image.parent / f"._{image.name}").write_bytes(b"\0\5\x16\7")  # macOS leaves them on other disks
    assert jobs.read_job(job).image_path == image


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not found"),
        ("{broken", "not JSON"),
        ("[]", "not a list of inputs"),
        ('{"a": 1}', "not a list of inputs"),
        ('[{"interface": {"slug": "x"}}]', "not a list of inputs"),
        ('[{"interface": {"slug": 3, "relative_path": "i"}, "image": {"name": "n"}}]', "not a list of inputs"),
        ("3", "not a list of inputs"),
    ],
)
def test_bad_inputs_json_is_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        jobs.read_job(tmp_path)
    assert str(tmp_path / "inputs.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_remedy_for_a_broken_job_is_not_to_write_it(tmp_path):
    (tmp_path / "inputs.json").write_text("{broken")
    with pytest.raises(UserError) as error:
        jobs.read_job(tmp_path)
    assert "write the list" not in str(error.value)
    assert "copy its folder again" in str(error.value)


def test_an_unknown_slug_lists_the_known_ones(tmp_path):
    write_inputs(tmp_path, slug="something-else")
    with pytest.raises(UserError, match="something-else.*histopathology-region.*stacked-histopathology"):
        jobs.read_job(tmp_path)


def test_no_image_and_two_images(job):
    image = next(job.glob("images/*/*.tif"))
    image.with_suffix(".TIFF").write_bytes(image.read_bytes())
    with pytest.raises(UserError, match="found 2"):
        jobs.read_job(job)
    for path in image.parent.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="found 0: none"):
        jobs.read_job(job)


@pytest.mark.parametrize(("path", "said"), [("../elsewhere", "leads out"), ("a\0b", "is no folder")])
def test_a_path_that_is_none_inside_the_input_folder_is_refused(tmp_path, path, said):
    write_inputs(tmp_path, path=path)
    with pytest.raises(UserError, match=said):
        jobs.read_job(tmp_path)


def test_names_in_a_message_are_short_and_in_one_line(tmp_path):
    wrong = [("slug", "x" * 10**6, "no handler for xxx"), ("slug", "a\nb", r"no handler for a\\nb")]
    wrong += [("path", "a\nb", r"a\\nb: one image"), ("path", "x" * 10**6, "'xxx.* is no folder")]
    wrong += [("path", "../" * 900, "leads out"), ("path", "x/" * 900, "one image")]
    for key, value, said in wrong:
        write_inputs(tmp_path, **{key: value})
        with pytest.raises(UserError, match=said) as error:
            jobs.read_job(tmp_path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 700


@given(st.lists(st.floats(0, 1)))
def test_confidence_is_a_json_float_and_the_class_follows(probabilities):
    result = json.loads(json.dumps(jobs.atypical_result(probabilities)))
    assert len(result) == len(probabilities)
    for entry, probability in zip(result, probabilities, strict=True):
        assert isinstance(entry["confidence"], float)
        assert entry["confidence"] == probability
        assert entry["class"] == ("atypical" if probability >= 0.5 else "normal")


def points(places, probabilities):
    """A result with these places in mm."""
    return Detections.of(np.tile(places, 2), probabilities, MM_PER_PX).to_json()


DETECTIONS = points([(0.1, 0.2), (0.3, 0.4)], [0.9, 0.1])
ABSENT = object()


def detections_with(*keys, value):
    """`DETECTIONS` with the entry under `keys` set to a value, or taken out."""
    result = copy.deepcopy(DETECTIONS)
    inner = result
    for key in keys[:-1]:
        inner = inner[key]
    if value is ABSENT:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return result


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["type"], ABSENT),
        (["points"], ABSENT),
        (["version"], ABSENT),
        (["model"], "of ours"),
        (["name"], None),
        (["type"], "Mulitple points"),
        (["points"], None),
        (["points", 1], [0.1, 0.2, 0]),
        (["points", 1, "name"], ABSENT),
        (["points", 1, "point"], ABSENT),
        (["points", 1, "probability"], ABSENT),
        (["points", 1, "subtype"], "atypical"),
        (["points", 1, "type"], "Points"),
        (["points", 1, "name"], "non mitotic figure"),
        (["points", 1, "point"], [0.1, 0.2]),
        (["points", 1, "point"], [0.1, 0.2, 0, 0]),
        (["points", 1, "point"], (0.1, 0.2, 0)),
        (["points", 1, "point", 0], float("nan")),
        (["points", 1, "point", 1], float("inf")),
        (["points", 1, "point", 2], None),
        (["points", 1, "point", 0], "0.1"),
        (["points", 1, "point", 0], np.float32(0.1)),
        (["points", 1, "probability"], 1.0000001),
        (["points", 1, "probability"], -1e-9),
        (["points", 1, "probability"], float("nan")),
        (["points", 1, "probability"], None),
        (["points", 1, "probability"], True),
        (["version"], None),
        (["version", "minor"], ABSENT),
        (["version", "patch"], 0),
        (["version", "major"], -1),
        (["version", "major"], 1.5),
        (["version", "major"], True),
    ],
)
def test_what_the_platform_or_the_evaluation_refuses(keys, value):
    said = r"points\[1\]" if keys[:2] == ["points", 1] else keys[0]
    with pytest.raises(ValueError, match=said):
        jobs.check_detection_result(detections_with(*keys, value=value))


def test_what_a_message_quotes_is_short():
    for key, value in (("probability", 10**400), ("probability", 10**5000), ("name", "x" * 10**6)):
        with pytest.raises(ValueError, match=rf"^points\[1\]: {key} is .{{1,250}}expected$"):
            jobs.check_detection_result(detections_with("points", 1, key, value=value))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["name"], ABSENT),
        (["points"], []),
        (["points", 1, "type"], "Point"),
        (["points", 1, "probability"], 0),
        (["points", 1, "probability"], 1),
        (["version", "minor"], 7),
        (["version", "major"], 1.0),  # the schema asks for a number that is a multiple of 1
    ],
)
def test_what_the_platform_and_the_evaluation_accept(keys, value):
    jobs.check_detection_result(detections_with(*keys, value=value))


def test_the_schema_knows_no_names_and_needs_no_probability():
    """That is the challenge's evaluation alone, which comes after it."""
    for keys, value in ((["points", 1, "name"], "mitosis"), (["points", 1, "probability"], ABSENT)):
        result = detections_with(*keys, value=value)
        assert list(jobs.schema_breaches(result)) == []
        with pytest.raises(ValueError, match=r"points\[1\]: name"):
            jobs.check_detection_result(result)


def test_all_breaches_of_the_schema_are_told():
    result = detections_with("points", 0, "probability", value=2) | {"model": 3}
    del result["version"]
    assert list(jobs.schema_breaches(result)) == [
        *("version is missing", "'model' is not allowed"),
        "points[0]: probability is 2; a number in [0, 1] expected",
    ]


def test_a_bad_result_is_not_a_result():
    for shape in ([], None, "points"):
        with pytest.raises(ValueError, match="required"):
            jobs.check_detection_result(shape)


def test_coordinates_that_only_the_challenge_refuses_are_a_warning():
    result = points([(10, -0.0075), (10.001, 1), (1, -0.0076), (12, 12)], [0.5] * 4)
    jobs.check_detection_result(result)
    warning = jobs.detection_warning(result)
    assert warning.startswith("3 of 4 points lie outside -0.0075 to 10 mm")
    assert "\n" not in warning
