"""Compare variants of a trained Track 1 system, on labelled fields.

    python -m resources.train.ablation --model DIR --system NAME --validation DIR[:CASE] ... --out DIR

Of a system of one stage: each member alone, the two ways to join the members, and views. Of a system of two stages: how
much the classifier sees around a candidate, which is FoCasNet's table 2 (arXiv 2301.07627): the middle 7/8 of patches
of 64 to 256 px, scaled to 7/4 of the side that the network was trained on (patches of 256 px, of which 224 px are seen
there, where patches of 64 px were trained on at 128 px).

Each variant is written to OUT as a system of its own, its operating point chosen on these fields, so that `predict
--model OUT --system VARIANT` and `evaluate` can run it: `--only member2` exports one weight average of a run alone. One
that is there already is not run again.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from midog.engine.torch_engine import choose_device
from midog.errors import UserError, exit_code
from midog.system import System, find_system, load_system, model_folder, read_system
from resources.data.fields import read_fields
from resources.train.kit.export import set_operating_point, write_model

VIEWS = (2, 4, 8)
PATCHES = (64, 112, 128, 256)  # px
UM_PER_PX = 0.25  # of these
SEEN = 7 / 8  # of a patch's side
SCALED = 2  # a patch's side over that of training


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", required=True, metavar="NAME", help="a folder of the weights")
    parser.add_argument("--validation", nargs="+", required=True, metavar="DIR[:CASE]", help="labelled fields")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for a system each variant")
    parser.add_argument("--only", nargs="*", metavar="VARIANT", help="instead of all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def variants_of(system: System) -> dict[str, System]:
    """The variants of a system by name; none has metrics, and each has its weights in its own folder."""
    assert system.detector is not None
    detector = replace(system.detector, members=tuple(replace(each, shared="") for each in system.detector.members))
    bare = replace(system, detector=detector, made=replace(system.made, metrics={}))
    if system.classifier:
        learnt_at = system.training.get("classifier", {}).get("input_px") or system.classifier.members[0].input_px
        side = round(SEEN * SCALED * (learnt_at or system.classifier.input_px))
        members = tuple(replace(each, shared="", field_um=None, input_px=None) for each in system.classifier.members)
        classifier = replace(system.classifier, input_px=side, members=members)
        seen = {f"patch_{px}": replace(classifier, field_um=SEEN * px * UM_PER_PX) for px in PATCHES}
        return {name: replace(bare, system=name, classifier=each) for name, each in seen.items()}
    one_view = replace(detector, views=1)
    made = {f"member{number}": replace(one_view, members=(each,)) for number, each in enumerate(detector.members)}
    made |= {fusion: replace(one_view, fusion=fusion) for fusion in ("average", "weighted_box_fusion")}
    made |= {f"average_{views}_views": replace(detector, fusion="average", views=views) for views in VIEWS}
    return {name: replace(bare, system=name, detector=each) for name, each in made.items()}


def compare(arguments: argparse.Namespace) -> None:
    system = find_system(model_folder(arguments.model), arguments.system, track=1)
    if system.classifier and len(system.classifier.members) > 1:
        raise UserError(f"{system.folder / 'model.yaml'}: has several classifiers; choose a system with one or none")
    variants = variants_of(system)
    names = arguments.only or list(variants)
    if unknown := sorted(set(names) - set(variants)):
        raise UserError(f"--only {', '.join(unknown)}: unknown; known: {', '.join(variants)}")
    fields, device = read_fields(arguments.validation), choose_device(arguments.device)
    print(f"{'variant':24s} average precision     F1")
    for name in names:
        folder = arguments.out / name
        if not (folder / "model.yaml").exists() or not read_system(folder / "model.yaml").made.metrics:
            folder.mkdir(parents=True, exist_ok=True)
            used = {member.weights for member in variants[name].members}
            for member in system.members:
                if member.weights in used:
                    shutil.copyfile(system.path_of(member), folder / member.weights)
            write_model(folder, variants[name])
            set_operating_point(folder, fields, device)
        metrics = load_system(folder).made.metrics
        print(f"{name:24s} {metrics['validation_average_precision']:17.3f} {metrics['validation_f1']:6.3f}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(compare, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
