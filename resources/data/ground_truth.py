"""Ground truth in the organisers' format, for `python -m midog evaluate` and `tune`.

    python resources/data/ground_truth.py fields DIR[:CASE,CASE] [DIR ...] --out FILE.json
    python resources/data/ground_truth.py crops DIR [DIR ...] --out FILE.json --stacks STACK_DIR

`fields` (Track 1) takes folders as resources/data/fields.py has them. Each DIR is a tumour domain, numbered from 0 in
the order given; its ROI type is "hotspot" where it has images.csv, else (quiet tissue, regions) "random". Millimetres
are the table's: predict images that do not name their resolution with --mpp and that value.
`crops` (Track 2) takes folders as resources/data/crops.py has them and writes the stacks, too: one a case, of any
number of pages, as TIFF into STACK_DIR, for predict. Domains are those of the tables, numbered from 0 in alphabetical
order.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from midog.errors import UserError, exit_code  # noqa: E402
from midog.files import check_writable, write_json  # noqa: E402


def fields_truth(selections):
    """Track 1's ground truth of some folders.

    Args:
        selections: as `resources.data.fields.read_fields`, which has the errors, too; no image is read.

    Returns:
        dict from an image's name to its annotations (mm), tumour domain and ROI type.

    Raises:
        UserError: also if no image is left, or two have one name.
    """
    from resources.data.fields import CLASSES, read_tables, select_images

    truth = {}
    for domain, selection in enumerate(selections):
        folder, _, cases = selection.partition(":")
        folder = Path(folder)
        images, figures = read_tables(folder)
        kind = "hotspot" if (folder / "images.csv").exists() else "random"
        for row in select_images(images, cases, selection).itertuples():
            name = Path(row.image).name
            if name in truth:
                raise UserError(f"{folder / row.image}: a second image of this name; evaluate these folders one by one")
            mine = figures[(figures.image == row.image) & (figures.label == CLASSES[0])]
            mm = mine[["x", "y"]].to_numpy(float) * float(row.um_per_px) / 1000
            truth[name] = {
                "annotations": [[float(x), float(y), 0.0] for x, y in mm],
                "tumor domain": domain,
                "roi type": kind,
            }
    return truth


def crops_truth(folders, stack_dir):
    """Track 2's ground truth of some folders, and its stacks on disk.

    Args:
        folders: as `resources.data.crops.read_crops`, which has the errors, too.
        stack_dir: for the stacks, one a case.

    Returns:
        list of stacks: image, labels and tumordomains.
    """
    import numpy as np

    from resources.data.crops import read_crops
    from resources.data.synthetic import write_tiff

    crops = read_crops(folders)
    numbers = {domain: number for number, domain in enumerate(np.unique(crops.domains))}
    truth = []
    check_writable(stack_dir)
    for case in np.unique(crops.cases):
        rows = np.flatnonzero(crops.cases == case)
        name = f"{case.replace('/', '_')}.tiff"
        write_tiff(stack_dir / name, [crops.images[row].permute(1, 2, 0).numpy() for row in rows])
        truth.append(
            {
                "image": name,
                "labels": ["atypical" if crops.labels[row] else "normal" for row in rows],
                "tumordomains": [numbers[crops.domains[row]] for row in rows],
            }
        )
    return truth


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="fields | crops")
    fields = kinds.add_parser("fields", help="Track 1: labelled fields")
    fields.add_argument("folders", nargs="+", metavar="DIR[:CASE,CASE]")
    crops = kinds.add_parser("crops", help="Track 2: labelled crops")
    crops.add_argument("folders", nargs="+", metavar="DIR")
    crops.add_argument("--stacks", type=Path, required=True, metavar="DIR", help="for the stacks, one a case")
    for kind in (fields, crops):
        kind.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    return parser.parse_args(argv)


def run(arguments):
    check_writable(arguments.out.parent)
    if arguments.kind == "fields":
        truth = fields_truth(arguments.folders)
        count = sum(len(entry["annotations"]) for entry in truth.values())
        said = f"{len(truth)} images, {count} mitotic figures"
    else:
        truth = crops_truth(arguments.folders, arguments.stacks)
        count = sum(len(entry["labels"]) for entry in truth)
        said = f"{len(truth)} stacks in {arguments.stacks}, {count} crops"
    write_json(arguments.out, truth)
    print(f"{arguments.out}: {said}")


def main(argv=None):
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
