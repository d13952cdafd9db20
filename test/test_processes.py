"""A step's batch in two processes, in one process of twice the micro-batch, and in several forwards: the same losses.

`torchrun test/test_processes.py DATA OUT main` is what the two processes run; a training that was killed goes on there.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, Killed, training_arguments
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from midog.models import CLASSIFIERS, DETECTORS, build
from midog.models.focasnet import FoCasNet
from midog.system import load_system
from resources.data.crops import Crops
from resources.data.fields import read_fields
from resources.train.kit import loop
from resources.train.kit.arguments import TrainingData
from resources.train.kit.detector import DetectorRecipe, DetectorTask
from resources.train.kit.focasnet_loss import focasnet_loss
from resources.train.kit.proposals import Proposals
from resources.train.kit.recipes import read_plan
from resources.train.kit.rtmdet_loss import RTMDetLoss
from resources.train.kit.run import Processes, join_processes
from resources.train.kit.second_stage import CandidateRecipe, Candidates, CandidateTask
from resources.train.kit.subtypes import AtypicalRecipe, AtypicalTask
from resources.train.kit.tiles import TileAugmentation
from resources.train.kit.whole import WholeBatch, portions
from resources.train.kit.yolo11_loss import YOLO11Loss

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
STEPS, BATCH = 10, 6
SHORT = {"epochs": STEPS, "batch": BATCH, "warmup_epochs": 1, "ema_momentum": (1.0,), "precision": "float32"}
SHORT |= {"learning_rate": 1e-4, "warmup_lr": 1e-4, "patience": 0, "keep": "last"}


def focasnet_whole(network, images, truths, total):
    assert isinstance(network, FoCasNet)
    return focasnet_loss(network.branches(images), truths, total)[0]


DETECTORS_OF = {
    "sztu": ("yolo11", {"scale": "n", "lsconv": [22], "ema": True}, YOLO11Loss),
    "rtmdet_s": ("rtmdet", {"size": "tiny"}, lambda: RTMDetLoss("focal")),
    "focasnet": (
        "focasnet",
        {"backbone": 18, "cbam": True, "group_norm": True, "hybrid": True, "levels": 2, "width": 32, "depth": 1},
        lambda: focasnet_whole,
    ),
}
TRAININGS = (*DETECTORS_OF, "second stage", "convnextv2")


def recipe_of(name, script, kind, **more):
    plan = read_plan(name, script, kind)
    return plan, msgspec.structs.replace(plan.training, **SHORT, **more)


def detector_task(name, data, device=CPU):
    network, options, loss = DETECTORS_OF[name]
    plan, recipe = recipe_of(name, network, DetectorRecipe, steps_an_epoch=1, tile=(64, 64))
    recipe = msgspec.structs.replace(recipe, augmentation=TileAugmentation())
    part = msgspec.structs.replace(plan.detector, box_um=12.5)  # no box fills a tile
    fields = read_fields([f"{data}/fields"])
    built = build(DETECTORS, network, options)
    return recipe, DetectorTask(built, loss(), recipe, part, TrainingData(fields, fields, []), device)


def candidate_task(data):
    plan, recipe = recipe_of("sztu", "candidates", CandidateRecipe, steps_an_epoch=1, mixup=0.5)
    fields = read_fields([f"{data}/fields"])
    boxes, labels, numbers = [], [], []
    for number, field in enumerate(fields):
        for points, label in ((field.figures, 1), (field.hard_negatives, 0)):
            for point in points:
                boxes.append(np.concatenate([point - 25, point + 25]))
                labels.append(label)
                numbers.append(number)
    places = torch.from_numpy(np.array(boxes, np.float32))
    proposals = Proposals(torch.tensor(numbers), places, torch.tensor(labels), torch.ones(len(labels)))
    candidates = Candidates(fields, proposals)
    network = build(CLASSIFIERS, "timm", {"name": "test_convnext"})
    return recipe, CandidateTask(network, plan.classifier, recipe, candidates, candidates, CPU)


def atypical_task():
    plan, recipe = recipe_of("convnextv2", "atypical", AtypicalRecipe, labels="votes", subclass_weight=1.0)
    recipe = msgspec.structs.replace(recipe, mask_weight=1.0)
    part = msgspec.structs.replace(
        plan.classifier, options={"widths": [8, 16], "depths": [1, 1], "stem": "patch"}, input_px=32
    )
    random = torch.Generator().manual_seed(0)
    count = 2 * BATCH  # of which a fold of half leaves a step an epoch
    crops = Crops(
        images=torch.randint(256, (count, 3, 128, 128), generator=random, dtype=torch.uint8),
        labels=torch.arange(count) % 2,
        votes=torch.rand(count, generator=random),
        cases=np.arange(count).astype(str),
        domains=np.full(count, "one"),
        files=np.array([f"own/{number}.png" for number in range(count)]),
        subclasses=torch.eye(3)[torch.arange(count) % 3] * (torch.arange(count) % 4 > 0)[:, None],
        subclass_names=["a", "b", "c"],
        masks=torch.randint(2, (count, 1, 128, 128), generator=random, dtype=torch.uint8),
        masked=torch.arange(count) % 3 > 0,
        sets=["own"],
    )
    return recipe, AtypicalTask(part, recipe, crops, np.arange(count) // BATCH, 0, None, CPU)


def task_of(name, data):
    """A recipe and a task of one step an epoch; nothing is dropped, and batch norm has its running statistics."""
    torch.manual_seed(0)
    if name == "convnextv2":
        recipe, task = atypical_task()
    else:
        recipe, task = candidate_task(data) if name == "second stage" else detector_task(name, data)
    task.network.train = lambda mode=True: nn.Module.train(task.network, False)
    task.validate = lambda member: {task.criterion: 1.0}
    return recipe, task


def train(name, data, folder, processes=None, micro_batch=0):
    folder.mkdir(parents=True, exist_ok=True)
    recipe, task = task_of(name, data)
    return loop.Loop(task, recipe, folder, CPU, processes, micro_batch=micro_batch).run()


def losses_of(folder):
    return [float(row["training_loss"]) for row in csv.DictReader((folder / "epochs.csv").open())]


def run(command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'test'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def in_two_processes(data, out, what):
    run([*TORCHRUN, __file__, str(data), str(out), what])


@pytest.fixture(scope="module")
def in_two(data, tmp_path_factory):
    """The folder of all trainings in two processes: whole, and gone on with after a kill of one process."""
    out = tmp_path_factory.mktemp("two")
    written = loop.save_checkpoint

    def kill_half_way(path, state):
        written(path, state)
        if len(state["rows"]) == STEPS // 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", kill_half_way)
        for name in TRAININGS:
            with pytest.raises(Killed):
                train(name, data, out / "resumed" / name)
    in_two_processes(data, out, "main")
    return out


@pytest.mark.parametrize("name", TRAININGS)
def test_losses_are_the_same_however_a_batch_is_divided(data, in_two, tmp_path, name):
    train(name, data, tmp_path / "one")
    train(name, data, tmp_path / "four", micro_batch=2)
    expected = losses_of(tmp_path / "one")
    assert len(expected) == STEPS
    assert expected[0] != pytest.approx(expected[-1], rel=1e-3)  # something is learnt
    for folder in (tmp_path / "four", in_two / "whole" / name, in_two / "resumed" / name):
        assert losses_of(folder) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_loss_of_each_forward_alone_would_not_be_the_same(data, tmp_path, monkeypatch):
    """So that the test above can fail."""
    train("convnextv2", data, tmp_path / "one")
    monkeypatch.setattr(WholeBatch, "total", lambda whole, part: part * whole.forwards)
    train("convnextv2", data, tmp_path / "apart", micro_batch=2)
    assert losses_of(tmp_path / "apart") != pytest.approx(losses_of(tmp_path / "one"), rel=1e-3)


def test_a_second_stage_is_trained_by_two_processes(data, tmp_path):
    values = yaml.safe_load((ROOT / "resources/systems/rtmdet_two_stages.yaml").read_text())
    values["classifier"] |= {"network": "timm", "options": {"name": "test_convnext"}}
    values["training"]["classifier"] |= {"epochs": 1, "steps_an_epoch": 2, "batch": 5, "warmup_epochs": 0}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    command = [*TORCHRUN, "-m", "resources.train.candidates", "--detector", str(ROOT / "model/rtmdet_tiny")]
    done = run(command + training_arguments(data, tmp_path / "small.yaml", tmp_path / "out"))
    assert load_system(tmp_path / "out/model/rtmdet_two_stages").classifier.members
    assert done.stdout.count("training fields") == 1  # by one of the two


@given(batch=st.integers(1, 40), world=st.integers(1, 8), largest=st.integers(1, 50))
def test_portions_are_the_batch_in_order_and_every_process_has_as_many(batch, world, largest):
    if batch < world:
        return
    parts = [portions(batch, Processes(rank, world), largest) for rank in range(world)]
    assert [place for each in parts for portion in each for place in portion] == list(range(batch))
    assert len({len(each) for each in parts}) == 1
    uneven = batch % world > 0  # then a forward may have one more, so that no other process has none
    assert all(0 < len(portion) <= max(largest, 1 + uneven) for each in parts for portion in each)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_batch_norm_of_few_images_is_that_of_all_gpus(data, tmp_path):
    in_two_processes(data, tmp_path, "synchronised")
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def synchronised(data, out):
    """Write what batch norm measures in each process, of images of its own."""
    processes, device = join_processes(torch.device("cuda"))
    recipe, task = detector_task("rtmdet_s", data, device)
    network = loop.Loop(task, recipe, out, device, processes).network
    assert any(isinstance(each, nn.SyncBatchNorm) for each in network.modules())
    network.train()(torch.rand(2, 3, 64, 64, device=device) * (1 + processes.rank))
    norms = {name: value.cpu() for name, value in network.state_dict().items() if "running" in name}
    torch.save(norms, out / f"{processes.rank}.pt")
    processes.end()


def main(data, out):
    torch.set_num_threads(1)
    processes, _ = join_processes(CPU)
    for name in TRAININGS:
        if processes.is_first:
            (out / "whole" / name).mkdir(parents=True)
        processes.wait()
        train(name, data, out / "whole" / name, processes, micro_batch=2 if name == "sztu" else 0)
        train(name, data, out / "resumed" / name, processes)
    processes.end()


if __name__ == "__main__":
    {"main": main, "synchronised": synchronised}[sys.argv[3]](*map(Path, sys.argv[1:3]))
