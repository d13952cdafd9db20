"""Cells of a breast carcinoma, drawn as densities of haematoxylin and eosin.

Chromosomes are threads in three dimensions, of which a section keeps a slab: the same plate is a bar from the side
and a ring from above. What only looks like a mitotic figure, the imposters, has smooth outlines or a membrane.

Every `draw_...` changes two densities (H, W) in place, around their middle; pixels are .25 um.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Floats = NDArray[np.float64]

FIGURES = ("metaphase", "tripolar", "prometaphase", "ring", "lagging", "anaphase", "telophase", "asymmetric")
IMPOSTERS = ("pyknotic", "apoptotic", "hyperchromatic", "lymphocyte")
SECTION = 16  # px, a section of 4 um
POINT_STEP = 0.7  # px between the points of a thread
DARKEST = 3.0  # density of haematoxylin where chromosomes pile up


def noise(generator: np.random.Generator, sigma: float, shape: Sequence[int]) -> Floats:
    """Smooth noise (H, W) with mean 0 and deviation 1."""
    step = max(1, int(sigma / 3))  # what is smooth needs no pixel of its own
    coarse = generator.standard_normal([-(-side // step) for side in shape])
    field = gaussian_filter(coarse, sigma / step, mode="wrap")
    if step > 1:
        field = zoom(field, step, order=1)[: shape[0], : shape[1]]
    return (field - field.mean()) / field.std()


def soft(distance: Floats, width: float = 1.0) -> Floats:
    """1 inside (negative distance), 0 outside, with an edge of some pixels."""
    return 1 / (1 + np.exp(np.clip(distance / width, -50, 50)))


def from_middle(shape: Sequence[int], angle: float) -> Floats:
    """Two axes (2, H, W), 0 in the middle: along an angle from the y axis towards the x axis, and across it."""
    y, x = np.indices(shape) - (np.array(shape) // 2)[:, None, None]
    return np.stack([y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)])


def outline(generator: np.random.Generator, axes: Floats, radii: Floats, rough: float) -> Floats:
    """Distance (H, W) in px, about, to a wavy ellipse with these two radii; negative inside."""
    u, v = axes / radii[:, None, None]
    distance = np.maximum(np.hypot(u, v), 1e-6)
    around = (u + 1j * v) / distance
    waves = generator.normal(0, rough, (4, 2)) @ (1, 1j) / (5, 4, 3, 2)  # the shorter, the flatter
    wave = (around**2 * np.polyval(waves, around)).real
    return (distance / (1 + wave) - 1) * radii.mean()


def threads(
    generator: np.random.Generator, places: Floats, directions: Floats, arm: tuple[float, float], curl: float = 0.35
) -> Floats:
    """Points (N, 3) of chromosomes, two arms each.

    Args:
        generator: draws lengths and curls.
        places: (K, 3), where the arms start: the centromeres.
        directions: (K, 3), of the arms; of any length.
        arm: shortest and longest arm, px.
        curl: how much an arm may turn a step.
    """
    steps = int(arm[1] / POINT_STEP)
    starts, along = np.repeat(places, 2, 0), np.repeat(directions, 2, 0)
    along = along / np.linalg.norm(along, axis=1, keepdims=True) + generator.normal(0, 0.4, along.shape)
    course = along[:, None] + generator.normal(0, curl, (len(along), steps, 3)).cumsum(1)
    points = starts[:, None] + (POINT_STEP * course / np.linalg.norm(course, axis=2, keepdims=True)).cumsum(1)
    lengths = generator.uniform(*arm, len(starts)) / POINT_STEP
    return points[np.arange(steps) < lengths[:, None]]


def plate(
    generator: np.random.Generator, count: int, radius: float, hollow: float = 0.0, pulled: bool = False
) -> Floats:
    """Points (N, 3) of chromosomes on a disc across the first axis, the spindle's.

    Args:
        generator: draws them.
        count: of chromosomes.
        radius: of the disc, px.
        hollow: share of the radius within which none are.
        pulled: along the spindle, so that the arms are folded and trail behind; else they point anywhere.
    """
    distance = radius * np.sqrt(generator.uniform(hollow**2, 1, count))
    angle = generator.uniform(0, 2 * np.pi, count)
    outwards = np.stack([np.zeros(count), np.cos(angle), np.sin(angle)], 1)
    places = outwards * distance[:, None]
    places[:, 0] += generator.normal(0, 1.5, count) + generator.normal(0, 2) * (distance / radius) ** 2
    directions = 0.6 * outwards + generator.normal(0, 0.5, (count, 3)) - (0.9 * pulled, 0, 0)
    return threads(generator, places, directions, (3, 6) if pulled else (3, 9))


def turned(points: Floats, angle: float) -> Floats:
    """Points (N, 3) turned around the depth, their third axis."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def pulled_apart(generator: np.random.Generator, gap: float, counts: Sequence[int], radii: Sequence[float]) -> Floats:
    """Points (N, 3) of two plates, each `gap` px from the middle."""
    first, second = (
        plate(generator, count, radius, pulled=True) + (gap, 0, 0) for count, radius in zip(counts, radii, strict=True)
    )
    return np.concatenate([first, turned(second, np.pi + generator.normal(0, 0.15))])


