"""Builds the package: setuptools, with the dependencies from requirements.txt and its sections."""

import re
from pathlib import Path

from setuptools import build_meta, setup
from setuptools.command.sdist import sdist

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def sections(text: str) -> dict[str, list[str]]:
    """The pins of a requirements file by the name in the "# --- name" line above them."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if heading := re.match(r"# --- (\w+)", line):
            pins = found.setdefault(heading[1], [])
        elif pin := line.partition("#")[0].strip():
            pins.append(pin)
    return found


class _Sdist(sdist):
    def make_distribution(self) -> None:
        self.filelist.append(REQUIREMENTS.name)  # no setting names it, and a wheel made from the archive reads it
        super().make_distribution()


class _Backend(build_meta._BuildMetaBackend):
    def run_setup(self, setup_script: str = "") -> None:
        pins = sections(REQUIREMENTS.read_text(encoding="utf-8"))
        engine = pins["torch"] + pins["metrics"]
        setup(
            install_requires=pins["base"] + pins["evaluation"],
            extras_require={
                "torch": engine,
                "train": engine + pins["train"],
                "pretrained": pins["pretrained"],
                "cluster": pins["cluster"],
            },
            cmdclass={"sdist": _Sdist},
        )


_backend = _Backend()
build_wheel = _backend.build_wheel
build_sdist = _backend.build_sdist
build_editable = _backend.build_editable
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
