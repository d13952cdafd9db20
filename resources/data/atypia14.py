"""MITOS-ATYPIA 14: frames of breast carcinoma on two scanners, cells as csv with the experts' degree of confidence.

Source: the contest's archives, a folder a case and scanner (A03, H03): frames/x40/A03_00Aa.tiff, and of each frame
mitosis/A03_00Aa_mitosis.csv and A03_00Aa_not_mitosis.csv with lines x,y,score. The score is the share of the experts
who said mitosis: .65, .8 or 1 in the first file, 0 or .2 in the second. Frames at x10 and x20 show the same tissue.
"""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from midog.errors import UserError, brief
from midog.evaluation.provenance import BREAST, PARIS, PARIS_SCANNERS
from resources.data.cells import boxes_around
from resources.data.class_names import HARD_NEGATIVE, MITOTIC, UNCLEAR
from resources.data.unpacked import files_by_stem, split_of

logger = logging.getLogger(__name__)

FRAME = r"[AH]\d\d_\d\d[A-D][a-d]"  # at x40
TABLE = rf"({FRAME})_(not_)?mitosis"
SUFFIXES = (".tiff", ".tif", ".png", ".bmp")
UM_PER_PX = {"A": 0.2455, "H": 0.2274}  # the Hamamatsu has .2273 by .2275
MAJORITY = 0.5


def read_atypia14(source: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the frames that have csv files, and their cells.

    Args:
        source: the folder that the archives were unpacked to. Names of directories with "train" and "test" say the
            split.

    Returns:
        images: DataFrame (image, case, slide, split, um_per_px, tumor, laboratory, scanner), one row a frame.
        figures: DataFrame (image, x, y, x0, y0, x1, y1, label, score), one row a cell; the label is the majority's by
            the score, and that of the file where a line has none.

    Raises:
        UserError: no csv of a frame, or one that does not hold cells.
    """
    tables = files_by_stem(source, (".csv",), TABLE)
    if not tables:
        raise UserError(f"{source}: no A03_00Aa_mitosis.csv below it; unpack the archives of MITOS-ATYPIA 14 there")
    frames = files_by_stem(source, SUFFIXES, FRAME)
    bare = {stem for stem in frames if f"{stem}_mitosis" not in tables}
    if bare:
        logger.info(f"{source}: frames without csv, left out: {len(bare)} of {len(frames)}, the first {min(bare)}")
    images: dict[str, dict[str, Any]] = {}
    cells = []
    for stem, path in tables.items():
        slide, number, kind = stem.split("_", 2)
        name, scanner, case = f"{slide}_{number}", slide[0], slide[1:]
        frame = frames.get(name, path.parent / f"{name}.tiff")
        image = frame.relative_to(source).as_posix()
        images[image] = {
            "image": image,
            "case": slide,
            "slide": f"Paris {case}",
            "split": split_of(frame, source),
            "um_per_px": UM_PER_PX[scanner],
            "tumor": BREAST,
            "laboratory": PARIS,
            "scanner": PARIS_SCANNERS[scanner],
        }
        cells.append(_cells(path).assign(image=image, file=MITOTIC if kind == "mitosis" else HARD_NEGATIVE))
    figures = pd.concat(cells, ignore_index=True)
    figures["label"] = figures.score.map(_by_majority).fillna(figures.file)
    other = figures[figures.label != figures.file]
    if len(other):
        first = other.iloc[0]
        logger.warning(
            f"{source}: cells whose score is not as their file says, labelled by it: {len(other)}, the first on "
            f"{first.image} at {first.x:g}, {first.y:g}"
        )
    figures = boxes_around(figures)
    return pd.DataFrame([*images.values()]), figures[["image", "x", "y", "x0", "y0", "x1", "y1", "label", "score"]]


def _cells(path: Path) -> pd.DataFrame:
    """x, y and score of the lines of a csv, NaN where a line has no score."""
    try:
        return pd.read_csv(path, header=None, names=["x", "y", "score"], usecols=[0, 1, 2], dtype=float)
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=["x", "y", "score"], dtype=float)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: lines of x,y,score expected ({brief(error)}); download it again") from None


def _by_majority(score: float) -> str | None:
    if score == MAJORITY:
        return UNCLEAR
    return MITOTIC if score > MAJORITY else HARD_NEGATIVE if score < MAJORITY else None
