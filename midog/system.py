"""A system: one file of one schema, and the weights beside it.

`resources/systems/NAME.yaml` is a recipe; `model/NAME/model.yaml` is the same with weights, their sha256, and what they
were made from. Keys are strict and every value is checked where it is read: the message names the file, the key, what
was expected and what stands there. Each weights file is checked against its sha256 before it is used.
"""

import fnmatch
import logging
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from midog.calibration import Calibration
from midog.errors import UserError
from midog.files import read_yaml, sha256_of

logger = logging.getLogger(__name__)

PLATFORM_MODEL = Path("/opt/ml/model")
OWN_MODEL = Path(__file__).resolve().parents[1] / "model"
INSTALLED_MODEL = Path(__file__).resolve().parent / "weights"  # where a wheel has them
DEFAULT_SYSTEMS = {1: "centernet_two_stages", 2: "efficientnet_lite0"}  # by track, where a model folder holds several
CROP_UM = 32.0  # side of a Track 2 crop, whatever its um per pixel
STRIDE = 32  # of the detectors' coarsest map, px

Fraction = Annotated[float, Meta(ge=0, le=1)]
GreyLevel = Annotated[float, Meta(ge=0, le=255)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]  # and finite
NotNegative = Annotated[float, Meta(ge=0, le=1e6)]
UmPerPx = Annotated[float, Meta(ge=0.05, le=5)]
TileSide = Annotated[int, Meta(ge=STRIDE, le=8192, multiple_of=STRIDE)]
InputSide = Annotated[int, Meta(ge=8, le=2048)]
Views = Literal[1, 2, 4, 8]
Precision = Literal["auto", "float32"]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
EXPORTED = ".xml"  # suffix of a network for OpenVINO, whose weights are in a ".bin" beside it
FileName = Annotated[str, Meta(pattern=r"^[^/\\]+\.(safetensors|xml)$")]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A mapping with exactly these keys; those with defaults may be left out."""


class Merge(_Strict, frozen=True):
    """When candidates of overlapping tiles are one figure: by distance or by overlap, one of the two.

    Attributes:
        distance_um: their centres are at most so far apart.
        iou: or their boxes overlap by at least so much.
        after_classification: merge by the classifier's probability (the SZTU paper) instead of the detector's score
            before; each place is then classified once a tile, and a tile that cut it may win.
    """

    distance_um: Positive | None = None
    iou: Annotated[float, Meta(gt=0, le=1)] | None = None
    after_classification: bool = False

    def __post_init__(self) -> None:
        if (self.distance_um is None) == (self.iou is None):
            raise ValueError("either distance_um or iou expected")


class Weights(_Strict, frozen=True):
    """One trained network of a part.

    Attributes:
        weights: safetensors file beside model.yaml, or in the folder of another system: see `shared`. What
            `midog export-openvino` made of one is an .xml file.
        sha256: of that file; of an .xml file and the .bin beside it, one behind the other.
        exported_from: sha256 of the safetensors file that an .xml file was made of.
        shared: name of the system beside this one whose folder holds the file, so that equal files are stored once.
        calibration: of this network, before the mean over members.
    """

    weights: FileName
    sha256: Sha256
    shared: str = ""
    exported_from: str = ""
    calibration: Calibration = Calibration()

    @property
    def is_exported(self) -> bool:
        """Whether it is for OpenVINO."""
        return self.weights.endswith(EXPORTED)


class ClassifierWeights(Weights, frozen=True):
    """One network of an ensemble of classifiers, which may mix designs.

    Attributes:
        network, options, field_um, input_px: where they differ from the classifier's.
    """

    network: str | None = None
    options: dict[str, Any] | None = None
    field_um: Positive | None = None
    input_px: InputSide | None = None


class Detector(_Strict, frozen=True):
    """The network that finds candidates, how a slide is cut for it, and how its boxes are joined.

    Attributes:
        network: a name in `midog.models.DETECTORS`.
        options: its constructor's arguments.
        tile: (width, height) px of a tile; one number is both.
        overlap: of neighbouring tiles, a fraction of the side.
        um_per_px: what it was trained at; images further off than 10 % are resampled for it.
        box_um: side of the box that a figure has.
        score_threshold: the least score of a candidate; of several networks or views that are fused, of the fused one.
        nms_iou: of two boxes in a tile that overlap more, one stays; of several networks or views, they are fused. Maps
            have no use for it.
        merge: `Merge`, across tiles.
        views: dihedral views of each tile; what is found in them is joined by weighted box fusion, maps by their mean.
        fusion: how several members are joined: "average" (of their boxes and probabilities, place by place, before
            non-maximum suppression) or "weighted_box_fusion".
        precision: "auto" is half precision where the device has it (a GPU; a CPU with instructions for bfloat16), boxes
            and scores always decoded in float32; "float32" is that everywhere.
        members: none in a recipe.
        calibration: of the score, where no classifier follows.
        stain_normalisation: of the slide, for the classifier too: "macenko" as `midog.images.stain` does it.
    """

    network: str
    options: dict[str, Any]
    tile: tuple[TileSide, TileSide]
    overlap: Annotated[float, Meta(ge=0, le=0.9)]
    um_per_px: UmPerPx
    score_threshold: Fraction
    merge: Merge
    nms_iou: Annotated[float, Meta(gt=0, le=1)] = 0.5
    box_um: Positive = 12.5
    views: Views = 1
    fusion: Literal["average", "weighted_box_fusion"] = "average"
    precision: Precision = "auto"
    members: tuple[Weights, ...] = ()
    calibration: Calibration = Calibration()
    stain_normalisation: Literal["none", "macenko"] = "none"


class Classifier(_Strict, frozen=True):
    """The network that tells figures (Track 1) or subtypes (Track 2), and what it sees.

    Attributes:
        network: a name in `midog.models.CLASSIFIERS`.
        options: its constructor's arguments.
        field_um: side of the square that it sees; of a Track 2 crop's 32 um the centre; 0 (Track 1) is the candidate's
            box itself, as the SZTU paper crops.
        input_px: px of its input's side.
        views: dihedral views of each crop at test.
        views_from: the least probability by the first view of a crop that gets the others; 0 gives them to all.
        score_weight: Track 1: of the detector's logit beside the classifier's; 0 leaves it out.
        precision: as the detector's.
        members: none in a recipe; the mean of their probabilities is the answer.
        calibration: of that mean, after the members' own.
    """

    network: str
    options: dict[str, Any]
    field_um: NotNegative
    input_px: InputSide
    views: Views = 1
    views_from: Fraction = 0.0
    score_weight: NotNegative = 0.0
    precision: Precision = "auto"
    members: tuple[ClassifierWeights, ...] = ()
    calibration: Calibration = Calibration()

    def __post_init__(self) -> None:
        if self.field_um == 0 and any(member.field_um for member in self.members):
            raise ValueError("field_um 0, the candidate's box, and a member's field of its own exclude each other")


class DataSource(_Strict, frozen=True):
    """What weights learned from.

    Attributes:
        set: name of the data set's folder, or of a list of mined hard negatives.
        cases: patterns of the cases in it; none means all.
        without: patterns of those left out.
        mined_sha256: of a list of mined hard negatives; "not recorded" where it is not known any more.
    """

    set: str
    cases: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    mined_sha256: str = ""

    def holds(self, name: str, case: str) -> bool:
        """Whether a case of a set is in it."""
        if name != self.set or any(fnmatch.fnmatchcase(case, pattern) for pattern in self.without):
            return False
        return not self.cases or any(fnmatch.fnmatchcase(case, pattern) for pattern in self.cases)


class Pretrained(_Strict, frozen=True):
    """Weights that a training started from."""

    source: str
    sha256: str
    licence: str


class Tissue(_Strict, frozen=True):
    """What the tissue that weights learned from looks like, as `midog.images.appearance` measures it.

    Attributes:
        haematoxylin, eosin: optical density in R, G and B, as unit vectors.
        brightness: mean grey level of tissue, 0 to 255.
        images, area_mm2: how many it was measured on, and what of them.
        nucleus_um: diameters of nuclei: 10th percentile, median, 90th percentile; none where no whole nucleus shows.
        white_level: mean grey level of glass, 0 to 255; none where no glass shows.
    """

    haematoxylin: tuple[Fraction, Fraction, Fraction]
    eosin: tuple[Fraction, Fraction, Fraction]
    brightness: GreyLevel
    images: Annotated[int, Meta(ge=1)]
    area_mm2: Positive
    nucleus_um: tuple[Positive, Positive, Positive] | None = None
    white_level: GreyLevel | None = None

    def __post_init__(self) -> None:
        for name, vector in (("haematoxylin", self.haematoxylin), ("eosin", self.eosin)):
            if abs(math.hypot(*vector) - 1) > 1e-3:
                raise ValueError(f"{name} is {math.hypot(*vector):g} long; a unit vector expected")
        if self.nucleus_um and tuple(sorted(self.nucleus_um)) != self.nucleus_um:
            raise ValueError("nucleus_um: 10th percentile, median and 90th percentile expected, none above the next")


class DomainErrors(_Strict, frozen=True):
    """How often Track 2's weights err on a domain, at an operating point that was chosen without it.

    Attributes:
        domain: a hospital's, scanner's or tumour's part of the data.
        atypical, normal: how many crops of each.
        sensitivity, specificity: shares of those that are told right; atypical is positive.
    """

    domain: str
    atypical: Annotated[int, Meta(ge=1)]
    normal: Annotated[int, Meta(ge=1)]
    sensitivity: Fraction
    specificity: Fraction


class Made(_Strict, frozen=True):
    """Where weights come from.

    Attributes:
        code: commit of this repository that trained them.
        data: `DataSource`s.
        pretrained: by part, "detector" or "classifier"; none means from scratch.
        metrics: figures measured when the weights were made.
        reliability: by bins of the probability: predicted, observed share, and number of points, on validation.
        tissue: `Tissue` of the data, or of a sample of it.
        domains: Track 2: `DomainErrors` of each; none where they are not known.
    """

    code: str = ""
    data: tuple[DataSource, ...] = ()
    pretrained: dict[Literal["detector", "classifier"], Pretrained] = {}
    metrics: dict[str, Any] = {}
    reliability: tuple[tuple[Fraction, Fraction, int], ...] = ()
    tissue: Tissue | None = None
    domains: tuple[DomainErrors, ...] = ()


class System(_Strict, frozen=True):
    """What a recipe or a model.yaml holds.

    Attributes:
        system, track: its name, and what it does.
        version: of the weights; raised whenever what they answer changes.
        detector: Track 1.
        classifier: Track 2; Track 1 can do without.
        training: recipes by part, read by the trainings.
        made: `Made`; empty in a recipe.
        folder: where the file lies; not a key.
    """

    system: str
    track: Literal[1, 2]
    version: str
    detector: Detector | None = None
    classifier: Classifier | None = None
    training: dict[str, Any] = {}
    made: Made = Made()
    folder: Path = Path()

    def __post_init__(self) -> None:
        if self.track == 1 and self.detector is None:
            raise ValueError("no detector, which Track 1 needs")
        if self.track == 2 and (self.classifier is None or self.detector is not None):
            raise ValueError("a classifier and no detector expected for Track 2")
        if self.track == 2 and self.classifier:
            for field_um in (self.classifier.field_um, *(each.field_um for each in self.classifier.members)):
                if field_um is not None and not 0 < field_um <= CROP_UM:
                    raise ValueError(f"classifier.field_um is {field_um:g}; above 0, to {CROP_UM:g} expected")
        if self.is_exported and not all(member.is_exported for member in self.members):
            raise ValueError("some weights are .xml files for OpenVINO and others are not; all or none expected")

    def __str__(self) -> str:
        return f"{self.system}, weights {self.version}"

    def path_of(self, member: Weights) -> Path:
        """Where a member's file lies."""
        return (self.folder.parent / member.shared if member.shared else self.folder) / member.weights

    @property
    def members(self) -> tuple[Weights, ...]:
        """All networks, the detector's first."""
        return tuple(member for part in (self.detector, self.classifier) if part for member in part.members)

    @property
    def is_exported(self) -> bool:
        """Whether its weights are for OpenVINO."""
        return any(member.is_exported for member in self.members)

    def with_precision(self, precision: Precision) -> "System":
        """The same with another precision of every part."""
        parts = {"detector": self.detector, "classifier": self.classifier}
        changed = {name: part and msgspec.structs.replace(part, precision=precision) for name, part in parts.items()}
        return msgspec.structs.replace(self, **changed)

    def trained_on(self, name: str, case: str) -> bool:
        """Whether the weights learned from a case of a set, so that it is no test."""
        return any(source.holds(name, case) for source in self.made.data)


