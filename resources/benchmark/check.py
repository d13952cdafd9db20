"""What `midog check` says of labelled fields, and of the same fields with a wrong scale, other colours, mistaken axes.

    python -m resources.benchmark.check --data DIR[:CASES] ... [--fields N] [--system NAME]

Without --system only the tissue is measured: a row a set and change with the lowest and highest of its fields. With it
the whole check is run on the fields with the most figures: a row a set and change, each line's verdicts counted as
ok/look/wrong. docs/CHECK.md has what it printed, and the tolerances that follow.
"""

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from midog import check
from midog.detections import Detections
from midog.errors import UserError, exit_code
from midog.evaluation.arrangement import Arrangement
from midog.evaluation.tables import CLASSES, chosen_images
from midog.images.appearance import Appearance
from midog.images.slide import ArraySlide, open_slide
from midog.run import load
from midog.system import find_system, model_folder

Pixels = NDArray[np.uint8]
LINES = "Scale", "Axes", "Stains", "Brightness", "Recall", "False positives", "Count"
MOST_SIDE = 1024  # px of a field that are taken, around its figures


class Labelled(NamedTuple):
    """A field: its set, name, pixels, um per pixel, and float64 (N, 2), the figures in px."""

    set: str
    name: str
    pixels: Pixels
    um_per_px: float
    figures: NDArray[np.float64]


def fields_of(selection: str, count: int, with_figures: bool) -> Iterator[Labelled]:
    """Evenly over the table, or those with the most figures."""
    folder, images, figures = chosen_images(selection)
    figures = figures[figures.label == CLASSES[0]]
    if with_figures:
        counted = figures.groupby("image").size()
        images = images[images["image"].isin(counted.index)]
        images = images.iloc[np.argsort(-counted[images["image"]].to_numpy(), kind="stable")[:count]]
    else:
        images = images.iloc[np.unique(np.linspace(0, len(images) - 1, count).round().astype(int))]
    for row in images.itertuples():
        um_per_px = float(row.um_per_px)
        places = figures[figures["image"] == row.image][["x", "y"]].to_numpy(float)
        with open_slide(folder / row.image, um_per_px) as slide:
            sides = np.minimum(slide.size, MOST_SIDE)
            near = (np.abs(places[:, None] - places) <= sides / 2).all(-1).sum(1)  # of each figure, others around it
            middle = places[near.argmax()] if len(places) else np.array(slide.size) / 2
            (left, top), (width, height) = (middle - sides / 2).clip(0, slide.size - sides).astype(int), sides
            pixels = slide.read(left, top, width, height)
        places = places - (left, top)
        inside = ((places >= 0) & (places < (width, height))).all(axis=1)
        yield Labelled(folder.resolve().name, row.name, pixels, um_per_px, places[inside])


# --- what is changed ----------------------------------------------------------


def powered(pixels: Pixels, gamma: float) -> Pixels:
    return np.rint(255 * (pixels / 255) ** gamma).astype(np.uint8)


def turned(pixels: Pixels, degrees: float) -> Pixels:
    """With the optical densities turned around that of grey: of every hue another."""
    angle, axis = np.radians(degrees), np.full(3, 3**-0.5)
    cross = np.cross(np.eye(3), axis)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    density = -np.log10(np.maximum(pixels, 1) / 255) @ turn
    return np.rint(255 * 10 ** -density.clip(0)).astype(np.uint8)


def resampled(field: Labelled, um_per_px: float) -> Labelled:
    factor = field.um_per_px / um_per_px
    height, width = (round(side * factor) for side in field.pixels.shape[:2])
    pixels = np.asarray(Image.fromarray(field.pixels).resize((width, height), Image.Resampling.BICUBIC))
    return field._replace(pixels=pixels, um_per_px=um_per_px, figures=(field.figures + 0.5) * factor - 0.5)


def recoloured(change: Callable[[Pixels], Pixels]) -> Callable[[Labelled], Labelled]:
    return lambda field: field._replace(pixels=change(field.pixels))


def rearranged(arrangement: Arrangement) -> Callable[[Labelled], Labelled]:
    return lambda field: field._replace(
        figures=arrangement.apply(field.figures, (field.pixels.shape[1], field.pixels.shape[0]))
    )


COLOURS: dict[str, Callable[[Labelled], Labelled]] = {
    "as it is": lambda field: field,
    ".5 told as .25": lambda field: resampled(field, 0.5)._replace(um_per_px=0.25),
    ".25 told as .5": lambda field: resampled(field, 0.25)._replace(um_per_px=0.5),
    "red and blue swapped": recoloured(lambda pixels: np.ascontiguousarray(pixels[..., ::-1])),
    "red cast": recoloured(lambda pixels: (pixels * [1, 0.75, 0.75]).astype(np.uint8)),
    "cyan cast": recoloured(lambda pixels: (pixels * [0.75, 1, 1]).astype(np.uint8)),
    "stains turned 40": recoloured(lambda pixels: turned(pixels, 40)),
    "stains turned -40": recoloured(lambda pixels: turned(pixels, -40)),
    "gamma .45": recoloured(lambda pixels: powered(pixels, 0.45)),
    "gamma 2.2": recoloured(lambda pixels: powered(pixels, 2.2)),
}
COUNTS = {
    "count mirrored in x": rearranged(Arrangement(mirrored_x=True)),
    "count mirrored in y": rearranged(Arrangement(mirrored_y=True)),
    "count of x and y swapped": rearranged(Arrangement(swapped=True)),
    "count of half the size": rearranged(Arrangement(0.5)),
    "count of twice the size": rearranged(Arrangement(2)),
}


