import numpy as np
import pytest

from midog.images.appearance import Appearance, appearance_of, nuclei, otsu, pooled, stain_vectors

HAEMATOXYLIN, EOSIN = np.array([0.64, 0.72, 0.27]), np.array([0.1, 0.96, 0.26])
HAEMATOXYLIN, EOSIN = (vector / np.linalg.norm(vector) for vector in (HAEMATOXYLIN, EOSIN))
UM_PER_PX = 0.5, 0.5
SIDE = 240


def disc(x, y, diameter_um):
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return np.hypot(rows - y, columns - x) <= diameter_um


def tissue(glass=None):
    """Eosin of uneven strength, 240 px of .5 um; nuclei of 8, 10 and 12 um; glass of a grey level on the left fifth."""
    dense = disc(90, 60, 8) | disc(180, 60, 10) | disc(90, 180, 12)
    dense |= disc(130, 120, 2) | disc(SIDE - 1, 180, 10) | disc(170, 140, 8) | disc(186, 140, 8)  # no single nuclei
    eosin = np.linspace(0.2, 0.4, SIDE)[:, None] * ~dense
    pixels = 255 * 10 ** -(eosin[..., None] * EOSIN + 0.7 * dense[..., None] * HAEMATOXYLIN)
    if glass:
        pixels[:, : SIDE // 5] = glass
    return pixels.round().astype(np.uint8)


def test_what_is_drawn_is_measured():
    found = appearance_of(tissue(glass=240), UM_PER_PX)
    assert sorted(found.nuclei_um) == pytest.approx([8, 10, 12], abs=0.3)
    np.testing.assert_allclose(found.haematoxylin, HAEMATOXYLIN, atol=0.02)
    np.testing.assert_allclose(found.eosin, EOSIN, atol=0.02)
    assert np.linalg.norm(found.eosin) == pytest.approx(1)
    assert found.white_level == 240
    assert found.brightness == pytest.approx(tissue()[:, SIDE // 5 :].mean(), abs=0.01)
    assert (found.images, found.area_mm2) == (1, pytest.approx(0.12**2))


@pytest.mark.parametrize("level", [185, 220, 252])
def test_dim_glass_is_no_tissue(level):
    found = appearance_of(tissue(level), UM_PER_PX)
    assert found.white_level == level
    assert found.brightness == appearance_of(tissue(240), UM_PER_PX).brightness
    assert appearance_of(tissue(), UM_PER_PX).white_level is None


def test_the_spacing_changes_nothing():
    fine = appearance_of(tissue(240).repeat(2, 0).repeat(4, 1), (0.125, 0.25))
    coarse = appearance_of(tissue(240), UM_PER_PX)
    np.testing.assert_allclose(sorted(fine.nuclei_um), sorted(coarse.nuclei_um), atol=0.1)
    np.testing.assert_allclose(fine.haematoxylin, coarse.haematoxylin, atol=0.01)
    assert fine.area_mm2 == pytest.approx(coarse.area_mm2)


def test_without_tissue_nothing_is_measured():
    dust = np.full((SIDE, SIDE, 3), 240, np.uint8)
    assert appearance_of(dust, UM_PER_PX) is None
    dust[:60, :60] = tissue()[:60, :60]  # a sixteenth
    assert appearance_of(dust, UM_PER_PX) is None


def test_stain_vectors_are_the_extremes_of_a_plane_whatever_the_order():
    amounts = np.random.default_rng(0).uniform(0, 1, (5000, 2))
    amounts[:1000, 0] = amounts[1000:2000, 1] = 0  # pure pixels, beyond the percentiles on both sides
    for first, second in ((HAEMATOXYLIN, EOSIN), (EOSIN, HAEMATOXYLIN)):
        found = stain_vectors(amounts @ np.stack([first, second]))
        np.testing.assert_allclose(found, [HAEMATOXYLIN, EOSIN], atol=1e-6)


def test_otsu_parts_the_two_classes():
    assert 1 <= otsu(np.array([0.0, 0, 1, 9, 10])) < 9
    assert 1 <= otsu(np.array([0.0] * 90 + [1] * 5 + [9] * 5)) < 9


def test_a_nucleus_keeps_its_pale_middle_and_loses_its_bridges():
    ring = disc(60, 60, 10) & ~disc(60, 60, 8)
    bridged = disc(160, 60, 8) | disc(200, 60, 8)
    bridged[58:62, 160:200] = True
    areas = np.bincount(nuclei((ring | bridged).astype(float), np.ones((SIDE, SIDE), bool)).ravel())[1:]
    # of the bridge a stub stays on either side
    np.testing.assert_allclose(areas, [disc(60, 60, 10).sum(), *[disc(160, 60, 8).sum()] * 2], rtol=0.2)


def test_images_are_pooled_by_their_median_and_nuclei_all_together():
    def image(nuclei_um, red, white_level, brightness):
        vector = np.array([red, np.sqrt(1 - red**2), 0])
        return Appearance(np.array(nuclei_um, float), vector, vector, white_level, brightness, 1, 0.25)

    measured = [image([6, 7], 0.6, None, 100), None, image([], 0.8, 230, 140), image([9], 0.6, 240, 150)]
    found = pooled(measured)
    assert found.nuclei_um.tolist() == [6, 7, 9]
    np.testing.assert_allclose(found.haematoxylin, [0.6, 0.8, 0])
    assert (found.white_level, found.brightness, found.images, found.area_mm2) == (235, 140, 3, 0.75)
    assert pooled([None, None]) is None
    # the median of each part alone would be shorter than 1
    np.testing.assert_allclose(np.linalg.norm(pooled(measured[::2]).eosin), 1)
