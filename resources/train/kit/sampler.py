"""Samplers of training tiles: by fractions that a recipe sets, or evenly over datasets, slides and classes.

Like `torch.utils.data.WeightedRandomSampler` they draw with replacement and without end. Unlike it they take their
random numbers from the caller, so that a sample depends on its number alone, in whatever process it is drawn.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from midog.errors import UserError
from midog.evaluation.provenance import domain_of
from resources.data.fields import Field, is_crop

logger = logging.getLogger(__name__)

MAX_ROUNDS = 10_000
TOLERANCE = 1e-9

Source = Literal["figure", "crop_figure", "hard_negative", "background", "quiet", "crops"]


class Sample(NamedTuple):
    """What a tile is drawn around.

    Attributes:
        field: number of a field, or None for discs from crops in any field.
        point: float32 (2,), px in the field, or None for anywhere in it.
        crop: number of the crop of the first disc, or None for any.
        figure: whether that disc shows the crop's figure; without it no other disc does. None leaves it to chance.
    """

    field: int | None = None
    point: NDArray[np.float32] | None = None
    crop: int | None = None
    figure: bool | None = None


class FixedFractionSampler:
    """Draws from each `Source` as often as the recipe says; sources without a sample are left out.

    - figure: a figure of a field, each as likely as another;
    - crop_figure: a figure of fields that are crops, half of the draws evenly over figures, half over domains first
      (tumour, laboratory and scanner) and over their figures then;
    - hard_negative: a cell of fields and crops that is none, drawn in the same way;
    - background: any place of any field;
    - quiet: any place of the fields without a figure that are no crops;
    - crops: a window of a field with discs from the crops beside them.

    Args:
        fields: at least one.
        crops: how many there are to paste.
        fractions: of the samples, by source; they need not add up to 1.
    """

    def __init__(self, fields: Sequence[Field], crops: int, fractions: Mapping[Source, float]) -> None:
        small = [is_crop(each) for each in fields]
        figures = [(number, point) for number, each in enumerate(fields) for point in each.figures]
        hard = [(number, point) for number, each in enumerate(fields) for point in each.hard_negatives]
        self.cells: dict[str, list[Sample]] = {
            "figure": [Sample(number, point) for number, point in figures if not small[number]],
            "crop_figure": [Sample(number, point) for number, point in figures if small[number]],
            "hard_negative": [Sample(number, point) for number, point in hard],
        }
        self.domains = {name: by_domain(fields, self.cells[name]) for name in ("crop_figure", "hard_negative")}
        quiet = [not crop and not len(each.figures) for crop, each in zip(small, fields, strict=True)]
        areas = np.array([each.size[0] * each.size[1] for each in fields], float)
        self.areas = {"background": areas.cumsum(), "quiet": (areas * quiet).cumsum()}
        counts: dict[str, float] = {name: len(samples) for name, samples in self.cells.items()}
        counts |= {name: total[-1] for name, total in self.areas.items()} | {"crops": crops}
        self.sources = [name for name in fractions if fractions[name] and counts[name]]
        if not self.sources:
            raise UserError(
                f"sampling: nothing of {', '.join(fractions)} in the data; give other fractions or other data"
            )
        weights = np.array([fractions[name] for name in self.sources], float)
        self.source_weights = weights / weights.sum()

    def __call__(self, random: np.random.Generator) -> Sample:
        source = random.choice(self.sources, p=self.source_weights)
        if source == "crops":
            return Sample()
        if source in self.areas:
            areas = self.areas[source]
            return Sample(int(np.searchsorted(areas, random.random() * areas[-1], side="right")))
        cells = self.cells[source]
        if source in self.domains and random.random() < 0.5:
            domains = self.domains[source]
            cells = domains[random.integers(len(domains))]
        return cells[random.integers(len(cells))]


class BalancedSampler:
    """Draws evenly over datasets, slides and classes: see `sampling_weights`.

    Samples are the labelled mitotic figures; on the other side the hard negatives and, once a field, anywhere in it.
    Each crop is a sample of both classes: pasted with its figure, or with another of its cells.

    Args:
        fields: at least one.
        crops: to paste.
        plain_tissue: whether fields are drawn from anywhere, too. Without, as Marzahl and Napora have it ("Three-Level
            Hierarchical Sampling Strategy": MF and NMF instances 1:1, "the hard negative patches from the external
            sources as part of the NMF group"), an image takes part by its cells, and tissue without figures by those
            mined in it. A set with neither is still drawn from anywhere, for its patches are of that group.
    """

    def __init__(self, fields: Sequence[Field], crops: Sequence[Field] = (), plain_tissue: bool = True) -> None:
        with_cells = {each.source for each in fields if len(each.figures) or len(each.hard_negatives)}
        without = {each.source for each in fields} - with_cells
        if without and not plain_tissue:
            logger.warning(
                "no labelled cell and none mined in %s: drawn from as plain tissue; mine it with "
                "python -m resources.train.mine and give the list with --mined",
                ", ".join(sorted(without)),
            )
        rows: list[tuple[str, str, bool, Sample]] = []
        for number, each in enumerate(fields):
            slide = each.source, each.case
            rows += [(*slide, True, Sample(number, point)) for point in each.figures]
            rows += [(*slide, False, Sample(number, point)) for point in each.hard_negatives]
            if plain_tissue or each.source in without:
                rows.append((*slide, False, Sample(number)))
        for number, each in enumerate(crops):
            rows += [(each.source, each.case, figure, Sample(crop=number, figure=figure)) for figure in (True, False)]
        datasets, slides, classes, self.samples = zip(*rows, strict=True)
        self.cumulative = np.cumsum(sampling_weights(datasets, slides, classes))

    def __call__(self, random: np.random.Generator) -> Sample:
        number = np.searchsorted(self.cumulative, random.random() * self.cumulative[-1], side="right")
        return self.samples[min(int(number), len(self.samples) - 1)]


def by_domain(fields: Sequence[Field], samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of fields by tumour, laboratory and scanner, as far as `midog.evaluation.provenance` knows them."""
    groups: dict[tuple[str, ...], list[Sample]] = {}
    known: dict[tuple[str, str], tuple[str, ...]] = {}
    for sample in samples:
        assert sample.field is not None
        key = fields[sample.field].source, fields[sample.field].case
        if key not in known:
            known[key] = domain_of(*key)
        groups.setdefault(known[key], []).append(sample)
    return list(groups.values())


def area_fractions(fields: Sequence[Field]) -> NDArray[np.float64]:
    """The weights by which any place of any field is as likely as another: float64 (N,), sums to 1."""
    areas = np.array([each.size[0] * each.size[1] for each in fields], float)
    return areas / areas.sum()


def sampling_weights(datasets: ArrayLike, slides: ArrayLike, classes: ArrayLike) -> NDArray[np.float64]:
    """The probability of each sample to be drawn, with replacement.

    After Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection", equations 1 to 4. As printed,
    the sums of equations 2 and 3 run over all datasets and all images, so the weights depend on neither and balance
    nothing. The text asks for as many patches from each dataset, from each of its slides, and from each class, which is
    what inverse counts are for. Their product, though, balances the three levels only where the levels are independent:
    a dataset without figures, say, shifts the classes, and correcting those shifts the datasets.

    So equation 1 is kept, w = w_D(dataset) x w_I(slide) x w_C(class), and its factors are fitted by iterative
    proportional fitting (Deming and Stephan, Ann Math Stat 1940;11:427), which begins at the inverse counts:

    - every dataset has 1 / D of the samples and every slide an even part of its dataset's, always;
    - every class has an even part, 1/2 of two, where that can be had together with the former. Where datasets or
      slides of one class alone forbid it, the classes are as near to it as they get. Then samples of the class that is
      drawn too often vanish from the slides that hold both.

    Args:
        datasets, slides, classes: (N,), strings or ints; a slide belongs to its dataset, so that slides of one name in
            two datasets are two.

    Returns:
        float64 (N,), sums to 1.

    Raises:
        ValueError: no samples, or columns of several lengths.
    """
    columns = [np.asarray(each) for each in (datasets, slides, classes)]
    lengths = [len(each) for each in columns]
    if not lengths[0] == lengths[1] == lengths[2] > 0:
        raise ValueError(f"one length above 0 expected, got {lengths[0]}, {lengths[1]} and {lengths[2]}")
    dataset, slide, label = (np.unique(each, return_inverse=True)[1] for each in columns)
    _, first, slide = np.unique(dataset * len(slide) + slide, return_index=True, return_inverse=True)
    dataset_of = dataset[first]
    slides_of, samples_of = np.bincount(dataset_of), np.bincount(dataset)

    counts = np.zeros((len(first), label.max() + 1))
    np.add.at(counts, (slide, label), 1)
    wanted = 1 / (len(slides_of) * slides_of[dataset_of])
    # Equations 2 to 4 as meant, summed over the samples of each slide and class.
    fractions = counts / (samples_of[dataset_of, None] * counts.sum(1, keepdims=True) * counts.sum(0))
    for _ in range(MAX_ROUNDS):
        before = fractions
        fractions = fractions / (counts.shape[1] * fractions.sum(0))
        fractions = fractions * (wanted / fractions.sum(1))[:, None]  # last, and datasets with it: always to be had
        if np.abs(fractions - before).max() <= TOLERANCE:
            break
    return (fractions / counts.clip(1))[slide, label]
