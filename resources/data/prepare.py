"""Public data sets -> the tables that training reads.

    python -m resources.data.prepare midog25 --csv MIDOG25.csv --crops DIR --out DIR
    python -m resources.data.prepare midogpp --json MIDOG++.json --images DIR --out DIR
    python -m resources.data.prepare slide-runner --database FILE.sqlite --slides DIR --out DIR

`midog25` is the challenge's own training set for Track 2: its table and a folder with the crops that it names (see
`midog25.py`). It becomes `labels.csv` and `crops/`.

`midogpp` (MIDOG++) and `slide-runner` (MITOS_WSI_CCMCT, MITOS_WSI_CMC) are for Track 1: regions and whole slides stay
where and as they are, and become two tables, `images.csv` and `figures.csv` (see `whole_images.py`).
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from midog.errors import UserError, exit_code
from midog.files import check_writable, write_with

logger = logging.getLogger("resources.data.prepare")  # also where it is run as __main__


def midog25(arguments: argparse.Namespace) -> None:
    """Write OUT/labels.csv and copy the crops it names; the table comes last, so that a killed run leaves none."""
    from resources.data.midog25 import read_midog25

    table, crops, out = read_midog25(arguments.csv), arguments.crops, arguments.out
    absent = [name for name in table.file if not (crops / Path(name).name).exists()]
    if absent:
        raise UserError(f"{crops / Path(absent[0]).name}: not found (nor {len(absent) - 1} more); check --crops")
    check_writable(out / "crops")
    for name in tqdm(table.file, "crops", disable=None):
        shutil.copyfile(crops / Path(name).name, out / name)
    write_with(out / "labels.csv", lambda part: table.to_csv(part, index=False))
    logger.info(f"{out}: {len(table)} crops, {int(table.label.sum())} atypical, {table.case.nunique()} cases")


def midogpp(arguments: argparse.Namespace) -> None:
    """Tables of MIDOG++'s regions."""
    from resources.data.midogpp import read_midogpp
    from resources.data.whole_images import write_tables  # here, because Track 2's table needs no reader of slides

    write_tables(*read_midogpp(arguments.json), arguments.images, arguments.out, arguments.mpp)


def slide_runner(arguments: argparse.Namespace) -> None:
    """Tables of the whole slides of a SlideRunner database."""
    from resources.data.slide_runner import read_slide_runner
    from resources.data.whole_images import write_tables

    write_tables(*read_slide_runner(arguments.database), arguments.slides, arguments.out, arguments.mpp)


def spacing(text: str) -> float:
    """A positive number of um per pixel from the command line."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 10:
        raise argparse.ArgumentTypeError(f"{text}: a number between 0 and 10 expected")
    return number


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.data.prepare",
        description="Turn a public data set into the tables that training reads; docs/DATA.md describes them.",
        epilog="Each format has options of its own: give it --help.",
    )
    formats = parser.add_subparsers(required=True, metavar="FORMAT")
    challenge = formats.add_parser("midog25", help="MIDOG 2025's training set for Track 2: a table and its crops")
    challenge.add_argument(
        "--csv", type=Path, required=True, metavar="MIDOG25.csv", help="the challenge's table, one row a mitotic figure"
    )
    challenge.add_argument(
        "--crops",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the crops that the table's image_id names (1.png, 2.png and so on)",
    )
    challenge.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for labels.csv and crops/; made where missing"
    )
    challenge.set_defaults(prepare=midog25)
    regions = formats.add_parser("midogpp", help="MIDOG++, for Track 1: annotations and regions")
    regions.add_argument(
        "--json",
        type=Path,
        required=True,
        metavar="MIDOG++.json",
        help="the annotations: databases/MIDOG++.json of DeepMicroscopy/MIDOGpp",
    )
    regions.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of 001.tiff, 002.tiff and so on"
    )
    regions.set_defaults(prepare=midogpp)
    slides = formats.add_parser("slide-runner", help="MITOS_WSI_CCMCT or MITOS_WSI_CMC, for Track 1: whole slides")
    slides.add_argument(
        "--database", type=Path, required=True, metavar="FILE.sqlite", help="the cells, a database of SlideRunner"
    )
    slides.add_argument(
        "--slides", type=Path, required=True, metavar="DIR", help="folder of the .svs files that the database names"
    )
    slides.set_defaults(prepare=slide_runner)
    for each in (regions, slides):
        each.add_argument(
            "--out",
            type=Path,
            required=True,
            metavar="DIR",
            help="new folder for images.csv and figures.csv",
        )
        each.add_argument(
            "--mpp",
            type=spacing,
            default=0.25,
            metavar="UM",
            help="um per pixel of images whose file does not tell it (%(default)s)",
        )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return exit_code(arguments.prepare, arguments)


if __name__ == "__main__":
    sys.exit(main())
