"""Write a system of a detector alone, .5 its best threshold on labelled fields."""

from dataclasses import asdict

from tqdm import tqdm

from midog.engine.detector import SystemDetector
from midog.system import load_system, read_yaml
from resources.train.common import operating_shift, save_weights, write_model
from resources.train.field_curve import precision_recall


def export_detector(folder, values, plan, states, data, validation, device):
    """Write FOLDER/model.yaml and the weights.

    Args:
        folder: `<out>/model/<system>`.
        values: mapping of the system's YAML, for its name and version.
        plan: the detector's part of it, a `DetectorDesign` with `training`.
        states: a state dict for each member.
        data: names of the sets that the weights learnt from.
        validation: list of `Field`.
        device: torch.device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ["detector.safetensors"]
    if len(states) > 1:
        names = [f"member{number}.safetensors" for number in range(len(states))]
    members = [
        {"weights": name, "sha256": save_weights(state, folder / name)}
        for name, state in zip(names, states, strict=True)
    ]
    detector = {name: value for name, value in asdict(plan).items() if name != "training"}
    detector |= {"context_um": 0.0, "score_weight": 0.0, "members": members}
    detector["calibration"] = {"scale": 1.0, "shift": 0.0}
    write_model(
        folder,
        {
            "system": values["system"],
            "version": values["version"],
            "track": 1,
            "views": 1,
            "data": data,
            "detector": detector,
            "members": [],
            "training": {"detector": asdict(plan.training)},
            "metrics": {},
        },
    )
    curve = set_operating_point(folder, validation, device)
    print(f"validation {curve}; export {folder}", flush=True)


def set_operating_point(folder, fields, device):
    """Run a Track 1 system over labelled fields, and put its best threshold at .5 in model.yaml.

    Args:
        folder: of a system of one stage, or of two with one classifier: the shift of an ensemble's mean is no number
            that model.yaml holds, see `midog.evaluation.tune`.

    Returns:
        the curve of `precision_recall`, over the probabilities before.
    """
    detector = SystemDetector(load_system(folder), device, tqdm.write)
    found = [detector(field) for field in tqdm(fields, "validation", disable=None, leave=False)]
    curve = precision_recall(fields, [(each["box"], each["probability"]) for each in found])
    values = read_yaml(folder / "model.yaml")
    (last,) = values["members"] or [values["detector"]]
    last["calibration"]["shift"] = round(last["calibration"]["shift"] + operating_shift(curve["threshold"]), 4)
    values["metrics"] |= {f"validation_{name}": round(value, 4) for name, value in curve.items()}
    write_model(folder, values)
    return curve
