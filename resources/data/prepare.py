"""Public data sets -> the tables that training reads.

    python resources/data/prepare.py midog25 --csv MIDOG25.csv --crops DIR --out DIR
    python resources/data/prepare.py midogpp --json MIDOGpp.json --images DIR --out DIR
    python resources/data/prepare.py slide-runner --database FILE.sqlite --slides DIR --out DIR

`midog25` is the challenge's own training set for Track 2: a CSV with one row a
mitotic figure (image_id, filename, coordinateX, coordinateY, Tumor, Scanner,
Origin, Species, expert1 .. expert3, majority; AMF is atypical, NMF normal) and
a folder with the crops it names. It becomes `labels.csv` and `crops/`.

`midogpp` (MIDOG++) and `slide-runner` (MITOS_WSI_CCMCT, MITOS_WSI_CMC) are for
Track 1: regions and whole slides are cut into tiles, with the labels in
`images.csv` and `figures.csv` (see `cut.py`). A killed run goes on when the
same command is given again.
"""

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.errors import UserError, exit_code  # noqa: E402

CLASSES = {"NMF": 0, "AMF": 1}
MIDOG25_COLUMNS = ("image_id", "filename", "coordinateX", "coordinateY", "Tumor", "majority")


def midog25_table(csv):
    """The challenge's CSV -> the columns of `labels.csv`, one row a crop.

    Args:
        csv: path of MIDOG25.csv. The third expert voted only where the first two disagreed.

    Raises:
        UserError: the file cannot be read, or lacks a column, or names an unknown class.
    """
    try:
        source = pd.read_csv(csv)
    except (OSError, ValueError) as error:
        raise UserError(f"{csv}: cannot be read ({error}); download it again") from None
    missing = [column for column in MIDOG25_COLUMNS if column not in source]
    if missing:
        raise UserError(f"{csv}: column {', '.join(missing)} is missing; give the challenge's MIDOG25.csv")
    unknown = sorted(set(source.majority) - set(CLASSES), key=str)
    if unknown:
        raise UserError(f"{csv}: majority is {unknown[0]!r} in a row; AMF or NMF expected")
    experts = [column for column in source if column.startswith("expert")]
    votes = source[experts].apply(lambda column: column.map(CLASSES))
    table = pd.DataFrame(
        {
            "file": "crops/" + source.image_id.astype(str),
            "label": source.majority.map(CLASSES),
            "vote_atypical": votes.mean(axis=1).round(4) if experts else float("nan"),
            "n_votes": votes.notna().sum(axis=1) if experts else 0,
            "case": "MIDOGpp_" + source.filename.map(lambda name: Path(name).stem),
            "domain": source.Tumor.str.replace(" ", "_"),
            "tumor": source.Tumor,
            "x": source.coordinateX,
            "y": source.coordinateY,
            "source_image": source.filename,
        }
    )
    for column, name in (("Species", "species"), ("Scanner", "scanner"), ("Origin", "origin")):
        if column in source:
            table[name] = source[column]
    return table.join(votes.astype("Int64"))


def midog25(arguments):
    """Write OUT/labels.csv and copy the crops it names; the table comes last, so that a killed run leaves none."""
    table = midog25_table(arguments.csv)
    absent = [name for name in table.file if not (arguments.crops / Path(name).name).exists()]
    if absent:
        raise UserError(
            f"{arguments.crops / Path(absent[0]).name}: not found (nor {len(absent) - 1} more); check --crops"
        )
    (arguments.out / "crops").mkdir(parents=True, exist_ok=True)
    for name in tqdm(table.file, "crops", disable=None):
        shutil.copyfile(arguments.crops / Path(name).name, arguments.out / name)
    table.to_csv(arguments.out / "labels.csv", index=False)
    print(f"{arguments.out}: {len(table)} crops, {int(table.label.sum())} atypical, {table.case.nunique()} cases")


def midogpp(arguments):
    """Cut MIDOG++'s regions into tiles. Imports here: Track 2's table needs no reader of slides."""
    from resources.data.coco import read_coco
    from resources.data.cut import cut

    images, figures = read_coco(arguments.json)
    cut(images, figures, arguments.images, arguments.out, arguments.negatives, arguments.mpp)


def slide_runner(arguments):
    """Cut the whole slides of a SlideRunner database into tiles."""
    from resources.data.cut import cut
    from resources.data.slide_runner import read_slide_runner

    images, figures = read_slide_runner(arguments.database)
    cut(images, figures, arguments.slides, arguments.out, arguments.negatives, arguments.mpp)


def count(text):
    """A whole number, 0 or more, from the command line."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def spacing(text):
    """A positive number of um per pixel from the command line."""
    number = float(text)
    if not 0 < number < 10:
        raise ValueError
    return number


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    formats = parser.add_subparsers(required=True, metavar="FORMAT")
    challenge = formats.add_parser("midog25", help="the challenge's training set for Track 2")
    challenge.add_argument("--csv", type=Path, required=True, metavar="MIDOG25.csv")
    challenge.add_argument("--crops", type=Path, required=True, metavar="DIR", help="the folder of 1.png, 2.png, ...")
    challenge.add_argument("--out", type=Path, required=True, metavar="DIR")
    challenge.set_defaults(prepare=midog25)
    regions = formats.add_parser("midogpp", help="MIDOG++, for Track 1")
    regions.add_argument("--json", type=Path, required=True, metavar="MIDOGpp.json")
    regions.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of 001.tiff, ...")
    regions.set_defaults(prepare=midogpp)
    slides = formats.add_parser("slide-runner", help="MITOS_WSI_CCMCT, MITOS_WSI_CMC, for Track 1")
    slides.add_argument("--database", type=Path, required=True, metavar="FILE.sqlite")
    slides.add_argument("--slides", type=Path, required=True, metavar="DIR", help="the folder of the .svs files")
    slides.set_defaults(prepare=slide_runner)
    for tiles in (regions, slides):
        tiles.add_argument("--out", type=Path, required=True, metavar="DIR")
        tiles.add_argument(
            "--negatives",
            type=count,
            metavar="N",
            help="tiles without figures an image; default: as many as with figures, and at least 4",
        )
        tiles.add_argument(
            "--mpp", type=spacing, default=0.25, metavar="F", help="um per pixel where the image does not tell"
        )
    arguments = parser.parse_args(argv)
    return exit_code(arguments.prepare, arguments)


if __name__ == "__main__":
    sys.exit(main())
