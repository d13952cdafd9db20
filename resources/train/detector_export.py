"""Write a system of a detector alone, .5 its best threshold on labelled fields."""

import msgspec
from tqdm import tqdm

from midog.calibration import Calibration, shift_to_half
from midog.engine.two_stages import SystemDetector
from midog.system import Made, Weights, load_system
from resources.train.common import commit, save_weights, write_model
from resources.train.field_curve import precision_recall


def export_detector(folder, plan, states, data, validation, device):
    """Write FOLDER/model.yaml and the weights.

    Args:
        folder: `<out>/model/<system>`.
        plan: `resources.train.common.Plan` of the detector.
        states: a state dict for each member.
        data: `midog.system.DataSource`s that the weights learnt from.
        validation: list of `Field`.
        device: torch.device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ["detector.safetensors"]
    if len(states) > 1:
        names = [f"member{number}.safetensors" for number in range(len(states))]
    members = tuple(
        Weights(weights=name, sha256=save_weights(state, folder / name))
        for name, state in zip(names, states, strict=True)
    )
    system = msgspec.structs.replace(
        plan.system,
        detector=msgspec.structs.replace(plan.system.detector, members=members),
        classifier=None,
        training={"detector": msgspec.to_builtins(plan.training)},
        made=Made(code=commit(), data=data),
    )
    write_model(folder, system)
    curve = set_operating_point(folder, validation, device)
    print(f"validation {curve}; export {folder}", flush=True)


def set_operating_point(folder, fields, device):
    """Run a Track 1 system over labelled fields, and put its best threshold at .5 in model.yaml.

    Args:
        folder: of a system of one stage, or of two with one classifier.

    Returns:
        the curve of `precision_recall`, over the probabilities before.
    """
    system = load_system(folder)
    detector = SystemDetector(system, device)
    found = [detector(field) for field in tqdm(fields, "validation", disable=None, leave=False)]
    curve = precision_recall(fields, [(each.boxes, each.probabilities) for each in found])
    shift = Calibration(shift=shift_to_half(curve["threshold"]))
    if system.classifier:
        (member,) = system.classifier.members
        member = msgspec.structs.replace(member, calibration=member.calibration.then(shift))
        changed = {"classifier": msgspec.structs.replace(system.classifier, members=(member,))}
    else:
        calibration = system.detector.calibration.then(shift)
        changed = {"detector": msgspec.structs.replace(system.detector, calibration=calibration)}
    metrics = system.made.metrics | {f"validation_{name}": round(value, 4) for name, value in curve.items()}
    made = msgspec.structs.replace(system.made, metrics=metrics)
    write_model(folder, msgspec.structs.replace(system, made=made, **changed))
    return curve
