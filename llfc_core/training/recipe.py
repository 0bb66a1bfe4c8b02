"""A `Recipe` is everything that determines a mode's weights, frozen and hashed.

Two recipes that are equal give bit-identical weights on one kind of device (see `engine`). The
recipes of a spawned pair (Frankle et al. 2020; paper, Section 3) share a `parent`: the same recipe
stopped at the spawning point.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from llfc_core.data import Augmentation
from llfc_core.nets import Net


@dataclass(frozen=True)
class Seeds:
    """The three sources of randomness of a training run, apart.

    ``init`` draws θ⁽⁰⁾, ``order`` the mini-batches, ``augmentation`` the crops and flips. A child
    spawned from a parent never draws θ⁽⁰⁾ itself.
    """

    init: int
    order: int
    augmentation: int


@dataclass(frozen=True)
class Point:
    """A moment of training, in epochs or in steps (they add up)."""

    epochs: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.steps < 0:
            raise ValueError(f"a point of training cannot be negative: {self}")

    def in_steps(self, steps_per_epoch: int) -> int:
        return self.epochs * steps_per_epoch + self.steps


@dataclass(frozen=True)
class Optimiser:
    """Adam (Kingma & Ba 2015) or SGD with momentum; ``weight_decay`` is the L2 kind for both."""

    name: Literal["adam", "sgd"]
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in ("adam", "sgd"):
            raise ValueError(f"optimiser must be 'adam' or 'sgd', got {self.name!r}")
        if not self.lr > 0:
            raise ValueError(f"learning rate must be positive, got {self.lr}")
        _make_floats(self, "lr", "momentum", "weight_decay", "eps")
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))

    def build(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        # Fused: one pass over parameters, gradients and moments (1.25x a step on a CPU).
        if self.name == "adam":
            return torch.optim.Adam(
                parameters,
                lr=self.lr,
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                fused=True,
            )
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a factor of ``Optimiser.lr``, step by step.

    ``warmup`` epochs rise linearly from ``warmup_from``; then ``constant``, ``step`` (times
    ``gamma`` at each of ``milestones``, in epochs) or ``cosine`` (one decay to 0 over the epochs
    that remain).
    """

    name: Literal["constant", "step", "cosine"] = "constant"
    warmup: int = 0
    warmup_from: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in ("constant", "step", "cosine"):
            raise ValueError(f"schedule must be constant, step or cosine, got {self.name!r}")
        _make_floats(self, "warmup_from", "gamma")

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """What the learning rate is multiplied by at a step, counted from 0."""
        warm = self.warmup * steps_per_epoch
        if step < warm:
            return self.warmup_from + (1 - self.warmup_from) * step / warm
        if self.name == "step":
            return self.gamma ** sum(step >= m * steps_per_epoch for m in self.milestones)
        if self.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / (epochs * steps_per_epoch - warm)))
        return 1.0


@dataclass(frozen=True)
class Recipe:
    """How to train one mode.

    Attributes
    ----------
    data
        A name known to `llfc_core.data.load_dataset`.
    stop
        Train only this far, along the schedule of all ``epochs``: the recipe of a spawning parent.
    parent
        Start from this recipe's weights and optimiser state instead of from θ⁽⁰⁾.
    max_test_error
        A trained mode with more test error than this, in per cent, is a failure and is not kept.
        Not applied to a recipe with ``stop``, which is not meant to be good yet.
    precision
        ``"float32"``, or ``"bfloat16"`` for autocast in training. Measurement is always float32.
    """

    net: Net
    data: str
    epochs: int
    batch_size: int
    optimiser: Optimiser
    seeds: Seeds
    schedule: Schedule = field(default_factory=Schedule)
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: Literal["float32", "bfloat16"] = "float32"
    max_test_error: float = 100.0
    stop: Point | None = None
    parent: Recipe | None = None

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(
                f"need epochs ≥ 0 and batch_size ≥ 1: {self.epochs}, {self.batch_size}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")
        _make_floats(self, "max_test_error")
        if self.parent is not None:
            if self.parent.stop is None:
                raise ValueError("a parent must say where it stops: that is the spawning point")
            if self.parent.along() != self.along():
                raise ValueError("a child goes on along its parent's recipe; only the seeds differ")

    def along(self) -> Recipe:
        """This recipe without what tells one mode of a family from another.

        Modes that agree in it can be trained in one stack, and a child with its parent.
        """
        return replace(self, seeds=Seeds(0, 0, 0), stop=None, parent=None)

    def steps_per_epoch(self, n_train: int) -> int:
        """Mini-batches an epoch; the last, smaller one counts."""
        return -(-n_train // self.batch_size)

    def span(self, n_train: int) -> tuple[int, int]:
        """The steps ``[first, last)`` that this recipe itself trains."""
        per_epoch = self.steps_per_epoch(n_train)
        first = 0
        if self.parent is not None and self.parent.stop is not None:
            first = self.parent.stop.in_steps(per_epoch)
        last = (self.stop or Point(epochs=self.epochs)).in_steps(per_epoch)
        if not first <= last <= self.epochs * per_epoch:
            raise ValueError(
                f"cannot train from step {first} to {last}: "
                f"the recipe has {self.epochs} epochs of {per_epoch} steps"
            )
        return first, last

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and complete; equal recipes give equal dictionaries."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote.

        Raises
        ------
        ValueError, TypeError
            It is none: something is missing, unknown or impossible.
        """
        parts = dict(content)
        for name, part in (
            ("net", Net),
            ("optimiser", Optimiser),
            ("seeds", Seeds),
            ("schedule", Schedule),
            ("augmentation", Augmentation),
            ("stop", Point),
        ):
            if parts.get(name) is not None:
                parts[name] = part(**_tuples(parts[name]))
        if parts.get("parent") is not None:
            parts["parent"] = Recipe.from_dict(parts["parent"])
        return Recipe(**parts)

    def key(self, **context: Any) -> str:
        """sha256 (64 hex digits) of the canonical recipe and of ``context``, JSON-able too.

        The context is what else the weights depend on: data digest, engine version, device type.
        """
        text = json.dumps({"recipe": self.to_dict(), **context}, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def label(self) -> str:
        """A short name for progress lines."""
        s = self.seeds
        name = f"{self.net.name}/{self.data} init={s.init} order={s.order}"
        return f"{name} to {self.stop}" if self.stop is not None else name


def with_parents(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Each recipe once, after its parent."""
    ordered: dict[Recipe, None] = {}
    for recipe in recipes:
        line = []
        ancestor: Recipe | None = recipe
        while ancestor is not None:
            line.append(ancestor)
            ancestor = ancestor.parent
        ordered.update(dict.fromkeys(reversed(line)))
    return list(ordered)


def spawn(base: Recipe, at: Point, children: list[Seeds]) -> list[Recipe]:
    """Recipes of children that part from ``base`` at a point (the paper's k) and end as it would.

    Each child takes ``order`` and ``augmentation`` from its own seeds; the initialisation is
    ``base``'s. Spawning at 0 needs no parent: the children share θ⁽⁰⁾ and nothing else.
    """
    parent = None if at == Point() else replace(base, stop=at)
    return [
        replace(base, seeds=replace(seeds, init=base.seeds.init), parent=parent)
        for seeds in children
    ]


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists alone, and what is frozen must be hashable."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def _make_floats(instance: object, *names: str) -> None:
    """Of frozen fields: 1 and 1.0 are equal, but not in JSON, and equal recipes share a key."""
    for name in names:
        object.__setattr__(instance, name, float(getattr(instance, name)))


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable; unlike sums of seeds, no two meanings collide."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
