"""A procedural stack of H&E-like crops, so that tests and the sample job need nobody's images.

    python resources/data/synthetic.py --out test/input/track2

The figures are drawn as optical densities of haematoxylin and eosin: a plate,
a ring, an anaphase, and the atypical kinds with three poles or a lagging
chromosome, among interphase nuclei. They look the part; they are no data.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[2]
SIDE = 128
UM_PER_PX = 0.25
# Optical density of haematoxylin and eosin in R, G, B (Ruifrok and Johnston 2001).
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
KINDS = ("plate", "ring", "anaphase", "tripolar", "lagging")
ATYPICAL = ("tripolar", "lagging")


def noise(generator, sigma):
    """Smooth noise (SIDE, SIDE) with mean 0 and deviation 1."""
    field = gaussian_filter(generator.standard_normal((SIDE, SIDE)), sigma, mode="wrap")
    return field / field.std()


def rotated_coordinates(generator, centre):
    y, x = np.mgrid[:SIDE, :SIDE] - np.array(centre)[:, None, None]
    angle = generator.uniform(0, 2 * np.pi)
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def soft(distance, width=1.2):
    """1 inside (negative distance), 0 outside, with an edge of some pixels."""
    return 1 / (1 + np.exp(np.clip(distance / width, -50, 50)))


def bar(u, v, length, thickness):
    return soft(np.maximum(np.abs(u) - length, np.abs(v) - thickness))


def chromosomes(generator, kind):
    """The figure's chromosomes as a share (SIDE, SIDE) in [0, 1], centred."""
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


def crop(generator, kind):
    """One crop: uint8 (128, 128, 3)."""
    haematoxylin = 0.10 + 0.03 * noise(generator, 3)
    eosin = 0.35 + 0.08 * noise(generator, 6) + 0.05 * noise(generator, 1.5)
    for _ in range(generator.integers(5, 9)):
        angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(38, 75)
        centre = SIDE / 2 + distance * np.array([np.sin(angle), np.cos(angle)])
        u, v = rotated_coordinates(generator, centre)
        radius = generator.uniform(10, 16)
        nucleus = soft(np.hypot(u / generator.uniform(1, 1.4), v) - radius + noise(generator, 5), 1)
        haematoxylin += nucleus * (0.45 + 0.12 * noise(generator, 2))
    u, v = rotated_coordinates(generator, (SIDE / 2, SIDE / 2))
    cytoplasm = soft(np.hypot(u, v) - 27, 2)  # a dividing cell rounds up and clears
    haematoxylin = haematoxylin * (1 - 0.7 * cytoplasm)
    eosin = eosin * (1 - 0.3 * cytoplasm)
    haematoxylin += chromosomes(generator, kind) * (1.25 + 0.15 * noise(generator, 1))
    density = np.stack([haematoxylin, eosin], -1).clip(0) @ STAINS
    light = np.stack([gaussian_filter(np.exp(-density[..., channel]), 0.7) for channel in range(3)], -1)
    light += generator.normal(0, 0.008, light.shape)
    return (light.clip(0, 1) * 250).round().astype(np.uint8)


def stack(pages, seed):
    """Crops of all kinds in turn: uint8 (pages, 128, 128, 3) and the kind of each."""
    generator = np.random.default_rng(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(pages)]
    return np.stack([crop(generator, kind) for kind in kinds]), kinds


def write_tiff(path, pages):
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


def write_job(folder, pages):
    """A Track 2 job as the platform lays it out."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "test" / "input" / "track2", metavar="DIR")
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2025)
    arguments = parser.parse_args()
    pages, kinds = stack(arguments.pages, arguments.seed)
    write_job(arguments.out, pages)
    print(f"{arguments.out}: {', '.join(kinds)}")


if __name__ == "__main__":
    sys.exit(main())
