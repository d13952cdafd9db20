"""A split file: which cases are trained on, validated on and tested, with no glass slide on two sides.

    python -m resources.data.split --data data/icpr12 data/atypia14_h --split 7:1:2 --out split.csv
    python -m resources.data.split --data data/ami_br --folds 5 --out split.csv
    python -m resources.data.split --data data/midogpp --leave-out laboratory --out split.csv
    python -m resources.data.split --data data/midogpp --midogpp datasets_xvalidation.csv --split 7:1 --out split.csv

What goes together is a case of a set, and every case that lies on the same slide (`midog.evaluation.provenance`), of
whatever set and scanner. `midog.evaluation.splits` reads the file; docs/DATA.md says more.
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from midog.errors import UserError, brief, exit_code
from midog.evaluation.provenance import COLUMNS, UNKNOWN, describe
from midog.evaluation.splits import COLUMNS as KEYS
from midog.evaluation.splits import TEST, TRAIN, VALIDATION
from midog.evaluation.tables import (
    CLASSES,
    NON_MITOTIC,
    check_columns,
    chosen_images,
    holds_crops,
    read_crop_table,
    select_images,
    split_selection,
)
from midog.files import check_writable, write_with

logger = logging.getLogger("resources.data.split")  # also where it is run as __main__

PARTS = (TRAIN, VALIDATION, TEST)
REMEDY = "give fewer folds, another ratio or --seed"
DRAWS = 10  # scikit-learn's folds depend on the order of the slides; the best of so many orders is kept
JOINS = 200  # and of so many ways to join folds to parts
MOST_FOLDS = 100


def read_images(selections: Sequence[str]) -> pd.DataFrame:
    """One row an image or crop of labelled folders.

    Args:
        selections: DIR or DIR:CASES, of fields or of crops; an image chosen twice counts once.

    Returns:
        DataFrame with set, case, image, the columns of `midog.evaluation.provenance`, figures (mitotic) and
        hard_negatives (their number).

    Raises:
        UserError: see `midog.evaluation.tables`; two folders have one name.
    """
    tables = []
    folders: dict[str, Path] = {}
    for selection in selections:
        folder = split_selection(selection)[0].resolve()
        if folders.setdefault(folder.name, folder) != folder:
            raise UserError(f"{folder}: {folders[folder.name]} has the same name, which splits go by; rename one")
        images = _crops(selection) if holds_crops(folder) else _fields(selection)
        images["case"] = images["case"].astype(str).str.strip()
        tables.append(describe(folder.name, images).assign(set=folder.name))
    kept = ["set", "case", "image", *COLUMNS, "figures", "hard_negatives"]
    return pd.concat([table[kept] for table in tables]).drop_duplicates(["set", "image"]).reset_index(drop=True)


def _fields(selection: str) -> pd.DataFrame:
    _, images, figures = chosen_images(selection)
    counts = [images["image"].map(figures.image[figures.label == label].value_counts()) for label in CLASSES]
    mitotic, others = (each.fillna(0).astype(int) for each in counts)
    return images.assign(figures=mitotic, hard_negatives=others)


def _crops(selection: str) -> pd.DataFrame:
    folder, cases = split_selection(selection)
    crops = select_images(read_crop_table(folder, all_labels=True), cases, selection)
    if crops.empty:
        raise UserError(f"{selection}: no crop is left; choose other cases")
    others = (crops.label == NON_MITOTIC).astype(int)
    return crops.assign(image=crops.file, figures=1 - others, hard_negatives=others)


def together(images: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.intp]:
    """The group of each image, int (N,): those of one case of a set are one, and those with one value in a column."""
    cases = images.groupby(["set", "case"]).ngroup().to_numpy()
    sources, targets, count = [], [], int(cases.max()) + 1
    for column in columns:
        codes, values = pd.factorize(images[column])
        sources.append(cases)
        targets.append(codes + count)
        count += len(values)
    edges = np.concatenate(sources), np.concatenate(targets)
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1][cases])


def in_parts(images: pd.DataFrame, ratio: Sequence[int], seed: int) -> NDArray[np.intp]:
    """Divide images in a ratio by slide, with about that share of the figures and of the images of each tumour.

    scikit-learn makes as many folds as the ratio has shares, and these are joined.

    Args:
        images: N rows, as `read_images` gives them.
        ratio: positive numbers, (7, 1, 2); (1, 1, 1, 1, 1) are five folds.
        seed: of the draw.

    Returns:
        int (N,), the number of each image's part.

    Raises:
        UserError: fewer slides than parts.
    """
    _, groups = np.unique(together(images, ["slide"]), return_inverse=True)
    count = int(groups.max()) + 1
    if count < len(ratio):
        raise UserError(f"--data: {len(ratio)} parts of {count} slides asked for; give fewer folds or more --data")
    by_tumor = (
        images.assign(images=1).groupby([groups, images["tumor"]])[["figures", "images"]].sum().unstack(fill_value=0)
    )
    counts = by_tumor.loc[:, by_tumor.sum() > 0].to_numpy()  # (groups, strata)
    asked = np.array(ratio) / sum(ratio)
    labels = np.repeat(np.arange(len(ratio)), ratio)
    random = np.random.default_rng(seed)
    best, least = np.zeros(count, np.intp), (math.inf, math.inf)
    for _ in range(DRAWS):
        folds = _folds(counts, len(labels), int(random.integers(2**31)))
        for _ in range(JOINS if max(ratio) > 1 else 1):
            parts = random.permutation(labels)[folds]
            badness = _badness(counts, by_tumor["figures"].sum(axis=1).to_numpy(), parts, asked)
            if badness < least:
                best, least = parts, badness
    return best[groups]


def _folds(counts: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.intp]:
    """The fold of each group, int (groups,), so that the folds have about equal shares of each column of `counts`."""
    if len(counts) <= folds:
        return np.arange(len(counts))  # scikit-learn refuses fewer groups than folds
    group, stratum = np.nonzero(counts)
    # scikit-learn refuses strata of fewer members than folds; so many of each change no share
    times = counts[group, stratum] * folds
    members, strata = np.repeat(group, times), np.repeat(stratum, times)
    found = np.zeros(len(counts), np.intp)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(strata, strata, members)):
        found[members[held_out]] = number
    return found


def _badness(
    counts: NDArray[np.int64], figures: NDArray[np.int64], parts: NDArray[np.intp], asked: NDArray[np.float64]
) -> tuple[float, float]:
    """Parts without figures, and the squared distance from the shares asked for; a stratum weighs as its slides."""
    members = parts[:, None] == np.arange(len(asked))  # (groups, parts)
    strata = np.column_stack([counts, figures])
    totals = strata.sum(axis=0)
    shares = (strata.T @ members) / np.maximum(totals, 1)[:, None]
    distance = ((shares - asked) ** 2).sum(axis=1) @ (strata > 0).sum(axis=0)
    return float((figures @ members == 0).sum()), float(distance)


def left_out(images: pd.DataFrame, column: str) -> pd.Series:
    """A fold for each laboratory, tumor or scanner; those that share a slide or a case are one fold ("A + B").

    So the rest has seen neither the slide nor, say, the scanner that is left out.

    Raises:
        UserError: an image of unknown origin, or a single fold.
    """
    unknown = images[images[column] == UNKNOWN]
    if len(unknown):
        set_name, case = unknown.iloc[0][["set", "case"]]
        raise UserError(
            f"{set_name}: the {column} of case {case} is unknown ({len(unknown)} images in all); add a column {column} "
            "to its table, or leave these out of --data"
        )
    groups = together(images, ["slide", column])
    names = images[column].groupby(groups).agg(lambda values: " + ".join(sorted(set(values))).replace(",", ";"))
    if len(names) < 2:
        raise UserError(f"--leave-out {column}: {names.iloc[0]} is all there is, or shares slides; give more --data")
    return pd.Series(groups, images.index).map(names)  # a comma would be two folds on the command line


def as_midogpp(images: pd.DataFrame, path: Path) -> pd.Series:
    """The fold (train or test) that MIDOG++'s published file gives each image, also of other sets of the same slides.

    Source: datasets_xvalidation.csv of DeepMicroscopy/MIDOGpp; Aubreville et al., Sci Data 10:484, 2023.

    Raises:
        UserError: not such a file; it lacks cases, which the line counts by set; a case with slides of both sides.
    """
    try:
        table = pd.read_csv(path, sep=";", dtype=str)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({brief(error)}); download it again") from None
    check_columns(path, table, ("Slide", "Dataset"), ("Slide",))
    other = table[~table.Dataset.isin(["train", "test"])]
    if len(other):
        raise UserError(
            f"{path}: line {other.index[0] + 2}: Dataset is {other.Dataset.iloc[0]}, train or test expected"
        )
    folds = dict(
        zip("MIDOG++ " + table.Slide.astype(float).astype(int).map("{:03}".format), table.Dataset, strict=True)
    )
    fold = images["slide"].map(folds)
    absent = images[fold.isna()].drop_duplicates(["set", "case"])
    if len(absent):
        all_cases = images.drop_duplicates(["set", "case"])["set"].value_counts()
        told = [
            f"{len(cases)} of {all_cases[name]} cases of {name} ({cases.iloc[0]}{' and others' * (len(cases) > 1)})"
            for name, cases in absent.groupby("set")["case"]
        ]
        raise UserError(f"{path}: lacks {', '.join(told)}; leave them out of --data (DIR:-CASE,CASE)")
    sides = fold.groupby(together(images, ["slide"])).transform("nunique")
    if (sides > 1).any():
        set_name, case = images[sides > 1].iloc[0][["set", "case"]]
        raise UserError(f"{path}: case {case} of {set_name} has slides of train and of test; divide the case")
    return fold


def folds_of(images: pd.DataFrame, arguments: argparse.Namespace) -> pd.Series:
    """The name of each image's fold, as the command line asks.

    Raises:
        UserError: a fold without mitotic figures; see `in_parts`, `left_out` and `as_midogpp`.
    """
    if arguments.leave_out:
        fold, remedy = left_out(images, arguments.leave_out), "leave it out of --data"
    elif arguments.folds:
        numbers, remedy = in_parts(images, [1] * arguments.folds, arguments.seed), REMEDY
        fold = pd.Series(numbers, images.index).astype(str)
    else:
        fold, remedy = pd.Series(PARTS[0], images.index, dtype=object), REMEDY
        if arguments.midogpp:
            fold = as_midogpp(images, arguments.midogpp)
        if arguments.split:
            chosen = images[fold == PARTS[0]]
            if chosen.empty:
                raise UserError(
                    f"{arguments.midogpp}: no case of --data is for training; give --midogpp without --split"
                )
            fold[chosen.index] = np.array(PARTS)[in_parts(chosen, arguments.split, arguments.seed)]
    names = [str(number) for number in range(arguments.folds)] if arguments.folds else list(fold.unique())
    if arguments.split:
        names = [*PARTS[: len(arguments.split)], *names]
    empty = [name for name in names if not images.figures[fold == name].sum()]
    if empty:
        raise UserError(f"{arguments.out}: leaves {empty[0]} empty, without mitotic figures; {remedy}")
    return fold


def by_case(images: pd.DataFrame) -> pd.DataFrame:
    """The split file's table, one row a case, of images with their fold."""
    listed = {column: lambda values: " + ".join(dict.fromkeys(values)) for column in COLUMNS}
    rows = images.assign(images=1).groupby(["set", "case"], sort=False)
    return rows.agg({"fold": "first", **listed, "images": "sum", "figures": "sum"}).reset_index()


