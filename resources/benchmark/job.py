"""Where a job's process starts, for measuring it as the platform runs it."""

from pathlib import Path

from midog.errors import UserError


def entry_point() -> str:
    """The path of inference.py.

    Raises:
        UserError: it is not there, for an installed package does not have it.
    """
    path = Path(__file__).resolve().parents[2] / "inference.py"
    if not path.exists():
        raise UserError(f"{path}: not found; run the benchmark in a clone of the repository")
    return str(path)
