"""What the command lines of the trainings share, and the reading of what they name."""

import argparse
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from midog.system import DataSource
from resources.data.crops import read_crops
from resources.data.fields import Field, add_mined, read_fields
from resources.train.kit.export import data_sources
from resources.train.kit.recipes import systems_of
from resources.train.kit.run import given_sha256

logger = logging.getLogger(__name__)

CROP_PX = 128
FIELDS_HELP = (
    "folders of labelled fields, see docs/DATA.md. DIR:CASE,CASE is only these cases, DIR:-CASE all but this one, "
    "DIR:COLUMN=VALUE those with this value in another column of the table; * stands for any text"
)


def parser_of(description: str, script: str) -> argparse.ArgumentParser:
    """A parser with what every training takes.

    Args:
        description: of the script; its first line is shown.
        script: the name of its module.
    """
    epilog = "It goes on after a kill with --resume; its lines are in OUT/train.log, its figures in OUT/**/epochs.csv."
    parser = argparse.ArgumentParser(description=description.partition("\n")[0], epilog=epilog)
    known = ", ".join(systems_of(script))
    parser.add_argument("--system", required=True, metavar="NAME", help=f"{known}; or the path of a .yaml file")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="for checkpoints, log and the system")
    parser.add_argument("--resume", action="store_true", help="go on where OUT was left, with the same options")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="change values of the system's file: training.detector.batch=8, detector.options.cbam=false",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto is a GPU if there is one (%(default)s)"
    )
    return parser


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What the trainings of Track 1 learn from."""
    parser.add_argument(
        "--data", nargs="+", action="extend", required=True, metavar="DIR[:CASE,CASE]", help=FIELDS_HELP
    )
    parser.add_argument(
        "--mined",
        nargs="*",
        action="extend",
        default=[],
        metavar="FILE.csv",
        help="hard negatives that resources.train.mine found",
    )
    parser.add_argument(
        "--crops",
        nargs="*",
        action="extend",
        default=[],
        metavar="DIR",
        help="folders of labelled crops with a figure in the middle",
    )
    parser.add_argument(
        "--validation",
        nargs="+",
        action="extend",
        required=True,
        metavar="DIR[:CASE,CASE]",
        help="labelled fields, as --data, that choose the epoch and the operating point",
    )


class TrainingData(NamedTuple):
    """What `add_data_arguments` names.

    Attributes:
        fields: with what was mined.
        validation: fields.
        crops: uint8 (M, 128, 128, 3).
        crop_sets, crop_cases: str (M,), of each crop.
    """

    fields: list[Field]
    validation: list[Field]
    crops: NDArray[np.uint8]
    crop_sets: list[str]
    crop_cases: list[str]


def read_training_data(arguments: argparse.Namespace) -> TrainingData:
    """Read what `add_data_arguments` names, and say in a line what it is."""
    logger.info("reading %s", " ".join([*arguments.data, *arguments.crops, *arguments.validation]))
    fields, validation = add_mined(read_fields(arguments.data), arguments.mined), read_fields(arguments.validation)
    crops = np.zeros((0, CROP_PX, CROP_PX, 3), np.uint8)
    sets: list[str] = []
    cases: list[str] = []
    if arguments.crops:
        read = read_crops(arguments.crops, both_classes=False)
        crops = np.ascontiguousarray(read.images.permute(0, 2, 3, 1).numpy())
        sets, cases = [file.partition("/")[0] for file in read.files], list(read.cases)
    learnt, held_out = (sum(len(each.figures) for each in group) for group in (fields, validation))
    logger.info(
        "training fields %d with %d mitotic figures and %d hard negatives, crops %d; "
        "validation fields %d with %d mitotic figures",
        *(len(fields), learnt, sum(len(each.hard_negatives) for each in fields), len(crops)),
        *(len(validation), held_out),
    )
    return TrainingData(fields, validation, crops, sets, cases)


def record_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_data_arguments` names, for `prepare_out`: a table or a list that was written anew is another one."""
    folders = {each.partition(":")[0] for each in [*arguments.data, *arguments.crops, *arguments.validation]}
    return {
        "data": arguments.data,
        "crops": arguments.crops,
        "validation": arguments.validation,
        "tables": {folder: tables_sha256(Path(folder)) for folder in sorted(folders)},
        "mined": [{"file": path, "sha256": given_sha256(Path(path), "--mined")} for path in arguments.mined],
    }


def tables_sha256(folder: Path) -> dict[str, str]:
    """The sha256 of every table of a data set by its name."""
    return {path.name: given_sha256(path, "--data") for path in sorted(folder.glob("*.csv"))}


def sources_of(arguments: argparse.Namespace) -> tuple[DataSource, ...]:
    """What `add_data_arguments` names, as model.yaml tells it."""
    return data_sources(arguments.data, arguments.mined, arguments.crops)
