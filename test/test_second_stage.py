"""What stage 2 draws: the chance of every proposal by hand, domains of crops, smoothed targets."""

import numpy as np
import pytest
import torch

from midog.images.slide import ArraySlide
from midog.models import CLASSIFIERS, build
from resources.data.fields import Field
from resources.train.kit.proposals import Proposals
from resources.train.kit.recipes import read_plan
from resources.train.kit.second_stage import CandidateRecipe, Candidates, CandidateTask, domains_of, sampling_chances

pytestmark = pytest.mark.usefixtures("one_thread")


def field(side, name="own", case="a"):
    """Of so many px of .5 um a side."""
    return Field("a.png", case, name, ArraySlide(np.full((side, side, 3), 200, np.uint8), (0.5, 0.5)))


def test_chances_of_figures_of_fields_and_of_crops_of_two_domains_by_hand():
    """Of .6 each half is .3: two figures of fields; three of crops, .15 even over them and .15 over their domains."""
    labels = torch.tensor([1, 1, 1, 1, 1, 0, 0])
    domains = torch.tensor([-1, -1, 0, 0, 1, -1, 0])
    of_crops = [0.05 + 0.075 / 2, 0.05 + 0.075 / 2, 0.05 + 0.075]
    expected = [0.15, 0.15, *of_crops, 0.2, 0.2]
    assert sampling_chances(labels, domains, 0.6).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("domain", [-1, 0])
def test_figures_of_one_kind_have_all_of_their_share(domain):
    chances = sampling_chances(torch.tensor([1, 1, 0]), torch.tensor([domain, domain, -1]), 0.6)
    assert chances.tolist() == pytest.approx([0.3, 0.3, 0.4])
    assert sampling_chances(torch.tensor([0, 0]), torch.tensor([domain, -1]), 0.6).tolist() == pytest.approx([0.2, 0.2])


def test_crops_of_one_laboratory_and_scanner_are_one_domain_and_fields_none():
    crops = [("atypia14_a_cells", "A03"), ("cmc_cells", "CMC_02"), ("atypia14_a_cells", "A04"), ("own", "x")]
    fields = [field(81), *(field(80, *each) for each in crops), field(81, "cmc_cells", "CMC_02")]
    assert domains_of(fields).tolist() == [-1, 0, 1, 0, 2, -1]


def test_targets_are_smoothed():
    changes = ["label_smoothing=0.2", "mixup=0.0", "batch=4", "positive_fraction=0.5"]
    changes = [f"training.classifier.{each}" for each in changes]
    plan = read_plan("centernet_two_stages", "candidates", CandidateRecipe, [*changes, "classifier.input_px=32"])
    middles = torch.tensor([[20.0, 20], [40, 40], [60, 60], [80, 80]])
    proposals = Proposals(
        torch.zeros(4, dtype=torch.int64),
        torch.cat([middles - 12, middles + 12], 1),
        torch.tensor([1, 0, 1, 0]),
        torch.ones(4),
    )
    candidates = Candidates([field(100)], proposals)
    network = build(CLASSIFIERS, "timm", {"name": "test_efficientnet"})
    task = CandidateTask(network, plan.classifier, plan.training, candidates, candidates, torch.device("cpu"))
    batch = task._drawn(0)
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1]
    assert batch.targets.tolist() == pytest.approx([0.9 if label else 0.1 for label in batch.labels])
    assert batch.inputs.shape == (4, 3, 32, 32)
