"""A procedural stack of H&E-like crops and a region, so that tests and the sample jobs need nobody's images.

    python -m resources.data.synthetic --track 1 --out test/input/track1
    python -m resources.data.synthetic --track 2 --out test/input/track2

The figures are drawn as optical densities of haematoxylin and eosin: a plate,
a ring, an anaphase, and the atypical kinds with three poles or a lagging
chromosome, among interphase nuclei. The region adds stroma, lymphocytes,
pyknotic nuclei that look alike, and glass. They look the part; they are no data.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import KDTree

from midog.errors import exit_code
from midog.files import check_writable

logger = logging.getLogger("resources.data.synthetic")  # also where it is run as __main__

SIDE = 128
REGION_SIZE = 1600, 1200
UM_PER_PX = 0.25
# Optical density of haematoxylin and eosin in R, G, B (Ruifrok and Johnston 2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
KINDS = ("plate", "ring", "anaphase", "tripolar", "lagging")
ATYPICAL = ("tripolar", "lagging")
REGION_FIGURES = (*KINDS, "plate", "anaphase", "plate")
REGION_HARD_NEGATIVES = 10
TUMOUR_STEP, STROMA_STEP = 50, 74  # px between neighbouring nuclei, on average
REGION_FOLDER = "images/histopathology-roi-cropout"


def noise(generator: np.random.Generator, sigma: float, shape: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.float64]:
    """Smooth noise with mean 0 and deviation 1."""
    field = gaussian_filter(generator.standard_normal(shape), sigma, mode="wrap")
    return field / field.std()


def rotated_coordinates(
    generator: np.random.Generator, centre: ArrayLike, max_angle: float = 2 * np.pi
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two axes (SIDE, SIDE) at a random angle around a place (y, x), px."""
    y, x = np.mgrid[:SIDE, :SIDE] - np.array(centre)[:, None, None]
    angle = generator.uniform(0, max_angle)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def soft(distance: NDArray[np.float64], width: float = 1.2) -> NDArray[np.float64]:
    """1 inside (negative distance), 0 outside, with an edge of some pixels."""
    return 1 / (1 + np.exp(np.clip(distance / width, -50, 50)))


def bar(u: NDArray[np.float64], v: NDArray[np.float64], length: float, thickness: float) -> NDArray[np.float64]:
    """1 in a rectangle of twice these sides, with a soft edge."""
    return soft(np.maximum(np.abs(u) - length, np.abs(v) - thickness))


