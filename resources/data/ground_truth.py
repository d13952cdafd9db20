"""Ground truth in the organisers' format, for `python -m midog evaluate` and `tune`.

    python -m resources.data.ground_truth fields DIR[:CASE,CASE] [DIR ...] --out FILE.json
    python -m resources.data.ground_truth crops DIR [DIR ...] --out FILE.json --stacks STACK_DIR

`fields` (Track 1) takes folders as resources/data/fields.py has them. Each DIR is a tumour domain, numbered from 0 in
the order given; its ROI type is "hotspot" where it has images.csv, else (quiet tissue, regions) "random". Millimetres
are the table's: predict images that do not name their resolution with --mpp and that value.
`crops` (Track 2) takes folders as resources/data/crops.py has them and writes the stacks, too: one a case, of any
number of pages, as TIFF into STACK_DIR, for predict. Domains are those of the tables, numbered from 0 in alphabetical
order.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midog.errors import exit_code
from midog.evaluation.labelled import read_crop, read_labelled
from midog.files import check_writable, write_json
from resources.data.synthetic import write_tiff


def crops_truth(selections: Sequence[str], stack_dir: Path) -> list[dict[str, Any]]:
    """Track 2's ground truth of some folders, and its stacks on disk, one a case.

    Args:
        selections: as `midog.evaluation.labelled.read_labelled`, which has the errors, too.
        stack_dir: for the stacks.

    Returns:
        list of stacks: image, labels and tumordomains.
    """
    labelled = read_labelled(2, selections)
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
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out.parent)
    if arguments.kind == "fields":
        truths = read_labelled(1, arguments.folders).truths
        count = sum(len(entry["annotations"]) for entry in truths.values())
        said = f"{len(truths)} images, {count} mitotic figures"
        write_json(arguments.out, truths)
    else:
        stacks = crops_truth(arguments.folders, arguments.stacks)
        count = sum(len(entry["labels"]) for entry in stacks)
        said = f"{len(stacks)} stacks in {arguments.stacks}, {count} crops"
        write_json(arguments.out, stacks)
    print(f"{arguments.out}: {said}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
