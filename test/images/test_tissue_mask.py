"""The tissue of drawn overviews: what counts, what does not, and areas by hand."""

import numpy as np
import pytest
import shapely

from midog.images.slide import ArraySlide
from midog.images.tissue import TissueMask, tissue_mask

EOSIN, NUCLEI, PALE, BLUISH = (222, 150, 185), (120, 80, 150), (238, 214, 222), (150, 140, 178)
GLASS = {"white": (255, 255, 255), "dim": (185, 185, 185), "rosy": (240, 226, 228), "yellow": (250, 243, 222)}
GLASS |= {"bluish": (222, 230, 244), "greenish": (232, 244, 236)}
INK = {
    "blue": (30, 60, 170),
    "navy": (40, 45, 110),
    "green": (20, 130, 70),
    "black": (40, 38, 42),
    "red": (215, 35, 45),
}
UM = 8.0  # a cell a pixel: the slides here are as their masks


def mask_of(pixels, um_per_px=UM):
    slide = ArraySlide(pixels, (um_per_px, um_per_px))
    return tissue_mask(slide, slide.overview(2000))


def drawn(glass=(242, 242, 242), stain=EOSIN):
    """60 x 40 cells of glass with 20 x 30 of tissue: 38,400 um2 a 600 cells."""
    pixels = np.full((40, 60, 3), glass, np.uint8)
    pixels[5:35, 10:30] = stain
    return pixels


@pytest.mark.parametrize("stain", [EOSIN, NUCLEI, PALE, BLUISH])
@pytest.mark.parametrize("glass", GLASS)
def test_tissue_is_told_from_glass_of_any_colour(glass, stain):
    found = mask_of(drawn(GLASS[glass], stain))
    assert found.mask.sum() == 600
    assert found.area_mm2 == pytest.approx(600 * 64e-6)


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("ink", INK)
def test_ink_on_glass_is_no_tissue_and_opaque_ink_hides_it(ink, thin):
    pixels, colour = drawn(), np.array(INK[ink])
    pixels[10:16] = pixels[10:16] * (0.5 + colour / 510) if thin else colour
    found = mask_of(pixels).mask
    assert not found[:, 30:].any()
    assert not found[:, :10].any()
    assert found.sum() == 600 if thin and found[12, 20] else found.sum() == 600 - 6 * 20


def test_specks_are_dropped_and_small_holes_filled():
    pixels = drawn()
    pixels[2:8, 45:51] = EOSIN  # 36 cells, 2304 um2
    pixels[20:27, 45:51] = EOSIN  # 42 cells, 2688 um2
    pixels[10:13, 15:20] = 242  # 15 cells, 960 um2
    pixels[20:24, 15:19] = 242  # 16 cells, 1024 um2
    found = mask_of(pixels).mask
    assert not found[2:8, 45:51].any()
    assert found[20:27, 45:51].all()
    assert found[10:13, 15:20].all()
    assert not found[20:24, 15:19].any()
    assert found.sum() == 600 + 42 - 16


def test_the_area_is_the_same_at_another_scale_and_of_another_overview():
    x, y = np.meshgrid(np.arange(1200), np.arange(800))
    pixels = np.full((800, 1200, 3), 243, np.uint8)
    inside = np.hypot((x - 600) / 450, (y - 400) / 300) < 1
    grain = np.random.default_rng(3).integers(0, 2, (100, 150)).repeat(8, 0).repeat(8, 1)
    pixels[inside & (grain == 0)] = EOSIN
    pixels[inside & (grain == 1)] = NUCLEI
    slide, true = ArraySlide(pixels, (0.5, 0.5)), np.pi * 450 * 300 * 0.25e-6
    areas = [tissue_mask(slide, slide.overview(side)).area_mm2 for side in (2000, 1000, 400, 100)]
    finer = ArraySlide(pixels.repeat(2, 0).repeat(2, 1), (0.25, 0.25))
    areas.append(tissue_mask(finer, finer.overview(2000)).area_mm2)
    assert areas == pytest.approx([areas[0]] * 5, rel=0.02)
    assert areas == pytest.approx([true] * 5, rel=0.03)  # a cell of which the edge leaves a third is tissue


def test_places_windows_and_geometries_by_hand():
    tissue = TissueMask(np.array([[True, False], [True, True]]), (20.0, 20.0))  # cells of 10 um
    assert tissue.area_mm2 == pytest.approx(300e-6)
    places = np.array([[0, 0], [9_999, 5_000], [10_000, 5_000], [20_000, 20_000], [20_001, 15_000], [-1, 5_000]])
    assert tissue.at(places).tolist() == [True, True, False, True, False, False]
    assert tissue.of_window(0, 0, 20_000, 20_000) == pytest.approx(300e-6)
    assert tissue.of_window(5_000, 5_000, 10_000, 10_000) == pytest.approx(75e-6)
    assert tissue.of_window(-5_000, -5_000, 10_000, 10_000) == pytest.approx(25e-6)
    lower = shapely.box(0, 15_000, 20_000, 20_000)  # two centres on its edge
    assert tissue.within(lower).tolist() == [[False, False], [True, True]]
    assert tissue.inside(lower) == pytest.approx(200e-6)
    assert tissue.in_circle(5_000, 5_000, 10_000) == pytest.approx(200e-6)
    assert tissue.in_circle(5_000, 5_000, 9_999) == pytest.approx(100e-6)
