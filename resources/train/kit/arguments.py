"""What the command lines of the trainings share, and the reading of what they name."""

import argparse
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

from midog.errors import UserError
from midog.evaluation.splits import TEST, VALIDATION, Split, read_split
from midog.system import DataSource
from resources.data.fields import Field, add_mined, in_memory, is_crop, read_fields
from resources.train.kit.export import data_sources
from resources.train.kit.recipes import systems_of
from resources.train.kit.run import given_sha256

logger = logging.getLogger(__name__)

FIELDS_HELP = (
    "folders of labelled fields, regions, slides or crops, see docs/DATA.md. DIR:CASE,CASE is only these cases, "
    "DIR:-CASE all but this one, "
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
        "--pretrained",
        metavar="NAME|FILE",
        help="weights to start from, instead of the recipe's: a name (of timm; coco for rtmdet and yolo11), a file, "
        "or none",
    )
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
        "--micro-batch",
        type=positive,
        default=0,
        metavar="N",
        help="images of a forward, at most: a step's batch is learnt from in as many forwards as that takes (as many "
        "images as the memory has room for)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto is a GPU if there is one (%(default)s)"
    )
    return parser


def positive(text: str) -> int:
    """A number from 1 of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 expected")
    return int(text)


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
        help="folders of labelled crops, of which parts are pasted into tissue of --data",
    )
    parser.add_argument(
        "--validation",
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR[:CASE,CASE]",
        help="labelled fields, as --data, that choose the epoch and the operating point",
    )
    add_split_arguments(parser)


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """A split of the data, as a file."""
    parser.add_argument(
        "--split",
        type=Path,
        metavar="FILE.csv",
        help="what python -m resources.data.split wrote, instead of --validation: training is all folds but --fold "
        f"and {TEST!r}",
    )
    parser.add_argument("--fold", default=VALIDATION, metavar="NAME", help="of the split, to validate on (%(default)s)")


def chosen_folds(arguments: argparse.Namespace) -> tuple[Split | None, list[str], list[str]]:
    """The split of `add_split_arguments`, the folds to train on and the fold to validate on.

    Raises:
        UserError: it cannot be read, or there is nothing to train or to validate on.
    """
    if not arguments.split:
        return None, [], []
    split = read_split(arguments.split)
    split.check([arguments.fold])
    training = [name for name in split.names if name not in (arguments.fold, TEST)]
    if not training:
        raise UserError(f"{arguments.split}: no fold is left to train on beside {arguments.fold}; make another split")
    return split, training, [arguments.fold]


class TrainingData(NamedTuple):
    """What `add_data_arguments` names.

    Attributes:
        fields: with what was mined.
        validation: fields.
        crops: those with a figure.
    """

    fields: list[Field]
    validation: list[Field]
    crops: list[Field]

    def at(self, um_per_px: float, stain_normalisation: Literal["none", "macenko"] = "none") -> "TrainingData":
        """All of them at a spacing, as a detector sees them; what is learnt from decoded, where it fits in memory."""
        fields, validation, crops = (
            [each.normalised(stain_normalisation).at(um_per_px) for each in fields] for fields in self
        )
        return TrainingData(in_memory(fields), validation, in_memory(crops))


def read_training_data(arguments: argparse.Namespace) -> TrainingData:
    """Read what `add_data_arguments` names, and say in a line what it is."""
    logger.info("reading %s", " ".join([*arguments.data, *arguments.crops, *arguments.validation]))
    split, training, held_out = chosen_folds(arguments)
    if bool(split) == bool(arguments.validation):
        raise UserError("either --split FILE or --validation DIR expected, which choose the epoch and the threshold")
    fields = add_mined(read_fields(arguments.data, split, training), arguments.mined)
    held_back = read_fields(arguments.data, split, held_out) if split else read_fields(arguments.validation)
    validation = [each for each in held_back if not is_crop(each)] or held_back  # a crop is centred on its cell
    crops = [each for each in read_fields(arguments.crops, split, training) if len(each.figures)]
    for group, name in ((fields, "to train on"), (validation, "to validate on")):
        if not any(len(each.figures) for each in group):
            raise UserError(
                f"{' '.join(arguments.data)}: no mitotic figure {name}; choose other cases or another split"
            )
    learnt, judged = (sum(len(each.figures) for each in group) for group in (fields, validation))
    logger.info(
        "training fields %d with %d mitotic figures and %d hard negatives, crops %d; "
        "validation fields %d with %d mitotic figures",
        *(len(fields), learnt, sum(len(each.hard_negatives) for each in fields), len(crops)),
        *(len(validation), judged),
    )
    return TrainingData(fields, validation, crops)


def record_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_data_arguments` names, for `prepare_out`: a table or a list that was written anew is another one."""
    folders = {each.partition(":")[0] for each in [*arguments.data, *arguments.crops, *arguments.validation]}
    return {
        "data": arguments.data,
        "crops": arguments.crops,
        "validation": arguments.validation,
        "split": split_record(arguments),
        "tables": {folder: tables_sha256(Path(folder)) for folder in sorted(folders)},
        "mined": [{"file": path, "sha256": given_sha256(Path(path), "--mined")} for path in arguments.mined],
    }


def split_record(arguments: argparse.Namespace) -> dict[str, str] | None:
    """What `add_split_arguments` names, for `prepare_out`."""
    if not arguments.split:
        return None
    return {"sha256": given_sha256(arguments.split, "--split"), "fold": arguments.fold}


def tables_sha256(folder: Path) -> dict[str, str]:
    """The sha256 of every table of a data set by its name."""
    return {path.name: given_sha256(path, "--data") for path in sorted(folder.glob("*.csv"))}


def sources_of(arguments: argparse.Namespace) -> tuple[DataSource, ...]:
    """What `add_data_arguments` names, as model.yaml tells it."""
    split, training, _ = chosen_folds(arguments)
    return data_sources(arguments.data, arguments.mined, arguments.crops, split, training)
