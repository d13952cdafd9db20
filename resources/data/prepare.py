"""Public data sets -> the tables that training reads.

    python -m resources.data.prepare NAME SOURCE --out DIR

SOURCE is the folder that the set was unpacked to, wherever its archives put their files; where labels and images lie
apart, options name them instead. NAME is one of

- `midogpp`, `ccmct`, `cmc`, `slide-runner`, `tupac16`, `icpr2012`, `atypia14` and `gzmh`, with labelled cells, and
  `spider` and `nct-crc`, tissue without figures, for Track 1: images stay where and as they are, and become two tables,
  `images.csv` and `figures.csv` (see `whole_images.py`);
- `midog25` and `atnorm` for Track 2: they become `labels.csv` and `crops/`.

docs/DATA.md tells where each is from. What was left out, listed twice or in both classes is told, one line a kind.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from midog.errors import UserError, exit_code
from midog.files import check_writable, write_with
from resources.data.atnorm import read_atnorm
from resources.data.atypia14 import read_atypia14
from resources.data.gzmh import read_gzmh
from resources.data.icpr2012 import read_icpr2012
from resources.data.midog25 import read_midog25
from resources.data.midogpp import read_midogpp
from resources.data.nct_crc import read_nct_crc
from resources.data.slide_runner import DOMAINS, of_set, read_slide_runner
from resources.data.spider import read_spider
from resources.data.tupac16 import read_tupac16
from resources.data.unpacked import located, one_file

logger = logging.getLogger("resources.data.prepare")  # also where it is run as __main__

FOLDERS: dict[str, tuple[Callable[[Path], tuple[pd.DataFrame, pd.DataFrame]], str]] = {
    "icpr2012": (read_icpr2012, "ICPR 2012, for Track 1: fields on two scanners, the pixels of each figure"),
    "atypia14": (read_atypia14, "MITOS-ATYPIA 14, for Track 1: frames on two scanners, cells with scores"),
    "gzmh": (read_gzmh, "GZMH, for Track 1: fields of FoCasNet's clinical set"),
    "spider": (read_spider, "SPIDER's necrosis, for Track 1: tissue without figures"),
    "nct-crc": (read_nct_crc, "NCT-CRC-HE-100K's debris, for Track 1: tissue without figures"),
}


def folder_set(arguments: argparse.Namespace) -> None:
    """Tables of a set whose labels lie beside its images."""
    from resources.data.whole_images import write_tables  # here, because Track 2's tables need no reader of slides

    images, figures = FOLDERS[arguments.name][0](arguments.source)
    write_tables(images, figures, arguments.source, arguments.out, arguments.source)


def midogpp(arguments: argparse.Namespace) -> None:
    """Tables of MIDOG++'s regions."""
    from resources.data.whole_images import write_tables

    labels, folder = _apart(arguments.source, arguments.json, arguments.images, "MIDOG*.json", "--json", "--images")
    images, figures = read_midogpp(labels)
    write_tables(images, figures, folder, arguments.out, labels, arguments.mpp)


def slide_runner(arguments: argparse.Namespace) -> None:
    """Tables of the whole slides of a SlideRunner database."""
    from resources.data.whole_images import write_tables

    labels, folder = _apart(
        arguments.source, arguments.database, arguments.slides, "*.sqlite", "--database", "--slides"
    )
    images, figures = read_slide_runner(labels)
    if arguments.name in DOMAINS:
        images = of_set(arguments.name, images)
    write_tables(images, figures, folder, arguments.out, labels, arguments.mpp)


def tupac16(arguments: argparse.Namespace) -> None:
    """Tables of TUPAC16's images with the alternative labels."""
    from resources.data.whole_images import write_tables

    images, figures = read_tupac16(arguments.source, arguments.database)
    labels = arguments.database or arguments.source
    write_tables(images, figures, arguments.source, arguments.out, labels, arguments.mpp)


