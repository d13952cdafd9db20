"""Options that several commands share."""

import argparse
from typing import Literal

PRECISIONS: tuple[Literal["float32", "auto"], ...] = ("float32", "auto")


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Where networks run, and how precisely."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for networks (%(default)s)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of networks: half precision where the device has it, or float32 (the system's own)",
    )
