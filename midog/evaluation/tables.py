"""Tables of labelled data and the choice of their cases; everything that reads fields or crops starts here.

A folder of fields (Track 1) has `images.csv` or `regions.csv`, one row an image (image, case, um_per_px), and
`figures.csv`, one row a labelled cell (image, x, y, label): "mitotic figure", "non-mitotic figure", or "unclear" where
the experts left it open; x0, y0, x1, y1 are a cell's box, where it has one. Coordinates are pixels of the image. A
folder with only `labels.csv` (image, um_per_px) is tissue without figures.

`image` is a path relative to the folder, or absolute; its last part is the image's name, or as many of the last parts
as tell all images of the table apart.

A folder of crops (Track 2) has `labels.csv`, one row a crop: `file` (relative to the folder) and `label` (0 normal, 1
atypical, -1 a non-mitotic cell, others are left out); `case` and `domain` where they are known. `python -m
resources.data.prepare` makes both.
"""

import csv
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError, brief

if TYPE_CHECKING:
    import pandas as pd

    from midog.evaluation.splits import Split

CLASSES = ("mitotic figure", "non-mitotic figure")
UNCLEAR = "unclear"  # the experts left it open: not one of the classes, and no background either
FIELD_TABLES = ("images.csv", "regions.csv", "labels.csv")
FIGURE_COLUMNS = ("image", "x", "y", "label")
BOX_COLUMNS = ("x0", "y0", "x1", "y1")  # of a cell's box, first and last corner; empty where it has none
SUBTYPE_LABELS, NON_MITOTIC = (0, 1), -1


def split_selection(selection: str | Path) -> tuple[Path, str]:
    """DIR[:CASES] -> the folder, and what of it is chosen ("" is everything)."""
    folder, _, cases = str(selection).partition(":")
    return Path(folder), cases


