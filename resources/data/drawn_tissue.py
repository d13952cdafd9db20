"""Tumour, stroma and glass around drawn cells, and the camera that sees them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.spatial import KDTree

from resources.data.drawn_cells import Floats, draw_fibroblast, draw_imposter, draw_nucleus, noise, soft

# Optical density of haematoxylin and eosin in R, G, B (Macenko and others 2009, their reference).
STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
NUCLEUS_SIDE = 64  # px of a window that holds any nucleus


def jittered_grid(generator: np.random.Generator, step: int, shape: Sequence[int]) -> NDArray[np.int_]:
    """Places (N, 2) as x, y, about `step` px apart."""
    height, width = shape
    y, x = np.mgrid[step // 2 : height : step, step // 2 : width : step]
    x = x + step // 2 * (np.arange(len(x)) % 2)[:, None]
    places = np.stack([x.ravel(), y.ravel()], -1) + generator.uniform(-0.36, 0.36, (x.size, 2)) * step
    return places.round().astype(int).clip(0, (width - 1, height - 1))


def around(place: NDArray[np.int_], side: int) -> tuple[slice, slice]:
    """Slices of the square of `side` px with a place (x, y) in its middle."""
    left, top = place - side // 2
    return slice(top, top + side), slice(left, left + side)


def inside(places: NDArray[np.int_], margin: int, shape: Sequence[int]) -> NDArray[np.int_]:
    """Those of the places (N, 2) as x, y that are `margin` px from the edges of a layer (H, W), at least."""
    height, width = shape
    return places[((places >= margin) & (places <= (width - margin, height - margin))).all(1)]


def where(mask: NDArray[np.bool_], places: NDArray[np.int_]) -> NDArray[np.int_]:
    """Those of the places (N, 2) as x, y at which a mask (H, W) is set."""
    return places[mask[places[:, 1], places[:, 0]]]


def apart(generator: np.random.Generator, places: NDArray[np.int_], count: int, distance: float) -> NDArray[np.int_]:
    """`count` of the places (N, 2), in random order, `distance` px from each other at least."""
    chosen = np.zeros((0, 2), int)
    for place in generator.permutation(places):
        if len(chosen) < count and (np.hypot(*(chosen - place).T) >= distance).all():
            chosen = np.vstack([chosen, place])
    return chosen


def areas(generator: np.random.Generator, shape: Sequence[int]) -> tuple[Floats, Floats]:
    """Two shares (H, W) in [0, 1]: what is tissue, with glass on the right, and what of it is stroma."""
    rough, x = noise(generator, 5, shape), np.arange(shape[1])
    tissue = soft(x - 0.9 * shape[1] + 45 * noise(generator, 60, shape) + 3 * rough, 2)
    return tissue, soft(0.75 - noise(generator, 90, shape) - 0.06 * rough, 0.03)


def cytoplasm(generator: np.random.Generator, cells: NDArray[np.int_], shape: Sequence[int]) -> tuple[Floats, Floats]:
    """Haematoxylin and eosin (H, W) of a sheet of tumour cells with these middles (N, 2), without their nuclei."""
    y, x = np.mgrid[: shape[0] : 2, : shape[1] : 2]
    distances, nearest = KDTree(cells).query(np.dstack([x, y]), k=2)
    gap = zoom(distances[..., 1] - distances[..., 0], 2, order=1)[: shape[0], : shape[1]]
    tint = zoom(generator.normal(0, 1, len(cells))[nearest[..., 0]], 2, order=0)[: shape[0], : shape[1]]
    tint, broad = gaussian_filter(tint, 2), noise(generator, 14, shape)
    wisps = noise(generator, 1.1, shape) + noise(generator, 2.2, shape) + 0.5 * noise(generator, 4.5, shape)
    cleft = soft(gap + 1.2 * noise(generator, 3, shape) - 2.4 * broad + 2, 0.6)
    vacuole = soft(2.3 - noise(generator, 5, shape), 0.06)
    present = (1 - cleft) * (1 - 0.9 * vacuole)
    border = np.exp(-((gap / 3) ** 2))
    eosin = (0.58 + 0.12 * tint + 0.07 * broad + 0.13 * wisps + 0.15 * border).clip(0.12)
    haematoxylin = (0.12 + 0.05 * tint + 0.04 * wisps).clip(0)
    return haematoxylin * present, eosin * present


def collagen(generator: np.random.Generator, shape: Sequence[int]) -> tuple[Floats, Floats]:
    """Haematoxylin and eosin (H, W) of wavy fibres with clefts between them."""
    y, x = np.indices(shape)
    fibres = gaussian_filter(generator.standard_normal(shape), (1.8, 45), mode="wrap")
    bent = y + 40 * noise(generator, 110, shape) + 0.25 * x, x + 0.0
    fibres = map_coordinates(fibres / fibres.std(), bent, order=1, mode="grid-wrap")
    present = soft(-1.5 - fibres - 0.7 * noise(generator, 14, shape), 0.15)
    return present * (0.06 + 0.02 * fibres), present * (0.75 + 0.16 * fibres + 0.06 * noise(generator, 2, shape))


def draw_tumour_nuclei(
    generator: np.random.Generator, cells: NDArray[np.int_], haematoxylin: Floats, eosin: Floats
) -> None:
    """An interphase nucleus in each cell with these middles (N, 2), of one tumour's size and texture.

    Cells on the very edge of the layers (H, W) get none, here as below.
    """
    radius, openness = generator.uniform(14.5, 16), generator.uniform(0.6, 0.8)
    for place in inside(cells, NUCLEUS_SIDE // 2, eosin.shape):
        part = around(place, NUCLEUS_SIDE)
        own_openness = np.clip(generator.normal(openness, 0.25), 0, 1)
        draw_nucleus(generator, haematoxylin[part], eosin[part], own_openness, radius * generator.uniform(0.75, 1.3))


def draw_stroma_nuclei(
    generator: np.random.Generator, places: NDArray[np.int_], haematoxylin: Floats, eosin: Floats
) -> None:
    """Fibroblasts and lymphocytes at these places (N, 2)."""
    for place in inside(places, NUCLEUS_SIDE // 2, eosin.shape):
        part = around(place, NUCLEUS_SIDE)
        if generator.random() < 0.25:
            draw_imposter(generator, "lymphocyte", haematoxylin[part], eosin[part])
        else:
            draw_fibroblast(generator, haematoxylin[part], eosin[part])


def photographed(generator: np.random.Generator, haematoxylin: Floats, eosin: Floats) -> NDArray[np.uint8]:
    """Two densities (H, W) as a scanner sees them, unevenly stained, a little blurred and noisy: uint8 (H, W, 3)."""
    shape = haematoxylin.shape
    density = np.stack([haematoxylin, eosin], -1).clip(0) @ STAINS
    density *= (1 + 0.06 * noise(generator, 60, shape))[..., None]
    light = np.exp(-density)
    light = gaussian_filter(light, (0.75, 0.75, 0))
    light += 0.7 * (light - gaussian_filter(light, (1.5, 1.5, 0)))  # scanners sharpen
    light += generator.normal(0, 0.008, light.shape)
    return (light.clip(0, 1) * 244).round().astype(np.uint8)
