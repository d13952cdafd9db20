"""Track 2's figures of a finished system on labelled crops that it was not trained on.

python resources/train/evaluate_atypical.py --data DIR [DIR ...] --model DIR [--system NAME]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.engine.classifier import classify, load_classifier  # noqa: E402
from midog.engine.weights import choose_device  # noqa: E402
from midog.errors import exit_code  # noqa: E402
from midog.evaluation.cases import warn_of_training_cases  # noqa: E402
from midog.system import CROP_UM, find_system, model_folder  # noqa: E402
from resources.data.crops import read_crops  # noqa: E402
from resources.train.atypical_report import figures_by, overall_figures, print_figures  # noqa: E402


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders with labels.csv and crops/")
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the default system)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    system = find_system(model_folder(arguments.model), arguments.system, track=2)
    crops = read_crops([Path(folder).resolve() for folder in arguments.data])
    sets = [name.partition("/")[0] for name in crops.files]
    warn_of_training_cases(system, zip(sets, map(str, crops.cases), strict=True))
    device = choose_device(arguments.device)
    images = (image.permute(1, 2, 0).numpy() for image in tqdm(crops.images, "crops", disable=None))
    columns = {
        "label": crops.labels.numpy(),
        "probability": classify(images, load_classifier(system, device, CROP_UM), device),
        "case": crops.cases,
        "domain": crops.domains,
    }
    table = pd.DataFrame(columns)
    title = f"{system.system} on {', '.join(crops.sets)}"
    print_figures(title, {"overall": overall_figures(table), "domains": figures_by(table, "domain")})


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
