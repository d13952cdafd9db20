"""What a training tile is drawn around: by shares that a recipe sets, or evenly over datasets, slides and classes."""

from typing import Literal, NamedTuple

import numpy as np

from resources.train.sampling import sampling_weights

Share = Literal["figure", "look_alike", "background", "crops"]


class Draw(NamedTuple):
    """What a tile is drawn around.

    Attributes:
        field: number of a field, or None for discs from crops in any field.
        point: (2,) px in the field, or None for anywhere in it.
        crop: number of the crop of the first disc, or None for any.
        figure: whether that disc shows the crop's figure; without it no other disc does. None leaves it to chance.
    """

    field: int | None = None
    point: np.ndarray | None = None
    crop: int | None = None
    figure: bool | None = None


class ShareDraws:
    """Each `Share` as often as the recipe says; those that are not there are left out.

    Args:
        fields: list of `resources.data.fields.Field`.
        crops: how many there are.
        shares: mapping of `Share` to weights.
    """

    def __init__(self, fields, crops, shares):
        self.cells = {
            "figure": [(number, point) for number, each in enumerate(fields) for point in each.figures],
            "look_alike": [(number, point) for number, each in enumerate(fields) for point in each.look_alikes],
        }
        areas = np.array([each.pixels.shape[0] * each.pixels.shape[1] for each in fields], float)
        self.area_shares = areas / areas.sum()
        there = self.cells | {"background": fields, "crops": range(crops)}
        self.sources = [name for name in shares if len(there[name])]
        weights = np.array([shares[name] for name in self.sources], float)
        self.weights = weights / weights.sum()

    def __call__(self, random):
        source = random.choice(self.sources, p=self.weights)
        if source == "crops":
            return Draw()
        if source == "background":
            return Draw(random.choice(len(self.area_shares), p=self.area_shares))
        cells = self.cells[source]
        return Draw(*cells[random.integers(len(cells))])


class BalancedDraws:
    """Evenly over datasets, slides and classes: see `resources.train.sampling`.

    Samples are the labelled mitotic figures; on the other side the labelled look-alikes and, once a field, anywhere in
    it. Each crop is a sample of both classes: pasted with its figure, or with another of its cells.

    Args:
        fields: list of `resources.data.fields.Field`.
        crop_sets, crop_cases: str (M,), dataset and slide of each crop.
    """

    def __init__(self, fields, crop_sets=(), crop_cases=()):
        rows = []
        for number, each in enumerate(fields):
            slide = each.source, each.case
            rows += [(*slide, True, Draw(number, point)) for point in each.figures]
            rows += [(*slide, False, Draw(number, point)) for point in each.look_alikes]
            rows.append((*slide, False, Draw(number)))
        for number, slide in enumerate(zip(crop_sets, crop_cases, strict=True)):
            rows += [(*slide, figure, Draw(crop=number, figure=figure)) for figure in (True, False)]
        *levels, self.draws = zip(*rows, strict=True)
        self.cumulative = np.cumsum(sampling_weights(*levels))

    def __call__(self, random):
        number = np.searchsorted(self.cumulative, random.random() * self.cumulative[-1], side="right")
        return self.draws[min(number, len(self.draws) - 1)]
