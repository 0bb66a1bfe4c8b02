"""What counts as a classification error, everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Which of the points are misclassified: ``(n, classes)``, ``(n,)`` → bool ``(n,)``.

    A point is right only if its label's logit is strictly the largest, so ties and NaNs are
    errors: with this reading Lemma 1's inequality has no exceptions but those of rounding.
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return ~(own > others).all(dim=1)
