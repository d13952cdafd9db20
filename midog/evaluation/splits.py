"""Split files: which cases are trained on, validated on and tested; `python -m resources.data.split` makes them.

A CSV file, one row a case, with the columns set (name of the folder), case and fold: `train`, `validation`, `test`,
the number of a fold, or what is left out ("UMC Utrecht"). Other columns are for people.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from midog.errors import UserError, brief

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("set", "case", "fold")
TRAIN, VALIDATION, TEST = "train", "validation", "test"
MAKE = "make it with python -m resources.data.split"


@dataclass(frozen=True)
class Split:
    """A split file.

    Attributes:
        path: the file.
        folds: the fold's name by (set, case).
    """

    path: Path
    folds: Mapping[tuple[str, str], str]

    @property
    def names(self) -> list[str]:
        """The folds, in the file's order."""
        return list(dict.fromkeys(self.folds.values()))

    def check(self, folds: Collection[str]) -> None:
        """Make sure that the file has these folds.

        Raises:
            UserError: it does not; the line lists those it has.
        """
        unknown = [fold for fold in folds if fold not in self.names]
        if unknown:
            raise UserError(f"{self.path}: no fold {unknown[0]}; it has {', '.join(self.names)}")

    def choose(self, images: "pd.DataFrame", set_name: str, folds: Collection[str]) -> "pd.DataFrame":
        """The images whose case is in one of some folds; there may be none.

        Args:
            images: with a column case.
            set_name: name of the folder.
            folds: names.

        Raises:
            UserError: no such fold, or the file does not know a case.
        """
        self.check(folds)
        cases = images["case"].astype(str).str.strip()
        for case in cases.unique():
            if (set_name, case) not in self.folds:
                raise UserError(
                    f"{self.path}: case {case} of {set_name} is missing; make the split anew with these --data"
                )
        return images[[self.folds[set_name, case] in folds for case in cases]]


def read_split(path: str | Path) -> Split:
    """Read a split file.

    Raises:
        UserError: it cannot be read, has other columns, a row without a value, a case twice, or no case.
    """
    import pandas as pd

    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); {MAKE}") from None
    if not set(COLUMNS) <= set(table.columns):
        found = ", ".join(map(str, table.columns[:8]))
        raise UserError(f"{path}: columns {', '.join(COLUMNS)} expected, found {found}; {MAKE}")
    if table.empty:
        raise UserError(f"{path}: no case in it; {MAKE}")
    folds: dict[tuple[str, str], str] = {}
    for line, row in enumerate(table[[*COLUMNS]].itertuples(index=False), start=2):
        set_name, case, fold = (value.strip() for value in row)
        if not (set_name and case and fold):
            raise UserError(f"{path}: line {line}: set, case or fold is empty; {MAKE}")
        if (set_name, case) in folds:
            raise UserError(f"{path}: line {line}: case {case} of {set_name} is there twice; {MAKE}")
        folds[set_name, case] = fold
    return Split(path, folds)