def chromosomes(generator: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """The figure's chromosomes, (SIDE, SIDE) in [0, 1], centred."""
    u, v = rotated_coordinates(generator, (SIDE / 2 + generator.uniform(-2, 2), SIDE / 2 + generator.uniform(-2, 2)))
    rough = noise(generator, 1.5)
    u, v = u + rough * 0.8, v + noise(generator, 1.5) * 0.8
    if kind == "plate":
        return bar(u, v, generator.uniform(13, 18), generator.uniform(4, 6))
    if kind == "ring":
        radius = np.hypot(u, v * 1.2)
        return soft(np.abs(radius - generator.uniform(10, 12)) - 4)
    if kind == "anaphase":
        gap = generator.uniform(9, 13)
        return np.maximum(bar(u, v - gap, 14, 4), bar(u, v + gap, 14, 4))
    if kind == "tripolar":
        angles = generator.uniform(-0.3, 0.3, 3) + np.arange(3) * 2 * np.pi / 3
        arms = [bar(u * np.cos(a) + v * np.sin(a) - 9, v * np.cos(a) - u * np.sin(a), 9, 4.5) for a in angles]
        return np.maximum.reduce(arms)
    gap = generator.uniform(11, 14)
    plates = np.maximum(bar(u, v - gap, 13, 4), bar(u * 1.3, v + gap, 13, 5))
    return np.maximum(plates, bar(u - generator.uniform(-6, 6), v, 2.5, generator.uniform(6, 9)))


def interphase_nucleus(generator: np.random.Generator, centre: ArrayLike) -> NDArray[np.float64]:
    """Haematoxylin (SIDE, SIDE) of a nucleus that does not divide."""
    u, v = rotated_coordinates(generator, centre)
    radius = generator.uniform(10, 16)
    nucleus = soft(np.hypot(u / generator.uniform(1, 1.4), v) - radius + noise(generator, 5), 1)
    return nucleus * (0.45 + 0.12 * noise(generator, 2))


def draw_dividing_cell(
    generator: np.random.Generator, kind: str, haematoxylin: NDArray[np.float64], eosin: NDArray[np.float64]
) -> None:
    """Draw a mitotic figure into the middle of two densities (SIDE, SIDE)."""
    u, v = rotated_coordinates(generator, (SIDE / 2, SIDE / 2))
    cytoplasm = soft(np.hypot(u, v) - 27, 2)  # a dividing cell rounds up and clears
    haematoxylin *= 1 - 0.7 * cytoplasm
    eosin *= 1 - 0.3 * cytoplasm
    haematoxylin += chromosomes(generator, kind) * (1.25 + 0.15 * noise(generator, 1))


def rendered(
    generator: np.random.Generator, haematoxylin: NDArray[np.float64], eosin: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Two densities (H, W) as a camera sees them: uint8 (H, W, 3)."""
    density = np.stack([haematoxylin, eosin], -1).clip(0) @ STAINS
    light = np.stack([gaussian_filter(np.exp(-density[..., channel]), 0.7) for channel in range(3)], -1)
    light += generator.normal(0, 0.008, light.shape)
    return (light.clip(0, 1) * 250).round().astype(np.uint8)


def crop(generator: np.random.Generator, kind: str) -> NDArray[np.uint8]:
    """One crop: uint8 (128, 128, 3)."""
    haematoxylin = 0.10 + 0.03 * noise(generator, 3)
    eosin = 0.35 + 0.08 * noise(generator, 6) + 0.05 * noise(generator, 1.5)
    for _ in range(generator.integers(5, 9)):
        angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(38, 75)
        haematoxylin += interphase_nucleus(generator, SIDE / 2 + distance * np.array([np.sin(angle), np.cos(angle)]))
    draw_dividing_cell(generator, kind, haematoxylin, eosin)
    return rendered(generator, haematoxylin, eosin)


def stack(pages: int, seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Crops of all kinds in turn: uint8 (pages, 128, 128, 3) and the kind of each."""
    generator = np.random.default_rng(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(pages)]
    return np.stack([crop(generator, kind) for kind in kinds]), kinds


def window(x: int, y: int) -> tuple[slice, slice]:
    """Slices of the (SIDE, SIDE) around a place of the region, in layers with a border of half a window."""
    return slice(y, y + SIDE), slice(x, x + SIDE)


def jittered_grid(generator: np.random.Generator, step: int, shape: tuple[int, int]) -> NDArray[np.int_]:
    """Places (N, 2) as x, y, about `step` px apart."""
    height, width = shape
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    places = np.stack([x.ravel(), y.ravel()], -1) + generator.uniform(-0.36, 0.36, (x.size, 2)) * step
    return places.round().astype(int).clip(0, (width - 1, height - 1))


def places_apart(
    generator: np.random.Generator, count: int, allowed: NDArray[np.bool_], distance: float
) -> NDArray[np.int_]:
    """`count` places (N, 2) as x, y where `allowed` (H, W) is set, at least `distance` px from each other."""
    rows, columns = np.nonzero(allowed)
    chosen = np.zeros((0, 2), int)
    while len(chosen) < count:
        number = generator.integers(len(rows))
        place = np.array([columns[number], rows[number]])
        if (np.hypot(*(chosen - place).T) >= distance).all():
            chosen = np.vstack([chosen, place])
    return chosen


def draw_pyknotic_cell(
    generator: np.random.Generator, haematoxylin: NDArray[np.float64], eosin: NDArray[np.float64]
) -> None:
    """Draw a shrunken, smooth and dark nucleus in red cytoplasm, which looks like a figure and is none."""
    u, v = rotated_coordinates(generator, (SIDE / 2, SIDE / 2))
    distance = np.hypot(u / generator.uniform(1, 1.25), v)
    cytoplasm = soft(distance - 18 + 2 * noise(generator, 5), 2)
    haematoxylin *= 1 - 0.6 * cytoplasm
    eosin += 0.3 * cytoplasm
    haematoxylin += 1.2 * soft(distance - generator.uniform(7, 10))


def stroma_nucleus(generator: np.random.Generator) -> NDArray[np.float64]:
    """Haematoxylin (SIDE, SIDE) of a fibroblast along the fibres, or of a lymphocyte."""
    u, v = rotated_coordinates(generator, (SIDE / 2, SIDE / 2), max_angle=0.5)
    if generator.random() < 0.25:
        return soft(np.hypot(u, v) - generator.uniform(8, 10)) * (0.8 + 0.1 * noise(generator, 2))
    spindle = np.hypot(u / generator.uniform(2.5, 4), v + u**2 / 150) - generator.uniform(4, 6)
    return soft(spindle + 0.5 * noise(generator, 4)) * (0.6 + 0.1 * noise(generator, 2))


def region(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int_]]:
    """A region with tumour, stroma and glass: uint8 (H, W, 3), and its figures' centres, int (N, 2) as x, y in px."""
    generator = np.random.default_rng(seed)
    width, height = REGION_SIZE
    shape = height + SIDE, width + SIDE
    inside = slice(SIDE // 2, -SIDE // 2), slice(SIDE // 2, -SIDE // 2)
    y, x = np.mgrid[: shape[0], : shape[1]]
    stroma = soft(0.75 - noise(generator, 90, shape) - 0.06 * noise(generator, 5, shape), 0.06)
    tissue = soft(x - 0.9 * shape[1] + 45 * noise(generator, 60, shape) + 3 * noise(generator, 5, shape), 2)
    fibres = gaussian_filter(generator.standard_normal(shape), (1.8, 45), mode="wrap")
    bent = y + 40 * noise(generator, 110, shape) + 0.25 * x, x
    fibres = map_coordinates(fibres / fibres.std(), bent, order=1, mode="grid-wrap")

    nuclei = jittered_grid(generator, TUMOUR_STEP, (height, width))
    gaps, _ = KDTree(nuclei + SIDE // 2).query(np.stack([x, y], -1), k=2)
    membranes = soft(gaps[..., 1] - gaps[..., 0] - 2.5 - noise(generator, 4, shape), 1.5)
    cytoplasm = 0.36 + 0.07 * noise(generator, 7, shape) + 0.05 * noise(generator, 1.5, shape)
    eosin = (1 - stroma) * (cytoplasm - 0.14 * membranes) + stroma * (0.42 + 0.13 * fibres)
    haematoxylin = (1 - stroma) * (0.13 + 0.03 * noise(generator, 3, shape)) + stroma * (0.06 + 0.02 * fibres)

    tumour = (tissue * (1 - stroma))[inside] > 0.9
    far_from_edges = np.zeros_like(tumour)
    far_from_edges[SIDE // 2 : -SIDE // 2, SIDE // 2 : -SIDE // 2] = True
    drawn = places_apart(generator, len(REGION_FIGURES) + REGION_HARD_NEGATIVES, tumour & far_from_edges, 1.2 * SIDE)
    figures, hard_negatives = np.split(drawn, [len(REGION_FIGURES)])
    for place in nuclei:
        if tumour[place[1], place[0]] and np.hypot(*(drawn - place).T).min() > 38:
            nucleus = interphase_nucleus(generator, (SIDE / 2, SIDE / 2))
            haematoxylin[window(*place)] += generator.uniform(0.8, 1.2) * nucleus
    for place in jittered_grid(generator, STROMA_STEP, (height, width)):
        if stroma[inside][place[1], place[0]] > 0.9:
            haematoxylin[window(*place)] += stroma_nucleus(generator)
    for place, kind in zip(figures, REGION_FIGURES, strict=True):
        draw_dividing_cell(generator, kind, haematoxylin[window(*place)], eosin[window(*place)])
    for place in hard_negatives:
        draw_pyknotic_cell(generator, haematoxylin[window(*place)], eosin[window(*place)])
    return rendered(generator, (tissue * haematoxylin)[inside], (tissue * eosin)[inside]), figures


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


def write_region_tiff(path: Path, pixels: NDArray[np.uint8], um_per_px: float = UM_PER_PX) -> None:
    """An RGB TIFF of JPEG tiles with resolution tags."""
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
        metadata=None,
        software=False,
    )


def write_region_job(folder: Path, pixels: NDArray[np.uint8]) -> None:
    """A Track 1 job as the platform lays it out, with all the keys of its long form."""
    write_region_tiff(folder / REGION_FOLDER / "b7a9c2d4-51e8-4f0b-8c36-9d2e7f1a6053.tiff", pixels)
    inputs: list[dict[str, Any]] = [
        {
            "pk": 4711,
            "file": None,
            "value": None,
            "image": {"pk": "0e5b7a42-6d0f-4a5e-9a1c-3f6c1f0e2025", "name": "sample.tiff"},
            "interface": {
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
            },
        }
    ]
    (folder / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")


def write_job(folder: Path, pages: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> None:
    """A Track 2 job as the platform lays it out, with the few keys of its templates."""
    relative_path = "images/stacked-histopathology-roi-cropouts"
    write_tiff(folder / relative_path / "3f6c1f0e-sample.tif", pages)
    inputs = [
        {
            "file": None,
            "value": None,
            "image": {"name": "sample_stack.tiff"},
            "interface": {
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
        pixels, figures = region(arguments.seed)
        write_region_job(arguments.out, pixels)
        drawn = [f"{kind} at {x}, {y}" for kind, (x, y) in zip(REGION_FIGURES, figures, strict=True)]
    else:
        pages, drawn = stack(arguments.pages, arguments.seed)
        write_job(arguments.out, pages)
    logger.info(f"{arguments.out}: {', '.join(drawn)}")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
