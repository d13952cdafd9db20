"""Shared by the tests: the project's root on the path, small jobs and stacks."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from resources.data import synthetic  # noqa: E402


@pytest.fixture(scope="session")
def pages():
    """Five procedural crops, one of each kind: uint8 (5, 128, 128, 3)."""
    return synthetic.stack(5, seed=1)[0]


@pytest.fixture
def job(tmp_path, pages):
    """A Track 2 job of five pages; the folder."""
    folder = tmp_path / "job"
    synthetic.write_job(folder, pages)
    return folder
