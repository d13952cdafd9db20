"""What stage 2 draws and how it changes it, by the papers' own values; FoCasNet's chain of two networks, whole."""

import csv

import msgspec
import numpy as np
import pytest
import torch
from conftest import training_arguments as arguments

from midog.calibration import Calibration
from midog.engine.torch_engine import TorchEngine
from midog.engine.two_stages import SystemDetector, cut_candidate
from midog.errors import UserError
from midog.images.slide import ArraySlide
from midog.models import CLASSIFIERS, DETECTORS, build
from midog.system import Weights, load_system
from resources.data.fields import Field, read_fields
from resources.train import candidates
from resources.train.kit import second_stage
from resources.train.kit.detector import DetectorRecipe
from resources.train.kit.export import save_weights, write_model
from resources.train.kit.proposals import Proposals
from resources.train.kit.recipes import read_plan
from resources.train.kit.second_stage import (
    CandidateRecipe,
    Candidates,
    CandidateTask,
    domains_of,
    sampling_chances,
    start_classifier,
)

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


FIGURE, LOOK_ALIKE = (255, 0, 0), (0, 0, 255)  # colours that no tissue has
MIDDLES = [(100, 100), (300, 100), (100, 300), (300, 300)]  # of two mitotic figures and two look-alikes
CPU = torch.device("cpu")


