"""Tap the layers of any ``nn.Module`` by name, while the forward pass runs.

The paper's features f^(ℓ)(θ; x) are post-activations (Section 3), its commutativity speaks of
pre-activations too (Definition 3). Module hooks do not see an activation called as a function
(``F.relu(x)``, ``x.relu_()``), so activations are caught as torch functions, and hooks only tell
by which name the tensor that enters one goes.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Kind = Literal["activation", "module", "output"]

_NAMES = """relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardsigmoid
    hardtanh sigmoid expit tanh softplus softsign tanhshrink logsigmoid threshold _threshold"""
# One activation has several entry points (torch.relu, Tensor.relu, F.relu and their relu_); torch
# hands over the outermost one that the program called, so each call is seen once.
ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    getattr(space, name + suffix)
    for space in (torch, Tensor, F, torch.special)
    for name in _NAMES.split()
    for suffix in ("", "_")
    if hasattr(space, name + suffix)
)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer as it executes: the tensors are the program's own.

    They hold good until the callback returns (the network may then write into them in place):
    clone what is kept. ``pre``, ``post``: (n, …), the same tensor unless ``kind`` is "activation".
    """

    name: str
    pre: Tensor
    post: Tensor
    kind: Kind


OnLayer = Callable[[Layer], Tensor | None]


