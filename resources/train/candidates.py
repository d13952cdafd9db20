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

from midog.engine.weights import choose_device
from midog.errors import exit_code
from midog.system import load_system
from resources.train.kit.arguments import add_data_arguments, parser_of, read_training_data, record_of, sources_of
from resources.train.kit.export import export_two_stages
from resources.train.kit.loop import Loop
from resources.train.kit.proposals import Proposer, crops_as_fields, read_proposals, store
from resources.train.kit.recipes import read_plan
from resources.train.kit.run import join_processes, prepare_out
from resources.train.kit.second_stage import CandidateRecipe, CandidateTask

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
    processes, device = join_processes(choose_device(arguments.device))
    data = read_training_data(arguments)
    record = record_of(arguments) | {"detector": msgspec.to_builtins(stage1.detector), "plan": plan.as_yaml()}
    if processes.is_first:
        prepare_out(arguments.out, arguments.resume, record)
        learnt = Proposer(stage1, part, recipe.score_threshold, device)
        crops = crops_as_fields(data.crops)
        store(arguments.out / TRAINING, lambda: learnt.gather(data.fields) + learnt.gather(crops, are_crops=True))
        # Validation is what inference sees: candidates from the system's own threshold on.
        seen = Proposer(stage1, part, threshold, device)
        store(arguments.out / VALIDATION, lambda: seen.gather(data.validation, with_missed=False))
    processes.wait()
    training, validation = (read_proposals(arguments.out / name) for name in (TRAINING, VALIDATION))
    truths = sum(len(field.figures) for field in data.validation)
    logger.info(
        "training crops %d, mitotic figures %d; validation candidates %d, of which %d of %d mitotic figures",
        *(len(training.labels), training.labels.sum(), len(validation.labels), validation.labels.sum(), truths),
    )
    task = CandidateTask(part, recipe, training, validation, truths, device, processes)
    (state,) = Loop(task, recipe, arguments.out, device, processes, "stage 2").run()
    if processes.is_first:
        folder = arguments.out / "model" / plan.system.system
        judge = partial(task.judge, views=part.views)
        export_two_stages(folder, plan, stage1, state, sources_of(arguments), judge)
    processes.end()


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(train, argv)


if __name__ == "__main__":
    sys.exit(main())
