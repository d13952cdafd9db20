"""The training losses."""

import torch.nn.functional as F


def soft_binary_loss(logits, targets):
    """Binary cross entropy with logits; targets may be shares in [0, 1]. float (N,), (N,) -> scalar."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def subclass_loss(logits, shares):
    """Cross entropy against each crop's share of subclasses; rows of zeros (unknown) do not count.

    Args:
        logits: (N, K).
        shares: float (N, K), rows sum to 1 or are all 0.
    """
    per_crop = -(shares * F.log_softmax(logits.float(), dim=1)).sum(1)
    return per_crop.sum() / shares.sum().clamp_min(1)


def mask_loss(logits, masks, masked):
    """Pixel-wise binary cross entropy on a coarse map; crops without a mask do not count.

    Args:
        logits: (N, 1, h, w).
        masks: float (N, 1, H, W); averaged down to (h, w).
        masked: bool (N,).
    """
    targets = F.interpolate(masks, size=logits.shape[2:], mode="area")
    per_crop = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(dim=(1, 2, 3))
    return (per_crop * masked).sum() / masked.sum().clamp_min(1)
