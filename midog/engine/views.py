"""The dihedral views of images, and what was found in a view back in its image.

View 0 is the image. Views 0 to 3 are its quarter turns, views 4 to 7 those, mirrored.
"""

import numpy as np
from numpy.typing import NDArray

VIEWS = {1: (0,), 2: (0, 4), 4: (0, 1, 2, 3), 8: tuple(range(8))}  # by how many a system asks for


def dihedral(images: NDArray[np.float32], view: int) -> NDArray[np.float32]:
    """View 0 to 7 of (N, C, H, W): (N, C, H, W), or (N, C, W, H) after an odd number of quarter turns."""
    if view == 0:
        return images
    turned = np.rot90(images, view % 4, (2, 3))
    return (np.flip(turned, 3) if view >= 4 else turned).copy()


def undone(maps: NDArray[np.float32], view: int) -> NDArray[np.float32]:
    """The opposite of `dihedral`: what was computed of a view, (N, C, H, W), as the image has it."""
    return np.rot90(np.flip(maps, 3) if view >= 4 else maps, -(view % 4), (2, 3))


def boxes_from_view(boxes: NDArray[np.float32], view: int, height: int, width: int) -> NDArray[np.float32]:
    """Where boxes in a view lie in its image.

    A pixel's centre is at integer coordinates, so mirroring takes x to width - 1 - x.

    Args:
        boxes: float (K, 4), px of the view.
        view: 0 to 7, as `dihedral`.
        height, width: of the image, px.

    Returns:
        float (K, 4), px of the image.
    """
    turns = view % 4
    if turns % 2:
        height, width = width, height
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    if view >= 4:
        x = width - 1 - x
    for _ in range(turns):
        x, y = height - 1 - y, x
        height, width = width, height
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1)
