"""Compare variants of a trained Track 1 system, on labelled fields.

    python resources/train/variants.py --model DIR --system NAME --validation DIR[:CASE] ... --out DIR

Of a system of one stage: each member alone, the two ways to join the members, and
views. Of a system of two stages: how much the classifier sees around a candidate,
which is FoCasNet's table 2 (arXiv 2301.07627): patches of 64 to 256 px, scaled to
twice the side that the network was trained on, of which the middle 7/8 are seen (256
and 224 px there, where patches of 64 px were trained on at 128 px).

Each variant is written to OUT as a system of its own, its operating point chosen on
these fields, so that `predict --model OUT --system VARIANT` and `evaluate` can run it.
One that is there already is not run again.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from midog.engine.classifier import choose_device  # noqa: E402
from midog.errors import UserError, exit_code  # noqa: E402
from midog.system import find_system, model_folder, read_yaml  # noqa: E402
from resources.data.fields import UM_PER_PX, read_fields  # noqa: E402
from resources.train.common import write_model  # noqa: E402
from resources.train.detector_export import set_operating_point  # noqa: E402

VIEWS = (2, 4, 8)
PATCHES = (64, 112, 128, 256)  # px at .25 um/px
SEEN = 7 / 8  # of a patch's side
SCALED = 2  # a patch's side over that of training


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", required=True, metavar="NAME", help="a folder of the weights")
    parser.add_argument("--validation", nargs="+", required=True, metavar="DIR[:CASE]", help="labelled fields")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for a system each variant")
    parser.add_argument("--only", nargs="*", metavar="VARIANT", help="instead of all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def variants_of(values):
    """The variants of a model.yaml's mapping by name, each a mapping like it; none has metrics."""
    detector, members = values["detector"], values["members"]
    if members:
        seen = [each | {"crop": SEEN, "size": round(SEEN * SCALED * each["size"])} for each in members]
        made = {f"patch_{px}": (detector | {"context_um": px * UM_PER_PX}, seen) for px in PATCHES}
    else:
        detector = detector | {"views": 1}
        parts = {f"member{number}": {"members": [each]} for number, each in enumerate(detector["members"])}
        parts |= {fusion: {"fusion": fusion} for fusion in ("average", "weighted_box_fusion")}
        parts |= {f"average_{views}_views": {"fusion": "average", "views": views} for views in VIEWS}
        made = {name: (detector | changes, []) for name, changes in parts.items()}
    return {
        name: values | {"system": name, "detector": first, "members": second, "metrics": {}}
        for name, (first, second) in made.items()
    }


def compare(arguments):
    system = find_system(model_folder(arguments.model), arguments.system, track=1)
    if len(system.members) > 1:
        raise UserError(f"{system.folder / 'model.yaml'}: has several classifiers; choose a system with one or none")
    variants = variants_of(read_yaml(system.folder / "model.yaml"))
    names = arguments.only or list(variants)
    if unknown := sorted(set(names) - set(variants)):
        raise UserError(f"--only {', '.join(unknown)}: unknown; known: {', '.join(variants)}")
    fields, device = read_fields(arguments.validation), choose_device(arguments.device)
    print(f"{'variant':24s} average precision     F1")
    for name in names:
        folder = arguments.out / name
        if not (folder / "model.yaml").exists() or not read_yaml(folder / "model.yaml")["metrics"]:
            folder.mkdir(parents=True, exist_ok=True)
            for member in (*variants[name]["detector"]["members"], *variants[name]["members"]):
                shutil.copyfile(system.folder / member["weights"], folder / member["weights"])
            write_model(folder, variants[name])
            set_operating_point(folder, fields, device)
        metrics = read_yaml(folder / "model.yaml")["metrics"]
        print(f"{name:24s} {metrics['validation_average_precision']:17.3f} {metrics['validation_f1']:6.3f}", flush=True)


def main(argv=None):
    return exit_code(compare, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