# --- what is said -------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> None:
    """Print the table of the tissue."""
    trained = find_system(model_folder(arguments.model), None, 1).made.tissue
    assert trained
    print("| set | change | fields | nuclei | haematoxylin | eosin | order | brightness | glass | nuclei at twice |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for selection in arguments.data:
        fields = list(fields_of(selection, arguments.fields, False))
        for name, change in COLOURS.items():
            rows = []
            for field in map(change, fields):
                looks = check.appearance_in(field.pixels, (field.um_per_px, field.um_per_px))
                if looks:
                    angles = check.angles_of(looks, trained)
                    ratio = check.nucleus_ratio(looks, trained)
                    light = looks.brightness, looks.white_level
                    rows.append((ratio, *angles.values(), check.order_of(looks), *light, _more_nuclei(field, looks)))
            columns = list(zip(*rows, strict=True)) or [()] * len(FORMS)
            shown = [_range(values, form) for values, form in zip(columns, FORMS, strict=True)]
            print(f"| {selection.split('/')[-1]} | {name} | {len(rows)} | {' | '.join(shown)} |", flush=True)


FORMS = ".2f", ".0f", ".0f", ".2f", ".0f", ".0f", ".1f"


def _more_nuclei(field: Labelled, looks: Appearance) -> float | None:
    """How many times as many nuclei there are at twice the um per pixel; None where those are few."""
    told, twice = check.nuclei_at_twice(field.pixels, (field.um_per_px, field.um_per_px), looks)
    return twice / max(told, 1) if twice >= check.LEAST_NUCLEI else None


def _range(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):{form}} to {max(known):{form}}" if known else "-"


class Remembering:
    """A runner that runs no pixels twice."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.system = runner, runner.system
        self.known: dict[tuple[bytes, float], Detections] = {}

    def predict(self, pixels: Pixels, um_per_px: float) -> Detections:
        key = pixels.tobytes(), um_per_px
        if key not in self.known:
            self.known[key] = self.runner.predict(pixels, um_per_px)
        return self.known[key]


def run_checks(arguments: argparse.Namespace) -> None:
    """Print the table of the whole check."""
    runner = load(arguments.system, 1, arguments.model)
    logging.getLogger("midog").setLevel(logging.WARNING)
    print(f"| set | change | all | {' | '.join(LINES)} | explained |")
    print("|" + "---|" * (len(LINES) + 4), flush=True)
    for selection in arguments.data:
        said: dict[str, list[check.Examination]] = {name: [] for name in COLOURS | COUNTS}
        fields = list(fields_of(selection, arguments.fields, True))
        for field in tqdm(fields, selection, disable=None, leave=False):
            remembering = Remembering(runner)
            for name, change in (COLOURS | COUNTS).items():
                try:
                    said[name].append(_examine(remembering, change(field)))
                except UserError:  # places that lie outside, and that nothing explains
                    continue
        for name, looked in said.items():
            refused = f", refused {len(fields) - len(looked)}" * (len(looked) < len(fields))
            cells = [_verdicts([each.verdict for each in looked]) + refused]
            for line in LINES:
                cells.append(_verdicts([one.verdict for each in looked for one in each.findings if one.name == line]))
            notes = "; ".join(
                f"{note} ({count})" for note, count in Counter(each.note for each in looked).items() if note
            )
            print(f"| {selection.split('/')[-1]} | {name} | {' | '.join(cells)} | {notes} |", flush=True)


def _examine(runner: Any, field: Labelled) -> check.Examination:
    slide = ArraySlide(field.pixels, (field.um_per_px, field.um_per_px))
    with tempfile.TemporaryDirectory() as folder:
        count = Path(folder) / "count.csv"
        rows = [f"{x:.2f},{y:.2f}\n" for x, y in (field.figures + 0.5).tolist()]
        count.write_text("".join(["x_px,y_px\n", *rows]))
        return check.examine(runner, slide, slide.overview(check.OVERVIEW_PX), count, field.name)


def _verdicts(verdicts: Sequence[str]) -> str:
    counts = Counter(verdicts)
    return "/".join(str(counts[each]) for each in (check.OK, check.LOOK, check.WRONG))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR[:CASES]", help="folders of labelled fields")
    parser.add_argument("--fields", type=int, default=6, metavar="N", help="of each (%(default)s)")
    parser.add_argument("--model", metavar="DIR", help="folder of systems (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="to run, for the whole check")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    return exit_code(run_checks if arguments.system else measure, arguments)


if __name__ == "__main__":
    sys.exit(main())
