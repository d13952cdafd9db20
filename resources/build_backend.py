"""Builds the package: setuptools, with the dependencies from requirements.txt and its sections.

A wheel has the weights of model/, or of another folder of systems: `pip wheel . -C weights=DIR`.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta, setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements.txt"
WEIGHTS = "model"


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


def _weights(config_settings: Mapping[str, Any] | None) -> str:
    """The folder that becomes `midog.weights`, relative to the root, as setuptools wants it."""
    folder = ROOT / (config_settings or {}).get("weights", WEIGHTS)
    if not any(folder.glob("*/model.yaml")):
        remedy = "-C weights=DIR takes what midog export-openvino wrote"
        raise SystemExit(f"error: {folder}: no system in this folder; {remedy}")
    return os.path.relpath(folder, ROOT)


class _Backend(build_meta._BuildMetaBackend):
    weights = WEIGHTS
    build_base = "build"

    def build_wheel(
        self,
        wheel_directory: str,
        config_settings: Mapping[str, Any] | None = None,
        metadata_directory: str | None = None,
    ) -> str:
        self.weights = _weights(config_settings)
        with tempfile.TemporaryDirectory() as self.build_base:  # what an earlier one left would be packed, too
            return super().build_wheel(wheel_directory, config_settings, metadata_directory)

    def run_setup(self, setup_script: str = "") -> None:
        pins = sections(REQUIREMENTS.read_text(encoding="utf-8"))
        torch = pins["torch"] + pins["metrics"] + pins["evaluation"]
        setup(
            install_requires=pins["base"] + pins["report"],
            extras_require={
                "torch": torch,
                "openvino": pins["openvino"],
                "evaluation": pins["evaluation"],
                "train": torch + pins["train"],
                "pretrained": pins["pretrained"],
                "cluster": pins["cluster"],
            },
            package_dir={"midog.weights": self.weights},
            options={"build": {"build_base": self.build_base}},
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
