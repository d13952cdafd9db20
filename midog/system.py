"""A system: `model.yaml` and the weights beside it.

`model.yaml` says everything that a run depends on. Its keys are strict, and
each weights file is checked against its sha256 before it is used.
"""

import hashlib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from midog.errors import UserError

PLATFORM_MODEL = Path("/opt/ml/model")
OWN_MODEL = Path(__file__).resolve().parents[1] / "model"
FUSIONS = ("average", "weighted_box_fusion")
DEFAULT_SYSTEMS = {1: "rtmdet_two_stages", 2: "convnextv2_small"}  # by track, where a model folder holds several


@dataclass(frozen=True)
class Calibration:
    """P = sigmoid(scale x logit(p) + shift), so that .5 is the operating point."""

    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class DetectorDesign:
    """The network that finds candidates, and how a slide is cut for it and its boxes are joined.

    Attributes:
        network: a name in `midog.detect.NETWORKS`.
        options: its constructor's arguments.
        tile: px of a tile's side.
        overlap: of neighbouring tiles, a share of the side.
        um_per_px: what it was trained at; images further off than 10 % are resampled.
        confidence: the least score of a candidate; weighted box fusion may take it lower.
        nms_iou: of two boxes in a tile that overlap more, one stays; of several networks or views, they are fused.
        merge_iou, merge_um: candidates of overlapping tiles are one figure if their boxes overlap so much, or
            if their centres are so near; one of the two is 0.
        views: dihedral views of each tile: 1, 2, 4 or 8; what is found in them is joined by weighted box fusion.
        fusion: how several members are joined: "average" (of their boxes and probabilities, place by place, before
            non-maximum suppression) or "weighted_box_fusion".
    """

    network: str
    options: dict
    tile: int
    overlap: float
    um_per_px: float
    confidence: float
    nms_iou: float
    merge_iou: float
    merge_um: float
    views: int
    fusion: str


@dataclass(frozen=True)
class DetectorMember:
    """Weights of one network of an ensemble of detectors: a safetensors file beside model.yaml, and its sha256."""

    weights: str
    sha256: str


@dataclass(frozen=True)
class Detector(DetectorDesign):
    """A trained `DetectorDesign`.

    Attributes:
        context_um: side of what the classifier sees around a candidate; 0 is the box itself.
        score_weight: of the detector's logit beside the classifier's, see `midog.detect.with_score`.
        members: `DetectorMember`s, networks of the one design.
        calibration: of the score, where no classifier follows.
    """

    context_um: float
    score_weight: float
    members: tuple
    calibration: Calibration


@dataclass(frozen=True)
class Member:
    """One network of an ensemble of classifiers.

    Attributes:
        network: a name in `midog.models.classifiers.NETWORKS`.
        options: its constructor's arguments.
        crop: share of the crop's side that is kept around the centre, in (0, 1].
        size: px, the side of the network's input.
        weights: safetensors file beside model.yaml.
        sha256: of that file.
        calibration: see `Calibration`.
    """

    network: str
    options: dict
    crop: float
    size: int
    weights: str
    sha256: str
    calibration: Calibration


@dataclass(frozen=True)
class System:
    """What model.yaml holds.

    Attributes:
        system, version, track: which weights these are.
        views: dihedral views of each crop at test: 1, 2, 4 or 8.
        members: the classifiers; the mean of their probabilities is the answer. Track 1 can do without.
        detector: `Detector` (Track 1), or None.
        data: names of the sets the weights were trained on.
        training: the recipe, as in resources/systems.
        metrics: figures measured when the weights were made.
        folder: where model.yaml lies.
    """

    system: str
    version: str
    track: int
    views: int
    members: tuple
    data: tuple
    training: dict
    metrics: dict
    folder: Path
    detector: Detector | None = None