def overview(images: pd.DataFrame) -> str:
    """A table for people: what each fold has, in all and by tumour."""
    rows = []
    for fold in sorted(
        images.fold.unique(), key=lambda name: (PARTS.index(name) if name in PARTS else 0, name.zfill(3))
    ):
        mine = images[images.fold == fold]
        for tumor, some in [("all", mine), *mine.groupby("tumor")]:
            whole = images if tumor == "all" else images[images.tumor == tumor]
            share = f"{100 * some.figures.sum() / max(whole.figures.sum(), 1):.0f} %"
            counts = some.slide.nunique(), len(some), some.figures.sum(), share, some.hard_negatives.sum()
            rows.append((fold if tumor == "all" else "", tumor, *counts))
    return pd.DataFrame(
        rows, columns=["fold", "tumor", "slides", "images", "figures", "of figures", "hard negatives"]
    ).to_string(index=False)


def ratio(text: str) -> tuple[int, ...]:
    """7:1 or 7:1:2 from the command line, in the smallest whole numbers."""
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text}: train:validation or train:validation:test expected, such as 7:1:2")
    numbers = [int(part) for part in parts]
    numbers = [number // math.gcd(*numbers) for number in numbers]
    if sum(numbers) > MOST_FOLDS:
        raise argparse.ArgumentTypeError(f"{text}: smaller numbers expected, such as 7:1:2")
    return tuple(numbers)


def fold_count(text: str) -> int:
    """A number of folds from the command line."""
    if not text.isdecimal() or not 2 <= int(text) <= MOST_FOLDS:
        raise argparse.ArgumentTypeError(f"{text}: a whole number, 2 to {MOST_FOLDS}, expected")
    return int(text)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.data.split",
        description="Divide labelled folders by glass slide, and write which case is in which fold.",
    )
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DIR[:CASES]", help="folders of fields or crops; see docs/DATA.md"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="the split file")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--split",
        type=ratio,
        metavar="7:1:2",
        help="train:validation:test, or train:validation, as shares of the figures of each tumour; beside --midogpp "
        "train:validation of its training cases",
    )
    kinds.add_argument("--folds", type=fold_count, metavar="K", help="K folds of about equal shares of each tumour")
    kinds.add_argument("--leave-out", choices=("laboratory", "tumor", "scanner"), help="a fold for each")
    parser.add_argument(
        "--midogpp", type=Path, metavar="FILE.csv", help="MIDOG++'s own train and test: its datasets_xvalidation.csv"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another draw (%(default)s)")
    arguments = parser.parse_args(argv)
    asked = [name for name in ("split", "folds", "leave_out", "midogpp") if getattr(arguments, name)]
    if len(asked) != 1 and not (asked == ["split", "midogpp"] and len(arguments.split) == 2):
        parser.error("one of --split, --folds, --leave-out and --midogpp expected; with --midogpp also --split 7:1")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out.parent)
    images = read_images(arguments.data)
    images["fold"] = folds_of(images, arguments)
    table = by_case(images)[[*KEYS, *COLUMNS, "images", "figures"]]
    write_with(arguments.out, lambda part: table.to_csv(part, index=False))
    logger.info(f"{overview(images)}\n{arguments.out}: {len(table)} cases")


def write_folds(fields: Sequence[str], crops: Sequence[str], count: int, path: Path) -> None:
    """Folds by slide: of fields and crops apart, for there are so many more crops; together where they share slides.

    Args:
        fields, crops: selections, as `read_images` takes them; there may be no crops.
        count: of folds.
        path: of the split file.

    Raises:
        UserError: as `read_images`; there are fewer slides than folds.
    """

    def table_of(data: Sequence[str]) -> pd.DataFrame:
        images = read_images(data)
        images["fold"] = folds_of(images, parse_arguments(["--data", *data, "--folds", str(count), "--out", str(path)]))
        logger.info(overview(images))
        return by_case(images)[[*KEYS, *COLUMNS, "images", "figures"]]

    tables = [table_of(each) for each in (fields, crops) if each]
    if len(tables) == 2 and set(tables[0].slide) & set(tables[1].slide):
        tables = [table_of([*fields, *crops])]
    write_with(path, lambda place: pd.concat(tables).to_csv(place, index=False))


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
