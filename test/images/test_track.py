import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from midog.errors import UserError
from midog.images.track import check_mpp, is_crop, track_of_image


def write_mha(path, pixels):
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path), useCompression=True)
    return path


def test_the_track_of_a_metaimage(tmp_path, pages):
    assert track_of_image(write_mha(tmp_path / "a.mha", pages)) == 2
    assert track_of_image(write_mha(tmp_path / "a.mha", pages[0])) == 2
    assert track_of_image(write_mha(tmp_path / "a.mha", np.zeros((600, 700, 3), np.uint8))) == 1
    assert track_of_image(write_mha(tmp_path / "a.mha", np.zeros((300, 300, 3), np.uint8))) == 1
    with pytest.raises(UserError, match=r"a\.mha: several pages of 700 x 600 px may be .* --track 1"):
        track_of_image(write_mha(tmp_path / "a.mha", np.zeros((2, 600, 700, 3), np.uint8)))


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.tif"])
@pytest.mark.parametrize(
    ("size", "crop"), [((64, 64), True), ((256, 256), True), ((60, 60), False), ((128, 96), False)]
)
def test_a_square_picture_as_small_as_a_cell_is_a_crop(tmp_path, name, size, crop):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)
    assert is_crop(path) == crop
    if crop:
        assert track_of_image(path) == 2
        path.write_bytes(path.read_bytes()[:-3000])  # a damaged one should not stop those beside it
        assert not is_crop(path)
    elif name != "a.tif":
        assert track_of_image(path) == 1


@pytest.mark.parametrize("name", ["none.tif", "text.tif", "none.mha", "text.mha"])
def test_what_cannot_be_read_is_one_line(tmp_path, name):
    (tmp_path / name.replace("none", "another")).write_text("no image at all\n")
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(.*\); check the path"):
        track_of_image(tmp_path / name)


def test_a_stack_has_its_own_spacing(tmp_path):
    check_mpp(tmp_path, 0.25, 1)
    check_mpp(tmp_path, None, 2)
    with pytest.raises(UserError, match="leave --mpp out"):
        check_mpp(tmp_path, 0.25, 2)
