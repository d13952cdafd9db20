"""The training losses of the classifiers: each is these crops' part of the loss of the whole batch, see `whole.py`."""

import torch
import torch.nn.functional as F

from resources.train.kit.whole import Total, itself


def mean_over(values: torch.Tensor, total: Total) -> torch.Tensor:
    """Values, float (N,), over the crops of the whole batch: a scalar."""
    return values.sum() / total(values.new_tensor(len(values)))


def soft_binary_loss(logits: torch.Tensor, targets: torch.Tensor, total: Total = itself) -> torch.Tensor:
    """Binary cross entropy with logits; targets may be any in [0, 1]. float (N,), (N,) -> scalar."""
    return mean_over(F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none"), total)


def subclass_loss(logits: torch.Tensor, fractions: torch.Tensor, total: Total = itself) -> torch.Tensor:
    """Cross entropy against each crop's fractions of subclasses; rows of zeros (unknown) do not count.

    Args:
        logits: (N, K).
        fractions: float (N, K), rows sum to 1 or are all 0.
    """
    per_crop = -(fractions * F.log_softmax(logits.float(), dim=1)).sum(1)
    return per_crop.sum() / total(fractions.sum()).clamp_min(1)


def mask_loss(logits: torch.Tensor, masks: torch.Tensor, masked: torch.Tensor, total: Total = itself) -> torch.Tensor:
    """Pixel-wise binary cross entropy on a coarse map; crops without a mask do not count.

    Args:
        logits: (N, 1, h, w).
        masks: float (N, 1, H, W); averaged down to (h, w).
        masked: bool (N,).
    """
    targets = F.interpolate(masks, size=logits.shape[2:], mode="area")
    per_crop = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(dim=(1, 2, 3))
    return (per_crop * masked).sum() / total(masked.sum()).clamp_min(1)


def focal_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    gamma: float,
    alpha_positive: float,
    alpha_negative: float,
    total: Total = itself,
) -> torch.Tensor:
    """Focal loss of one logit (Xiao et al. 2025, equation 2).

    Args:
        logits: float (N,).
        targets: float (N,) in [0, 1]; between 0 and 1 where crops were mixed.
        gamma: focusing parameter.
        alpha_positive, alpha_negative: weight of each class.
    """
    logits = logits.float()
    positive = alpha_positive * torch.sigmoid(-logits) ** gamma * F.logsigmoid(logits)
    negative = alpha_negative * torch.sigmoid(logits) ** gamma * F.logsigmoid(-logits)
    return -mean_over(targets * positive + (1 - targets) * negative, total)


def contrastive_loss(
    features: torch.Tensor, labels: torch.Tensor, temperature: float, draws: torch.Generator | None = None
) -> torch.Tensor:
    """Supervised contrastive loss with one partner a row (Xiao et al. 2025, equation 3).

    The partner is drawn from the rows of the same class. A row is left out of its own sum, because its similarity
    to itself, always 1, would hide the rest; rows without a partner do not count.

    Args:
        features: float (N, D).
        labels: int (N,).
        temperature: T.
        draws: of the partners; without it, torch's own.
    """
    features = F.normalize(features.float(), dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarity = (features @ features.T / temperature).masked_fill(itself, -torch.inf)
    partners = (labels[:, None] == labels[None]) & ~itself
    rows = partners.any(1)
    if not rows.any():
        return features.sum() * 0
    partner = torch.multinomial(partners[rows].float().cpu(), 1, generator=draws).to(labels.device)
    return -similarity.log_softmax(1)[rows].gather(1, partner).mean()