def crops(arguments: argparse.Namespace) -> None:
    """Write OUT/labels.csv and copy the crops it names; the table comes last, so that a killed run leaves none."""
    pattern, read = {"midog25": ("MIDOG*25*.csv", read_midog25), "atnorm": ("*.csv", read_atnorm)}[arguments.name]
    csv, folder = _apart(arguments.source, arguments.csv, arguments.crops, pattern, "--csv", "--crops")
    table, out = read(csv), arguments.out
    names = [Path(name).name for name in table.file]
    paths = located(folder, names)
    absent = [paths[name] for name in names if not paths[name].is_file()]
    if absent:
        raise UserError(f"{absent[0]}: not found (nor {len(absent) - 1} more); check the folder of crops")
    check_writable(out / "crops")
    for name in tqdm(names, "crops", disable=None):
        shutil.copyfile(paths[name], out / "crops" / name)
    write_with(out / "labels.csv", lambda part: table.to_csv(part, index=False))
    logger.info(f"{out}: {len(table)} crops, {int(table.label.sum())} atypical, {table.case.nunique()} cases")


def _apart(
    source: Path | None, labels: Path | None, folder: Path | None, pattern: str, labels_option: str, folder_option: str
) -> tuple[Path, Path]:
    """The file of the labels and the folder of the images: as options name them, else in the source."""
    if not source and not (labels and folder):
        raise UserError(
            f"SOURCE: not given; give the folder of the unpacked set, or {labels_option} and {folder_option}"
        )
    inside = source or Path()
    return labels or one_file(inside, pattern, labels_option), folder or inside


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
        epilog="Some sets have options of their own: give NAME --help.",
    )
    sets = parser.add_subparsers(required=True, metavar="NAME", dest="name")

    def add(
        name: str, what: str, prepare: Callable[[argparse.Namespace], None], optional: bool = False
    ) -> argparse.ArgumentParser:
        each = sets.add_parser(name, help=what, description=what)
        each.add_argument(
            "source",
            type=Path,
            nargs="?" if optional else None,
            metavar="SOURCE",
            help="folder that the set was unpacked to",
        )
        each.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="folder for the tables, made where missing"
        )
        each.set_defaults(prepare=prepare)
        return each

    for name, what in (
        ("midog25", "MIDOG 2025's training set for Track 2: a table and its crops"),
        ("atnorm", "AtNorM-MD or AtNorM-Br, for Track 2: a table of experts' votes and its crops"),
    ):
        each = add(name, what, crops, optional=True)
        each.add_argument("--csv", type=Path, metavar="FILE.csv", help="the table, one row a mitotic figure")
        each.add_argument("--crops", type=Path, metavar="DIR", help="folder of the crops that it names (1.png, ...)")
    regions = add("midogpp", "MIDOG++, for Track 1: annotations and regions", midogpp, optional=True)
    regions.add_argument(
        "--json",
        type=Path,
        metavar="MIDOG++.json",
        help="the annotations: databases/MIDOG++.json of DeepMicroscopy/MIDOGpp",
    )
    regions.add_argument("--images", type=Path, metavar="DIR", help="folder of 001.tiff, 002.tiff and so on")
    for name, what in (
        ("ccmct", "MITOS_WSI_CCMCT, for Track 1: whole slides"),
        ("cmc", "MITOS_WSI_CMC, for Track 1: whole slides"),
        ("slide-runner", "any database of SlideRunner, for Track 1: whole slides"),
    ):
        slides = add(name, what, slide_runner, optional=True)
        slides.add_argument(
            "--database", type=Path, metavar="FILE.sqlite", help="the cells; needed where SOURCE has several"
        )
        slides.add_argument("--slides", type=Path, metavar="DIR", help="folder of the files that the database names")
        _add_spacing(slides)
    patients = add("tupac16", "TUPAC16 with the alternative labels, for Track 1: images of patients", tupac16)
    patients.add_argument(
        "--database", type=Path, metavar="FILE.sqlite", help="the cells, where not the only .sqlite or csv of TUPAC_AL"
    )
    for each in (regions, patients):
        _add_spacing(each)
    for name, (_, what) in FOLDERS.items():
        add(name, what, folder_set)
    return parser.parse_args(argv)


def _add_spacing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mpp",
        type=spacing,
        default=0.25,
        metavar="UM",
        help="um per pixel of images whose file does not tell it (%(default)s)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return exit_code(arguments.prepare, arguments)


if __name__ == "__main__":
    sys.exit(main())
