"""The training loop on a task of no size: kills and resumes, accumulation, averages, losses that are not finite, a
memory and a disk that are too small."""

import copy
import csv
import itertools
import math
import re
import resource

import msgspec
import pytest
import torch
from conftest import Killed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from midog.errors import UserError
from resources.train.kit import loop
from resources.train.kit.detector import DetectorRecipe
from resources.train.kit.loop import NORM_BATCHES, Loop, learning_rate_at, training_precision
from resources.train.kit.recipes import LoopRecipe, read_plan
from resources.train.kit.run import Processes, load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
STEPS = 3  # an epoch
RECIPE = LoopRecipe(
    seed=0,
    epochs=4,
    batch=4,
    optimizer="adamw",
    betas=(0.9, 0.999),
    learning_rate=0.1,
    warmup_lr=0.0,
    final_lr=0.0,
    warmup_epochs=1,
    weight_decay=0.01,
    max_grad_norm=10.0,
    ema_momentum=(1.0,),
    ema_warmup=1,
    keep="last",
    patience=0,
    precision="float32",
    pretrained="",
)


POINTS = torch.randn(500, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 2


def chance(network):
    """A figure of the weights that rises and falls as it likes, in [0, 1)."""
    return 1000 * sum(each.double().sum().item() for each in network.state_dict().values()) % 1


class Points:
    """A `Task`: the mean square error of drawn points; the losses' `happens` by the number of the step.

    `fit`: so many points have room in memory. `seen`: those that were learnt from, by step.
    """

    steps_an_epoch, criterion = STEPS, "chance"

    def __init__(self, recipe, highest=True, happens=None, fit=math.inf):
        self.recipe, self.highest, self.happens, self.fit = recipe, highest, happens or {}, fit
        self.portions, self.seen = [range(recipe.batch)], {}
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 1, 1)).double()

    def batches(self, step):
        for self.step in itertools.count(step):
            for portion in self.portions:
                first = self.step * self.recipe.batch
                yield POINTS[first + portion.start : first + portion.stop]

    def on_device(self, batch):
        return batch

    def inputs(self, batch):
        return batch

    def loss(self, network, batch, whole):
        happens = self.happens.get(self.step, 1.0)
        if happens is Killed:
            raise Killed
        if len(batch) > self.fit:
            self.seen[self.step] = []
            raise torch.OutOfMemoryError
        if not whole.is_noting:
            self.seen[self.step] = [*self.seen.get(self.step, []), *batch[:, 0, 0].tolist()]
        errors = (network(batch)[:, 0] - batch.prod(1)) ** 2
        return errors.sum() / whole.total(torch.tensor(errors.numel())) * happens

    def validate(self, member):
        return {"chance": chance(member)}

    def weights(self, member):
        return member.state_dict()


def changed(**values):
    return msgspec.structs.replace(RECIPE, **values)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def rows_of(folder):
    return list(csv.DictReader((folder / "epochs.csv").open()))


@settings(max_examples=30, deadline=None)
@given(
    killed_at=st.integers(0, 5 * STEPS - 1),
    highest=st.booleans(),
    micro_batch=st.sampled_from([0, 3, 2]),
    values=st.fixed_dictionaries(
        {
            "epochs": st.integers(1, 5),
            "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
            "ema_momentum": st.sampled_from([(1.0,), (0.3,), (1.0, 0.3, 0.1)]),
            "keep": st.sampled_from(["best", "last"]),
            "patience": st.integers(0, 3),
        }
    ),
)
def test_a_run_killed_at_any_step_ends_as_if_it_had_not_been(tmp_path_factory, killed_at, highest, micro_batch, values):
    recipe, folder = changed(**values), tmp_path_factory.mktemp("whole")
    whole = Loop(Points(recipe, highest), recipe, folder, CPU, micro_batch=micro_batch).run()
    rows = rows_of(folder)

    cut, stopped = tmp_path_factory.mktemp("cut"), killed_at >= STEPS * len(rows)
    try:
        Loop(Points(recipe, highest, {killed_at: Killed}), recipe, cut, CPU, micro_batch=micro_batch).run()
        assert stopped
    except Killed:
        assert not stopped
    resumed = Loop(Points(recipe, highest), recipe, cut, CPU, micro_batch=micro_batch)
    assert all(map(equal, resumed.run(), whole))
    assert rows_of(cut) == rows

    # What is kept, and when it stops, by the figures alone.
    names = [name for name in rows[0] if name.startswith("chance")]
    assert len(names) == len(whole) == len(recipe.ema_momentum)
    best, latest = max if highest else min, 0
    decides = recipe.keep == "best" or recipe.patience > 0
    for number, name in enumerate(names):
        seen = [bool(row[name]) for row in rows]
        assert seen == [decides or epoch in (0, len(rows) - 1) for epoch in range(len(rows))]
        figures = [float(row[name]) for row in rows if row[name]]
        latest = max(latest, 1 + figures.index(best(figures)))  # where it decides, every epoch has one
        kept = copy.deepcopy(resumed.network)
        kept.load_state_dict(whole[number])
        assert chance(kept) == pytest.approx(best(figures) if recipe.keep == "best" else figures[-1], abs=1e-6)
    epochs = min(recipe.epochs, latest + recipe.patience) if recipe.patience else recipe.epochs
    assert len(rows) == epochs


