"""A procedural stack of H&E-like crops and a region, so that tests and the sample jobs need nobody's images.

    python -m resources.data.synthetic --track 1 --out test/input/track1
    python -m resources.data.synthetic --track 2 --out test/input/track2

A crop is a mitotic figure among interphase nuclei; the region adds stroma, glass,
and cells that look alike. `python -m resources.benchmark.sample` tells whether
detectors agree. They look the part; they are no data.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from midog.errors import exit_code
from midog.files import check_writable
from resources.data.drawn_cells import FIGURES, IMPOSTERS, draw_figure, draw_imposter
from resources.data.drawn_tissue import (
    apart,
    areas,
    around,
    collagen,
    cytoplasm,
    draw_stroma_nuclei,
    draw_tumour_nuclei,
    inside,
    jittered_grid,
    photographed,
    where,
)

logger = logging.getLogger("resources.data.synthetic")  # also where it is run as __main__

SIDE = 128
REGION_SIZE = 1600, 1200
UM_PER_PX = 0.25
KINDS = FIGURES
ATYPICAL = ("tripolar", "lagging", "asymmetric")
REGION_FIGURES = (*KINDS, *("metaphase", "prometaphase") * 3, "anaphase", "ring")
REGION_IMPOSTERS = (*IMPOSTERS, *IMPOSTERS, *IMPOSTERS)
TUMOUR_STEP, STROMA_STEP = 42, 60  # px between neighbouring nuclei, on average
FREE = 34  # px from a figure or an imposter to its neighbours' middles, at least
APART = 110  # px between figures and imposters, at least
REGION_FOLDER = "images/histopathology-roi-cropout"


def crop(generator: np.random.Generator, kind: str) -> NDArray[np.uint8]:
    """One crop with a figure of one of `KINDS` in its middle: uint8 (128, 128, 3)."""
    border = 40  # px, so that nuclei on the edge are drawn, too
    side = SIDE + 2 * border
    middle = np.array([side // 2, side // 2])
    cells = jittered_grid(generator, TUMOUR_STEP, (side, side))
    cells = cells[np.hypot(*(cells - middle).T) > FREE]
    haematoxylin, eosin = cytoplasm(generator, np.vstack([cells, middle]), (side, side))
    draw_tumour_nuclei(generator, cells, haematoxylin, eosin)
    seen = slice(border, -border), slice(border, -border)
    draw_figure(generator, kind, haematoxylin[seen], eosin[seen])
    return photographed(generator, haematoxylin[seen], eosin[seen])


def stack(pages: int, seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Crops of all kinds in turn: uint8 (pages, 128, 128, 3) and the kind of each."""
    generator = np.random.default_rng(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(pages)]
    return np.stack([crop(generator, kind) for kind in kinds]), kinds


def region(
    seed: int,
    size: tuple[int, int] = REGION_SIZE,
    figure_kinds: Sequence[str] = REGION_FIGURES,
    imposter_kinds: Sequence[str] = REGION_IMPOSTERS,
) -> tuple[NDArray[np.uint8], NDArray[np.int_], NDArray[np.int_]]:
    """A region with tumour, stroma and glass.

    Args:
        seed: of everything that is drawn.
        size: (width, height), px of .25 um.
        figure_kinds, imposter_kinds: of `FIGURES` and `IMPOSTERS`, one a cell.

    Returns:
        pixels: uint8 (H, W, 3).
        figures: int (N, 2), the middles of the figures as x, y in px.
        imposters: int (M, 2), those of the imposters.
    """
    generator = np.random.default_rng(seed)
    border = SIDE // 2  # so that cells on the edge are drawn, too
    shape = size[1] + 2 * border, size[0] + 2 * border
    tissue, stroma = areas(generator, shape)
    cells = jittered_grid(generator, TUMOUR_STEP, shape)
    candidates = where(tissue * (1 - stroma) > 0.9, inside(cells, 2 * border, shape))
    chosen = apart(generator, candidates, len(figure_kinds) + len(imposter_kinds), APART)
    figures, imposters = np.split(chosen, [len(figure_kinds)])
    cells = cells[KDTree(chosen).query(cells)[0] > FREE]

    tumour_layers = cytoplasm(generator, np.vstack([cells, chosen]), shape)
    stroma_layers = collagen(generator, shape)
    haematoxylin, eosin = ((1 - stroma) * a + stroma * b for a, b in zip(tumour_layers, stroma_layers, strict=True))
    draw_tumour_nuclei(generator, where(stroma < 0.1, cells), haematoxylin, eosin)
    spots = jittered_grid(generator, STROMA_STEP, shape)
    draw_stroma_nuclei(generator, where(stroma > 0.9, spots), haematoxylin, eosin)
    for places, kinds, draw in (
        (figures, figure_kinds, draw_figure),
        (imposters, imposter_kinds, draw_imposter),
    ):
        for place, kind in zip(places, kinds, strict=True):
            part = around(place, SIDE)
            draw(generator, kind, haematoxylin[part], eosin[part])
    seen = slice(border, -border), slice(border, -border)
    pixels = photographed(generator, (tissue * haematoxylin)[seen], (tissue * eosin)[seen])
    return pixels, figures - border, imposters - border


