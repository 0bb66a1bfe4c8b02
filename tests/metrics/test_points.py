"""Losses and errors at several places of a data point, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llfc_core.classification import errors
from llfc_core.metrics.points import IGNORED, Points


def drawn(n: int, places: tuple[int, ...], classes: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    output = torch.randint(-3, 4, (n, *places, classes), generator=g).float()  # with ties
    labels = torch.randint(classes, (n, *places), generator=g)
    ignored = torch.rand(labels.shape, generator=g) < 0.3
    ignored.view(n, -1)[:, 0] = False
    return output, labels.masked_fill(ignored & bool(places), IGNORED)


def by_loop(output: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    loss, error = [], []
    for z, y in zip(output.flatten(1, -2) if output.dim() > 2 else output[:, None], labels):
        rows = [(row, label) for row, label in zip(z, y.reshape(-1)) if label != IGNORED]
        loss.append(np.mean([float(F.cross_entropy(r.double(), k)) for r, k in rows]))
        error.append(np.mean([any(r[k] <= v for i, v in enumerate(r) if i != k) for r, k in rows]))
    return loss, error


shapes = st.lists(st.integers(1, 4), max_size=2).map(tuple)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), shapes, st.integers(2, 5), st.integers(0, 999))
def test_a_data_point_s_numbers_are_means_over_its_places(
    n: int, places: tuple[int, ...], classes: int, seed: int
) -> None:
    output, labels = drawn(n, places, classes, seed)
    points = Points.of(output, labels)
    loss, error = points.losses_and_errors()
    want_loss, want_error = by_loop(output, labels)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
    np.testing.assert_allclose(error, want_error)
    np.testing.assert_array_equal(points.errors(), error)
    assert loss.dtype == error.dtype == torch.float64


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), shapes, st.integers(6, 8), st.integers(0, 999))
def test_classes_may_come_second(n: int, places: tuple[int, ...], classes: int, seed: int) -> None:
    output, labels = drawn(n, places, classes, seed)
    for one, other in zip(
        Points.of(output, labels).losses_and_errors(),
        Points.of(output.movedim(-1, 1), labels).losses_and_errors(),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_where_both_fit_classes_are_last() -> None:
    output, labels = drawn(5, (4,), 4, seed=0)
    assert torch.equal(Points.of(output, labels).logits, output.reshape(20, 4))


def test_one_place_is_the_plain_error() -> None:
    output, labels = drawn(50, (), 4, seed=1)
    assert torch.equal(Points.of(output, labels).errors(), errors(output, labels).double())


@pytest.mark.parametrize(
    ("output", "labels", "message"),
    [
        ((3, 4), torch.zeros(3), "labels are torch.float32, class numbers are int64"),
        ((3, 4), torch.zeros(3, 1, dtype=torch.long), r"\(3, 4\) and labels \(3, 1\) do not fit"),
        ((3, 5, 6), torch.zeros(3, dtype=torch.long), r"do not fit"),
        ((3,), torch.zeros(3, dtype=torch.long), r"do not fit"),
        ((3, 1), torch.zeros(3, dtype=torch.long), r"have 1 class, not 2 or more"),
        ((3, 4), torch.tensor([0, 4, 1]), "label 4 is out of range: there are 4 logits"),
        ((3, 4), torch.tensor([0, -1, 1]), "label -1 is out of range"),
        ((2, 2, 4), torch.tensor([[0, 1], [-100, -100]]), "all labels of a data point are -100"),
    ],
)
def test_what_does_not_fit_is_refused(
    output: tuple[int, ...], labels: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Points.of(torch.zeros(output), labels)
