"""Regions and whole slides -> tiles of 512 px and the table of labelled fields that training reads.

Tiles overlap by 20 % (Xiao et al., SZTU, "Datasets and Preprocessing"). Every
tile with a figure or a hard negative is kept, and some tissue without either,
drawn at random. The folder is that of `resources/data/fields.py`; images.csv
comes last, so a killed run leaves none and goes on where it stopped.

Tiles are JPEG, quality 95 without chroma subsampling: a quarter of the size of
PNG, from slides that are JPEG of a lower quality already, and the contrast of
haematoxylin and eosin keeps its full resolution.
"""

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from midog.errors import UserError
from midog.files import check_writable, write_json, write_with
from midog.images.slide import Slide, open_slide
from midog.images.tiles import grid, has_tissue, read_tile
from resources.data.class_names import HARD_NEGATIVE, MITOTIC, UNCLEAR

logger = logging.getLogger(__name__)

TILE = 512
OVERLAP = 0.2
MIN_NEGATIVES = 4  # of an image without labels: its scanner and stain should be known as background, too
SEED = 0
FIGURE_COLUMNS = ["image", "x", "y", "x0", "y0", "x1", "y1", "label", "case", "um_per_px"]


def cut(
    images: pd.DataFrame,
    figures: pd.DataFrame,
    folder: Path,
    out: Path,
    negatives: int | None,
    um_per_px: float,
) -> None:
    """Cut tiles out of labelled images and write OUT/images.csv, OUT/figures.csv and OUT/images/.

    A label belongs to each tile that holds its centre; its box may reach beyond the tile. A tile that a box only
    reaches into, or that holds a cell of unclear class, is no tile without figures.

    Args:
        images: DataFrame (image, width, height, case, ...), one row an image; further columns go into images.csv.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label), px of the image; label as in `class_names`.
        folder: where the images are; `image` is relative to it.
        out: the folder to write, new or of a killed run with the same arguments.
        negatives: tiles without figures an image; as many as it has with, and at least four, if None.
        um_per_px: of images that do not tell theirs.

    Raises:
        UserError: an image is missing, cannot be read or has another size than the labels are for; `out` holds
            something else; the disk refuses a file.
    """
    absent = [name for name in images.image if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder / absent[0]}: not found (nor {len(absent) - 1} more); check the folder of images")
    stems = images.image.map(lambda name: Path(name).stem)
    if stems.duplicated().any():
        raise UserError(f"{stems[stems.duplicated()].iloc[0]}: two images of this name; tiles are named after them")
    settings = {
        "negatives": negatives,
        "least_negatives": MIN_NEGATIVES,
        "um_per_px_if_untold": um_per_px,
        "tile": TILE,
        "overlap": OVERLAP,
        "seed": SEED,
    }
    _begin(out, images, figures, settings)
    parts = out / "unfinished"
    if not (out / "images.csv").exists():
        by_image = dict(list(figures.groupby("image")))
        done = []
        for row in tqdm(images.to_dict("records"), "images", disable=None):
            part = parts / f"{Path(row['image']).stem}.json"
            if not part.exists():
                write_json(part, _cut_image(row, by_image.get(row["image"], figures[:0]), folder, out, settings))
            done.append(json.loads(part.read_text(encoding="utf-8")))
        tables = {name: [row for part in done for row in part[name]] for name in ("images", "figures")}
        if not tables["images"]:
            raise UserError(f"{folder}: no label and no tissue in any image; nothing to train on")
        _write_csv(out / "figures.csv", pd.DataFrame(tables["figures"], columns=FIGURE_COLUMNS))
        _write_csv(out / "images.csv", pd.DataFrame(tables["images"]))
    shutil.rmtree(parts, ignore_errors=True)
    tiles, labels = len(pd.read_csv(out / "images.csv")), pd.read_csv(out / "figures.csv").label
    logger.info(
        f"{out}: {tiles} tiles of {len(images)} images; {(labels == MITOTIC).sum()} mitotic figures and "
        f"{(labels == HARD_NEGATIVE).sum()} hard negatives, those in an overlap counted in each tile"
    )


def _begin(out: Path, images: pd.DataFrame, figures: pd.DataFrame, settings: dict[str, Any]) -> None:
    """Make the folder, or make sure that it is one of the same run."""
    labels = images.to_csv(index=False) + figures.to_csv(index=False)
    settings = settings | {"labels_sha256": hashlib.sha256(labels.encode()).hexdigest()}
    record = out / "prepared.json"
    if record.exists():
        if json.loads(record.read_text(encoding="utf-8")) != settings:
            raise UserError(f"{out}: begun with other labels, --negatives or --mpp; give another --out")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; give another --out")
    for name in ("images", "unfinished"):
        check_writable(out / name)
    write_json(record, settings)


