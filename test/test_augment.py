import pytest
import torch
import torch.nn.functional as F

from midog.engine.classifier import centre_crop
from resources.train.kit.augment import Augmentation, Draws, augment, jitter_stain


@pytest.fixture
def crops(pages):
    """Without textures so fine that half a pixel more or less is another colour."""
    return F.avg_pool2d(torch.from_numpy(pages).permute(0, 3, 1, 2).float() / 255, 5, 1, 2)


def test_without_augmentation_training_sees_what_inference_sees(crops):
    got, _ = augment(crops, crops[:, :1], 77 / 128, 64, Augmentation(), Draws(range(len(crops))))
    # 77 px cannot lie exactly in the middle of 128: half a pixel of difference
    assert (got - centre_crop(crops, 0.6, 64)).abs().mean() < 0.02


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
