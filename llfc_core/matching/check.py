"""Whether permuting a network's weights really leaves its function as it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from llfc_core.matching.spec import Permutations, PermutationSpec, State
from llfc_core.numerics import finite

# A permutation changes the order of sums and nothing else. In float64 that leaves 1e-16 of an
# operation's scale, and 1e-12 was the most seen over the networks of the tests; one bias left in
# place is seen at 1e-6 and more. Where a network amplifies rounding (batch statistics of two data
# points), what a change of the inputs by one rounding brings about is the measure: SLACK times it.
TOLERANCE = 1e-9
SLACK = 100.0
BLIND = 1e-3  # from here on a wrong permutation would not be told from rounding


class SpecError(ValueError):
    """A permutation that should leave the network's function as it is changes it."""


class _Blind(SpecError):
    """Two runs of one network differ too far to tell anything."""


def check(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    state: State,
    perms: Permutations,
    *,
    seed: int = 0,
) -> float:
    """How far the network with weights π(B) is from the one with weights B.

    Both run in float64 on random inputs of the example's shapes and types (integers are drawn from
    the example's own values): in eval mode, then in train mode without dropout, where batch
    statistics are at work and the buffers written must be permuted alike. The model is not changed.

    Returns the largest difference found, relative to the scale of what is compared; at most
    `TOLERANCE`. Train mode is left out, with a warning, where the model cannot run in it on such
    inputs, or draws random numbers in it.

    Raises SpecError where the difference is larger, where outputs are not finite, and where the
    model draws random numbers in eval mode.
    """
    moved = spec.apply(state, perms)
    inputs = as_inputs(example_inputs)
    with in_float64(model, state) as (twin, own):
        generator = torch.Generator().manual_seed(seed)
        drawn = tuple(_like(x, generator) for x in inputs)
        nudged = tuple(_nudged(x, generator) for x in drawn)
        buffers = [name for name, tensor in own.items() if not isinstance(tensor, nn.Parameter)]

        def load(weights: State) -> None:
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(weights[name])

        def run(training: bool, inputs: tuple[Tensor, ...], seed: int) -> tuple[State, State]:
            """The outputs and, in train mode, the buffers as they are then."""
            set_training(twin, training)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(seed)  # alone: a GPU's would not be put back
                outputs = tensors_in(twin(*(x.clone() for x in inputs)))
            return outputs, {k: own[k].detach().clone() for k in buffers if training}

        def judge(training: bool, outputs: State, held: State) -> float:
            """How far π(B), which is loaded, is from that. Raises SpecError."""
            when = f"in {'train' if training else 'eval'} mode"
            # What nothing wrote to is permuted as it should be, and may be infinite (a mask).
            written = {k: v for k, v in held.items() if not torch.equal(v, state[k].to(v))}
            # Another seed: what draws random numbers is seen to differ.
            after, kept = run(training, drawn, 2)
            gap, name = _worst(
                _both(outputs, spec.permuted(written, perms)), _both(after, kept), when
            )
            if gap <= TOLERANCE:
                return gap
            load(state)
            again, kept = run(training, nudged, 3)
            noise, _ = _worst(_both(outputs, written), _both(again, kept), when)
            if noise > BLIND / SLACK:
                raise _Blind(
                    f"{when} two runs differ by {noise:.1e} of the output's scale: the model draws "
                    "random numbers, or amplifies rounding too far to compare anything"
                )
            if gap > SLACK * noise:
                raise SpecError(f"{when}: {name} differs by {gap:.1e} of its scale")
            load(moved)
            return gap

        before, untested = run(False, drawn, 1), ""
        try:
            trained = run(True, drawn, 1)
        except (ValueError, RuntimeError) as error:
            untested = str(error)
        load(moved)
        worst = judge(False, *before)
        if not untested:
            try:
                worst = max(worst, judge(True, *trained))
            except _Blind:
                untested = "random numbers are drawn, or rounding is amplified too far"
            except SpecError:
                raise
            except (ValueError, RuntimeError) as error:
                untested = str(error)
        if untested:
            warnings.warn(f"not checked in train mode: {untested}", stacklevel=2)
        return worst