Part = TypeVar("Part")


def parse(kind: type[Part], values: object, where: str | Path, inside: str = "") -> Part:
    """Check a YAML mapping against a `Struct`, strictly.

    Args:
        kind: the struct.
        values: the mapping.
        where: the file, for the message.
        inside: the key in it that the mapping stands under.

    Raises:
        UserError: an unknown key or one missing, a wrong type, a value out of range, or two contradicting values.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        said, _, place = re.sub(r" - at `key` in `\$", " as a key - at `$", str(error)).partition(" - at `$")
        keys = re.findall(r"[^.\[\]`]+", place)
        key = inside + "".join(f"[{each}]" if each.isdigit() else f".{each}" for each in keys)
        said = said[:1].lower() + said[1:].replace("`", "")
        if said.startswith("object contains unknown field "):
            said = f"unknown key {said.rpartition(' ')[2]}"
        elif said.startswith("object missing required field "):
            said = f"key {said.rpartition(' ')[2]} is missing"
        elif choices := _choices(kind, keys):
            said = f"{_found(values, keys)}{' or '.join(map(str, choices))} expected"
        else:
            said = f"{_found(values, keys)}{said}"
        place = f"{key.lstrip('.')}: " * bool(key)
        raise UserError(f"{where}: {place}{said}; see resources/systems for examples") from None


def _choices(kind: Any, keys: list[str]) -> tuple[object, ...]:
    """The values that may stand at a place of a struct where only some may."""
    for key in keys:
        inside = (kind, *get_args(kind))
        structs = [each for each in inside if isinstance(each, type) and issubclass(each, Struct)]
        if key.isdigit() or not structs:
            continue  # a place in a list: the struct is what the list holds
        kind = next(each.type for each in msgspec.structs.fields(structs[0]) if each.name == key)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _found(values: object, keys: list[str]) -> str:
    """What stands at a place, for a message; nothing for what is long."""
    for key in keys:
        try:
            values = values[int(key)] if isinstance(values, list | tuple) else values[key]  # type: ignore[index]
        except (KeyError, IndexError, TypeError, ValueError):
            return ""
    return "" if isinstance(values, dict) and values else f"{values!r}: "


def read_system(path: str | Path) -> System:
    """Read and check a recipe, or a model.yaml without its weights.

    Raises:
        UserError: no or broken YAML; see `parse`.
    """
    return check_system(read_yaml(path), path)


def check_system(values: object, path: str | Path) -> System:
    """The system that the values of a YAML file describe; as `read_system`."""
    if not isinstance(values, dict):
        raise UserError(f"{path}: a mapping expected, got {type(values).__name__}; see resources/systems for examples")
    if "members" in values or "member" in values or "views" in values:
        raise UserError(
            f"{path}: in the format before 1.0 of this program; export it again with the training that made it, "
            "or write it anew after resources/systems"
        )
    if isinstance(values.get("detector"), dict) and isinstance(values["detector"].get("tile"), int):
        values = values | {"detector": values["detector"] | {"tile": [values["detector"]["tile"]] * 2}}
    if "folder" in values:
        raise UserError(f"{path}: unknown key folder; take it out")
    return msgspec.structs.replace(parse(System, values, path), folder=Path(path).parent)


def load_system(folder: str | Path) -> System:
    """Read and check `folder`/model.yaml and its weights.

    Raises:
        UserError: see `read_system`; a part without members; missing weights; a wrong sha256.
    """
    path = Path(folder) / "model.yaml"
    system = read_system(path)
    for name, part in (("detector", system.detector), ("classifier", system.classifier)):
        if part and not part.members:
            raise UserError(f"{path}: {name} has no members: a recipe; train it with python -m midog train")
    for member in system.members:
        _check_weights(system.path_of(member), member)
    return system


def as_yaml(system: System) -> dict[str, Any]:
    """The mapping that `read_system` reads, for writing; what is as by default is left out."""
    values: dict[str, Any] = msgspec.to_builtins(system, enc_hook=str)
    values.pop("folder", None)
    return values


def _check_weights(path: Path, member: Weights) -> None:
    remedy = "unpack the model again, or train it"
    if member.is_exported:
        remedy = "export it again with midog export-openvino"
    try:
        found = sha256_of(*files_of(path))
    except OSError as error:
        raise UserError(f"{error.filename}: weights not found; {remedy}") from None
    if found != member.sha256:
        raise UserError(f"{path}: sha256 is {found[:12]}..., model.yaml says {member.sha256[:12]}...; {remedy}")


def files_of(weights: Path) -> list[Path]:
    """The file or files of a network's weights."""
    return [weights, weights.with_suffix(".bin")] if weights.suffix == EXPORTED else [weights]


