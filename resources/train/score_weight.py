"""Choose how much a two-stage system's detector counts beside its classifier, from predictions out of fold.

    python -m resources.train.score_weight --data DIR ... --detector RUNS1/out_of_fold --two-stages RUNS2 --system NAME

RUNS1 and RUNS2 are what `python -m resources.train.folds` made of the detector and of the second stage behind it: the
candidates are the same, and the classifier's logit is what remains of a prediction without the detector's part. For
each weight in logit(p) + weight x logit(score) it prints the average precision and the best F1, each with the false
positives a mm2 of tissue without figures that go with it. The weight of the highest average precision goes into
RUNS2/model/NAME/model.yaml, and RUNS2/weighted holds the predictions with it: then

    python -m midog tune --track 1 --data DIR ... --predictions RUNS2/weighted --model RUNS2/model/NAME
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from midog import about, job
from midog.errors import UserError, exit_code
from midog.evaluation.cases import read_cases
from midog.evaluation.labelled import extents, read_labelled
from midog.evaluation.metrics import DetectionCase
from midog.files import check_writable, read_json, read_yaml, write_json, write_yaml
from midog.system import load_system, read_system
from resources.train.kit.combination import apart, figures_of, together

logger = logging.getLogger("resources.train.score_weight")

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASE]", help="fields, and quiet tissue")
    parser.add_argument("--detector", type=Path, required=True, metavar="DIR", help="the detector's out_of_fold")
    parser.add_argument("--two-stages", type=Path, required=True, metavar="DIR", help="--out of the second stage")
    parser.add_argument("--system", required=True, metavar="NAME", help="in DIR/model")
    return parser.parse_args(argv)


def choose(arguments: argparse.Namespace) -> None:
    runs, name = arguments.two_stages, arguments.system
    folder = runs / "model" / name
    load_system(folder)
    used = [read_system(path).classifier for path in runs.glob(f"fold_*/model/{name}/model.yaml")]
    weights = {part.score_weight for part in used if part}
    if len(weights) != 1:
        raise UserError(f"{runs}: no folds of two stages with one score_weight; give the --out of folds candidates")
    labelled = read_labelled(1, arguments.data)
    second, first = (
        {case.image: case for case in read_cases(1, labelled.truths, each, chosen=True)[0]}
        for each in (runs / "out_of_fold", arguments.detector)
    )
    if second.keys() != first.keys():
        image = min(second.keys() ^ first.keys())
        raise UserError(f"{image}: predicted by one of detector and two stages alone; predict it with both")
    areas = {image: extent.mm2 for image, extent in extents(labelled.items).items()}
    cases = [case for case in second.values() if isinstance(case, DetectionCase)]
    alone = [case for case in (first[image] for image in second) if isinstance(case, DetectionCase)]
    parts = [apart(two, one, *weights) for two, one in zip(cases, alone, strict=True)]
    versions = {weight: together(cases, parts, weight) for weight in WEIGHTS}
    precision = {}
    for weight, weighted in versions.items():
        precision[weight], line = figures_of(weighted, areas)
        logger.info(f"weight {weight:<8g} {line}")
    logger.info(f"detector alone  {figures_of(alone, areas)[1]}")
    best = max(WEIGHTS, key=precision.__getitem__)
    out = runs / "weighted"
    for case in versions[best]:
        check_writable(out / case.image)
        write_json(out / case.image / job.RESULT_NAMES[1], case.detections.to_json())
        write_json(out / case.image / about.NAME, read_json(runs / "out_of_fold" / case.image / about.NAME, ""))
    values = read_yaml(folder / "model.yaml")
    values["classifier"]["score_weight"] = best
    write_yaml(folder / "model.yaml", values)
    logger.info(
        f"weight {best:g} in {folder / 'model.yaml'}, predictions in {out}; now choose the threshold: midog tune"
    )


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(choose, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
