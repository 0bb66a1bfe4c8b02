"""Classification at one or several places of a data point: images, sequences, segmentations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llfc_core import kernels
from llfc_core.classification import errors

IGNORED = -100  # as in `torch.nn.functional.cross_entropy`


@dataclass(frozen=True, eq=False)
class Points:
    """The classified places of a batch, all data points' places one after the other.

    ``logits`` (n·p, classes), ``labels`` (n·p,), and ``counts`` (n, p), false where the label is
    `IGNORED`. Loss and error of a data point are means over its places that count.
    """

    logits: Tensor
    labels: Tensor
    counts: Tensor

    @classmethod
    def of(cls, output: Tensor, labels: Tensor) -> Points:
        """From a network's output and its labels.

        Parameters
        ----------
        output
            ``(n, …, classes)``, or ``(n, classes, …)`` as `torch.nn.functional.cross_entropy` has
            it; where both fit, classes are last.
        labels
            int64 ``(n, …)`` in 0 … classes − 1, or `IGNORED`.

        Raises
        ------
        ValueError
            The shapes do not fit, labels are no int64 or out of range, or all of a data point's
            are ignored.
        """
        if labels.dtype != torch.int64:
            raise ValueError(
                f"labels are {labels.dtype}, class numbers are int64: give a loss for what is no "
                "classification"
            )
        if output.shape[:-1] == labels.shape:
            last = output
        elif output.dim() > 1 and (output.shape[0], *output.shape[2:]) == labels.shape:
            last = output.movedim(1, -1)
        else:
            raise ValueError(
                f"outputs {tuple(output.shape)} and labels {tuple(labels.shape)} do not fit: the "
                "outputs must be (n, …, classes) or (n, classes, …), the labels (n, …)"
            )
        classes = last.shape[-1]
        if classes < 2:
            raise ValueError(f"outputs {tuple(output.shape)} have {classes} class, not 2 or more")
        counts = (labels != IGNORED).reshape(len(labels), -1)
        wrong = counts & ((labels < 0) | (labels >= classes)).reshape(counts.shape)
        if bool(wrong.any()):
            found = int(labels.reshape(counts.shape)[wrong][0])
            raise ValueError(f"label {found} is out of range: there are {classes} logits")
        if not bool(counts.any(dim=1).all()):
            raise ValueError(f"all labels of a data point are {IGNORED}, which is ignored")
        flat = labels.reshape(-1).clamp_min(0)
        return cls(last.reshape(-1, classes), flat, counts)

    def losses_and_errors(self) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, and error, of each data point: float64 ``(n,)`` each."""
        loss, error = kernels.lmc(self.logits[None], self.labels)
        return self._mean(loss[0]), self._mean(error[0])

    def errors(self) -> Tensor:
        """Error of each data point, as `llfc_core.classification` has it: float64 ``(n,)``."""
        return self._mean(errors(self.logits, self.labels).double())

    def _mean(self, values: Tensor) -> Tensor:
        counts = self.counts.double()
        return (values.view_as(counts) * counts).sum(dim=1) / counts.sum(dim=1)
