"""A folder of labelled images with those in strips or in one piece written anew as tiles, for quick windows.

    python -m resources.data.retile DIR OUT

Training reads small windows anywhere in an image. Of a TIFF in strips as wide as the image, and of a PNG or JPEG, it
has to decode much more than a window. OUT gets JPEG-tiled TIFFs of them (quality 95 without chroma subsampling) and
both tables; images that are in tiles already are named where they lie. A killed run goes on when the same command is
given again: images.csv comes last.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

from midog.errors import UserError, exit_code
from midog.evaluation.tables import image_names, read_tables
from midog.files import check_writable, write_file, write_with
from midog.images.slide import Slide, open_slide
from resources.data.fields import DEAR_PX, decoded_px

TILE = 512  # px
QUALITY = 95


def write_tiles(slide: Slide, path: Path) -> None:
    """An image as an RGB TIFF of JPEG tiles with its um per pixel, tile by tile, whole or not at all."""
    columns, rows = (-(-side // TILE) for side in slide.size)

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for row in range(rows):
            for column in range(columns):
                yield np.ascontiguousarray(slide.read_reflected(column * TILE, row * TILE, TILE, TILE))

    write_with(
        path,
        lambda part: tifffile.imwrite(
            part,
            tiles(),
            shape=(slide.size[1], slide.size[0], 3),
            dtype=np.uint8,
            photometric="rgb",  # given; JPEG makes YCbCr of it
            tile=(TILE, TILE),
            compression="jpeg",
            compressionargs={"level": QUALITY},
            subsampling=(1, 1),
            resolution=tuple(10_000 / each for each in slide.um_per_px),
            resolutionunit="CENTIMETER",
            metadata=None,
            software=False,
        ),
    )


def retile(arguments: argparse.Namespace) -> None:
    folder, out = arguments.folder, arguments.out
    images, figures = read_tables(folder)
    targets = [out / "images" / Path(name).with_suffix(".tiff") for name in image_names(images.image)]
    if len(set(targets)) < len(targets):
        raise UserError(f"{folder}: two images of one name but for the suffix; rename one")
    check_writable(out / "images")
    names = {}
    for row, target in tqdm(list(zip(images.itertuples(), targets, strict=True)), "images", disable=None):
        path = folder / row.image
        with open_slide(path, float(row.um_per_px)) as slide:
            if decoded_px(slide) > DEAR_PX:
                path = target
                if not path.exists():
                    check_writable(path.parent)
                    write_tiles(slide, path)
        names[row.image] = Path(os.path.relpath(path, out)).as_posix()
    for table, name in ((figures, "figures.csv"), (images, "images.csv")):
        moved = table.assign(image=table.image.map(names))
        write_file(out / name, moved.to_csv(index=False))
    written = sum(name.startswith("images/") for name in names.values())
    print(f"{out}: {written} of {len(names)} images in tiles, the others where they were")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="labelled images, see docs/DATA.md")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder, or of a killed run of the same command")
    return exit_code(retile, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
