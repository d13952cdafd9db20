"""Compare the ways to join a detector's members and views, on labelled fields.

    python resources/train/variants.py --model DIR --system NAME --validation DIR[:CASE] ... --out DIR

Each variant is written to OUT as a system of its own, its operating point chosen on
these fields, so that `predict --model OUT --system VARIANT` and `evaluate` can run it.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from midog.classify import choose_device  # noqa: E402
from midog.errors import UserError, exit_code  # noqa: E402
from midog.system import find_system, model_folder, read_yaml  # noqa: E402
from resources.data.fields import read_fields  # noqa: E402
from resources.train.common import write_model  # noqa: E402
from resources.train.detector_export import set_operating_point  # noqa: E402

VIEWS = (2, 4, 8)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", required=True, metavar="NAME", help="a folder of the weights")
    parser.add_argument("--validation", nargs="+", required=True, metavar="DIR[:CASE]", help="labelled fields")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for a system each variant")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def variants_of(members):
    """Name, and what changes in model.yaml's detector, of every variant of a system with these members."""
    made = {f"member{number}": {"members": [each]} for number, each in enumerate(members)}
    made |= {each: {"fusion": each} for each in ("average", "weighted_box_fusion")}
    return made | {f"average_{views}_views": {"fusion": "average", "views": views} for views in VIEWS}


def compare(arguments):
    system = find_system(model_folder(arguments.model), arguments.system, track=1)
    if system.members:
        raise UserError(f"{system.folder / 'model.yaml'}: has a classifier; choose a system of one stage")
    values = read_yaml(system.folder / "model.yaml")
    fields, device = read_fields(arguments.validation), choose_device(arguments.device)
    print(f"{'variant':24s} average precision     F1  threshold")
    for name, changes in variants_of(values["detector"]["members"]).items():
        folder = arguments.out / name
        if not (folder / "model.yaml").exists():
            folder.mkdir(parents=True, exist_ok=True)
            detector = values["detector"] | {"views": 1} | changes
            for member in detector["members"]:
                shutil.copyfile(system.folder / member["weights"], folder / member["weights"])
            write_model(folder, values | {"system": name, "detector": detector, "metrics": {}})
        metrics = read_yaml(folder / "model.yaml")["metrics"]
        if not metrics:
            set_operating_point(folder, fields, device)
            metrics = read_yaml(folder / "model.yaml")["metrics"]
        average_precision, f1, threshold = (
            metrics[f"validation_{key}"] for key in ("average_precision", "f1", "threshold")
        )
        print(f"{name:24s} {average_precision:17.3f} {f1:6.3f} {threshold:10.3f}", flush=True)


def main(argv=None):
    return exit_code(compare, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
