"""Ground truth in the organisers' format, for `python -m midog evaluate` and `tune`.

    python -m resources.data.ground_truth fields DIR[:CASE,CASE] [DIR ...] --out FILE.json [--split FILE --fold NAME]
    python -m resources.data.ground_truth crops DIR [DIR ...] --out FILE.json --stacks STACK_DIR

`fields` (Track 1) takes folders as resources/data/fields.py has them. The tumour domain is the tumour's name, or the
folder's where the tumour is not known; the ROI type is the table's column roi_type, or "hotspot" for an image with
figures and for those of images.csv, "random" for tissue without figures. Millimetres are the table's: predict images
that do not name their resolution with --mpp and that value. Tissue that two images share counts in both, as on the
platform; midog evaluate --data counts it once.
`crops` (Track 2) takes folders as resources/data/crops.py has them and writes the stacks, too: one a case, of any
number of pages, as TIFF into STACK_DIR, for predict. Domains are those of the tables, numbered from 0 in alphabetical
order. --split and --fold leave only the cases of these folds.
"""

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from midog.errors import exit_code
from midog.evaluation.inputs import add_split_arguments, given_folds
from midog.evaluation.labelled import read_crop, read_labelled
from midog.evaluation.splits import Split
from midog.files import check_writable, write_json
from resources.data.synthetic import write_tiff


def crops_truth(
    selections: Sequence[str], stack_dir: Path, split: Split | None = None, folds: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Track 2's ground truth of some folders, and its stacks on disk, one a case.

    Args:
        selections, split, folds: as `midog.evaluation.labelled.read_labelled`, which has the errors, too.
        stack_dir: for the stacks.

    Returns:
        list of stacks: image, labels and tumordomains.
    """
    labelled = read_labelled(2, selections, split, folds)
    check_writable(stack_dir)
    for name in labelled.truths:
        write_tiff(stack_dir / name, [read_crop(item.path) for item in labelled.items if item.image == name])
    return list(labelled.truths.values())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.data.ground_truth",
        description="Ground truth in the organisers' format, for midog evaluate and tune.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="fields | crops")
    fields = kinds.add_parser("fields", help="Track 1: labelled fields")
    fields.add_argument("folders", nargs="+", metavar="DIR[:CASE,CASE]")
    crops = kinds.add_parser("crops", help="Track 2: labelled crops")
    crops.add_argument("folders", nargs="+", metavar="DIR")
    crops.add_argument("--stacks", type=Path, required=True, metavar="DIR", help="for the stacks, one a case")
    for kind in (fields, crops):
        kind.add_argument("--out", type=Path, required=True, metavar="FILE.json")
        add_split_arguments(kind)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out.parent)
    split, folds = given_folds(arguments.split, arguments.fold)
    if arguments.kind == "fields":
        truths = read_labelled(1, arguments.folders, split, folds).truths
        count = sum(len(entry["annotations"]) for entry in truths.values())
        said = f"{len(truths)} images, {count} mitotic figures"
        write_json(arguments.out, truths)
    else:
        stacks = crops_truth(arguments.folders, arguments.stacks, split, folds)
        count = sum(len(entry["labels"]) for entry in stacks)
        said = f"{len(stacks)} stacks in {arguments.stacks}, {count} crops"
        write_json(arguments.out, stacks)
    print(f"{arguments.out}: {said}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