def tissue(side=400):
    """A field of .25 um per px with dark spots everywhere, and the figures and look-alikes of `MIDDLES` as discs."""
    pixels = np.random.default_rng(0).integers(60, 200, (side // 8, side // 8, 3)).repeat(8, 0).repeat(8, 1)
    y, x = np.indices((side, side))
    for number, middle in enumerate(MIDDLES):
        pixels[np.hypot(x - middle[0], y - middle[1]) <= 12] = LOOK_ALIKE if number % 2 else FIGURE
    slide = ArraySlide(pixels.astype(np.uint8), (0.25, 0.25))
    figures, others = (np.array(MIDDLES[first::2], np.float32) for first in (0, 1))
    return Field("a.png", "a", "own", slide, figures, others)


def proposals_of(fields, labels=(1, 0, 1, 0)):
    """The cells of the first field, in boxes of 12.5 um."""
    chosen = [place for place, label in zip(MIDDLES, (1, 0, 1, 0), strict=True) if label in labels]
    middles = torch.tensor(chosen, dtype=torch.float32)
    side = 25 * 0.25 / fields[0].um_per_px[0]
    kinds = torch.tensor([label for label in (1, 0, 1, 0) if label in labels])
    zeros = torch.zeros(len(middles), dtype=torch.int64)
    return Proposals(zeros, torch.cat([middles - side, middles + side], 1), kinds, torch.ones(len(middles)))


def task_of(system, *changes, fields=None, labels=(1, 0, 1, 0)):
    plan = read_plan(system, "candidates", CandidateRecipe, changes)
    fields = fields or [tissue()]
    candidates = Candidates(fields, proposals_of(fields, labels))
    network = build(CLASSIFIERS, "timm", {"name": "test_efficientnet"})
    return CandidateTask(network, plan.classifier, plan.training, candidates, candidates, CPU)


def plain(*changes, **values):
    """Changes of a recipe's values, without augmentation."""
    values = {"augmentation": "{}", "colour_jitter": "[]", "mixup": 0.0, "randaugment": 0, "erase": 0.0} | values
    return [*(f"training.classifier.{name}={value}" for name, value in values.items()), *changes]


def shown(task, number, colour):
    """Of each crop of a batch, whether a colour is in it; and the labels."""
    batch = task._drawn(number)
    mean, std = (torch.tensor(each)[:, None, None] for each in task.normalisation)
    pixels = batch.inputs * std + mean
    away = (pixels - torch.tensor(colour)[:, None, None] / 255).abs().amax(1)
    return (away < 0.1).flatten(1).any(1), batch.labels


def test_targets_are_smoothed():
    changes = plain("classifier.input_px=32", label_smoothing=0.2, batch=4, positive_fraction=0.5)
    batch = task_of("centernet_two_stages", *changes)._drawn(0)
    assert sorted(batch.labels.tolist()) == [0, 0, 1, 1]
    assert batch.targets.tolist() == pytest.approx([0.9 if label else 0.1 for label in batch.labels])
    assert batch.inputs.shape == (4, 3, 32, 32)


# --- FoCasNet's M_class -------------------------------------------------------------------------


def test_m_class_learns_from_64_px_at_128_and_judges_112_px_at_224():
    """The same magnification: what is learnt from is the middle of what is seen at inference."""
    task = task_of("focasnet", *plain(background=0.0, batch=4))
    (part, recipe) = task.part, task.recipe
    um_per_px = 0.2456
    assert part.field_um / um_per_px == pytest.approx(112, abs=0.1)
    assert (part.input_px, recipe.input_px) == (224, 128)
    assert part.field_um * recipe.input_px / part.input_px / um_per_px == pytest.approx(64, abs=0.1)
    learnt = task._changed(0, torch.arange(4), range(4))
    assert learnt.shape == (4, 3, 128, 128)
    field, proposals = task.training.fields[0], task.training.proposals
    for number in range(4):
        seen = cut_candidate(field, proposals.boxes[number].numpy(), part.field_um, 224)
        middle = torch.from_numpy(seen[48:176, 48:176].copy()).permute(2, 0, 1) / 255
        assert (learnt[number] - middle).abs().mean() < 0.02


def test_the_window_of_the_published_code_is_an_option():
    changes = ["training.classifier.field_um=27.5", "classifier.field_um=24.1", "training.classifier.background=0.0"]
    task = task_of("focasnet", *plain(*changes, batch=4))
    field, boxes = task.training.fields[0], task.training.proposals.boxes
    whole = torch.from_numpy(cut_candidate(field, boxes[0].numpy(), 27.5, 128).copy()).permute(2, 0, 1) / 255
    assert (task._changed(0, torch.tensor([0]), [0])[0] - whole).abs().mean() < 0.02
    cropped = read_plan("focasnet", "candidates", CandidateRecipe, ["training.classifier.augmentation.crop=0.08"])
    assert cropped.training.augmentation.crop == 0.08


def test_background_shows_no_figure_and_is_its_share_of_what_is_drawn():
    """Half of the other crops are look-alikes, which are in their middle; few of the rest show one by chance."""
    task = task_of("focasnet", *plain(batch=24))
    drawn = [shown(task, number, FIGURE) for number in range(3)]
    figures, labels = (torch.cat(each) for each in zip(*drawn, strict=True))
    assert torch.equal(figures, labels == 1)
    assert labels.float().mean().item() == pytest.approx(0.5, abs=0.2)
    alike = torch.cat([shown(task, number, LOOK_ALIKE)[0] for number in range(3)])
    assert alike[labels == 0].float().mean().item() == pytest.approx(0.55, abs=0.25)


def test_background_alone_where_the_detector_proposes_no_other_cell():
    task = task_of("focasnet", *plain(batch=24), labels=(1,))
    figures, labels = shown(task, 0, FIGURE)
    assert torch.equal(figures, labels == 1)
    assert 4 < int(labels.sum()) < 20


def test_background_wants_a_field():
    with pytest.raises(UserError, match=r"training.classifier.background: no field .+; set it to 0"):
        task_of("focasnet", fields=[field(80)])


def test_a_network_for_one_size_of_crops_is_refused_another():
    plan = read_plan("focasnet", "candidates", CandidateRecipe)
    part = msgspec.structs.replace(plan.classifier, options={"name": "vit_tiny_patch16_224"}, input_px=64)
    with pytest.raises(UserError, match="training.classifier.input_px 128: the network is made for 64 px alone"):
        start_classifier(part, plan.training, "none")


@pytest.fixture(scope="module")
def m_det(tmp_path_factory):
    """What a training of a narrow M_det would have exported, with its first weights."""
    plan = read_plan("focasnet", "focasnet", DetectorRecipe)
    options = {"backbone": 18, "cbam": True, "group_norm": True, "hybrid": True, "levels": 2, "width": 32, "depth": 1}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("m_det") / "focasnet"
    folder.mkdir()
    sha256 = save_weights(build(DETECTORS, "focasnet", options).state_dict(), folder / "detector.safetensors")
    members = (Weights(weights="detector.safetensors", sha256=sha256),)
    # After no step every score is about one in 100: below that, candidates are many.
    part = msgspec.structs.replace(plan.detector, options=options, members=members, tile=(256, 256))
    return write_model(folder, msgspec.structs.replace(plan.system, detector=part, classifier=None)).folder


def test_focasnet_runs_whole_and_says_likely_from_one_half_on(data, m_det, tmp_path):
    """M_det's proposals, M_class, one system, whose classifier answers what it was trained to."""
    small = {"epochs": 1, "steps_an_epoch": 1, "batch": 4, "score_threshold": 0.02, "input_px": 32}
    changes = [f"training.classifier.{name}={value}" for name, value in small.items()]
    changes += ["classifier.options={name: test_resnet}", "classifier.input_px=56", "detector.score_threshold=0.02"]
    said = arguments(data, "focasnet", tmp_path / "out", "--detector", str(m_det), "--set", *changes)
    assert candidates.main(said) == 0
    model = load_system(tmp_path / "out/model/focasnet")
    assert (model.classifier.field_um, model.classifier.input_px) == (27.5, 56)
    assert [each.calibration for each in model.members] == [Calibration(), Calibration()]
    assert model.classifier.calibration == Calibration()
    found = SystemDetector(model, TorchEngine("cpu"))(read_fields([f"{data}/fields:case1"])[0])
    assert len(found) > 0
    (rows,) = csv.DictReader((tmp_path / "out/epochs.csv").open())
    assert float(rows["threshold"]) == 0.5


# --- SZTU's classifier --------------------------------------------------------------------------


def test_f1_is_that_at_one_half_unless_the_recipe_calibrates(monkeypatch):
    """Two of two figures and one look-alike from .5 on: 2 x 2 / (3 + 2); above that look-alike all is right."""
    monkeypatch.setattr(second_stage, "classify", lambda *given: np.array([0.9, 0.5, 0.6, 0.3], np.float32))
    task = task_of("sztu")
    assert task.judge(task.network, task.part) == (pytest.approx(0.8), 0.5)
    task = task_of("sztu", "training.classifier.calibrate=true")
    best, threshold = task.judge(task.network, task.part)
    assert best == pytest.approx(1.0)
    assert 0.5 < threshold < 0.6


def test_crops_are_the_same_in_any_forwards():
    """With all that SZTU's recipe changes, of blends and what they are blended with, too."""
    task = task_of("sztu", "training.classifier.batch=4", "training.classifier.mixup=0.6")
    whole = task._drawn(3)
    assert whole.mixed.any()
    task.portions = [range(1), range(1, 4)]
    parts = [task._drawn(2 * 3 + forward) for forward in range(2)]
    for name in ("inputs", "targets", "labels", "mixed"):
        torch.testing.assert_close(torch.cat([getattr(each, name) for each in parts]), getattr(whole, name))


def test_randaugment_moves_crops_by_at_most_what_the_paper_means():
    """Magnitude 5 of torchvision's 0 to 30, in px of the 64 that the network sees, with translations among the rest."""
    task = task_of("sztu")
    (jitter, drawn) = task.colours
    assert (drawn.num_ops, drawn.magnitude) == (3, 5)
    for axis in ("TranslateX", "TranslateY"):
        magnitudes, signed = drawn._AUGMENTATION_SPACE[axis]
        assert signed
        assert float(magnitudes(31, 64, 64)[5]) == pytest.approx(150 / 331 * 64 * 5 / 30, rel=1e-3)
    assert (jitter.brightness, jitter.contrast, jitter.saturation) == ((0.8, 1.2), (0.8, 1.2), (0.9, 1.1))
    sides = []
    for change in task.colours:
        change.register_forward_pre_hook(lambda module, given: sides.append(given[0].shape[-1]))
    task._changed(0, torch.arange(4), range(2))
    assert sides == [64] * 4


def test_what_is_erased_is_one_half_in_normalised_colours():
    got = torch.stack([second_stage.erased(torch.zeros(3, 64, 64), number, 0.5) for number in range(150)])
    assert set(got.unique().tolist()) == {0.0, 0.5}
    areas = (got[:, 0] == 0.5).float().mean((1, 2))
    assert (areas > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert areas[areas > 0].min() > 0.018
    assert areas.max() < 0.155
