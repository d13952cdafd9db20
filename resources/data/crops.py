"""Labelled crops in memory: one or several folders with `labels.csv` and `crops/`.

`midog.evaluation.tables` says what the table has at least; `vote_atypical` and
`expert*_subclass` are used where they are there, and so are the chromosome masks
of `chromosome_masks.npz` (`names`, and `packed` bits).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from midog.errors import UserError
from midog.evaluation.labelled import read_crop
from midog.evaluation.tables import read_crop_table
from midog.images.stack import CROP_SIDE


@dataclass
class Crops:
    """N labelled crops.

    Attributes:
        images: uint8 (N, 3, 128, 128).
        labels: int64 (N,), 0 normal, 1 atypical, the experts' majority.
        votes: float32 (N,), the share of experts who said atypical.
        cases, domains: str (N,).
        files: str (N,), set/file.
        subclasses: float32 (N, K), each expert's subclass an equal share; a row of zeros where none is known.
        subclass_names: the K names.
        masks: uint8 (N, 1, 128, 128), 1 on chromosomes.
        masked: bool (N,), where a mask is known.
        sets: names of the folders.
    """

    images: torch.Tensor
    labels: torch.Tensor
    votes: torch.Tensor
    cases: NDArray[np.str_]
    domains: NDArray[np.str_]
    files: NDArray[np.str_]
    subclasses: torch.Tensor
    subclass_names: list[str]
    masks: torch.Tensor
    masked: torch.Tensor
    sets: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def read_crops(folders: Sequence[str | Path], limit: int | None = None, both_classes: bool = True) -> Crops:
    """Read the crops of one or several folders.

    Args:
        folders: paths in the format above.
        limit: keep so many crops, chosen evenly over the tables.
        both_classes: whether labels 0 and 1 have to be there; a detector learns from mitotic figures of any kind.

    Raises:
        UserError: no table, a column or a crop missing, no crop (of one of the classes).
    """
    tables = []
    for folder in map(Path, folders):
        table = read_crop_table(folder)
        table["folder"] = str(folder)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if limit and limit < len(table):
        table = table.iloc[np.linspace(0, len(table) - 1, limit).astype(int)].reset_index(drop=True)
    if table.empty or (both_classes and set(table.label) != {0, 1}):
        said = "labels 0 and 1 are both needed" if both_classes else "no crop of label 0 or 1"
        raise UserError(f"{folders[0]}: {said}; give {'a larger --limit or ' if limit else ''}another folder")
    masks, masked = _read_masks(table)
    names = sorted({name for column in _subclass_columns(table) for name in table[column].dropna()})
    images = np.stack([read_crop(Path(row.folder) / row.file) for row in table.itertuples()])
    return Crops(
        images=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        labels=torch.tensor(table.label.to_numpy(dtype=np.int64)),
        votes=torch.tensor(table.vote_atypical.fillna(table.label).to_numpy(dtype=np.float32)),
        cases=table.case.to_numpy(str),
        domains=table.domain.to_numpy(str),
        files=np.array([f"{Path(row.folder).name}/{row.file}" for row in table.itertuples()]),
        subclasses=_subclass_shares(table, names),
        subclass_names=names,
        masks=masks,
        masked=masked,
        sets=[Path(folder).resolve().name for folder in folders],
    )


def _subclass_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table.columns if column.startswith("expert") and column.endswith("_subclass")]


def _subclass_shares(table: pd.DataFrame, names: Sequence[str]) -> torch.Tensor:
    shares = np.zeros((len(table), len(names)), np.float32)
    for column in _subclass_columns(table):
        for row, name in enumerate(table[column]):
            if isinstance(name, str):
                shares[row, names.index(name)] += 1
    return torch.from_numpy(shares / np.maximum(shares.sum(1, keepdims=True), 1))


def _read_masks(table: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
    masks = np.zeros((len(table), 1, CROP_SIDE, CROP_SIDE), np.uint8)
    masked = np.zeros(len(table), bool)
    for folder, rows in table.groupby("folder").groups.items():
        path = Path(folder) / "chromosome_masks.npz"
        if path.exists():
            archive = np.load(path)
            place = {name: number for number, name in enumerate(archive["names"])}
            for row in rows:
                number = place.get(table.file[row])
                if number is not None:
                    bits = np.unpackbits(archive["packed"][number])
                    masks[row, 0] = bits.reshape(CROP_SIDE, CROP_SIDE)
                    masked[row] = True
    return torch.from_numpy(masks), torch.from_numpy(masked)
