"""Labelled crops in memory: one or several folders with `labels.csv` and `crops/`.

A table has one row a crop with at least `file` (relative to the folder) and
`label` (0 normal, 1 atypical, others are left out); `vote_atypical`, `case`,
`domain` and `expert*_subclass` are used where they are there, and so are the
chromosome masks of `chromosome_masks.npz` (`names`, and `packed` bits).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from midog.errors import UserError
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
    cases: np.ndarray
    domains: np.ndarray
    files: np.ndarray
    subclasses: torch.Tensor
    subclass_names: list
    masks: torch.Tensor
    masked: torch.Tensor
    sets: list

    def __len__(self):
        return len(self.labels)


def read_crops(folders, limit=None):
    """Read the crops of one or several folders.

    Args:
        folders: paths in the format above.
        limit: keep so many crops, chosen evenly over the tables.

    Raises:
        UserError: no table, a column or a crop missing, no crop of one of the classes.
    """
    tables = []
    for folder in map(Path, folders):
        table = _read_table(folder)
        table["folder"] = str(folder)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    if limit and limit < len(table):
        table = table.iloc[np.linspace(0, len(table) - 1, limit).astype(int)].reset_index(drop=True)
    if set(table.label) != {0, 1}:
        raise UserError(f"{folders[0]}: labels 0 and 1 are both needed; give a larger --limit or another --data")
    masks, masked = _read_masks(table)
    names = sorted({name for column in _subclass_columns(table) for name in table[column].dropna()})
    return Crops(
        images=torch.stack([_read_image(Path(row.folder) / row.file) for row in table.itertuples()]),
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


def _read_table(folder):
    path = folder / "labels.csv"
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it with resources/data/prepare.py") from None
    missing = {"file", "label"} - set(table.columns)
    if missing:
        raise UserError(f"{path}: column {', '.join(sorted(missing))} is missing; see resources/data/crops.py")
    table = table[table.label.isin([0, 1])].reset_index(drop=True)
    for column, default in (("case", table.file), ("domain", folder.resolve().name), ("vote_atypical", np.nan)):
        if column not in table:
            table[column] = default
    return table


def _read_image(path):
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the crops again") from None
    for axis in (0, 1):  # a smaller crop (64 px) is mirrored outwards, a larger one cut: never rescaled
        missing = CROP_SIDE - pixels.shape[axis]
        if missing > 0:
            pad = [(0, 0)] * 3
            pad[axis] = missing // 2, missing - missing // 2
            pixels = np.pad(pixels, pad, mode="symmetric")
        else:
            pixels = pixels.take(np.arange(CROP_SIDE) + (-missing) // 2, axis=axis)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _subclass_columns(table):
    return [column for column in table.columns if column.startswith("expert") and column.endswith("_subclass")]


def _subclass_shares(table, names):
    shares = np.zeros((len(table), len(names)), np.float32)
    for column in _subclass_columns(table):
        for row, name in enumerate(table[column]):
            if isinstance(name, str):
                shares[row, names.index(name)] += 1
    return torch.from_numpy(shares / np.maximum(shares.sum(1, keepdims=True), 1))


def _read_masks(table):
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
