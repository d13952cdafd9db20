"""Train stage 2 of Track 1: which of a detector's candidates are mitotic figures.

    python -m resources.train.candidates --system NAME --detector MODEL/SYSTEM --data DIR[:CASE,CASE] ...
        --crops DIR ... --mined FILE.csv ... --validation DIR[:CASE,CASE] ... --out DIR

The crops are the detector's own proposals: true figures, hard negatives and false positives, and labelled cells that it
missed. The recipe is `training.classifier` of resources/systems/NAME.yaml; OUT/model/NAME/ is the export: the detector
and the classifier together.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from midog.engine.torch_engine import choose_device
from midog.errors import exit_code
from midog.system import Made, load_system
from resources.data.fields import in_memory
from resources.train.kit.arguments import add_data_arguments, parser_of, read_training_data, record_of, sources_of
from resources.train.kit.export import export_two_stages
from resources.train.kit.loop import Loop
from resources.train.kit.proposals import Proposer, fields_seen, read_proposals, store
from resources.train.kit.recipes import read_plan
from resources.train.kit.run import commit, join_processes, prepare_out
from resources.train.kit.second_stage import CandidateRecipe, Candidates, CandidateTask, start_classifier

logger = logging.getLogger("resources.train.candidates")

TRAINING, VALIDATION = "training.safetensors", "validation.safetensors"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__ or "", "candidates")
    add_data_arguments(parser)
    parser.add_argument(
        "--detector", required=True, type=Path, metavar="MODEL/SYSTEM", help="what a detector's training exported"
    )
    return parser.parse_args(argv)


def train(argv: Sequence[str] | None) -> None:
    arguments = parse_arguments(argv)
    plan = read_plan(arguments.system, "candidates", CandidateRecipe, arguments.changes, arguments.seed)
    part, recipe, threshold = plan.classifier, plan.training, plan.detector.score_threshold
    stage1 = load_system(arguments.detector)
    assert stage1.detector is not None
    network, pretrained = start_classifier(part, recipe, arguments.pretrained)
    processes, device = join_processes(choose_device(arguments.device))
    data = read_training_data(arguments)
    fields = in_memory(fields_seen([*data.fields, *data.crops], stage1.detector, part))
    held_out = fields_seen(data.validation, stage1.detector, part)
    record = record_of(arguments) | {"detector": msgspec.to_builtins(stage1.detector)}
    record |= {"pretrained": msgspec.to_builtins(pretrained), "plan": plan.as_yaml()}
    if processes.is_first:
        prepare_out(arguments.out, arguments.resume, record)
        learnt = Proposer(stage1, recipe.score_threshold, device)
        store(arguments.out / TRAINING, lambda: learnt.gather(fields, as_inference=False))
        seen = Proposer(stage1, threshold, device)
        store(arguments.out / VALIDATION, lambda: seen.gather(held_out, as_inference=True))
    processes.wait()
    training, validation = (read_proposals(arguments.out / name) for name in (TRAINING, VALIDATION))
    candidates = Candidates(fields, training), Candidates(held_out, validation)
    task = CandidateTask(network, part, recipe, *candidates, device)
    logger.info(
        "training candidates %d, mitotic figures %d; validation candidates %d, of which %d of %d mitotic figures",
        *(len(training), training.labels.sum(), len(validation), validation.labels.sum(), task.truths),
    )
    states = Loop(task, recipe, arguments.out, device, processes, "stage 2", arguments.micro_batch).run()
    if processes.is_first:
        folder = arguments.out / "model" / plan.system.system
        made = Made(
            code=commit(), data=sources_of(arguments), pretrained={"classifier": pretrained} if pretrained else {}
        )
        export_two_stages(folder, plan, stage1, states[0], made, partial(task.judge, part=part))
    processes.end()


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train, argv)


if __name__ == "__main__":
    sys.exit(main())
