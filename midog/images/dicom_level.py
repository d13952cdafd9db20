"""One level of a DICOM slide: the frames of one or several files, each where it belongs."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from midog.errors import UserError
from midog.images.dicom_file import Frames, Instance, first_item, numbers
from midog.images.dicom_pixels import Pixels
from midog.images.level import Cache, Depth, GridLevel, UnsupportedError, seen_depth

if TYPE_CHECKING:
    from pydicom import Dataset

OUTSIDE = -1

Frame = tuple[int, int]  # the number of a file, and of a frame in it
Shown = dict[str, dict[int, dict[float, Frame]]]  # what shows an optical path, a tile in it, a depth there


class DicomLevel(GridLevel):
    """A level in as many files as its makers liked, with every tile or with those that show tissue.

    Of several optical paths the first is read, of several focal planes the middle one.

    Args:
        instances: of one size and one size of frames; where two show the same, the first counts.
        cache: as for `GridLevel`.
        open_files: closes the files.
        depth: of samples of 16 bits, if a finer level has told it.

    Attributes:
        files: the frames of each file.
        depth: of the samples.
        remarks: what was converted, assumed or left out.

    Raises:
        UserError: files are missing.
        UnsupportedError, ValueError: for what cannot be read.
    """

    def __init__(
        self, instances: Sequence[Instance], cache: Cache, open_files: ExitStack, depth: Depth | None = None
    ) -> None:
        first = instances[0]
        super().__init__(first.path, first.size, first.segment, self._decode_tile, cache)
        self.files: list[Frames] = []
        self.remarks: list[str] = []
        self._pixels: list[Pixels] = []
        images: dict[str, list[Instance]] = defaultdict(list)
        for each in instances:
            images[each.source].append(each)
        shown: Shown = defaultdict(lambda: defaultdict(dict))
        repeated = 0
        for parts in images.values():
            parts.sort(key=lambda part: part.order)
            begin = len(self.files)
            for part in parts:
                self._pixels.append(Pixels(part.header))
                self.files.append(Frames(part))
                open_files.callback(self.files[-1].close)
            files = range(begin, len(self.files))
            frames = ((file, frame) for file in files for frame in range(self.files[file].count))
            for (path, tile, z), frame in zip(self._places(parts, self.files[begin:]), frames, strict=True):
                repeated += z in shown[path][tile]
                shown[path][tile].setdefault(z, frame)
        if repeated:
            self.remarks.append(f"{repeated} frames show what others show and are left out")
        self._frames = self._choose(shown)
        self.depth = self._pixels[0].depth
        if self.depth.used == 16:
            self.depth = depth or seen_depth(16, self._values())
            for pixels in self._pixels:
                pixels.depth = self.depth
        self.remarks += self._pixels[0].remarks

    def _choose(self, shown: Shown) -> dict[int, Frame]:
        """The frame of each tile."""
        path, tiles = next(iter(shown.items()))
        if len(shown) > 1:
            self.remarks.append(f"{len(shown)} optical paths, the first ({path}) is read")
        if tiles.pop(OUTSIDE, None):
            self.remarks.append("frames outside of the image are left out")
        if not tiles:
            raise ValueError("no frame lies in the image")
        most = max(len(depths) for depths in tiles.values())
        if most > 1:
            self.remarks.append(f"{most} focal planes, the middle one is read")
        return {tile: sorted(depths.items())[(len(depths) - 1) // 2][1] for tile, depths in tiles.items()}

    def _values(self) -> Iterator[NDArray[Any]]:
        for file, frame in self._frames.values():
            if data := self.files[file].read(frame):
                yield self._pixels[file].values(data)

    def _decode_tile(self, tile: int) -> NDArray[np.uint8] | None:
        if tile not in self._frames:
            return None
        file, frame = self._frames[tile]
        data = self.files[file].read(frame)
        return self._pixels[file].decode(data) if data else None

    def _places(self, parts: Sequence[Instance], files: Sequence[Frames]) -> Iterator[tuple[str, int, float]]:
        """Optical path, tile (row by row) and depth of all frames of an image that is in parts."""
        header = parts[0].header
        self._check_complete(parts, files)
        paths = [str(path.get("OpticalPathIdentifier", "")) for path in header.get("OpticalPathSequence") or ()] or [""]
        row_by_row = header.get("DimensionOrganizationType") == "TILED_FULL"
        places = [file.places for file in files if file.places is not None]
        if len(places) == len(files):
            tiles = self._tiles_at(np.concatenate(places))
            apart = tiles is not None and len(set(tiles)) == min(len(tiles), self.columns * self.rows)
            if tiles is not None and (apart or not row_by_row):
                names = (name or paths[0] for file in files for name in file.optical_paths)
                return zip(names, tiles, (depth for file in files for depth in file.depths), strict=True)
            if not row_by_row:
                raise UnsupportedError("tiles that lie on no common grid are not read")
        elif not row_by_row and self.columns * self.rows > 1:
            self.remarks.append("no places of the tiles in the file, taken row by row")
        if len({part.order for part in parts}) < len(parts):
            raise UnsupportedError("a level whose files are in no order is not read")
        return self._row_by_row(header, paths, sum(file.count for file in files))

    def _check_complete(self, parts: Sequence[Instance], files: Sequence[Frames]) -> None:
        """Make sure that no part of an image is missing, as far as the others tell."""
        total = parts[0].header.get("InConcatenationTotalNumber") or 1
        offsets = [part.header.get("ConcatenationFrameOffsetNumber") for part in parts]
        begins = accumulate((file.count for file in files[:-1]), initial=0)
        gaps = (offset not in (None, begin) for offset, begin in zip(offsets, begins, strict=True))
        if len(parts) < total or any(gaps):
            raise UserError(
                f"{self._path}: of the files of this level only {len(parts)} are in the folder; "
                "copy all files of the slide there"
            )

    def _tiles_at(self, places: NDArray[np.int64]) -> list[int] | None:
        """The tiles at (column, row) of pixels, which count from 1 or, by some writers, from 0; None off the grid."""
        for origin in (1, 0):
            tiles, rest = np.divmod(places - origin, self.segment)
            if not rest.any():
                inside = ((tiles >= 0) & (tiles < (self.columns, self.rows))).all(axis=1)
                return np.where(inside, tiles[:, 1] * self.columns + tiles[:, 0], OUTSIDE).tolist()
        return None

    def _row_by_row(self, header: "Dataset", paths: list[str], count: int) -> Iterator[tuple[str, int, float]]:
        """The places of frames that the file need not name: all tiles of a plane, all planes of an optical path."""
        tiles = self.columns * self.rows
        planes = 1 if count == tiles else int(header.get("TotalPixelMatrixFocalPlanes") or 1)
        expected = 1 if count == tiles else int(header.get("NumberOfOpticalPaths") or len(paths))
        if count != tiles * planes * expected:
            raise UserError(
                f"{self._path}: {count} frames do not tile {self.size[0]} x {self.size[1]} px; "
                "copy all files of the slide into its folder, or convert it to a tiled TIFF"
            )
        paths = paths + [str(number) for number in range(len(paths), expected)]
        depths = numbers(first_item(header, "TotalPixelMatrixOriginSequence"), "ZOffsetInSlideCoordinateSystem")
        for index in range(count):
            plane = index // tiles
            yield paths[plane // planes], index % tiles, (depths[0] if depths else 0.0) + plane % planes
