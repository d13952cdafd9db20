"""Run a system's documented commands, from the official download to `inference.py`, on small made-up data.

    python -m resources.rehearse sztu --out output/rehearsal/sztu

The commands are those of docs/TRAINING.md, read from it: the block under the heading that names the system. Only what
`cut` adds is another: few steps of small batches and tiles, from random weights: minutes on a processor. Widths and
depths of the networks are the recipe's own, unless --narrow. It ends with the first command that fails.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from midog.errors import UserError, exit_code

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs/TRAINING.md"

DETECTOR = ("epochs=1", "steps_an_epoch=2", "batch=2", "warmup_epochs=0", "validation_tiles=2", "tile=[320,320]")
CLASSIFIER = ("epochs=1", "steps_an_epoch=2", "batch=4", "warmup_epochs=0")
TRAININGS = {
    "resources.train.yolo11": ("detector", DETECTOR),
    "resources.train.rtmdet": ("detector", DETECTOR),
    "resources.train.focasnet": ("detector", DETECTOR),
    "resources.train.candidates": ("classifier", CLASSIFIER),
    "resources.train.atypical": ("classifier", ("epochs=1", "batch=4", "folds=2")),
}
# About the first scores, which two steps hardly change.
LOW = {"sztu": "0.0005", "rtmdet_s": "0.01", "focasnet": "0.014"}
SEARCH = ("detector.tile=[640,640]", "detector.views=1")
SPARSE = ("detector.merge.distance_um=50",)  # so that a second stage does not look everywhere
SMALL = ("training.detector.tile=[128,128]", "training.detector.ema_momentum=[1.0]")
NARROW = {
    "sztu": (*SMALL, "detector.options.scale=n", "classifier.options={name: test_convnext}"),
    "rtmdet_s": (*SMALL, "detector.options.size=tiny"),
    "focasnet": (
        *SMALL,
        "detector.options={backbone: 18, levels: 2, width: 32, depth: 1}",
        "classifier.options={name: test_resnet}",
        "classifier.input_px=64",
    ),
    "convnextv2": ("classifier.options={widths: [8, 16], depths: [1, 1], stem: patch}",),
}
PIECES = ("--images", "4", "--size", "640", "640")  # of a made-up set
TRACK_2 = ("--images", "48")


def documented(system: str) -> list[list[str]]:
    """The commands of a system in docs/TRAINING.md, each as its words.

    Raises:
        UserError: there are none.
    """
    text = DOCUMENT.read_text()
    block = re.search(rf"^### `{re.escape(system)}`.*?\n((?:    [^\n]*\n)+)", text, re.MULTILINE | re.DOTALL)
    if not block:
        raise UserError(f"{DOCUMENT}: has no commands under a heading of {system}; write them there")
    return [shlex.split(line) for line in block[1].replace("\\\n", " ").splitlines()]


def cut(words: Sequence[str], system: str, narrow: bool) -> list[str]:
    """A documented command as it is run: with few steps."""
    given = [sys.executable if word == "python" else word for word in words]
    module = words[2] if words[1] == "-m" else ""
    if module == "resources.data.split" and "--folds" in words:
        return [*given, "--folds", "2"]
    if module == "resources.train.mine":
        return [*given, "--threshold", LOW[system]]
    if module == "resources.train.folds":
        module = f"resources.train.{words[3]}"
    if module not in TRAININGS:
        return given
    part, values = TRAININGS[module]
    changes = [f"training.{part}.{each}" for each in values]
    if system in LOW:
        changes += [*SEARCH, f"detector.score_threshold={LOW[system]}"]
    if system == "focasnet":
        changes += SPARSE
    changes += [each for each in NARROW[system] if narrow and part in each.split(".")[:2]]
    return [*given, "--pretrained", "none", "--device", "cpu", "--set", *changes]


def sets_of(commands: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """The official sets that the commands prepare: (name, folder as it was unpacked)."""
    prepared = [words for words in commands if "resources.data.prepare" in words]
    return [tuple(words[words.index("resources.data.prepare") + 1 :][:2]) for words in prepared]  # type: ignore[misc]


def rehearse(arguments: argparse.Namespace) -> None:
    commands, out = documented(arguments.system), arguments.out.resolve()
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: is not empty; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("test", "inference.py"):
        (out / name).symlink_to(ROOT / name)
    for name, folder in sets_of(commands):
        size = TRACK_2 if name == "midog25" else PIECES
        _run([sys.executable, "-m", "resources.data.official_layouts", name, folder, *size], out)
    for words in commands:
        print("$ " + shlex.join(words), flush=True)
        _run(cut(words, arguments.system, arguments.narrow), out)
    print(f"{arguments.system}: all {len(commands)} commands ended well")


def _run(command: Sequence[str], folder: Path) -> None:
    begun = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if code := subprocess.run(command, cwd=folder, env=environment).returncode:
        raise UserError(f"{shlex.join(command)}: ended with {code}, see above")
    print(f"  {time.monotonic() - begun:.0f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m resources.rehearse",
        description="Run a system's commands of docs/TRAINING.md, on small made-up copies of the official data.",
    )
    parser.add_argument("system", choices=NARROW, help="a published system")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder, for all of it")
    parser.add_argument("--narrow", action="store_true", help="with narrow networks, for a test")
    return exit_code(rehearse, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
