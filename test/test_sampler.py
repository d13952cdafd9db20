"""The balanced sampling: cases by hand, draws against what is expected, any table, classes that cannot be even; and the
fixed fractions of sources."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from midog.images.slide import ArraySlide
from resources.data.fields import Field
from resources.train.kit.sampler import BalancedSampler, FixedFractionSampler, sampling_weights

# (dataset, slide, class): how many; the slides of both datasets have the same names.
COUNTS = {
    ("large", "1", "figure"): 900,
    ("large", "1", "hard negative"): 3000,
    ("large", "2", "figure"): 20,
    ("large", "2", "hard negative"): 400,
    ("small", "1", "figure"): 30,
    ("small", "1", "hard negative"): 10,
    ("small", "2", "hard negative"): 25,
    ("small", "3", "figure"): 5,
}


def samples(counts):
    """Three arrays (N,) of a mapping like `COUNTS`."""
    return np.repeat(np.array([*counts]), [*counts.values()], axis=0).T


def marginal(weights, *keys):
    """The sum of the weights of each combination of keys: a mapping."""
    sums = {}
    for weight, *key in zip(weights, *keys, strict=True):
        sums[tuple(key)] = sums.get(tuple(key), 0) + weight
    return sums


def refused(weights):
    """Levels at which 100,000 draws from the samples of `COUNTS` are not as balanced as they should be."""
    datasets, slides, classes = samples(COUNTS)
    drawn = np.random.default_rng(0).choice(len(weights), 100_000, p=weights)
    levels = {
        "datasets": datasets[drawn],
        "slides of large": slides[drawn][datasets[drawn] == "large"],
        "slides of small": slides[drawn][datasets[drawn] == "small"],
        "classes": classes[drawn],
    }
    return {name for name, level in levels.items() if chisquare(np.unique_counts(level).counts).pvalue < 1e-3}


def test_a_slide_of_each_balance_by_hand():
    """Slide a has one figure and three others, b one and one. If a figure weighs t times another sample of its slide,
    figures have t / (t + 3) of a and t / (t + 1) of b, halves of all: these add up to 1 where t^2 = 3."""
    weights = sampling_weights(["d"] * 6, [*"aaaabb"], [1, 0, 0, 0, 1, 0])
    t = 3**0.5
    a, b = 1 / 2 / (t + 3), 1 / 2 / (t + 1)
    assert weights == pytest.approx([t * a, a, a, a, t * b, b])


def test_datasets_of_one_class_beside_one_of_both_by_hand():
    weights = sampling_weights([*"aabbbc"], [*"aabbbc"], [1, 1, 1, 0, 0, 0])
    assert weights == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 12, 1 / 12, 1 / 3])


def test_draws_are_balanced():
    assert refused(sampling_weights(*samples(COUNTS))) == set()


def test_uniform_draws_are_refused_by_the_same_test():
    total = sum(COUNTS.values())
    assert refused(np.full(total, 1 / total)) == {"datasets", "slides of large", "slides of small", "classes"}


def test_the_product_of_inverse_counts_is_refused_too():
    datasets, slides, classes = samples(COUNTS)
    weights = np.ones(len(datasets))
    for keys in ([datasets], [datasets, slides], [classes]):
        names = [*zip(*keys, strict=True)]
        counts = marginal(np.ones(len(names)), *keys)
        weights /= [counts[name] for name in names]
    assert refused(weights / weights.sum())


def assert_datasets_and_slides_are_even(weights, datasets, slides):
    names = {*datasets}
    assert marginal(weights, datasets) == pytest.approx({(name,): 1 / len(names) for name in names})
    pairs = {*zip(datasets, slides, strict=True)}
    within = marginal([1] * len(pairs), [dataset for dataset, _ in pairs])
    expected = {(dataset, slide): 1 / len(names) / within[dataset,] for dataset, slide in pairs}
    assert marginal(weights, datasets, slides) == pytest.approx(expected)


ANY = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 1)), min_size=1, max_size=60)


@settings(deadline=None)
@given(ANY)
def test_datasets_and_slides_are_even_in_any_table(rows):
    datasets, slides, classes = zip(*rows, strict=True)
    weights = sampling_weights(datasets, slides, classes)
    assert (weights >= 0).all()
    assert_datasets_and_slides_are_even(weights, datasets, slides)


@settings(deadline=None)
@given(ANY)
def test_classes_are_even_where_every_slide_has_both(rows):
    rows = [*rows, *((dataset, slide, 1 - label) for dataset, slide, label in {*rows})]
    datasets, slides, classes = zip(*rows, strict=True)
    weights = sampling_weights(datasets, slides, classes)
    assert_datasets_and_slides_are_even(weights, datasets, slides)
    assert marginal(weights, classes) == pytest.approx({(0,): 0.5, (1,): 0.5}, abs=1e-6)


def test_classes_that_cannot_be_even_are_as_near_as_they_get():
    """Two of three datasets hold no figure, so figures have a third at most, and all of the third dataset."""
    datasets, slides, classes = [*"aabbc"] + ["c"] * 3, [*"aabbc"] + ["c"] * 3, [0, 0, 0, 0, 1, 1, 0, 0]
    weights = sampling_weights(datasets, slides, classes)
    assert_datasets_and_slides_are_even(weights, datasets, slides)
    assert marginal(weights, classes) == pytest.approx({(0,): 2 / 3, (1,): 1 / 3}, abs=1e-6)


def test_one_class_alone():
    assert sampling_weights(["a", "a", "b"], [1, 2, 1], ["x"] * 3) == pytest.approx([1 / 4, 1 / 4, 1 / 2])


@pytest.mark.parametrize("columns", [([], [], []), (["a"], ["a", "b"], [0, 1])])
def test_columns_that_are_no_table(columns):
    with pytest.raises(ValueError, match="one length above 0"):
        sampling_weights(*columns)


# --- cells alone --------------------------------------------------------------------


def test_without_plain_tissue_figures_and_look_alikes_are_one_to_one_and_mined_tissue_takes_part(caplog):
    """Four sets, of which one holds look-alikes alone and one nothing: each has a fourth, and the classes halves."""
    fields = [
        field(200, figures=2, hard_negatives=30, name="one"),
        field(200, name="one", case="b"),  # no cell: never drawn
        field(200, figures=5, hard_negatives=1, name="two"),
        field(200, hard_negatives=7, name="mined"),
        field(200, name="plain"),
        field(200, name="plain", case="b"),
    ]
    sampler, random = BalancedSampler(fields, plain_tissue=False), np.random.default_rng(0)
    (record,) = caplog.records
    assert "none mined in plain: drawn from as plain tissue" in record.getMessage()
    drawn = [sampler(random) for _ in range(6000)]
    figures = sum(each.point is not None and each.point[1] == FIGURE for each in drawn) / len(drawn)
    assert figures == pytest.approx(0.5, abs=0.02)
    sets = Counter(fields[each.field].source for each in drawn)
    assert {name: count / len(drawn) for name, count in sets.items()} == pytest.approx(
        dict.fromkeys(("one", "two", "mined", "plain"), 0.25), abs=0.02
    )
    assert all((each.point is None) == (each.field > 3) for each in drawn)
    caplog.clear()
    BalancedSampler(fields[:4], plain_tissue=False)
    assert not caplog.records


# --- fixed fractions ----------------------------------------------------------------

FRACTIONS = {"crop_figure": 0.4, "figure": 0.2, "hard_negative": 0.2, "background": 0.1, "quiet": 0.1}
FIGURE, HARD_NEGATIVE = 10, 20  # their y


def field(side, figures=0, hard_negatives=0, name="own", case="a"):
    """Of so many px of .5 um a side; all of its figures are at one place, and all of its hard negatives."""
    slide = ArraySlide(np.zeros((side, side, 3), np.uint8), (0.5, 0.5))
    return Field(
        "a.png", case, name, slide, *(np.full((n, 2), y, np.float32) for n, y in ((figures, 10), (hard_negatives, 20)))
    )


def test_fixed_fractions_of_fields_quiet_tissue_and_crops_of_two_domains():
    """Half of the draws of figures in crops are even over the four crops, half over the two domains first."""
    fields = [
        field(200, figures=2, hard_negatives=1),
        field(300, hard_negatives=1),
        field(64, 1, name="atypia14_a_cells", case="A03"),
        *[field(64, 1, name="cmc_cells", case=f"CMC_{number}") for number in ("02", "03", "05")],
        field(64, hard_negatives=1),
        field(100),
    ]
    sampler, random = FixedFractionSampler(fields, 0, FRACTIONS), np.random.default_rng(0)
    drawn = [sampler(random) for _ in range(8000)]
    counts = Counter((each.field, None if each.point is None else int(each.point[1])) for each in drawn)
    area = 200**2 + 300**2 + 5 * 64**2 + 100**2
    expected = {(0, FIGURE): 0.2, (2, FIGURE): 0.4 * (1 / 8 + 1 / 4)}
    expected |= {(number, FIGURE): 0.4 * (1 / 8 + 1 / 12) for number in (3, 4, 5)}
    expected |= {(number, HARD_NEGATIVE): 0.2 / 3 for number in (0, 1, 6)}
    expected |= {(number, None): 0.1 * each.size[0] ** 2 / area for number, each in enumerate(fields)}
    expected[1, None] += 0.1 * 0.9
    expected[7, None] += 0.1 * 0.1
    assert {key: count / len(drawn) for key, count in counts.items()} == pytest.approx(expected, abs=0.015)


def test_sources_without_a_sample_are_left_out():
    sampler = FixedFractionSampler([field(200, figures=1), field(64)], 0, FRACTIONS)
    assert sampler.sources == ["figure", "background"]
    assert sampler.source_weights == pytest.approx([2 / 3, 1 / 3])
