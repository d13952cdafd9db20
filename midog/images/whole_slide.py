"""Vendors' whole slides, by OpenSlide."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError
from midog.images.level import Cache, Image, check_whole, damaged_at

if TYPE_CHECKING:
    from openslide import OpenSlide


def open_whole_slide(path: Path, cache: Cache) -> Image:
    """What OpenSlide knows."""
    import openslide

    folder = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not folder.is_dir():
        raise UserError(f"{path}: its folder {folder.name}/ is missing; copy it beside the file")
    slide = openslide.OpenSlide(path)
    slide.set_cache(cache.openslide)
    x, y = (float(slide.properties.get(f"openslide.mpp-{axis}", 0)) for axis in "xy")
    levels = [_OpenSlideLevel(path, slide, number) for number in range(slide.level_count)]
    return Image(levels, [(x, y)] if x and y else [], close=slide.close)


class _OpenSlideLevel:
    def __init__(self, path: Path, slide: "OpenSlide", number: int) -> None:
        self._path = path
        self._slide = slide
        self._number = number
        self.size: tuple[int, int] = slide.level_dimensions[number]
        properties = slide.properties
        width, height = (
            int(properties.get(f"openslide.level[{number}].tile-{side}", 1)) for side in ("width", "height")
        )
        check_whole(width, height)  # OpenSlide would end the process for want of memory
        self.segment = width, height
        self._background = "#" + slide.properties.get("openslide.background-color", "ffffff")

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        import openslide
        import PIL.Image

        scale = self._slide.level_downsamples[self._number]
        try:
            region = self._slide.read_region((round(x * scale), round(y * scale)), self._number, (width, height))
        except openslide.OpenSlideError as error:
            raise damaged_at(self._path, x, y, error) from error
        if np.asarray(region.getchannel("A")).min() < 255:  # places that were not scanned
            below = PIL.Image.new("RGBA", region.size, self._background)
            region = PIL.Image.alpha_composite(below, region)
        return np.ascontiguousarray(np.asarray(region)[..., :3])