def test_where_no_figure_decides_few_epochs_are_validated(tmp_path):
    recipe = changed(epochs=8, keep="last")
    Loop(Points(recipe), recipe, tmp_path, CPU).run()
    assert [row["epoch"] for row in rows_of(tmp_path) if row["chance"]] == ["1", "6", "8"]


def test_a_batch_in_two_forwards_is_the_same_batch(tmp_path):
    """Without batch norm, whose statistics are a forward's."""
    states = []
    for micro_batch in (4, 3, 1):
        recipe = changed(ema_momentum=(1.0, 0.1))
        task = Points(recipe)
        task.network[1] = nn.Identity()
        folder = tmp_path / str(micro_batch)
        folder.mkdir()
        states.append(Loop(task, recipe, folder, CPU, micro_batch=micro_batch).run())
    for first, *others in zip(*states, strict=True):
        for other in others:
            for name, value in first.items():
                torch.testing.assert_close(other[name], value, rtol=0, atol=1e-6)


def test_an_average_has_the_batch_norm_statistics_of_its_own_weights(tmp_path):
    recipe = changed(ema_momentum=(1.0, 0.02))
    task = Points(recipe)
    live, average = Loop(task, recipe, tmp_path, CPU).run()
    first = copy.deepcopy(task.network[0])
    first.load_state_dict({"weight": average["0.weight"], "bias": average["0.bias"]})
    with torch.no_grad():
        seen = [first(batch) for batch in itertools.islice(task.batches(0), NORM_BATCHES)]
    for name, statistic in (("running_mean", torch.mean), ("running_var", torch.var)):
        expected = torch.stack([statistic(each, dim=(0, 2)) for each in seen]).mean(0)
        torch.testing.assert_close(average[f"1.{name}"], expected)
        assert (live[f"1.{name}"] - expected).abs().max() > 0.1


def test_a_member_of_momentum_1_is_the_network_and_others_are_averages(tmp_path):
    recipe = changed(ema_momentum=(0.5, 1.0), epochs=1)
    loop = Loop(Points(recipe), recipe, tmp_path, CPU)
    average, live = loop.run()
    assert equal(live, loop.network.state_dict())
    assert not torch.equal(average["0.weight"], live["0.weight"])


@pytest.mark.parametrize(("keep", "left"), [("best", 2), ("last", 1)])  # the last one validated
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_epoch_before(tmp_path, caplog, loss, keep, left):
    """The first of the third epoch's steps, so that two epochs are left and a resumed run says the same."""
    recipe = changed(ema_momentum=(1.0, 0.1), keep=keep)
    for name, happens in (("good", {2 * STEPS + 1: Killed}), ("bad", {2 * STEPS + 1: loss})):
        (tmp_path / name).mkdir()
        loop = Loop(Points(recipe, happens=happens), recipe, tmp_path / name, CPU)
        if name == "good":
            with pytest.raises(Killed):
                loop.run()
    for again in (loop, Loop(Points(recipe, happens=happens), recipe, tmp_path / "bad", CPU)):
        caplog.clear()
        kept = again.run()
        (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
        assert (
            f"the loss is {loss} at step {2 * STEPS + 2}; stopped, with the weights of the epochs up to {left}"
            in warning
        )
        assert all(map(equal, kept, load_checkpoint(tmp_path / "good/checkpoint.pt")["kept"]))
        assert all(value.isfinite().all() for state in kept for value in state.values())


def test_a_loss_that_is_not_finite_in_the_first_epoch_ends_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan at step 2, .* lower learning_rate .* another --out") as error:
        Loop(Points(RECIPE, happens={1: math.nan}), RECIPE, tmp_path, CPU).run()
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("epoch", [1, 2])
def test_weights_that_cannot_be_judged_are_not_kept(tmp_path, caplog, epoch):
    """A finite loss with a gradient that is none: the validation is the first to see it."""
    recipe = changed(keep="best")  # which validates every epoch
    task = Points(recipe)
    task.validate = lambda member: {"chance": math.nan if task.step + 1 == epoch * STEPS else 0.5}
    loop = Loop(task, recipe, tmp_path, CPU)
    if epoch == 1:
        with pytest.raises(UserError, match="before the first good validation"):
            loop.run()
        assert list(tmp_path.iterdir()) == []
    else:
        assert equal(loop.run()[0], load_checkpoint(tmp_path / "checkpoint.pt")["kept"][0])
        assert "with the weights of the epochs up to 1" in caplog.text
        assert len(rows_of(tmp_path)) == 1


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    """From 1e-5 to 1e-3 in 250 steps, to 0 at step 25,000 (Marzahl and Napora, "Methods")."""
    recipe = read_plan("rtmdet_s", "rtmdet", DetectorRecipe).training
    rates = [learning_rate_at(recipe, step, recipe.steps_an_epoch) for step in (0, 124, 249, 250, 12625, 24999, 25000)]
    assert rates == pytest.approx([1.396e-5, 5.05e-4, 1e-3, 1e-3, 5e-4, 0, 0], rel=1e-3, abs=1e-8)


def test_the_steps_have_the_schedules_learning_rates(tmp_path):
    """Plain Adam moves each weight by its learning rate in the first step."""
    recipe = changed(optimizer="adam", weight_decay=0.0, epochs=1)
    loop = Loop(Points(recipe, happens={1: Killed}), recipe, tmp_path, CPU)
    before = loop.network[0].weight.detach().clone()
    with pytest.raises(Killed):
        loop.run()
    moved = (loop.network[0].weight.detach() - before).abs()
    assert moved.flatten().tolist() == pytest.approx([learning_rate_at(recipe, 0, STEPS)] * 6, rel=1e-4)


# --- a memory and a disk that are too small -----------------------------------------


def test_forwards_are_halved_until_they_fit_and_a_step_stays_the_same(tmp_path, caplog):
    """Without batch norm, whose statistics are a forward's."""
    tasks, states = [], []
    for name, fit in (("whole", math.inf), ("small", 1)):
        (tmp_path / name).mkdir()
        task = Points(RECIPE, fit=fit)
        task.network[1] = nn.Identity()
        tasks.append(task)
        caplog.clear()
        states += Loop(task, RECIPE, tmp_path / name, CPU).run()
    assert [len(task.portions) for task in tasks] == [1, 4]
    assert tasks[0].seen == tasks[1].seen
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-6)
    said = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert said == [
        f"{tmp_path / 'small'}: the memory of cpu is too small for {count} images a forward: "
        f"{4 // count * 2} forwards a step from here on"
        for count in (4, 2)
    ]


