import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midog import job as jobs
from midog.errors import UserError


def test_a_job_is_read_from_slug_path_and_name_alone(job):
    entries = json.loads((job / "inputs.json").read_text())
    entries[0]["pk"] = 4711
    entries[0]["interface"]["a_key_of_tomorrow"] = {"x": None}
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not found"),
        ("{broken", "cannot be read as JSON"),
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


def test_a_path_out_of_the_input_folder_is_refused(tmp_path):
    write_inputs(tmp_path, path="../elsewhere")
    with pytest.raises(UserError, match="leads out"):
        jobs.read_job(tmp_path)


@given(st.lists(st.floats(0, 1)))
def test_confidence_is_a_json_float_and_the_class_follows(probabilities):
    result = json.loads(json.dumps(jobs.atypical_result(probabilities)))
    assert len(result) == len(probabilities)
    for entry, probability in zip(result, probabilities, strict=True):
        assert isinstance(entry["confidence"], float)
        assert entry["confidence"] == probability
        assert entry["class"] == ("atypical" if probability >= 0.5 else "normal")


def test_nothing_half_written(tmp_path):
    path = tmp_path / "result.json"
    jobs.write_result(path, [1.5])
    with pytest.raises(ValueError, match="JSON"):
        jobs.write_result(path, [float("nan")])
    assert json.loads(path.read_text()) == [1.5]
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
