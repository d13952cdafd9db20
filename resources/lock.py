"""requirements.lock from requirements.txt: every package that is installed, at one version, with its files' hashes.

    python -m resources.lock              # after a change of requirements.txt
    python -m resources.lock --upgrade    # and with the latest releases of what the pins need

uv resolves for every system that the pins run on, and asks the package index for it. What the container takes comes
first, so that its Dockerfile can stop at the line below it.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from midog.errors import UserError, exit_code
from midog.files import write_file
from resources.build_backend import REQUIREMENTS, sections

LOCK = REQUIREMENTS.with_suffix(".lock")
NOT_INFERRED_WITH = {"triton", "cuda-bindings", "nvidia-cusolver-cu12", "hf-xet"}  # what the networks never load
LEFT_OUT = (
    "opencv-python",  # Ultralytics asks for it; opencv-python-headless has the same files without GUI libraries
    "openvino-telemetry",  # tells OpenVINO's maker of every import; OpenVINO does without
)
HEAD = """\
# Made from requirements.txt by python -m resources.lock; install all of it: pip install --no-deps -r requirements.lock
"""
END_OF_CONTAINER = "# --- not in the container"


def entries(text: str) -> dict[str, str]:
    """A lock's packages.

    Args:
        text: of a requirements file in which lines that belong together are indented.

    Returns:
        dict from "name==version" to the lines of the entry.
    """
    blocks = re.findall(r"^[a-z0-9].*(?:\n    .*)*\n", text, re.MULTILINE)
    return {block.split(maxsplit=1)[0]: block for block in blocks}


def _resolve(pins: Iterable[str], known: str, *options: str) -> str:
    """What some pins need, as uv's text; of packages that are known already, the known versions."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder, "lock")
        lock.write_text(known, encoding="utf-8")
        command = ["uv", "pip", "compile", "-", "--universal", "--python-version", "3.11", "--quiet", *options]
        command += [each for name in LEFT_OUT for each in ("--no-emit-package", name)]
        command += ["--no-header", "--no-annotate", "--output-file", str(lock)]
        try:
            subprocess.run(command, input="\n".join(pins), text=True, check=True)
        except FileNotFoundError:
            raise UserError("uv is not installed, which this needs; source ./environment.sh") from None
        except subprocess.CalledProcessError:
            raise UserError(f"{REQUIREMENTS}: uv cannot resolve it (see above); change the pins it names") from None
        return lock.read_text(encoding="utf-8")


def locked(requirements: str, known: str) -> str:
    """The text of the lock.

    Args:
        requirements: text of requirements.txt.
        known: text of the lock so far, whose versions are kept where they fit.
    """
    pins = sections(requirements)
    everything = entries(_resolve((pin for part in pins.values() for pin in part), known, "--generate-hashes"))
    container = entries(_resolve(pins["base"] + pins["torch"], "\n".join(everything)))
    first = [name for name in everything if name in container and name.partition("==")[0] not in NOT_INFERRED_WITH]
    rest = [name for name in everything if name not in first]
    return "".join(
        [HEAD, *(everything[name] for name in first), END_OF_CONTAINER, "\n", *(everything[n] for n in rest)]
    )


def run(arguments: argparse.Namespace) -> None:
    known = "" if arguments.upgrade or not LOCK.exists() else LOCK.read_text(encoding="utf-8")
    write_file(LOCK, locked(REQUIREMENTS.read_text(encoding="utf-8"), known))
    print(f"{LOCK}: {len(entries(LOCK.read_text(encoding='utf-8')))} packages")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m resources.lock", description="requirements.lock anew.")
    parser.add_argument("--upgrade", action="store_true", help="take the latest releases of what the pins need")
    return exit_code(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