def model_folder(given: str | Path | None) -> Path:
    """The folder given, else the platform's if a system is in it, else our own, with a warning if other things are."""
    if given:
        return Path(given)
    if any(PLATFORM_MODEL.glob("*/model.yaml")):
        return PLATFORM_MODEL
    if PLATFORM_MODEL.is_dir() and (not os.access(PLATFORM_MODEL, os.R_OK | os.X_OK) or any(PLATFORM_MODEL.iterdir())):
        logger.warning(
            "%s: holds no NAME/model.yaml that can be read, so the image's own weights are used; "
            "upload the model.tar.gz that ./export.sh writes",
            PLATFORM_MODEL,
        )
    return OWN_MODEL if OWN_MODEL.is_dir() else INSTALLED_MODEL


def find_system(model_dir: str | Path, name: str | None, track: int | None) -> System:
    """The system to run: the one named, or the only one (or the default) for a track.

    Args:
        model_dir: folder with one folder a system.
        name: a system's name, or None.
        track: 1 or 2; None is what the named system is for.

    Raises:
        UserError: no such system, one for the other track, or an ambiguous choice.
    """
    return load_system(find_folder(Path(model_dir), name, track))


def find_folder(model_dir: Path, name: str | None, track: int | None) -> Path:
    """As `find_system`, the folder alone."""
    found = {path.parent.name: path for path in sorted(model_dir.glob("*/model.yaml"))}
    listed = f"there: {', '.join(found) or 'none'}"
    if name is None and track is not None:
        name = DEFAULT_SYSTEMS[track]
        if name not in found or _track(found[name]) != track:
            fitting = [each for each, path in found.items() if _track(path) == track]
            if len(fitting) != 1:
                raise UserError(f"{model_dir}: no single system for Track {track}; choose one with --system ({listed})")
            (name,) = fitting
    elif name not in found:
        recipe = Path(__file__).resolve().parents[1] / "resources" / "systems" / f"{name}.yaml"
        if recipe.exists():
            raise UserError(f"{name}: a recipe without weights; train it with python -m midog train ({listed})")
        raise UserError(
            f"{model_dir / str(name) / 'model.yaml'}: not found; choose another --system or --model ({listed})"
        )
    path = found[str(name)]
    other = _track(path)
    if track is not None and other != track and other in (1, 2):
        raise UserError(f"{path}: is for Track {other}, the job for Track {track}; choose another")
    return path.parent


def _track(path: Path) -> int | None:
    """The track that a model.yaml says, or None; by its line where it has one, because a folder holds many files."""
    found = re.search(r"^track: *(\d+) *$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    if found:
        return int(found[1])
    values = read_yaml(path)
    return values.get("track") if isinstance(values, dict) else None
