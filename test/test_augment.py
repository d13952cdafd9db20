import pytest
import torch
import torch.nn.functional as F

from midog.engine.classifier import centre_crop
from resources.train.kit.augment import (
    MOST_OBLONG,
    Augmentation,
    Draws,
    add_noise,
    augment,
    jitter_saturation,
    jitter_stain,
)


@pytest.fixture
def crops(pages):
    """Without textures so fine that half a pixel more or less is another colour."""
    return F.avg_pool2d(torch.from_numpy(pages).permute(0, 3, 1, 2).float() / 255, 5, 1, 2)


def test_without_augmentation_training_sees_what_inference_sees(crops):
    got, _ = augment(crops, crops[:, :1], 77 / 128, 64, Augmentation(), Draws(range(len(crops))))
    # 77 px cannot lie exactly in the middle of 128: half a pixel of difference
    assert (got - torch.from_numpy(centre_crop(crops.numpy(), 0.6, 64))).abs().mean() < 0.02


def test_flips_and_transpose_give_the_eight_dihedral_views(crops):
    crop = crops[:1].expand(200, -1, -1, -1)
    got, _ = augment(crop, crop[:, :1], 1.0, 128, Augmentation(flip=0.5, transpose=0.5), Draws(range(200)))
    seen = {view.mul(255).round().to(torch.uint8).numpy().tobytes() for view in got}
    assert len(seen) == 8


def test_the_mask_moves_with_the_crop(crops):
    dark = (crops.mean(1, keepdim=True) < 0.5).float()
    how = Augmentation(flip=0.5, transpose=0.5, affine=1, rotation=180, scale=0.2, stretch=0.2, shift=0.05)
    got, masks = augment(crops, dark, 0.6, 64, how, Draws(range(len(crops))))
    agree = ((got.mean(1, keepdim=True) < 0.5).float() - masks).abs().mean()
    assert masks.mean() > 0.02
    assert agree < 0.02


def test_geometry_stays_within_its_limits(crops):
    disc = torch.zeros(64, 1, 128, 128)
    disc[:, :, 60:68, 60:68] = 1
    how = Augmentation(affine=1, rotation=180, scale=0.18, stretch=0.2, shift=0.047)
    _, masks = augment(disc.expand(-1, 3, -1, -1), disc, 1.0, 128, how, Draws(range(64)))
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    mass = masks.sum((1, 2, 3))
    for axis in (x, y):
        centre = (masks[:, 0] * axis).sum((1, 2)) / mass
        assert (centre - 63.5).abs().max() < 0.047 * 128 * 1.5
    assert mass.min() > 64 * 0.65
    assert mass.max() < 64 * 1.6


def test_stain_jitter_changes_colour_but_not_white(crops):
    torch.testing.assert_close(jitter_stain(crops, 0.0, Draws(range(len(crops)))), crops, atol=1e-3, rtol=0)
    assert (jitter_stain(crops, 0.3, Draws(range(len(crops)))) - crops).abs().mean() > 0.01
    assert jitter_stain(torch.ones(4, 3, 8, 8), 0.1, Draws(range(4))).mean() > 0.9


def test_saturation_leaves_grey_and_how_light_a_colour_is():
    draws = [Draws(range(50)) for _ in range(2)]
    grey, pink = (torch.tensor(each)[None, :, None, None].expand(50, 3, 2, 2) for each in ([0.5] * 3, [0.6, 0.4, 0.5]))
    torch.testing.assert_close(jitter_saturation(grey, 0.3, draws[0]), grey)
    got = jitter_saturation(pink, 0.3, draws[1])[:, :, 0, 0]
    weights = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(got @ weights, pink[:, :, 0, 0] @ weights)
    factors = (got[:, 0] - got[:, 1]) / 0.2
    assert factors.log().std().item() == pytest.approx(0.3, rel=0.3)


def test_noise_is_as_strong_as_is_said():
    """A crop's own deviation is even from 0 to the strength: a half of it in the mean."""
    got = add_noise(torch.full((200, 3, 16, 16), 0.5), 0.04, Draws(range(200)))
    deviations = got.flatten(1).std(1)
    assert deviations.max() < 0.044
    assert deviations.mean().item() == pytest.approx(0.02, rel=0.1)
    assert got.mean().item() == pytest.approx(0.5, abs=1e-3)


def test_mirrored_left_to_right_alone(crops):
    how = Augmentation(flip=1.0, upside_down=False)
    got, _ = augment(crops, crops[:, :1], 1.0, 128, how, Draws(range(len(crops))))
    torch.testing.assert_close(got, crops.flip(3), atol=1e-4, rtol=0)


def test_a_shift_of_a_sixteenth_is_8_px_of_the_128_that_a_network_sees():
    """Whatever part of the crop that is: here the 60 % of the Track 2 paper."""
    disc = torch.zeros(200, 1, 128, 128)
    disc[:, :, 62:66, 62:66] = 1
    how = Augmentation(affine=1, shift=0.0625)
    _, masks = augment(disc.expand(-1, 3, -1, -1), disc, 0.6, 128, how, Draws(range(200)))
    places = torch.arange(128.0) - 63.5
    for summed in (2, 3):
        centre = (masks[:, 0].sum(summed - 1) * places).sum(1) / masks.sum((1, 2, 3))
        assert 7.5 < centre.abs().max() < 8.1


def test_a_random_crop_lies_in_its_crop_and_is_large_enough():
    """Seen by the coordinates that the corners of the result have in crops which show their own coordinates."""
    ramp = (torch.arange(64.0) + 0.5) / 64
    crops = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(
        300, -1, -1, -1
    )
    got, _ = augment(crops, crops[:, :1], 1.0, 64, Augmentation(crop=0.25), Draws(range(300)))
    first, last = got[:, :2, 20, 20], got[:, :2, 43, 43]  # away from the edge, where there is nothing to interpolate
    sides = (last - first) / 23 * 64
    middles = (first + last) / 2
    area = sides.prod(1)
    assert 0.25 * 0.99 < area.min() < 0.3
    assert 0.9 < area.max() < 1.01
    assert (sides[:, 0] / sides[:, 1]).max() < MOST_OBLONG * 1.01
    assert (middles - sides / 2).min() > -0.01
    assert (middles + sides / 2).max() < 1.01
    assert middles.std() > 0.05


def test_a_crop_changes_alike_alone_and_in_a_batch(crops):
    how = Augmentation(
        flip=0.5,
        upside_down=False,
        transpose=0.5,
        affine=0.5,
        rotation=180,
        scale=0.1,
        stretch=0.1,
        shift=0.1,
        crop=0.5,
        stain=0.2,
        contrast=0.2,
        saturation=0.2,
        blur=0.5,
        noise=0.02,
    )
    whole, _ = augment(crops, crops[:, :1], 0.6, 64, how, Draws(range(len(crops))))
    for number in range(len(crops)):
        one = crops[number : number + 1]
        torch.testing.assert_close(augment(one, one[:, :1], 0.6, 64, how, Draws([number]))[0][0], whole[number])