def _cut_image(
    row: dict[str, Any], figures: pd.DataFrame, folder: Path, out: Path, settings: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Write an image's tiles; its rows of both tables."""
    path = folder / row["image"]
    table: dict[str, list[dict[str, Any]]] = {"images": [], "figures": []}
    known = {name: value for name, value in row.items() if name not in ("image", "width", "height")}
    with open_slide(path, default_um_per_px=settings["um_per_px_if_untold"]) as slide:
        spacing = round(float(np.mean(slide.um_per_px)), 6)
        with_labels, free = _sort_tiles(slide.size, _labels_inside(slide.size, row, figures, path))
        wanted = settings["negatives"]
        if wanted is None:
            wanted = max(len(with_labels), MIN_NEGATIVES)
        tiles = _read_tiles(slide, with_labels, free, wanted, path.stem)
        for x, y, pixels, labels in tqdm(tiles, path.stem, len(with_labels) + wanted, leave=False, disable=None):
            name = f"images/{path.stem}_{x:06}_{y:06}.jpg"
            _write_jpeg(out / name, pixels)
            place = {"um_per_px": spacing, "source_image": row["image"], "source_x": x, "source_y": y}
            table["images"].append({"image": name, "width": TILE, "height": TILE} | known | place)
            labels = labels.assign(image=name, case=row["case"], um_per_px=spacing)
            labels[["x", "x0", "x1"]] = (labels[["x", "x0", "x1"]] - x).round(2)
            labels[["y", "y0", "y1"]] = (labels[["y", "y0", "y1"]] - y).round(2)
            table["figures"] += labels[FIGURE_COLUMNS].to_dict("records")
    return table


def _labels_inside(size: tuple[int, int], row: dict[str, Any], figures: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The labels on the image; those beside it are told, an image of another size is refused."""
    width, height = size
    if row["width"] and (row["width"], row["height"]) != (width, height):
        raise UserError(
            f"{path}: {width} x {height} px, but its labels are for {row['width']} x {row['height']}; "
            "give the image at its full size"
        )
    inside = (figures.x >= 0) & (figures.x < width) & (figures.y >= 0) & (figures.y < height)
    if not inside.all():
        logger.warning(f"{path}: labels outside the image, left out: {(~inside).sum()}")
    return figures[inside]


def _sort_tiles(
    size: tuple[int, int], figures: pd.DataFrame
) -> tuple[list[tuple[tuple[int, int], pd.DataFrame]], list[tuple[int, int]]]:
    """((left, top), labels) of the tiles that hold a label's centre; (left, top) of those no box reaches into."""
    x, y, x0, y0, x1, y1 = figures[["x", "y", "x0", "y0", "x1", "y1"]].to_numpy(float).T
    clear = (figures.label != UNCLEAR).to_numpy(bool)
    with_labels, free = [], []
    for left, top in grid(*size, (TILE, TILE), OVERLAP).tolist():
        inside = clear & (x >= left) & (x < left + TILE) & (y >= top) & (y < top + TILE)
        if inside.any():
            with_labels.append(((left, top), figures[inside]))
        elif not ((x1 >= left) & (x0 < left + TILE) & (y1 >= top) & (y0 < top + TILE)).any():
            free.append((left, top))
    return with_labels, free


def _read_tiles(
    slide: Slide,
    with_labels: list[tuple[tuple[int, int], pd.DataFrame]],
    free: list[tuple[int, int]],
    wanted: int,
    name: str,
) -> Iterator[tuple[int, int, NDArray[np.uint8], pd.DataFrame]]:
    """Yield left, top, pixels and labels of the tiles with labels, then of `wanted` random ones of tissue without."""
    for (x, y), labels in with_labels:
        yield x, y, read_tile(slide, x, y, (TILE, TILE)), labels
    nothing = pd.DataFrame(columns=FIGURE_COLUMNS)
    generator = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    found = 0
    for number in generator.permutation(len(free)):
        if found == wanted:
            return
        x, y = free[number]
        pixels = read_tile(slide, x, y, (TILE, TILE))
        if has_tissue(pixels):
            found += 1
            yield x, y, pixels, nothing


def _write_jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(pixels)
    write_with(path, lambda part: picture.save(part, format="JPEG", quality=95, subsampling="4:4:4"))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_with(path, lambda part: table.to_csv(part, index=False))
