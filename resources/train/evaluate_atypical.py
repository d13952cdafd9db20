"""Track 2's figures of a finished system on labelled crops that it was not trained on.

python resources/train/evaluate_atypical.py --data DIR [DIR ...] --model DIR [--system NAME]
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402
from tqdm import tqdm  # noqa: E402

from midog.classify import choose_device, classify, load_classifier  # noqa: E402
from midog.errors import exit_code  # noqa: E402
from midog.system import find_system, model_folder  # noqa: E402
from resources.data.crops import read_crops  # noqa: E402
from resources.train.atypical_report import figures_by, overall_figures, print_figures  # noqa: E402


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR", help="folders with labels.csv and crops/")
    parser.add_argument("--model", metavar="DIR", help="weights (as inference.py)")
    parser.add_argument("--system", metavar="NAME", help="a folder of the weights (the default system)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def run(arguments):
    system = find_system(model_folder(arguments.model), arguments.system, track=2)
    seen = sorted({Path(folder).resolve().name for folder in arguments.data} & set(system.data))
    if seen:
        print(f"warning: the weights were trained on {', '.join(seen)}: no test", file=sys.stderr)
    crops = read_crops(arguments.data)
    device = choose_device(arguments.device)
    pages = (image.permute(1, 2, 0).numpy() for image in tqdm(crops.images, "crops", disable=None))
    probabilities = classify(pages, load_classifier(system, device), device, tqdm.write)
    columns = {
        "label": crops.labels.numpy(),
        "probability": probabilities,
        "case": crops.cases,
        "domain": crops.domains,
    }
    table = pd.DataFrame(columns)
    title = f"{system.system} on {', '.join(crops.sets)}"
    print_figures(title, {"overall": overall_figures(table), "domains": figures_by(table, "domain")})


def main(argv=None):
    return exit_code(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