def as_inputs(example_inputs: Any) -> tuple[Tensor, ...]:
    """The example as a tuple of tensors. Raises TypeError if it is anything else."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, (tuple, list)) or not all(isinstance(x, Tensor) for x in inputs):
        raise TypeError(
            "example_inputs: a tensor, or a tuple of tensors (the model's positional arguments), "
            f"not {type(example_inputs).__name__}"
        )
    return tuple(inputs)


def tensors_in(output: Any) -> dict[str, Tensor]:
    """The tensors of what a model returns, by number."""
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return (
        {f"output {i}": t for i, t in enumerate(found)} if len(found) != 1 else {"output": found[0]}
    )


def set_training(model: nn.Module, mode: bool) -> None:
    """Eval mode, or train mode in all that dropout has no part in."""
    for part in model.modules():
        # the flag itself: train() and eval() may be overridden, and do more
        leaf = next(part.children(), None) is None
        statistics = isinstance(part, nn.modules.batchnorm._NormBase)
        drops = isinstance(part, (nn.MultiheadAttention, nn.RNNBase))
        part.training = mode and not drops and (statistics or not leaf)


@contextmanager
def in_float64(model: nn.Module, state: State) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """A copy of the model in float64, and its weights: the tensors themselves, to be written to.

    Tensors that the model makes while it runs are float64 too. Not by `torch.set_default_dtype`:
    that would reach every thread, and others may be training. Dropout drops nothing.
    """
    # Handed to `deepcopy` in the place of what it would copy and convert.
    theirs = model.state_dict(keep_vars=True)
    given: dict[int, Tensor] = {}
    for name, tensor in theirs.items():
        if tensor.is_floating_point():
            value = state[name].detach().to(tensor.device, torch.float64, copy=True)
            if isinstance(tensor, nn.Parameter):
                value = nn.Parameter(value, tensor.requires_grad)
            given[id(tensor)] = value
    twin = copy.deepcopy(model, dict(given)).double()
    own = twin.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in own.items():
            # integers, and where a module copies itself, or its state, in a way of its own
            if tensor is not given.get(id(theirs[name])):
                tensor.copy_(state[name])
    with _InFloat64():
        yield twin, own


_DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
)
_MAKERS: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.arange,
        torch.as_tensor,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.logspace,
        torch.ones,
        torch.rand,
        torch.randn,
        torch.scalar_tensor,
        torch.tensor,
        torch.zeros,
    }
)


class _NoDropout(TorchFunctionMode):
    """Dropout called as a function drops nothing."""

    _watched = _DROPOUTS | {F.scaled_dot_product_attention}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return self._call(func, args, kwargs) if func in self._watched else func(*args, **kwargs)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = kwargs | ({"dropout_p": 0.0} if "dropout_p" in kwargs else {})
        return func(*args, **kwargs)


class _InFloat64(_NoDropout):
    """Besides, new tensors that would be of the default floating type are float64."""

    _watched = _NoDropout._watched | _MAKERS

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = super()._call(func, args, kwargs)
        if func in _MAKERS and kwargs.get("dtype") is None and made.is_floating_point():
            return made.double()
        return made


def _like(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    if x.numel() == 0:
        return x
    chosen = torch.randint(x.numel(), (x.numel(),), generator=generator)
    return x.reshape(-1)[chosen.to(x.device)].reshape(x.shape)


def _nudged(x: Tensor, generator: torch.Generator) -> Tensor:
    """By about one rounding."""
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return x * (1 + torch.finfo(torch.float64).eps * noise.clamp(-4, 4))


def _both(outputs: State, buffers: State) -> dict[str, Tensor]:
    """Under names that cannot be the same."""
    return {**outputs, **{f"buffer {name}": value for name, value in buffers.items()}}


def _worst(expected: State, got: State, when: str) -> tuple[float, str]:
    """The largest difference, relative to the scale of its tensor, and that tensor's name."""
    for name, value in expected.items():
        if value.shape != got[name].shape:
            raise SpecError(f"{when}: {name} has another shape, {tuple(got[name].shape)}")
        if not (finite(value) and finite(got[name])):
            raise SpecError(f"{when}: {name} is not finite: nothing can be compared")
    return max(
        ((_apart(value, got[name]), name) for name, value in expected.items()), default=(0.0, "")
    )


def _apart(value: Tensor, other: Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    gap = float((value.double() - other.double()).abs().max())
    return gap / max(float(value.abs().max()), torch.finfo(torch.float64).tiny)