def write_tiff(path: Path, pages: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> None:
    """A multi-page RGB TIFF as the platform's, with resolution tags."""
    from PIL import Image

    images = [Image.fromarray(page) for page in pages]
    dots_per_inch = 25400 / UM_PER_PX
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        compression="tiff_adobe_deflate",
        dpi=(dots_per_inch, dots_per_inch),
    )


def write_region_tiff(
    path: Path, pixels: NDArray[np.uint8], um_per_px: float = UM_PER_PX, description: str | None = None
) -> None:
    """An RGB TIFF of JPEG tiles with resolution tags, and what a scanner writes of it."""
    import tifffile

    dots_per_cm = 10_000 / um_per_px
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        tile=(256, 256),
        compression="jpeg",
        compressionargs={"level": 85},
        resolution=(dots_per_cm, dots_per_cm),
        resolutionunit="CENTIMETER",
        description=description,
        metadata=None,
        software=False,
    )


def write_region_job(folder: Path, pixels: NDArray[np.uint8]) -> None:
    """A Track 1 job as the platform lays it out, with all the keys of its long form; it names a socket twice."""
    write_region_tiff(folder / REGION_FOLDER / "b7a9c2d4-51e8-4f0b-8c36-9d2e7f1a6053.tiff", pixels)
    socket = {
        "pk": 91,
        "title": "Histopathology ROI",
        "description": "",
        "kind": "Image",
        "super_kind": "Image",
        "slug": "histopathology-region-of-interest-cropout",
        "relative_path": REGION_FOLDER,
        "default_value": None,
        "overlay_segments": [],
        "look_up_table": None,
        "example_value": None,
    }
    inputs: list[dict[str, Any]] = [
        {
            "pk": 4711,
            "file": None,
            "value": None,
            "image": {"pk": "0e5b7a42-6d0f-4a5e-9a1c-3f6c1f0e2025", "name": "sample.tiff"},
            "socket": socket,
            "interface": socket,
        }
    ]
    (folder / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")


def write_job(folder: Path, pages: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> None:
    """A Track 2 job as the platform lays it out, with the few keys of its starter packs."""
    relative_path = "images/stacked-histopathology-roi-cropouts"
    write_tiff(folder / relative_path / "3f6c1f0e-sample.tif", pages)
    inputs = [
        {
            "file": None,
            "value": None,
            "image": {"name": "sample_stack.tiff"},
            "socket": {
                "slug": "stacked-histopathology-roi-cropouts",
                "kind": "Image",
                "super_kind": "Image",
                "relative_path": relative_path,
            },
        }
    ]
    (folder / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.data.synthetic",
        description="Draw an H&E-like region (Track 1) or stack of crops (Track 2) and write it as a job.",
    )
    parser.add_argument("--track", type=int, choices=(1, 2), default=2, help="1: a region, 2: a stack (%(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="for the job: inputs.json and images/, made where missing",
    )
    parser.add_argument("--pages", type=int, default=16, metavar="N", help="crops of the stack (%(default)s)")
    parser.add_argument("--seed", type=int, default=2025, metavar="N", help="another one, other cells (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.pages < 1 or arguments.seed < 0:
        parser.error("--pages 1 or more and --seed 0 or more expected")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    check_writable(arguments.out)
    if arguments.track == 1:
        pixels, *places = region(arguments.seed)
        write_region_job(arguments.out, pixels)
        kinds = [*REGION_FIGURES, *REGION_IMPOSTERS]
        drawn = [f"{kind} at {x}, {y}" for kind, (x, y) in zip(kinds, np.concatenate(places), strict=True)]
    else:
        pages, drawn = stack(arguments.pages, arguments.seed)
        write_job(arguments.out, pages)
    logger.info(f"{arguments.out}: {', '.join(drawn)}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
