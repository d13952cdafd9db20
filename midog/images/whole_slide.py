"""Vendors' whole slides, by OpenSlide."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError
from midog.images.level import Cache, Image, check_whole, damaged_at
from midog.images.resolution import number, of_aperio, of_axes, of_resolution_tags

if TYPE_CHECKING:
    from openslide import OpenSlide

TIFF_SUFFIXES = {".svs", ".scn", ".bif"}
RESOLUTION_UNITS = {"inch": 2, "centimeter": 3}  # OpenSlide's names of TIFF's numbers


def open_whole_slide(path: Path, cache: Cache) -> Image:
    """What OpenSlide knows."""
    folder = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and not folder.is_dir():
        raise UserError(f"{path}: its folder {folder.name}/ is missing; copy it beside the file")
    _check_counts(path)
    handle = _Handle(path, cache)
    properties = handle.slide.properties
    x, y = (number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    spacings = of_axes(x, y, "the slide's properties")
    spacings += of_aperio(properties.get("openslide.comment", ""))  # of other writers than Aperio
    x, y = (number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY")
    spacings += of_resolution_tags(RESOLUTION_UNITS.get(properties.get("tiff.ResolutionUnit", "")), x, y)
    power = properties.get("openslide.objective-power")
    corner = tuple(int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
    levels = [_OpenSlideLevel(handle, level) for level in range(handle.slide.level_count)]
    return Image(
        levels,
        spacings,
        objective=f"{power}x" if power else "",
        corner_px=(corner[0], corner[1]),
        close=lambda: handle.slide.close(),
    )


def _check_counts(path: Path) -> None:
    """Refuse pieces larger than the file, for whose memory OpenSlide would end the process."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return
    import tifffile

    try:
        with tifffile.TiffFile(path) as tif:
            largest = max(max(page.databytecounts, default=0) for page in tif.pages)
    except Exception:  # OpenSlide says what is wrong, or reads it
        return
    if largest > path.stat().st_size:
        raise ValueError("a piece is larger than the file")


class _Handle:
    """An open slide. After an error OpenSlide's own gives nothing more, though the rest of the file may be whole."""

    def __init__(self, path: Path, cache: Cache) -> None:
        self.path = path
        self._cache = cache
        self.slide = self._open()

    def _open(self) -> "OpenSlide":
        import openslide

        slide = openslide.OpenSlide(self.path)
        slide.set_cache(self._cache.openslide)
        return slide

    def open_again(self) -> None:
        self.slide.close()
        self.slide = self._open()


class _OpenSlideLevel:
    def __init__(self, handle: _Handle, number: int) -> None:
        self._handle = handle
        self._number = number
        slide = handle.slide
        self.size: tuple[int, int] = slide.level_dimensions[number]
        self._downsample = slide.level_downsamples[number]
        width, height = (
            int(slide.properties.get(f"openslide.level[{number}].tile-{side}", 1)) for side in ("width", "height")
        )
        check_whole(width, height)  # OpenSlide would end the process for want of memory
        self.segment = width, height
        self._background = "#" + slide.properties.get("openslide.background-color", "ffffff")

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        import openslide
        import PIL.Image

        place = round(x * self._downsample), round(y * self._downsample)
        try:
            region = self._handle.slide.read_region(place, self._number, (width, height))
        except openslide.OpenSlideError as error:
            self._handle.open_again()
            raise damaged_at(self._handle.path, x, y, error) from error
        if np.asarray(region.getchannel("A")).min() < 255:  # places that were not scanned
            below = PIL.Image.new("RGBA", region.size, self._background)
            region = PIL.Image.alpha_composite(below, region)
        return np.ascontiguousarray(np.asarray(region)[..., :3])
