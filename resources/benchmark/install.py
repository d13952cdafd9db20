"""What an installation costs: seconds, downloads and disk, each way in a fresh environment.

    python -m resources.benchmark.install [--exported DIR] [--ways plain openvino]

Wheels are fetched without a cache, and then installed. The package's own wheel, with its weights, is made from the
clone and no download. On disk counts the whole environment, with pip. All ways together download some 9 GB.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from midog.errors import UserError, exit_code
from resources.build_backend import REQUIREMENTS, ROOT, WEIGHTS
from resources.lock import LOCK

SOURCES = "midog", "resources", WEIGHTS, "pyproject.toml", REQUIREMENTS.name, "README.md", "LICENSE"
WAYS = {"plain": ".", "openvino": ".[openvino]", "torch": ".[torch]", "lock": "./run.sh"}


def copy_sources(folder: Path) -> None:
    """What the package is made from, so that a build leaves nothing in the clone."""
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, folder)
        else:
            raise UserError(f"{path}: not found; run the benchmark in a clone of the repository")


def _seconds(python: Path, *arguments: str | Path) -> float:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    started = time.perf_counter()
    if subprocess.run(command).returncode:
        raise UserError(f"pip {' '.join(map(str, arguments))}: failed, see above; is the package index reached?")
    return time.perf_counter() - started


def _mb_on_disk(folder: Path) -> float:
    return sum(path.lstat().st_blocks for path in folder.rglob("*")) * 512 / 1e6


def measure(way: str, source: Path, exported: Path, folder: Path) -> None:
    """Install and print a line.

    Args:
        way: of `WAYS`.
        source: a copy of the clone.
        exported: the systems' folder for OpenVINO.
        folder: an empty one, for environment and wheels.
    """
    wanted = {
        "plain": [str(source)],
        "openvino": [f"{source}[openvino]", "-C", f"weights={exported.resolve()}"],
        "torch": [f"{source}[torch]"],
        "lock": ["--no-deps", "--require-hashes", "-r", str(LOCK)],
    }
    environment, wheels = folder / "environment", folder / "wheels"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    fetched = _seconds(python, "wheel", "--no-cache-dir", "--wheel-dir", wheels, *wanted[way])
    files = sorted(wheels.iterdir())
    installed = _seconds(python, "install", "--no-cache-dir", "--no-index", "--no-deps", *files)
    downloads = sum(path.stat().st_size for path in files if not path.name.startswith("midog-")) / 1e6
    print(
        f"{WAYS[way]:12s} {len(files):3d} wheels, {downloads:6.0f} MB downloaded in {fetched:5.0f} s, "
        f"{_mb_on_disk(environment):6.0f} MB on disk after {installed:5.0f} s",
        flush=True,
    )


def run(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "source")
        source.mkdir()
        copy_sources(source)
        for way in arguments.ways:
            with tempfile.TemporaryDirectory(dir=name) as folder:
                measure(way, source, arguments.exported, Path(folder))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m resources.benchmark.install",
        description="What an installation costs: seconds, downloads and disk, each way in a fresh environment.",
    )
    parser.add_argument(
        "--exported",
        type=Path,
        default=ROOT / WEIGHTS,
        metavar="DIR",
        help="what midog export-openvino wrote, for the wheel with OpenVINO (%(default)s, to see what is as large)",
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="(all)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
