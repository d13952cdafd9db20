"""Batch norms folded into the convolutions before them, for inference."""

import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network):
    """Fold every batch norm that follows a convolution into it, in place.

    It does so in blocks that call their parts `conv` and `bn`, and where the two follow each other in an
    `nn.Sequential`. Blocks that share a convolution have one each afterwards.

    Args:
        network: module.

    Returns:
        The network, in evaluation mode.
    """
    for module in network.eval().modules():
        parts = dict(module.named_children())
        names = list(parts) if isinstance(module, nn.Sequential) else ["conv", "bn"]
        for first, second in itertools.pairwise(names):
            if isinstance(parts.get(first), nn.Conv2d) and isinstance(parts.get(second), nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(parts[first], parts[second]))
                setattr(module, second, nn.Identity())
    return network
