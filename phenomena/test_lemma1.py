"""Lemma 1: Err(theta_alpha) <= 2 eps if A and B satisfy LLFC and neither errs on more than eps.

    Err(alpha f_A + (1-alpha) f_B) <= Err(f_A) + Err(f_B),      alpha in [0, 1].

By LLFC the logits of theta_alpha are those of the mixture, up to a factor c > 0 that moves no
prediction, so this inequality is the whole lemma and it is about logits, not networks. It holds
because the logits on which a label is correct form a convex set: where both networks are correct,
so is every mixture, and a union bound does the rest. Hence ties:

- any rule with a convex region keeps the lemma: "strictly largest" (half-spaces, open), "among the
  largest" (closed), and argmax with ties to the lowest index as numpy and torch document it (open
  below the label, closed above). Equal logits alone break nothing, against first expectation;
- a rule that settles ties afresh for each network (at random, or by whatever order a kernel
  meets them) has no such region, and the inequality can fail: a counterexample is below;
- rounding can turn a strict maximum of both networks into a tie of the mixture: the first and the
  third rule are exact for exact arithmetic only (below: an example). "Among the largest" survives
  rounding, as multiplication by alpha and addition round monotonically.

Exact tests: the logits are small integers and alpha a multiple of 1/8, so that float64 makes no
rounding error and ties are frequent.
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]


def largest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,), the largest logit but the label's."""
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def label_logit(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def strictly_largest(logits: Tensor, labels: Tensor) -> Tensor:
    """(n,) bool. The rule of the paper's proof: a tie for the largest is an error."""
    return label_logit(logits, labels) > largest_other(logits, labels)


def among_the_largest(logits: Tensor, labels: Tensor) -> Tensor:
    return label_logit(logits, labels) >= largest_other(logits, labels)


def first_index_argmax(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(1) == labels


RULES = [strictly_largest, among_the_largest, first_index_argmax]


def mixture(f_a: Tensor, f_b: Tensor, alpha: float) -> Tensor:
    return alpha * f_a + (1 - alpha) * f_b


def errors(rule: Rule, logits: Tensor, labels: Tensor) -> int:
    """Err times n."""
    return int((~rule(logits, labels)).sum())


@st.composite
def integer_logits(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """f_A, f_B (n, c) integers in float64, labels (n,); few values, so ties abound."""
    n, c = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    top = draw(st.sampled_from([1, 3, 50]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    labels = torch.randint(c, (n,), generator=g)
    # Lift the label's logit in some: with pure noise most points would be errors of both.
    lift = torch.randint(0, 2 * top + 1, (2, n, 1), generator=g)
    f = torch.randint(-top, top + 1, (2, n, c), generator=g)
    f = f + lift * torch.nn.functional.one_hot(labels, c)
    return f[0].double(), f[1].double(), labels


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=150)
@given(integer_logits(), st.integers(0, 8))
def test_lemma1_theorem_holds(
    rule: Rule, drawn: tuple[Tensor, Tensor, Tensor], eighths: int
) -> None:
    f_a, f_b, labels = drawn
    mixed = mixture(f_a, f_b, eighths / 8)
    ours, theirs = errors(rule, f_a, labels), errors(rule, f_b, labels)
    assert errors(rule, mixed, labels) <= ours + theirs
    assert errors(rule, mixed, labels) <= 2 * max(ours, theirs)
    # Point by point, which is the proof: correct in both, correct in the mixture.
    both = rule(f_a, labels) & rule(f_b, labels)
    assert rule(mixed, labels)[both].all()
    # The c > 0 of Definition 2 changes no prediction.
    assert torch.equal(rule(4 * mixed, labels), rule(mixed, labels))


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays("float64", (2, 6, 3), elements=st.floats(-1e150, 1e150)),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.floats(0, 1),
)
def test_lemma1_theorem_holds_in_floating_point_for_labels_among_the_largest(
    f: object, labels: list[int], alpha: float
) -> None:
    """Whatever the floats and alpha, rounding and all."""
    f_a, f_b = torch.as_tensor(f)
    y = torch.tensor(labels)
    both = among_the_largest(f_a, y) & among_the_largest(f_b, y)
    mixed = mixture(f_a, f_b, alpha)
    assert among_the_largest(mixed, y)[both].all()
    total = errors(among_the_largest, f_a, y) + errors(among_the_largest, f_b, y)
    assert errors(among_the_largest, mixed, y) <= total


def test_lemma1_theorem_two_epsilon_is_attained() -> None:
    """Errors of A and B on different points, each large enough to win the mixture: no constant
    smaller than 2 will do."""
    labels = torch.zeros(4, dtype=torch.long)
    right, wrong = [1.0, 0.0], [0.0, 9.0]
    f_a = torch.tensor([wrong, right, right, right]).double()
    f_b = torch.tensor([right, wrong, right, right]).double()
    for rule in RULES:
        assert errors(rule, f_a, labels) == errors(rule, f_b, labels) == 1
        assert errors(rule, mixture(f_a, f_b, 0.5), labels) == 2


def test_lemma1_theorem_breaks_if_ties_are_settled_at_random() -> None:
    """Three ties, three coins: A and B lucky, the mixture not. 1 <= 0 + 0 fails."""
    logits = torch.zeros(1, 2).double()
    labels = torch.tensor([0])

    def settled_by(coin: int) -> Rule:
        def rule(f: Tensor, y: Tensor) -> Tensor:
            top = f == f.amax(1, keepdim=True)
            return torch.where(top.sum(1) > 1, coin == y, f.argmax(1) == y)

        return rule

    mixed = mixture(logits, logits, 0.5)
    a, b = errors(settled_by(0), logits, labels), errors(settled_by(0), logits, labels)
    assert (a, b, errors(settled_by(1), mixed, labels)) == (0, 0, 1)
    # With one coin for all three, a fixed order of the classes, the inequality is back.
    assert errors(settled_by(0), mixed, labels) <= a + b


def test_lemma1_theorem_breaks_if_rounding_makes_a_tie() -> None:
    """Label 1 leads by one ulp in A and in B; the mixture at alpha = 0.2 rounds to a tie."""
    x = torch.tensor(0.1, dtype=torch.float64)
    f = torch.stack([x, torch.nextafter(x, torch.tensor(1.0).double())])[None]
    labels = torch.tensor([1])
    mixed = mixture(f, f, 0.2)
    assert mixed[0, 0] == mixed[0, 1]
    for rule in (strictly_largest, first_index_argmax):
        assert errors(rule, f, labels) == 0
        assert errors(rule, mixed, labels) == 1
    assert errors(among_the_largest, mixed, labels) == 0


def test_lemma1_theorem_needs_alpha_between_0_and_1() -> None:
    """The control: extrapolation is no mixture, and there the inequality fails."""
    f_a, f_b = torch.tensor([[2.0, 1.0]]).double(), torch.tensor([[9.0, 1.0]]).double()
    labels = torch.tensor([0])
    for rule in RULES:
        assert errors(rule, f_a, labels) == errors(rule, f_b, labels) == 0
        assert errors(rule, mixture(f_a, f_b, 1.5), labels) == 1
