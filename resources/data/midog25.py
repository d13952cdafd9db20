"""The table of MIDOG 2025's training set for Track 2: one row a mitotic figure, and three experts' votes.

Source: MIDOG25.csv of the challenge, with the columns image_id, filename,
coordinateX, coordinateY, Tumor, Scanner, Origin, Species, expert1 .. expert3 and
majority. AMF is an atypical mitotic figure, NMF a normal one. The third expert
voted only where the first two disagreed.
"""

import logging
from pathlib import Path

import pandas as pd

from midog.errors import UserError

logger = logging.getLogger(__name__)

LABELS = {"NMF": 0, "AMF": 1}
NEEDED = ("image_id", "filename", "coordinateX", "coordinateY", "Tumor", "majority")


def read_midog25(path: Path) -> pd.DataFrame:
    """Read the table.

    Args:
        path: the CSV file.

    Returns:
        DataFrame with the columns of `labels.csv` (see `resources.data.crops`), one row a crop: file, label (0 normal,
        1 atypical), vote_atypical (the fraction of the votes that were given), n_votes, case, domain, and where the
        figure comes from.

    Raises:
        UserError: the file cannot be read, or lacks a column, or names an unknown class.
    """
    try:
        source = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from None
    missing = [column for column in NEEDED if column not in source]
    if missing:
        raise UserError(f"{path}: column {', '.join(missing)} is missing; give the challenge's MIDOG25.csv")
    unknown = sorted(set(source.majority) - set(LABELS), key=str)
    if unknown:
        raise UserError(f"{path}: majority is {unknown[0]!r} in a row; AMF or NMF expected")
    experts = [column for column in source if column.startswith("expert")]
    votes = source[experts].apply(lambda column: column.map(LABELS))
    table = pd.DataFrame(
        {
            "file": "crops/" + source.image_id.astype(str),
            "label": source.majority.map(LABELS),
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
    return once(path, table.join(votes.astype("Int64")))


def once(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Every crop once, those of both classes not at all; what is left out is told.

    Args:
        path: of the table, for messages.
        table: DataFrame with the columns file and label, one row a crop.
    """
    in_both = table.groupby("file").label.transform("nunique") > 1
    again = table.file.duplicated() & ~in_both
    for rows, said in ((again, "listed twice, taken once"), (in_both, "in both classes, left out")):
        if rows.any():
            names = table.file[rows].unique()
            logger.warning(f"{path}: crops {said}: {len(names)}, the first {Path(names[0]).name}")
    return table[~again & ~in_both].reset_index(drop=True)