def chromosomes(generator: np.random.Generator, kind: str) -> Floats:
    """Points (N, 3) of a figure's chromosomes: along the spindle, across it, and in the depth; px from the middle.

    Raises:
        ValueError: `kind` is none of `FIGURES`.
    """
    count = int(generator.integers(40, 60))
    gap = generator.uniform(9, 13)
    if kind == "metaphase":
        return plate(generator, count, generator.uniform(12.5, 16))
    if kind == "ring":
        return plate(generator, count, generator.uniform(10, 12.5), hollow=0.5)[:, ::-1]
    if kind == "prometaphase":
        places = generator.normal(0, 1, (count, 3))
        places *= (generator.uniform(3, generator.uniform(9, 13), count) / np.linalg.norm(places, axis=1))[:, None]
        return threads(generator, places, generator.normal(0, 1, (count, 3)), (5, 10))
    if kind == "tripolar":
        arms = [plate(generator, count // 2, 9) + (0, generator.uniform(7.5, 9.5), 0) for _ in range(3)]
        angles = generator.normal(0, 0.2, 3) + np.arange(3) * 2 * np.pi / 3
        return np.concatenate([turned(arm, angle) for arm, angle in zip(arms, angles, strict=True)])
    if kind == "anaphase":
        return pulled_apart(generator, gap, (count, count), (12, 12))
    if kind == "telophase":
        return pulled_apart(generator, generator.uniform(17, 21), (count, count), (9.5, 9.5))
    if kind == "asymmetric":
        return pulled_apart(generator, gap + 2, (count * 5 // 4, count // 3), (13, 7))
    if kind == "lagging":
        late = int(generator.integers(3, 7))
        places = generator.uniform((-gap, -7, -4), (gap, 7, 4), (late, 3))
        between = threads(generator, places, np.tile([1.0, 0, 0], (late, 1)), (4, 8), curl=0.2)
        return np.concatenate([pulled_apart(generator, gap + 2, (count, count), (12, 12)), between])
    raise ValueError(f"{kind}: one of {', '.join(FIGURES)} expected")


def chromatin(generator: np.random.Generator, points: Floats, shape: Sequence[int]) -> Floats:
    """Density (H, W) of those points (N, 3) that lie in the section."""
    y, x, depth = points.T
    edges = [np.arange(side + 1) - side // 2 - 0.5 for side in shape]
    mass = np.histogram2d(y, x, edges, weights=np.abs(depth) < SECTION / 2)[0]
    mass = gaussian_filter(mass, generator.uniform(0.8, 1.1))
    return DARKEST * generator.uniform(0.85, 1) * (1 - np.exp(-generator.uniform(0.6, 1.1) * mass))


def draw_figure(generator: np.random.Generator, kind: str, haematoxylin: Floats, eosin: Floats) -> None:
    """A mitotic figure in a cell that has rounded up and cleared, or that divides.

    Args:
        generator: draws the cell.
        kind: one of `FIGURES`.
        haematoxylin, eosin: (H, W), 96 px a side at least.

    Raises:
        ValueError: no such kind.
    """
    shape, angle = haematoxylin.shape, generator.uniform(0, 2 * np.pi)
    points = turned(chromosomes(generator, kind), angle)
    axes = from_middle(shape, angle)
    radii = generator.uniform(24, 30, 2)
    if kind in ("anaphase", "lagging", "asymmetric", "telophase"):
        radii += (6, -2)
    cell = outline(generator, axes, radii, 0.06)
    if kind == "telophase":
        cell += 9 * np.exp(-((axes[0] / 7) ** 2))  # the cleavage furrow
    inside, grain = soft(cell, 1.5), noise(generator, 1.2, shape)
    clear = inside * soft(cell + generator.uniform(5, 11), 3)
    haematoxylin *= 1 - 0.95 * inside
    haematoxylin += inside * (0.15 + 0.05 * grain) * (1 - 0.5 * clear)
    eosin *= 1 - inside
    eosin += inside * (0.6 + 0.14 * grain) * (1 - 0.35 * clear) + 0.22 * np.exp(-((cell / 1.5) ** 2))
    haematoxylin += chromatin(generator, points, shape)


def draw_nucleus(
    generator: np.random.Generator, haematoxylin: Floats, eosin: Floats, openness: float, radius: float
) -> None:
    """An interphase nucleus: a membrane, chromatin in clumps, nucleoli.

    Args:
        generator: draws the nucleus.
        haematoxylin, eosin: (H, W), three times the radius a side at least.
        openness: 1 is vesicular, with pale chromatin; 0 is dense, below 0 is hyperchromatic.
        radius: px.
    """
    shape = haematoxylin.shape
    axes = from_middle(shape, generator.uniform(0, 2 * np.pi))
    distance = outline(generator, axes, radius * generator.uniform((0.95, 0.72), (1.25, 1.0)), 0.09)
    inside = soft(distance, generator.uniform(0.5, 0.9))
    fine, coarse = noise(generator, 1.4, shape), noise(generator, 2.8, shape)
    clumps = (1.1 * fine + 0.8 * coarse - 0.1).clip(0)
    membrane = np.exp(-(((distance + 1.2) / 1.2) ** 2)) * (0.8 + 0.4 * coarse).clip(0.2)
    eosin *= 1 - (0.15 + 0.3 * openness) * inside
    haematoxylin *= 1 - 0.7 * inside
    haematoxylin += inside * ((0.6 - 0.5 * openness) + (0.22 + 0.2 * openness) * clumps) + 0.85 * membrane
    for _ in range(generator.integers(0, 4)):
        place = generator.normal(0, 0.3 * radius, (2, 1, 1))
        nucleolus = inside * soft(outline(generator, axes - place, generator.uniform(1.8, 3.6, 2), 0.1), 0.7)
        haematoxylin += 0.75 * nucleolus
        eosin += 0.45 * nucleolus


def draw_fibroblast(generator: np.random.Generator, haematoxylin: Floats, eosin: Floats) -> None:
    """A spindle-shaped nucleus along the fibres, which run along the x axis."""
    across, along = from_middle(haematoxylin.shape, generator.uniform(0, 0.5))
    axes = np.stack([along, across + along**2 / 150])
    spindle = outline(generator, axes, generator.uniform((13, 3), (22, 5.5)), 0.08)
    texture = 0.75 + 0.2 * noise(generator, 1.5, spindle.shape)
    haematoxylin += soft(spindle, 0.8) * texture + 0.3 * soft(np.abs(spindle + 1) - 0.6)


def draw_dying_cell(generator: np.random.Generator, kind: str, haematoxylin: Floats, eosin: Floats) -> None:
    """A shrunken cell with red cytoplasm: its nucleus is smooth and dark ("pyknotic") or in globules ("apoptotic")."""
    shape = haematoxylin.shape
    axes = from_middle(shape, generator.uniform(0, 2 * np.pi))
    cell = outline(generator, axes, generator.uniform(11, 18, 2), 0.15)
    slack = generator.uniform(-3, 6) + 2.5 * noise(generator, 9, shape)
    inside, halo = soft(cell, 1.2), soft(cell - slack.clip(0), 1.2)
    for density in (haematoxylin, eosin):
        density *= 1 - 0.85 * halo
    eosin += inside * (1.15 + 0.12 * noise(generator, 2.5, shape))
    radii = generator.uniform(6.5, 9, 1) if kind == "pyknotic" else generator.uniform(1.8, 5, generator.integers(3, 7))
    globules = np.zeros(shape)
    for radius in radii:
        place = generator.normal(0, 2 if kind == "pyknotic" else 4.5, (2, 1, 1))
        globule = outline(generator, axes - place, radius * generator.uniform(0.8, 1.2, 2), 0.04)
        globules = np.maximum(globules, generator.uniform(1, 1.5) * soft(globule, generator.uniform(0.7, 1.3)))
    haematoxylin += 0.22 * inside + globules


def draw_imposter(generator: np.random.Generator, kind: str, haematoxylin: Floats, eosin: Floats) -> None:
    """A cell that is taken for a mitotic figure and is none.

    Args:
        generator: draws the cell.
        kind: one of `IMPOSTERS`.
        haematoxylin, eosin: (H, W), 64 px a side at least.

    Raises:
        ValueError: no such kind.
    """
    if kind == "hyperchromatic":
        draw_nucleus(generator, haematoxylin, eosin, openness=-0.5, radius=generator.uniform(14, 18))
    elif kind == "lymphocyte":
        eosin *= 1 - 0.5 * soft(np.hypot(*from_middle(eosin.shape, 0)) - 13, 2)
        draw_nucleus(generator, haematoxylin, eosin, openness=-0.6, radius=generator.uniform(9, 10.5))
    elif kind in IMPOSTERS:
        draw_dying_cell(generator, kind, haematoxylin, eosin)
    else:
        raise ValueError(f"{kind}: one of {', '.join(IMPOSTERS)} expected")
