"""From Track 1 to Track 2: how many of the mitotic figures that were found are atypical."""

import math

import numpy as np

from midog.classify import choose_device, classify, load_classifier
from midog.detect import ahead, cut_candidate
from midog.stack import CROP_SIDE, CROP_UM_PER_PX
from midog.system import find_system, model_folder

Z_95 = 1.959964  # standard normal quantile of .975


def classify_figures(slide, places, warn, log):
    """P(atypical) of mitotic figures on a slide, by Track 2's default system.

    Each figure is cut as Track 2's crops are, 128 px at .25 um/px around it, whatever the slide's spacing.

    Args:
        slide: `midog.slide.Slide`.
        places: float (N, 2), level-0 px, a pixel's centre at integers.
        warn, log: called with one line each.

    Returns:
        float32 (N,), and the system's name with its version.

    Raises:
        UserError: the weights are missing or broken; the slide's pixels cannot be decoded.
    """
    system = find_system(model_folder(None), None, track=2)
    name = f"{system.system}, weights {system.version}"
    log(f"atypical or normal: {name}, figures {len(places)}")
    if len(places) == 0:
        return np.zeros(0, np.float32), name
    device = choose_device("auto")
    boxes = np.tile(places, 2)
    crops = (cut_candidate(slide, box, CROP_SIDE * CROP_UM_PER_PX, CROP_SIDE) for box in boxes)
    return classify(ahead(crops, 64), load_classifier(system, device), device, warn), name


def wilson_interval(count, total):
    """95 % interval of a proportion (Wilson, J Am Stat Assoc 1927;22:209-212); total > 0.

    Returns:
        low, high, in [0, 1].
    """
    share, z2 = count / total, Z_95 * Z_95
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
