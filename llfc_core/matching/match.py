"""One interface to the matching methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from torch import nn

from llfc_core.matching.activation import device_of, match_activations, peek
from llfc_core.matching.check import check as check_permutation
from llfc_core.matching.commutativity import match_commutativity
from llfc_core.matching.result import Match
from llfc_core.matching.spec import PermutationSpec, State
from llfc_core.matching.ste import match_straight_through
from llfc_core.matching.weight import match_weights
from llfc_core.numerics import finite

__all__ = ["METHODS", "Match", "match"]

METHODS: dict[str, Callable[..., Match]] = {
    "weight": match_weights,
    "activation": match_activations,
    "ste": match_straight_through,
    "commutativity": match_commutativity,
}


def match(
    a: State | nn.Module,
    b: State | nn.Module,
    spec: PermutationSpec,
    method: str = "weight",
    *,
    module: nn.Module | None = None,
    data: Iterable[Any] | None = None,
    held_out: Iterable[Any] | None = None,
    seed: int = 0,
    check: bool = True,
    **options: Any,
) -> Match:
    """The permutation π of B's units that brings B close to A: ``match(a, b, spec).apply(b)``.

    Deterministic: the same on any number of threads.

    Parameters
    ----------
    a, b
        Two modes of the network that ``spec`` describes: state dicts, or modules.
    method
        "weight" (`match_weights`), "activation" (`match_activations`), "ste"
        (`match_straight_through`) or "commutativity" (`match_commutativity`), whose docstrings say
        what ``options`` there are.
    module
        Any instance of the network, for the methods that run it; by default ``a``, if that is one.
        It is run in eval mode and not changed.
    data
        Batches: inputs ``(n, …)`` or ``(inputs, labels)``. All of it counts, whatever the sizes of
        its batches. "weight" needs none.
    held_out
        For "ste": batches that choose among permutations; by default a tenth of ``data``.
    seed
        Of the order of groups, restarts, the order of data, and what is held out.
    check
        Where there is a module, see to it that π(B) computes what B computes, on random inputs like
        the data or the spec's example (`llfc_core.matching.check`): so an error in the spec is
        found before it does harm.

    Raises
    ------
    ValueError
        A state that does not fit ``spec``, or is not finite; types or devices that differ; a
        method or option that does not exist; no data; `SpecError` where the check fails.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    run = METHODS[method]
    known = [k for k, p in inspect.signature(run).parameters.items() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in known if name != "seed"]
    if foreign := sorted(options.keys() - set(known)):
        raise ValueError(f"{method!r} has no option {foreign[0]!r}; its own: {', '.join(known)}")
    if held_out is not None and method != "ste":
        raise ValueError(f"{method!r} does not use held_out; 'ste' does")

    if module is None:
        module = next((m for m in (a, b) if isinstance(m, nn.Module)), None)
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    check_modes(a, b, spec)
    if module is not None:
        spec.check_state(module.state_dict())
    if method != "weight" and (module is None or data is None):
        raise ValueError(f"{method!r} runs the network: give a module and data")

    example = spec.example
    if data is not None:
        # A look at the first inputs, which must not be lost where data can be gone through once.
        batches, taken = iter(data), list[Any]()

        def remembered() -> Iterator[Any]:
            for batch in batches:
                taken.append(batch)
                yield batch

        example = (peek(remembered())[0][:2],)
        data = chain(taken, batches)
    needed: dict[str, dict[str, Any]] = {
        "weight": {"seed": seed},
        "activation": {"module": module, "data": data},
        "ste": {"module": module, "data": data, "held_out": held_out, "seed": seed},
        "commutativity": {"module": module, "data": data, "seed": seed},
    }
    found = run(a, b, spec, **needed[method], **options)
    if check and module is not None and example:
        device = device_of(module.state_dict())
        here = tuple(x.to(device) for x in example)
        check_permutation(spec, module, here, b, found.permutations)
    return found


def check_modes(a: State, b: State, spec: PermutationSpec) -> None:
    """Refuse, with a reason, two states that are not modes of the network of ``spec``.

    Raises
    ------
    ValueError
        Names or shapes differ from the spec's, types or devices from each other's, or a value is
        not finite.
    """
    for which, state in (("A", a), ("B", b)):
        try:
            spec.check_state(state)
        except ValueError as error:
            raise ValueError(f"mode {which}: {error}") from None
        for name, value in state.items():
            if not finite(value):
                raise ValueError(f"mode {which}: {name!r} has values that are not finite")
    for name, value in a.items():
        if value.dtype != b[name].dtype:
            raise ValueError(f"{name!r} is {value.dtype} in A and {b[name].dtype} in B")
    if len(devices := {str(v.device) for state in (a, b) for v in state.values()}) > 1:
        raise ValueError(f"A and B are on several devices: {', '.join(sorted(devices))}")