class Taps:
    """The named layers of a module, in order of execution.

    A layer is a call of an activation function (*site*), the network's output, or, where asked
    for by name, the output of a submodule. A site takes the name of the submodule that returned
    the very tensor it acts on ("fc1", "layer1.0.bn1"); where that tensor was computed otherwise
    (the sum that ends a residual block), of the innermost module in whose forward the call is
    made ("layer1.0"). The output is named after the submodule that returned it, else "output";
    an output that is itself an activation's is one layer, not two. Repeats get "#2", "#3", ….

    Activations written by hand (``x.clamp(min=0)``, ``x * (x > 0)``) are no sites; in one with a
    tanh or sigmoid inside, that is the site. The module always runs in eval mode.
    """

    names: tuple[str, ...]

    def __init__(
        self,
        module: nn.Module,
        example: Tensor,
        layers: Sequence[str] | None = None,
        *,
        again: bool = True,
    ) -> None:
        """Find the layers by running ``module`` on ``example`` (n, …), a small batch.

        layers: the names to tap; None: every activation site and the output.
        again: run it once more at once, to see that the same layers come.

        Raises ValueError for a name that is no layer, TypeError where the module (or a submodule
        asked for) does not return a tensor or is compiled, RuntimeError where two runs differ.
        """
        if isinstance(layers, str):
            raise TypeError(f"layers: a sequence of names, not the string {layers!r}")
        for name, part in module.named_modules():
            compiled = (
                isinstance(part, torch.jit.ScriptModule)
                or hasattr(part, "_orig_mod")
                or getattr(part, "_compiled_call_impl", None) is not None
            )
            if compiled:
                what = f"submodule {name!r}" if name else "the module"
                raise TypeError(f"{what} is compiled, its calls cannot be seen: use the original")
        self.module = module
        self._state_names = set(module.state_dict())
        self._cuts: set[str] = set()
        with torch.no_grad():
            seen = self._forward(example, None, _Trace((), _ignore))
            self._wanted = _choose(seen, None if layers is None else set(layers))
            self.names = tuple(name for name, _ in self._wanted)
            if again:
                self.run(example, _ignore)  # raises where the layers come otherwise this time

    def run(
        self, x: Tensor, on_layer: OnLayer, state: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The module's output on ``x`` (n, …), each tapped layer handed to ``on_layer`` on the way.

        on_layer: called with a `Layer` as soon as it exists. A tensor that it returns takes the
            place of ``post`` in the rest of the pass (same shape); None leaves it.
        state: the weights and buffers to run with, named as in ``module.state_dict()``; None: the
            module's own. The module itself is not changed.

        Raises RuntimeError where the layers executed are not those found at construction
        (data-dependent control flow), ValueError for a state of other names.
        """
        return self._forward(x, state, _Trace(self._wanted, on_layer)).output

    def stitch(
        self,
        x: Tensor,
        layer: str,
        state_lower: Mapping[str, Tensor] | None,
        state_upper: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """B_{>ℓ} ∘ A_{≤ℓ} on ``x`` (n, …): the stitched network (identity stitching, Appendix B.4).

        The post-activation of ``layer`` under ``state_lower`` (A) goes into the rest of the network
        under ``state_upper`` (B). Raises ValueError where that network is not defined: part of the
        input reaches the output by a way round ``layer`` (the skip connection of a block).
        """
        self._expect(layer)
        kept: list[Tensor] = []

        def keep(at: Layer) -> None:
            if at.name == layer:
                kept.append(at.post.clone())

        self.run(x, keep, state_lower)
        return self.hand_over(x, layer, kept[0], state_upper)

    def hand_over(
        self, x: Tensor, layer: str, post: Tensor, state_upper: Mapping[str, Tensor] | None
    ) -> Tensor:
        """`stitch`, given the post-activation of ``layer`` on ``x`` under the lower network."""
        self._expect(layer)

        def substitute(at: Layer) -> Tensor | None:
            # a copy: an in-place operation further up must not reach the next use
            return post.clone() if at.name == layer else None

        def run(x: Tensor, state: Mapping[str, Tensor] | None = state_upper) -> Tensor:
            return self.run(x, substitute, state)

        if layer in self._cuts:
            return run(x)
        # Buffers of its own for the trial, which a network may write to even now.
        given = self.module.state_dict() if state_upper is None else state_upper
        weights = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        spare = {
            k: v.clone() if k not in weights and isinstance(v, Tensor) else v
            for k, v in given.items()
        }
        if x.is_floating_point():
            poisoned = run(torch.full_like(x, torch.nan), spare)
            round_it = bool(poisoned.isnan().any()) and not bool(post.isnan().any())
            stitched = poisoned if round_it else run(x)
        else:  # token ids: what depends on other ones is no function of the layer alone
            other = run(x.flatten().flip(0).view_as(x), spare)
            stitched = run(x)
            round_it = not torch.equal(other, stitched)
        if round_it:
            raise ValueError(f"cannot stitch at {layer!r}: the input also goes round it")
        self._cuts.add(layer)
        return stitched

    def _expect(self, layer: str) -> None:
        if layer not in self.names:
            raise ValueError(_unknown(layer, self.names))

    def _forward(self, x: Tensor, state: Mapping[str, Tensor] | None, trace: _Trace) -> _Trace:
        with ExitStack() as undo:
            if torch.is_inference_mode_enabled():
                # names need the tensors' version counters, which inference tensors have not
                undo.enter_context(torch.inference_mode(False))
                undo.enter_context(torch.no_grad())
            for name, part in self.module.named_modules():
                # the flag itself: eval() and train() may be overridden, and do more
                undo.callback(setattr, part, "training", part.training)
                part.training = False
                for hook in (
                    part.register_forward_pre_hook(partial(trace.enter, name)),
                    part.register_forward_hook(partial(trace.leave, name)),
                ):
                    undo.callback(hook.remove)
            undo.enter_context(trace)  # also keeps attention off its fused path, which has no sites
            x = x.clone()  # the network may write into its input
            if state is None:
                output = self.module(x)
            else:
                own = self._slots(state)
                output = torch.func.functional_call(self.module, own, (x,), tie_weights=False)
            trace.finish(output)
        return trace

    def _slots(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` with one name for each parameter or buffer of each distinct submodule.

        A submodule registered twice has two names in a state dict; given both, functional_call
        would restore it wrongly and leave it with the state's weights (torch 2.15).
        """
        if wrong := self._state_names ^ set(state):
            raise ValueError(
                f"state does not fit the module: missing {sorted(self._state_names - set(state))}, "
                f"unknown {sorted(wrong & set(state))}"
            )
        return {
            name: state[name]
            for prefix, part in self.module.named_modules()
            for key in (*part._parameters, *part._buffers)
            if (name := f"{prefix}.{key}" if prefix else key) in state
        }


def flatten(feature: Tensor) -> Tensor:
    """A feature (n, …) as (n, d), one row per data point. Raises ValueError for a scalar."""
    if feature.ndim == 0:
        raise ValueError("a feature has a data axis: (n, …)")
    return feature.flatten(1) if feature.ndim > 1 else feature[:, None]


class _Trace(TorchFunctionMode):
    """One forward pass: sees activations and modules called, names them, calls ``on_layer``."""

    output: Tensor

    def __init__(self, wanted: tuple[tuple[str, Kind], ...], on_layer: OnLayer) -> None:
        super().__init__()
        self.events: list[tuple[str, Kind]] = []  # all that ran, tapped or not
        self.refused: dict[str, str] = {}  # modules that return no tensor, and what they return
        self._wanted = wanted
        self._due = 0
        self._on_layer = on_layer
        self._calling_back = False
        self._times: Counter[tuple[bool, str]] = Counter()
        self._within: list[tuple[str, nn.Module]] = []
        # Tensor -> (its version, who returned it). Weak, and by identity: an address may be used
        # again. The version tells `out = bn(x); out += x` (same object) from bn's own output.
        self._origin: Any = WeakTensorKeyDictionary()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # torch suspends this mode while it runs: calls inside func are not seen again
        kwargs = kwargs or {}
        if self._calling_back or func not in ACTIVATIONS:
            return func(*args, **kwargs)
        x: Tensor = args[0] if args else kwargs["input"]
        kind: Kind = "activation"
        name = self._unique(self._returned_by(x) or self._innermost(func), kind)
        writes = (
            func.__name__.endswith("_")
            or any(value is True for value in (*args[1:], kwargs.get("inplace")))
            or kwargs.get("out") is not None
        )
        pre = x.clone() if writes and (name, kind) in self._wanted else x
        post: Tensor = func(*args, **kwargs)
        given = self._emit(name, kind, pre, post)
        if given is not None:
            post = post.copy_(given) if writes else given
        self._origin[post] = (_version(post), None)
        return post

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        if not self._calling_back:
            self._within.append((name, module))

    def leave(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if self._calling_back:
            return None
        while self._within.pop()[1] is not module:
            pass  # a module left by an exception that its caller caught
        if not name:
            return None
        called = self._unique(name, "module")
        if not isinstance(output, Tensor):
            self.refused[called] = _type(output)
            return None
        if self._fresh(output) is None:  # else a submodule, or an activation, returned it first
            self._origin[output] = (_version(output), name)
        origin = self._origin[output][1]
        given = self._emit(called, "module", output, output)
        if given is not None:
            self._origin[given] = (_version(given), origin)
        return given

    def finish(self, output: Any) -> None:
        """Take the network's output as the last layer, unless an activation was that."""
        if not isinstance(output, Tensor):
            raise TypeError(
                f"the network returns {_type(output)}: wrap it in a module that returns a tensor"
            )
        origin = self._fresh(output)
        if origin is None or origin[1] is not None:
            name = self._unique(self._returned_by(output) or "output", "output")
            given = self._emit(name, "output", output, output)
            output = output if given is None else given
        if self._due < len(self._wanted):
            raise RuntimeError(_differs(self._wanted[self._due][0], "nothing"))
        self.output = output

    def _emit(self, name: str, kind: Kind, pre: Tensor, post: Tensor) -> Tensor | None:
        self.events.append((name, kind))
        if (name, kind) not in self._wanted:
            return None
        if self._wanted[self._due : self._due + 1] != ((name, kind),):
            due = [name for name, _ in self._wanted[self._due :]]
            raise RuntimeError(_differs(due[0] if due else "nothing", name))
        self._due += 1
        self._calling_back = True  # what the callback computes is not the network's
        try:
            given = self._on_layer(Layer(name, pre, post, kind))
        finally:
            self._calling_back = False
        if isinstance(given, Tensor):
            if given.shape != post.shape:
                shapes = f"{tuple(given.shape)} cannot replace {tuple(post.shape)}"
                raise ValueError(f"{name!r}: {shapes}")
        elif given is not None:
            raise TypeError(f"on_layer returned {_type(given)} nor None")
        return given

    def _unique(self, name: str, kind: Kind) -> str:
        key = (kind == "module", name)
        self._times[key] += 1
        return name if self._times[key] == 1 else f"{name}#{self._times[key]}"

    def _fresh(self, tensor: Tensor) -> tuple[int, str | None] | None:
        """Where ``tensor`` comes from, if it has not been written to since."""
        origin = self._origin.get(tensor)
        return origin if origin is not None and origin[0] == _version(tensor) else None

    def _returned_by(self, tensor: Tensor) -> str | None:
        origin = self._fresh(tensor)
        return origin[1] if origin else None

    def _innermost(self, func: Callable[..., Any]) -> str:
        """The innermost module now running that is more than an activation; never the root."""
        fallback = func.__name__.strip("_")
        for name, module in reversed(self._within):
            if not name:
                break
            if not _is_activation(module):
                return name
            fallback = name
        return fallback


def _is_activation(module: nn.Module) -> bool:
    """Whether ``module`` is an activation in itself: no parts, no weights (but PReLU's)."""
    if next(module.children(), None) is not None:
        return False
    return isinstance(module, nn.PReLU) or next(module.parameters(), None) is None


def _choose(seen: _Trace, layers: set[str] | None) -> tuple[tuple[str, Kind], ...]:
    """The events of a first run to be tapped; a site comes before the module it is named after."""
    sites = {name: kind for name, kind in seen.events if kind != "module"}
    kinds = dict(seen.events) | sites
    if layers is None:
        layers = set(sites)
    for name in sorted(layers - set(kinds)):
        if name in seen.refused:
            raise TypeError(f"{name!r} cannot be tapped: it returns {seen.refused[name]}")
        close = difflib.get_close_matches(name, kinds)
        raise ValueError(_unknown(name, list(sites), close) + ", or any submodule that is called")
    return tuple(
        (name, kind) for name, kind in seen.events if name in layers and kinds[name] == kind
    )


def _unknown(name: str, known: Sequence[str], close: Sequence[str] = ()) -> str:
    close = close or difflib.get_close_matches(name, known)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return f"no layer {name!r}{hint}; layers: {', '.join(known)}"


def _differs(due: str, came: str) -> str:
    return (
        f"the layers executed differ from those found at construction: {due} was due, {came} came "
        "(control flow that depends on data?)"
    )


def _ignore(layer: Layer) -> None:
    return None


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _type(value: Any) -> str:
    return f"a {type(value).__name__}, not a tensor"