def test_a_memory_that_runs_out_late_leaves_the_steps_before_as_they_were(tmp_path, caplog):
    """At the fifth step and on: something else took the rest."""
    task = Points(RECIPE)
    task.network[1] = nn.Identity()
    loss = task.loss

    def late(network, batch, whole):
        task.fit = 2 if task.step >= 4 else math.inf
        return loss(network, batch, whole)

    task.loss = late
    late_weights = Loop(task, RECIPE, tmp_path, CPU).run()
    whole = Points(RECIPE)
    whole.network[1] = nn.Identity()
    (tmp_path / "whole").mkdir()
    for name, value in Loop(whole, RECIPE, tmp_path / "whole", CPU).run()[0].items():
        torch.testing.assert_close(late_weights[0][name], value, rtol=0, atol=1e-6)
    assert task.seen == whole.seen
    assert len(task.portions) == 2
    assert len([each for each in caplog.records if each.levelname == "WARNING"]) == 1


def test_one_of_several_processes_whose_memory_runs_out_says_how_to_go_on(tmp_path):
    learning = Loop(Points(RECIPE), RECIPE, tmp_path, CPU)
    learning.processes = Processes(0, 2)
    with pytest.raises(UserError, match="too small for 4 images a forward; go on with --resume --micro-batch 2, or"):
        learning._halve_forwards(10_000)


def test_a_memory_too_small_for_one_image_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"the memory of cpu is too small for 1 image a forward; give .*") as error:
        Loop(Points(RECIPE, fit=0), RECIPE, tmp_path, CPU).run()
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_a_checkpoint_leaves_the_one_before(tmp_path, monkeypatch):
    """No file may grow beyond what the first epoch's needed, less a byte: it is written whole or not at all."""
    written = loop.save_checkpoint

    def on_a_full_disk(path, state):
        if path.exists():
            unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - 1, unlimited[1]))
            try:
                written(path, state)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        else:
            written(path, state)

    monkeypatch.setattr(loop, "save_checkpoint", on_a_full_disk)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(UserError, match=re.escape(f"{path}: cannot be written (File too large)")) as error:
        Loop(Points(RECIPE), RECIPE, tmp_path, CPU).run()
    assert "\n" not in str(error.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["checkpoint.pt", "epochs.csv"]
    assert len(load_checkpoint(path)["rows"]) == len(rows_of(tmp_path)) == 1
    monkeypatch.undo()
    Loop(Points(RECIPE), RECIPE, tmp_path, CPU).run()
    assert len(rows_of(tmp_path)) == RECIPE.epochs


# --- precision ----------------------------------------------------------------------


def test_half_precision_on_a_processor_has_quick_gradients_of_depthwise_convolutions():
    depthwise, pointwise = nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 4, 1)
    images = torch.randn(2, 4, 8, 8)
    with training_precision(CPU, changed(precision="bfloat16")):
        first = depthwise(images)
        second = pointwise(first)
    assert (first.dtype, second.dtype) == (torch.bfloat16, torch.bfloat16)
    assert first.grad_fn.name() == "DepthwiseConvolutionBackward"
    with training_precision(CPU, changed(precision="float32")):
        assert pointwise(images).dtype == torch.float32
