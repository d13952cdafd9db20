"""Where labelled images come from: the glass slide, the tumour, the laboratory and the scanner, for splits.

A table's own columns say it, and of public sets what their publications and comparisons of their images say. Names are
those of MIDOG++ (Aubreville et al., Sci Data 10:484, 2023).
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("slide", "tumor", "laboratory", "scanner")
UNKNOWN = "unknown"
ALIASES = {
    "slide": ("slide",),
    "tumor": ("tumor", "tumour"),
    "laboratory": ("laboratory", "lab", "origin"),
    "scanner": ("scanner",),
    "source": ("source_image",),
}

BREAST, MAMMARY, MAST_CELL = "human breast cancer", "canine mammary carcinoma", "canine cutaneous mast cell tumor"
PARIS, UTRECHT, BERLIN, VIENNA = "Pitie-Salpetriere Paris", "UMC Utrecht", "FU Berlin", "VMU Vienna"
XR, S360, XT, CS2 = "Hamamatsu XR", "Hamamatsu S360", "Aperio ScanScope XT", "Aperio CS2"
PARIS_SCANNERS = {"A": XT, "H": "Hamamatsu NanoZoomer"}
CMC_SLIDES = {  # of cmc_cells; SlideRunner's files are named by such numbers, in MITOS_WSI_CMC and in sets made from it
    "02": "a8773be388e12df89edd",
    "03": "deb768e5efb9d1dcbc13",
    "05": "72c93e042d0171a61012",
    "07": "084383c18b9060880e82",
    "08": "da18e7b9846e9d38034c",
}
MIDOGPP = (  # last number of each domain; there are no labels of 151 to 200
    (50, BREAST, UTRECHT, XR),
    (100, BREAST, UTRECHT, S360),
    (150, BREAST, UTRECHT, CS2),
    (200, BREAST, UTRECHT, "Leica GT450"),
    (244, "canine lung cancer", VIENNA, "3D Histech"),
    (299, "canine lymphoma", VIENNA, "3D Histech"),
    (349, MAST_CELL, BERLIN, CS2),
    (404, "human neuroendocrine tumor", UTRECHT, XR),
    (489, "canine soft tissue sarcoma", "AMC New York", "3D Histech"),
    (504, "canine soft tissue sarcoma", VIENNA, "3D Histech"),
    (553, "human melanoma", UTRECHT, XR),
)


@dataclass(frozen=True)
class _Rule:
    """What set/case means: `pattern` fits all of it, and its groups stand in the other texts."""

    pattern: str
    slide: str
    tumor: str = ""
    laboratory: str = ""
    scanner: str = ""


RULES = (
    # slides 03 and 04 of ICPR 2012 are the glass of ATYPIA's 03 and 04; of the others nothing of the kind was found
    _Rule(r"(?:icpr12/|quiet_tissue/ICPR12_)([AH])(0[34])(?:_.*)?", "Paris {1}", BREAST, PARIS, "{0}"),
    _Rule(r"(?:icpr12/|quiet_tissue/ICPR12_)([AH])(\d\d)(?:_.*)?", "Paris ICPR {1}", BREAST, PARIS, "{0}"),
    _Rule(r"(?:atypia14_h|atypia14_a_cells|regions)/([AH])(\d\d)(?:_.*)?", "Paris {1}", BREAST, PARIS, "{0}"),
    _Rule(r"[^/]*/MIDOG(?:21|pp)_(\d+)", "MIDOG++ {0}"),  # tumour and so on: MIDOGPP
    _Rule(r"[^/]*/TUPAC(?:16)?_(0\d|1\d|2[0-3])", "TUPAC16 {0}", BREAST, UTRECHT, XT),
    _Rule(r"[^/]*/TUPAC(?:16)?_(\d\d)", "TUPAC16 {0}", BREAST, "two other Dutch centres", "Leica SCN400"),
    _Rule(r"cmc_cells/CMC_(\d\d)", "{0}", MAMMARY, BERLIN, CS2),
    _Rule(r"(?:regions|cmc[^/]*)/([0-9a-f]{20})(?:[^0-9a-f].*)?", "{0}", MAMMARY, BERLIN, CS2),
    _Rule(r"ccmct[^/]*/([0-9a-f]{20})(?:[^0-9a-f].*)?", "{0}", MAST_CELL, BERLIN, CS2),
    _Rule(r"[^/]*/([0-9a-f]{20})(?:[^0-9a-f].*)?", "{0}"),
    _Rule(r"quiet_tissue/CCMCT_.*", "0e56fd11a762be0983f0", MAST_CELL, BERLIN, CS2),
    # no patient is named in the next two, so that all of a set could be of one
    _Rule(r"quiet_tissue/[A-Z]+-TCGA-.*", "CRC-VAL-HE-7K", "human colorectal cancer", "Heidelberg and Mannheim"),
    _Rule(r"midesec/.*", "MiDeSeC", BREAST, "Ankara University", "3D Histech"),
    _Rule(r"brecahad/BRE_(\d\d)", "BreCaHAD {0}", BREAST, "University of Calgary", "microscope camera"),
)


def describe(set_name: str, images: "pd.DataFrame") -> "pd.DataFrame":
    """Say of each image where it comes from.

    Args:
        set_name: name of the folder.
        images: with a column case, and the columns of `ALIASES` that are known, in upper or lower case.

    Returns:
        the rows with the columns slide, tumor, laboratory and scanner, str, "unknown" where nothing is known. `slide`
        is one glass in all sets and on all scanners: of public sets by their cases, else the table's own, else set and
        source_image (of crops), or set and case.
    """
    import pandas as pd

    cases = images["case"].astype(str)
    by_case = {case: _known(set_name, case) for case in cases.unique()}
    known = pd.DataFrame(list(cases.map(by_case)), index=images.index, columns=[*COLUMNS], dtype=object)
    source = _own(images, "source")
    alone = set_name + " " + source.where(source != "", cases)
    described = images.copy()
    for column in COLUMNS:
        told = _own(images, column)
        first, second = (known[column], told) if column == "slide" else (told, known[column])
        default = alone if column == "slide" else UNKNOWN
        described[column] = first.where(first != "", second.where(second != "", default))
    return described


def domain_of(set_name: str, case: str) -> tuple[str, str, str]:
    """Tumour, laboratory and scanner of a case of a public set; of another set its name, and nothing else."""
    _, tumor, laboratory, scanner = _known(set_name, case)
    return (tumor, laboratory, scanner) if tumor else (set_name, UNKNOWN, UNKNOWN)


def _own(images: "pd.DataFrame", column: str) -> "pd.Series":
    """What the table itself says in a column, "" where it says nothing."""
    import pandas as pd

    names = {str(name).lower(): name for name in images.columns}
    own = next((names[alias] for alias in ALIASES[column] if alias in names), None)
    if own is None:
        return pd.Series("", index=images.index, dtype=object)
    told = images[own].astype(object).where(images[own].notna(), "").astype(str).str.strip().astype(object)
    return told.str.replace("Hamammatsu", "Hamamatsu")  # as MIDOG++'s own table spells it in places


def _known(set_name: str, case: str) -> tuple[str, str, str, str]:
    """slide, tumor, laboratory and scanner of a case of a public set, "" where nothing is known."""
    for rule in RULES:
        found = re.fullmatch(rule.pattern, f"{set_name}/{case}")
        if found:
            groups = found.groups()
            slide, scanner = rule.slide.format(*groups), rule.scanner.format(*groups)
            if slide.startswith("MIDOG++"):
                number = int(groups[0])
                place = next((place for last, *place in MIDOGPP if number <= last), ["", "", ""])
                return f"MIDOG++ {number:03}", place[0], place[1], place[2]
            slide, scanner = CMC_SLIDES.get(slide, slide), PARIS_SCANNERS.get(scanner, scanner)
            return slide, rule.tumor, rule.laboratory, scanner
    return "", "", "", ""
