"""What the class names of public data sets mean to a detector of mitotic figures.

The same class has many names: "mitotic figure" and "not mitotic figure"
(MIDOG++), "Mitotic figure" and "Mitotic figure lookalike" (MITOS_WSI_CCMCT),
"Mitosis" and "Nonmitosis" (MITOS_WSI_CMC), "Mitose" (TUPAC16), "hard negative"
(MIDOG 2021). A name that only speaks of mitosis is never taken as one.
"""

import re

from midog.evaluation.tables import CLASSES, UNCLEAR

MITOTIC, HARD_NEGATIVE = CLASSES
BACKGROUND = "background"  # a cell of another kind: granulocyte, tumor cell


def meaning(name: str) -> str:
    """MITOTIC, HARD_NEGATIVE, UNCLEAR or BACKGROUND for a class name; case, spaces and hyphens do not matter.

    UNCLEAR may or may not be a mitotic figure: it is no label, and no background either.
    """
    letters = re.sub("[^a-z]", "", name.lower())
    if re.fullmatch("((a?typical|normal)?mitotic(figure|cell)?s?|mitos[ei]s?)", letters):
        return MITOTIC
    if re.search("no[nt]?mito|mito.*like|alike|hardnegative|imposter", letters):
        return HARD_NEGATIVE
    if re.search("mito|ambiguous|unclear|unknown", letters):
        return UNCLEAR
    return BACKGROUND
