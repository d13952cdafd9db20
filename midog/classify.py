"""Crops -> probabilities: members, views, calibration and their mean, in bounded batches.

Every wrapper here is a classifier: a callable that takes float32 (N, 3, H, W)
RGB in [0, 1] and returns float32 (N,), the probability of the positive class.
"""

import contextlib
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from midog.errors import UserError
from midog.models.classifiers import NETWORKS
from midog.stack import Stack
from midog.views import VIEWS, dihedral

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PAGES_A_FORWARD = {"cpu": 4, "cuda": 64}  # what stays in a processor's cache runs 2.6 times as fast there as 64 pages
MAX_THREADS = 16  # the platform allows 128 processes and threads, whatever the host's core count


def normalise(crops):
    """ImageNet statistics, float (N, 3, H, W) in [0, 1] -> channels_last."""
    mean = crops.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = crops.new_tensor(IMAGENET_STD)[:, None, None]
    return ((crops - mean) / std).contiguous(memory_format=torch.channels_last)


def half_precision(device):
    """Autocast to bfloat16 (or float16 where the GPU lacks it) on CUDA, nothing on a CPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    half = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.autocast("cuda", half)


def centre_crop(crops, share, size):
    """Keep the central share of the side and scale it to the network's input.

    Args:
        crops: float (N, 3, H, W).
        share: of the side, in (0, 1]; .6 makes 77 of 128 px (paper, "Dataset and Preprocessing").
        size: px.

    Returns:
        float (N, 3, size, size).
    """
    height, width = crops.shape[2:]
    kept_y, kept_x = round(height * share), round(width * share)
    top, left = (height - kept_y) // 2, (width - kept_x) // 2
    kept = crops[:, :, top : top + kept_y, left : left + kept_x]
    return F.interpolate(kept, size=(size, size), mode="bilinear", align_corners=False)


class NetworkClassifier:
    """A network with one logit, behind its centre crop and normalisation.

    Args:
        network: module, (N, 3, size, size) -> (N, 1) logits.
        crop: share of the side.
        size: px.
    """

    def __init__(self, network, crop, size):
        self.network, self.crop, self.size = network.eval(), crop, size

    def __call__(self, crops):
        with half_precision(crops.device):
            logits = self.network(normalise(centre_crop(crops, self.crop, self.size)))
        return torch.sigmoid(logits[:, 0].float())


class Views:
    """The mean over dihedral views, in one forward."""

    def __init__(self, classifier, count):
        self.classifier, self.views = classifier, VIEWS[count]

    def __call__(self, crops):
        probability = self.classifier(torch.cat([dihedral(crops, view) for view in self.views]))
        return probability.view(len(self.views), -1).mean(0)


class Calibrated:
    """sigmoid(scale x logit(p) + shift)."""

    def __init__(self, classifier, scale, shift):
        self.classifier, self.scale, self.shift = classifier, scale, shift

    def __call__(self, crops):
        return torch.sigmoid(self.scale * torch.logit(self.classifier(crops), eps=1e-6) + self.shift)


class Ensemble:
    """The mean of the members' probabilities (paper, "Inference Strategy")."""

    def __init__(self, classifiers):
        self.classifiers = classifiers

    def __call__(self, crops):
        return torch.stack([classifier(crops) for classifier in self.classifiers]).mean(0)


def choose_device(name):
    """The torch.device for "auto", "cpu" or "cuda"; UserError if CUDA is asked for and absent."""
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that PyTorch can use; give --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


class WithoutRandomStart(TorchFunctionMode):
    """Skips the drawing of first weights, which a file is about to replace.

    The meta device does the same, but imports a second's worth of torch's compiler.
    """

    DRAWS = (
        *(torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_),
        *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_),
    )

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.DRAWS:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def load_network(name, options, path, networks=NETWORKS):
    """Build a network and fill it strictly from a safetensors file, without initialising it first.

    Args:
        name: a key of `networks`.
        options: the constructor's arguments.
        path: of the file.
        networks: constructors by name.

    Raises:
        UserError: unknown network or option, broken file, other names or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if name not in networks:
        raise UserError(f"{path}: network {name!r} is unknown; known: {', '.join(networks)}")
    try:
        with WithoutRandomStart():
            network = networks[name](**options)
        network.load_state_dict(load_file(path))
    except TypeError as error:
        raise UserError(f"{path}: network {name} refuses its options ({error}); see model.yaml") from None
    except (SafetensorError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of {name} ({reason}); unpack the model again") from None
    return network


def load_classifier(system, device):
    """A `midog.system.System` -> the classifier of its whole ensemble on a device."""
    classifiers = []
    for member in system.members:
        network = load_network(member.network, member.options, system.folder / member.weights)
        network = network.to(device, memory_format=torch.channels_last)
        views = Views(NetworkClassifier(network, member.crop, member.size), system.views)
        classifiers.append(Calibrated(views, member.calibration.scale, member.calibration.shift))
    return Ensemble(classifiers)


def classify_file(path, system, device_name, warn, log):
    """P(atypical) of every page of a stack on disk.

    Args:
        path: as `midog.stack.Stack` reads it.
        system: `midog.system.System` for Track 2.
        device_name: "auto", "cpu" or "cuda".
        warn, log: called with one line each.

    Returns:
        float32 (pages,) numpy array.
    """
    stack = Stack(path, warn)
    device = choose_device(device_name)
    um_per_px = "unknown" if stack.um_per_px is None else "{:.4g} x {:.4g}".format(*stack.um_per_px)
    log(f"device {device}, um/px {um_per_px}")
    probabilities = classify(stack, load_classifier(system, device), device, warn)
    log(f"pages {len(probabilities)}, atypical {(probabilities >= 0.5).sum()}")
    return probabilities


@torch.inference_mode()
def classify(pages, classifier, device, warn, batch=None):
    """P(positive) of every page, in order, with memory bounded by the batch.

    Args:
        pages: iterable of uint8 (H, W, 3), all of one size.
        classifier: as this module's wrappers.
        device: where the forward runs.
        warn: called with one line when memory runs out and the batch is halved.
        batch: pages a forward; by the kind of device if not given.

    Returns:
        float32 (pages,) numpy array.
    """
    batch = batch or PAGES_A_FORWARD[device.type]
    pages = iter(pages)
    done = []
    while block := list(islice(pages, batch)):
        crops = torch.from_numpy(np.stack(block)).to(device).permute(0, 3, 1, 2).float() / 255
        start = 0
        while start < len(crops):
            try:
                done.append(classifier(crops[start : start + batch]).cpu())
                start += batch
            except RuntimeError as error:
                if not _out_of_memory(error) or batch == 1:
                    raise
                batch = max(1, batch // 2)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                warn(f"memory ran out; the batch is halved to {batch} pages")
    return torch.cat(done).numpy() if done else np.zeros(0, np.float32)


def _out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
