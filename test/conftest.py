"""Shared by the tests: the project's root on the path, small jobs and stacks."""

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from resources.data import synthetic  # noqa: E402


def fastest(function, *arguments, runs=3):
    """The least processor time of some runs, s, because a busy machine makes any one of them slow; and the result."""
    seconds = []
    for _ in range(runs):
        started = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - started)
    return min(seconds), result


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
