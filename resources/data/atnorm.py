"""The tables of AtNorM-MD and AtNorM-Br, test sets of Track 2: one row a mitotic figure, and the experts' votes.

Source: Banerjee et al., "Benchmarking deep learning and vision foundation models for atypical vs. normal mitosis
classification with cross-dataset evaluation", arXiv 2506.21444; DeepMicroscopy/AMi-Br_Benchmark with folders AtNorM-MD
and AtNorM-Br of NUMBER.png and the tables of their votes. The tables name neither the image that a figure is from nor
its place. Their columns could not be confirmed: read are the first that holds names of files or numbers, those that
begin with "expert", and "majority" where it is there.
"""

from pathlib import Path

import pandas as pd

from midog.errors import UserError, brief
from resources.data.midog25 import LABELS, once

NUMBERS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
VOTES = {name.lower(): label for name, label in LABELS.items()} | {"normal": 0, "atypical": 1} | NUMBERS


def read_atnorm(path: Path) -> pd.DataFrame:
    """Read a table.

    Args:
        path: the CSV file.

    Returns:
        DataFrame with the columns of `labels.csv`, one row a crop: file, label (0 normal, 1 atypical, the majority),
        vote_atypical, n_votes, case (the set and the crop, for its image is not known), domain, expert1 and so on.

    Raises:
        UserError: the file cannot be read, lacks a column, names an unknown class, or its experts are divided.
    """
    try:
        source = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); download it again") from None
    experts = [column for column in source if column.lower().startswith("expert")]
    majority = [column for column in source if "majority" in column.lower()]
    others = [column for column in source if column not in (*experts, *majority)]
    names = next((column for column in others if source[column].str.fullmatch(r"(.*/)?\d+(\.png)?").all()), None)
    if names is None or not (experts or majority):
        raise UserError(
            f"{path}: a column of crops (1.png) and expert1, expert2, ... expected, found {', '.join(source.columns)}; "
            "give the set's table of expert votes"
        )
    votes = source[experts].apply(lambda column: _votes(path, column))
    labels = _votes(path, source[majority[0]]) if majority else _majority(path, votes)
    if labels.isna().any():
        raise UserError(f"{path}: line {int(labels.isna().argmax()) + 2}: no label; download it again")
    domain = next((name for name in ("AtNorM-MD", "AtNorM-Br") if name.lower() in str(path).lower()), "AtNorM")
    files = source[names].map(lambda name: Path(name).name if Path(name).suffix else f"{name}.png")
    table = pd.DataFrame(
        {
            "file": "crops/" + files,
            "label": labels.astype(int),
            "vote_atypical": votes.mean(axis=1).round(4) if experts else float("nan"),
            "n_votes": votes.notna().sum(axis=1) if experts else 0,
            "case": domain + "_" + files.map(lambda name: Path(name).stem),
            "domain": domain,
        }
    )
    votes.columns = [f"expert{number}" for number in range(1, len(experts) + 1)]
    return once(path, table.join(votes.astype("Int64")))


def _votes(path: Path, column: pd.Series) -> pd.Series:
    """0, 1 or NaN for the words of a column."""
    votes = column.str.strip().str.lower().map(VOTES)
    unknown = sorted(set(column[votes.isna() & column.notna()]))
    if unknown:
        raise UserError(f"{path}: {column.name} is {unknown[0]!r} in a row; AMF or NMF expected")
    return votes


def _majority(path: Path, votes: pd.DataFrame) -> pd.Series:
    share = votes.mean(axis=1)
    if (share == 0.5).any():
        raise UserError(f"{path}: line {int((share == 0.5).argmax()) + 2}: as many say atypical as normal")
    return (share > 0.5).where(share.notna()).astype(float)