def read_tables(folder: Path) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The tables of a folder of fields.

    Returns:
        images, with at least the columns image, case and um_per_px; figures, with `FIGURE_COLUMNS`, and all of
        `BOX_COLUMNS` or none.

    Raises:
        UserError: no table, a column is missing, a bad number, half a box, an unknown label.
    """
    import pandas as pd

    path = next((folder / name for name in FIELD_TABLES if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"{folder}: no images.csv; make it with python -m resources.data.prepare")
    try:
        images = pd.read_csv(path, dtype={"case": str, "slide": str})
        figures_path = folder / "figures.csv"
        figures = pd.read_csv(figures_path) if figures_path.exists() else pd.DataFrame(columns=[*FIGURE_COLUMNS])
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({brief(error)}); make it with python -m resources.data.prepare"
        ) from None
    check_columns(path, images, ("image", "um_per_px"), ("um_per_px",))
    check_columns(figures_path, figures, FIGURE_COLUMNS, ("x", "y"))
    if {*BOX_COLUMNS} & {*figures.columns}:
        _check_boxes(figures_path, figures)
    if not (images.um_per_px > 0).all():
        raise UserError(f"{path}: an um_per_px is not above 0; see docs/DATA.md")
    names = images["image"].map(lambda image: Path(str(image)).name)
    if "case" not in images:
        images["case"] = images.get("slide", names)
    images["case"] = images["case"].fillna(names)
    unknown = sorted(set(figures.label) - {*CLASSES, UNCLEAR}, key=str)
    if unknown:
        raise UserError(f"{figures_path}: label {unknown[0]!r} is unknown; {', '.join(CLASSES)} or {UNCLEAR} expected")
    return images, figures


def _check_boxes(path: Path, figures: "pd.DataFrame") -> None:
    """Make sure that a cell has a whole box, its corners in order, or none."""
    import pandas as pd

    check_columns(path, figures, BOX_COLUMNS, ())
    boxes = figures[[*BOX_COLUMNS]]
    corners = boxes.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    whole = np.isfinite(corners).all(1) & (corners[:, :2] < corners[:, 2:]).all(1)
    bad = ~whole & boxes.notna().any(axis=1).to_numpy(bool)
    if bad.any():
        found = ", ".join(map(str, boxes.iloc[bad.argmax()]))
        raise UserError(
            f"{path}: line {bad.argmax() + 2}: box {found}: x0, y0, x1, y1 with x0 < x1 and y0 < y1 expected, or none"
        )


def image_names(paths: Iterable[str]) -> list[str]:
    """The names of all images of a table, by their paths."""
    parts = [PurePath(path).parts for path in paths]
    names: list[str] = []
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def holds_crops(folder: Path) -> bool:
    """Whether a folder is one of crops: no table of fields, and a labels.csv with the column file."""
    if any((folder / name).exists() for name in FIELD_TABLES[:2]):
        return False
    try:
        with (folder / "labels.csv").open(encoding="utf-8-sig", newline="") as table:
            return "file" in next(csv.reader(table), [])
    except (OSError, ValueError):
        return False  # what is wrong with it says whoever reads it


def read_crop_table(folder: Path, all_labels: bool = False) -> "pd.DataFrame":
    """The table of a folder of crops, with the columns file, label, case, domain, vote_atypical.

    Args:
        folder: with labels.csv.
        all_labels: keep the non-mitotic cells (-1) beside normal (0) and atypical (1) figures.

    Raises:
        UserError: no table, or a column is missing.
    """
    import pandas as pd

    path = folder / "labels.csv"
    try:
        table = pd.read_csv(path, dtype={"case": str, "slide": str})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({brief(error)}); make it with python -m resources.data.prepare"
        ) from None
    check_columns(path, table, ("file", "label"), ())
    labels = (*SUBTYPE_LABELS, NON_MITOTIC) if all_labels else SUBTYPE_LABELS
    table = table[table.label.isin(labels)].reset_index(drop=True)
    for column, default in (("case", table.file), ("domain", folder.resolve().name), ("vote_atypical", np.nan)):
        if column not in table:
            table[column] = default
    table["case"] = table["case"].fillna(table["file"])
    return table


def check_columns(path: Path, table: "pd.DataFrame", needed: Sequence[str], numbers: Iterable[str]) -> None:
    """Make sure that the columns `needed` are there, and that those of `numbers` hold finite numbers.

    Raises:
        UserError: else; of foreign columns the line names those expected and the first of those found.
    """
    import pandas as pd

    missing = sorted(set(needed) - set(table.columns))
    if missing:
        found = ", ".join(map(str, table.columns[:8])) or "none"
        raise UserError(
            f"{path}: column {', '.join(missing)} is missing: {', '.join(needed)} expected, found {found}; "
            "see docs/DATA.md"
        )
    for column in numbers:
        bad = ~np.isfinite(pd.to_numeric(table[column], errors="coerce").to_numpy(float))
        if bad.any():
            value = table[column].iloc[bad.argmax()]
            raise UserError(f"{path}: line {bad.argmax() + 2}: {column} is {value}, a number expected")


def select_images(images: "pd.DataFrame", cases: str, selection: str | Path) -> "pd.DataFrame":
    """The rows that a selection means.

    Args:
        images: with a column case.
        cases: "" (all), CASE,CASE (only these) or -CASE,CASE (all but these). A CASE may hold * for any text;
            COLUMN=VALUE chooses by another column of the table (split=test).
        selection: what the user gave, for messages.

    Raises:
        UserError: a case or a column is missing.
    """
    if not cases:
        return images
    patterns = cases.removeprefix("-").split(",")
    fits = {pattern: _fitting(images, pattern, selection) for pattern in patterns}
    absent = [pattern for pattern in patterns if not fits[pattern].any()]
    if absent:
        known = ", ".join(sorted(set(images.case.astype(str)))[:20])
        raise UserError(f"{selection}: case {', '.join(absent)} is not there; known: {known}")
    chosen = np.any(list(fits.values()), axis=0)
    return images[~chosen if cases.startswith("-") else chosen]


def _fitting(images: "pd.DataFrame", pattern: str, selection: str | Path) -> NDArray[np.bool_]:
    """Which rows a CASE or COLUMN=VALUE of a selection means: bool (N,)."""
    column, equals, value = pattern.partition("=")
    if not equals:
        column, value = "case", pattern
    if column not in images:
        raise UserError(f"{selection}: no column {column}; known: {', '.join(images.columns)}")
    return np.array([fnmatchcase(str(each), value) for each in images[column]], bool)


def chosen_images(
    selection: str | Path, split: "Split | None" = None, folds: Collection[str] = ()
) -> "tuple[Path, pd.DataFrame, pd.DataFrame]":
    """Folder, chosen images with a column `name`, and all figures of DIR[:CASES]; as `read_tables` and `select_images`.

    Args:
        selection: DIR[:CASES].
        split: limits the chosen images to some of its folds; none may be left then, for a fold need not have cases of
            every set.
        folds: names of these folds.

    Raises:
        UserError: also if the selection leaves no image; see `midog.evaluation.splits.Split.choose`.
    """
    folder, cases = split_selection(selection)
    images, figures = read_tables(folder)
    names = image_names(map(str, images["image"]))
    images = select_images(images, cases, selection)
    images = images.assign(name=[names[row] for row in images.index])
    if images.empty:
        raise UserError(f"{selection}: no image is left; choose other cases")
    if split:
        images = split.choose(images, folder.resolve().name, folds)
    return folder, images, figures