def parse(kind, values, where):
    """Build a dataclass from a YAML mapping with exactly its keys.

    Args:
        kind: the dataclass; fields with defaults may be left out.
        values: the mapping.
        where: file and place, for the message.

    Raises:
        UserError: not a mapping, an unknown key, or one missing.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: a mapping expected, got {type(values).__name__}; see resources/systems")
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(set(map(str, values)) - set(known))
    if unknown:
        raise UserError(f"{where}: unknown key {', '.join(unknown)}; known: {', '.join(known)}")
    needed = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    missing = sorted(needed - set(values))
    if missing:
        raise UserError(f"{where}: key {', '.join(missing)} is missing; see resources/systems")
    for name, value in values.items():
        wanted = known[name].type
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            continue
        if isinstance(wanted, type) and not isinstance(value, wanted):
            raise UserError(f"{where}: {name} is {value!r}, a {wanted.__name__} expected")
    return kind(**values)


def read_yaml(path):
    """The mapping in a YAML file, or a UserError that names it."""
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as YAML ({reason}); train or unpack the system again") from None


def load_system(folder):
    """Read and check `folder`/model.yaml.

    Raises:
        UserError: no or broken YAML, an unknown or missing key, missing weights, a wrong sha256.
    """
    path = Path(folder) / "model.yaml"
    values = read_yaml(path)
    listed = isinstance(values, dict) and isinstance(values.get("members"), list)
    if not listed or (values.get("track") == 2 and not values["members"]):
        raise UserError(f"{path}: no list of members; train or unpack the system again")
    if values.get("track") == 1 and "detector" not in values:
        raise UserError(f"{path}: no detector; train or unpack the system again")
    parts = {"members": _parse_members(Member, values["members"], f"{path}: ", path.parent), "folder": path.parent}
    if "detector" in values:
        parts["detector"] = _parse_detector(values["detector"], f"{path}: detector", path.parent)
    data = values.get("data")
    if not isinstance(data, list):
        raise UserError(f"{path}: data is not a list of names; train or unpack the system again")
    system = parse(System, values | parts | {"data": tuple(data)}, path)
    _check_views(system, path)
    return system


def check_design(design, where):
    """UserError where a `DetectorDesign` asks for views or a fusion that do not exist."""
    _check_views(design, where)
    if design.fusion not in FUSIONS:
        raise UserError(f"{where}: fusion is {design.fusion!r}; {' or '.join(FUSIONS)} expected")


def _check_views(design, where):
    if design.views not in (1, 2, 4, 8):
        raise UserError(f"{where}: views is {design.views}; 1, 2, 4 or 8 expected")


def _parse_detector(values, where, folder):
    if not isinstance(values, dict) or not isinstance(values.get("members"), list) or not values["members"]:
        raise UserError(f"{where}: no list of members; train or unpack the system again")
    members = _parse_members(DetectorMember, values["members"], f"{where}.", folder)
    detector = parse(Detector, _with_calibration(values | {"members": members}, where), where)
    check_design(detector, where)
    return detector


def _parse_members(kind, listed, where, folder):
    """A tuple of the entries of networks, their weights checked."""
    members = []
    for number, values in enumerate(listed):
        place = f"{where}members[{number}]"
        members.append(parse(kind, _with_calibration(values, place), place))
        _check_weights(folder / members[-1].weights, members[-1].sha256)
    return tuple(members)


def _with_calibration(values, where):
    """A network's entry with its calibration parsed, if it has one."""
    if not isinstance(values, dict) or "calibration" not in values:
        return values
    return values | {"calibration": parse(Calibration, values["calibration"], f"{where}.calibration")}


def _check_weights(path, sha256):
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise UserError(f"{path}: weights not found; unpack the model again, or train it") from None
    if found != sha256:
        raise UserError(f"{path}: sha256 is {found[:12]}..., model.yaml says {sha256[:12]}...; unpack the model again")


def model_folder(given):
    """The folder given, else the platform's where it holds something, else our own."""
    if given:
        return Path(given)
    return PLATFORM_MODEL if PLATFORM_MODEL.is_dir() and any(PLATFORM_MODEL.iterdir()) else OWN_MODEL


def find_system(model_dir, name, track):
    """The system to run: the one named, or the only one (or the default) for a track.

    Args:
        model_dir: folder with one folder a system.
        name: a system's name, or None.
        track: 1 or 2.

    Raises:
        UserError: no such system, one for the other track, or an ambiguous choice.
    """
    model_dir = Path(model_dir)
    found = sorted(path.parent.name for path in model_dir.glob("*/model.yaml"))
    listed = f"there: {', '.join(found) or 'none'}"
    if name is None:
        fitting = [each for each in found if _track(model_dir / each) == track]
        if DEFAULT_SYSTEMS.get(track) in fitting:
            fitting = [DEFAULT_SYSTEMS[track]]
        if len(fitting) != 1:
            raise UserError(f"{model_dir}: no single system for Track {track}; choose one with --system ({listed})")
        name = fitting[0]
    elif name not in found:
        raise UserError(f"{model_dir / name / 'model.yaml'}: not found; choose another --system or --model ({listed})")
    other = _track(model_dir / name)
    if other is not None and other != track:
        raise UserError(
            f"{model_dir / name / 'model.yaml'}: is for Track {other}, the job for Track {track}; choose another"
        )
    return load_system(model_dir / name)


def _track(folder):
    values = read_yaml(folder / "model.yaml")
    return values.get("track") if isinstance(values, dict) else None
