"""The drawn crops and regions: deterministic, where they say, and darker where they should be."""

import numpy as np
import pytest

from resources.data import synthetic
from resources.data.drawn_cells import chromosomes, draw_figure, draw_imposter


def test_a_seed_draws_the_same_crops_and_another_draws_others():
    pages, kinds = synthetic.stack(2, seed=6)
    assert (pages.shape, pages.dtype, kinds) == ((2, 128, 128, 3), np.uint8, [*synthetic.KINDS[:2]])
    assert np.array_equal(pages, synthetic.stack(2, seed=6)[0])
    assert not np.array_equal(pages, synthetic.stack(2, seed=7)[0])


def test_a_region_has_its_darkest_cells_where_it_says_that_its_figures_are():
    pixels, figures, imposters = synthetic.region(4)
    width, height = synthetic.REGION_SIZE
    assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)
    assert len(figures) == len(synthetic.REGION_FIGURES)
    assert len(imposters) == len(synthetic.REGION_IMPOSTERS)
    dark = pixels.mean(-1) < 60

    def dark_pixels(places):
        return np.array([dark[y - 32 : y + 32, x - 32 : x + 32].sum() for x, y in places])

    assert dark_pixels(figures).min() > 2 * np.median(dark_pixels(imposters))
    assert dark_pixels(figures).sum() > 0.2 * dark.sum()  # on a thirtieth of the region


def test_chromosomes_lie_as_their_kind_says():
    generator = np.random.default_rng(0)
    along, across, depth = chromosomes(generator, "metaphase").T
    assert 2 * along.std() < min(across.std(), depth.std())
    along, across, depth = chromosomes(generator, "ring").T
    assert np.median(np.hypot(along, across)) > 6
    assert 2 * depth.std() < across.std()
    along = chromosomes(generator, "telophase")[:, 0]
    assert np.abs(along).min() > 6
    assert (along > 0).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("draw", [draw_figure, draw_imposter])
def test_an_unknown_kind_is_an_error(draw):
    with pytest.raises(ValueError, match="unknown: one of"):
        draw(np.random.default_rng(0), "unknown", np.zeros((128, 128)), np.zeros((128, 128)))
