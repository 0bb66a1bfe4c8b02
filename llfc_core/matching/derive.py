"""Derive from what a network computes which of its units may be permuted.

The network runs once, and every operation on the way is followed (`llfc_core.matching.rules`):
which axes of its inputs and weights hold units, and which hold the same ones. What no rule covers
is fixed, with the reason. Nothing is assumed about architectures.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from llfc_core.features import Taps
from llfc_core.features.taps import Layer
from llfc_core.matching.check import (
    SpecError,
    _NoDropout,
    as_inputs,
    check,
    set_training,
    tensors_in,
)
from llfc_core.matching.rules import (
    Ax,
    Axes,
    Call,
    along,
    fix,
    joint,
    restrided,
    rule_for,
)
from llfc_core.matching.spec import Axis, Group, Layout, PermutationSpec
from llfc_core.matching.units import Solution, Units
from llfc_core.numerics import process_wide

INPUT = "the network's input"
OUTPUT = "the network's output"
CONSTANT = "a constant of the network"
DATA = "read from a buffer, not made by weights"
UNUSED = "not used in the forward pass"


def derive_spec(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...], *, verify: bool = True
) -> PermutationSpec:
    """The permutations of units that leave the network's function as it is.

    Parameters
    ----------
    model
        Any module. It is copied, and runs in eval mode; once more in train mode (without dropout)
        where some of its weights are used only there.
    example_inputs
        A small batch as the model takes it: a tensor, or a tuple of its positional arguments, data
        on axis 0. Sizes other than the batch's should be those that the network is used with.
    verify
        Check with random weights and permutations that nothing changes (`check`). A group that
        fails is fixed, with a warning.

    While it runs, oneDNN, cuDNN and fused attention are switched off in the whole process: what
    other threads compute meanwhile is right, but rounded otherwise.

    Raises
    ------
    TypeError
        For what is no module, is compiled, or does not return tensors.
    SpecError
        Where the network draws random numbers or its control flow depends on the data, and where
        the check fails and fixing the groups that fail does not mend it.
    """
    inputs = as_inputs(example_inputs)
    _refuse(model)
    work = copy.deepcopy(model)
    trace = Trace(work, _overlapping(model))
    with _decomposed(), torch.inference_mode(False), torch.no_grad():
        set_training(work, False)
        trace.run_with_features(work, inputs)
        if trace.unused():
            set_training(work, True)
            try:
                trace.run(work, inputs, training=True)
            except SpecError:
                raise
            except (ValueError, RuntimeError) as error:
                warnings.warn(
                    f"weights used in train mode alone are not followed: {error}", stacklevel=2
                )
    spec = trace.spec()
    if verify and spec.groups:
        state = _trial_state(model)
        with _decomposed(), torch.inference_mode(False), torch.no_grad():
            spec = _verified(spec, trace, model, inputs, state)
    return replace(spec, example=tuple(x.detach().cpu().clone() for x in inputs))


def _verified(
    spec: PermutationSpec,
    trace: Trace,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    state: dict[str, Tensor],
) -> PermutationSpec:
    generator = torch.Generator().manual_seed(0)
    for attempt in range(3):
        perms = spec.random(generator)
        try:
            check(spec, model, inputs, state, perms)
            return spec
        except SpecError as error:
            if attempt == 2:
                raise
            failing = []
            for name in spec.groups:
                try:
                    check(spec, model, inputs, state, spec.identity() | {name: perms[name]})
                except SpecError:
                    failing.append(name)
            if not failing:
                raise
            reason = f"the check failed: {error}"
            warnings.warn(f"fixed, {reason}: {', '.join(failing)}", stacklevel=3)
            trace.freeze_groups(failing, reason)
            spec = trace.spec()
    raise AssertionError


def _refuse(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: an nn.Module, not {type(model).__name__}")
    for name, part in model.named_modules():
        if (
            isinstance(part, torch.jit.ScriptModule)
            or hasattr(part, "_orig_mod")
            or getattr(part, "_compiled_call_impl", None) is not None
        ):
            what = f"submodule {name!r}" if name else "the model"
            raise TypeError(
                f"{what} is compiled, what it computes cannot be seen: use the original"
            )


def _overlapping(model: nn.Module) -> frozenset[str]:
    """Tensors of the state dict that lie in one another's memory and are not the same tensor."""
    tensors = {
        id(t): (name, t) for name, t in model.state_dict(keep_vars=True).items() if t.numel()
    }
    spans = []
    for name, t in tensors.values():
        extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride()))
        spans.append((t.data_ptr(), t.data_ptr() + extent * t.element_size(), name))
    spans.sort()
    found: set[str] = set()
    for i, (_, end, name) in enumerate(spans):
        for start, _, other in spans[i + 1 :]:
            if start >= end:
                break
            found |= {name, other}
    return frozenset(found)


@process_wide
@contextmanager
def _decomposed() -> Iterator[None]:
    """Attention, LSTMs and the like as the plain operations they consist of."""
    with ExitStack() as undo:
        fastpath = torch.backends.mha.get_fastpath_enabled()
        undo.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        # not by torch.backends.mkldnn.flags: that sets more than it is asked to, and warns
        undo.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)
        undo.callback(torch._C._set_cudnn_enabled, torch._C._get_cudnn_enabled())
        torch._C._set_cudnn_enabled(False)
        # not by sdpa_kernel: what one thread sets with it another cannot put back
        sdp = torch.backends.cuda
        for enabled, enable, wanted in (
            (sdp.flash_sdp_enabled, sdp.enable_flash_sdp, False),
            (sdp.mem_efficient_sdp_enabled, sdp.enable_mem_efficient_sdp, False),
            (sdp.cudnn_sdp_enabled, sdp.enable_cudnn_sdp, False),
            (sdp.math_sdp_enabled, sdp.enable_math_sdp, True),
        ):
            undo.callback(enable, enabled())
            enable(wanted)
        yield


def _trial_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights that tell units apart: what is still the same for all of them is drawn at random."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        if value.is_floating_point() and value.numel() and bool(torch.eq(*value.aminmax())):
            noise = torch.rand(value.shape, generator=generator).to(value.device, value.dtype)
            value = (0.5 + noise) if float(value.flatten()[0]) != 0 else 0.4 * (noise - 0.5)
        state[name] = value
    return state


@dataclass
class _Entry:
    """One tensor of the state dict (perhaps under several names)."""

    tensor: Tensor
    names: list[str]
    axes: Axes | None = None  # None: not seen yet


class Trace:
    """A run, operation by operation: the layout of every tensor, by identity."""

    def __init__(self, model: nn.Module, overlapping: frozenset[str] = frozenset()) -> None:
        """``overlapping``: tensors of the state dict that share memory with others."""
        self.units = Units()
        self.step = 0
        self.training = False
        self._following = False
        self.features: dict[str, tuple[Axes, tuple[int, ...]]] = {}
        self.order: list[_Entry] = []  # as they are seen
        self._layouts: Any = WeakTensorKeyDictionary()
        self._constant: Any = WeakTensorKeyDictionary()
        self._used: dict[int, np.ndarray] = {}
        self._calls = 0
        self._written: set[int] = set()
        self._entries: dict[int, _Entry] = {}
        self._memory: dict[int, list[_Entry]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name!r} in the state dict is no tensor")
            entry = self._entries.get(id(tensor))
            if entry is None:
                entry = self._entries[id(tensor)] = _Entry(tensor, [])
                if pointer := tensor.untyped_storage().data_ptr():
                    self._memory.setdefault(pointer, []).append(entry)
            entry.names.append(name)
        for entry in self._entries.values():
            if overlapping & {*entry.names}:
                self._freeze_all(self._state(entry), "shares its memory with other weights")

    # ---- what rules ask -------------------------------------------------------------------------

    def of(self, tensor: Tensor) -> Axes:
        """The layout of a tensor; of one not seen before, whatever it is."""
        if (axes := self._layouts.get(tensor)) is not None:
            return axes
        if (entry := self._entries.get(id(tensor))) is not None:
            return self._state(entry)
        axes = tuple(CONSTANT if n > 1 else None for n in tensor.shape)
        for entry in self._sharing(tensor):
            own = entry.tensor
            if (own.shape, own.stride()) == (tensor.shape, tensor.stride()) and (
                own.storage_offset() == tensor.storage_offset()
            ):
                axes = self._state(entry)
            else:
                self._freeze_all(self._state(entry), "used in a way that is not followed")
        self._layouts[tensor] = axes
        return axes

    def by_row(self, weight: Tensor, axis: int, on: int) -> bool:
        """Give an axis units of its own for each index of another axis; whether they have them."""
        entry = self._entries.get(id(weight))
        if entry is not None and entry.axes is None and weight.shape[axis] > 1:
            axes = list(self._state(entry))
            shape = [weight.shape[k] if k in (axis, on) else 1 for k in range(weight.ndim)]
            axes[axis] = self.units.fresh(*shape)
            entry.axes = tuple(axes)
        labels = self.of(weight)[axis]
        return isinstance(labels, np.ndarray) and labels.shape[on] > 1

    def is_constant(self, tensor: Tensor) -> bool:
        if (known := self._constant.get(tensor)) is not None:
            return known
        return id(tensor) not in self._entries and not self._sharing(tensor)

    def _sharing(self, tensor: Tensor) -> list[_Entry]:
        return self._memory.get(tensor.untyped_storage().data_ptr(), [])

    def _state(self, entry: _Entry) -> Axes:
        if entry.axes is None:
            n = entry.tensor.ndim
            entry.axes = tuple(
                along(self.units.fresh(size), k, n) if size > 1 else None
                for k, size in enumerate(entry.tensor.shape)
            )
            self.order.append(entry)
        return entry.axes

    def _freeze_all(self, axes: Axes, reason: str) -> None:
        for a in axes:
            if isinstance(a, np.ndarray):
                self.units.freeze(a, reason)

    # ---- running --------------------------------------------------------------------------------

    def run_with_features(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """In eval mode; keeps the layouts of activation sites, the output, and leaf modules."""
        modules: dict[str, tuple[Axes, tuple[int, ...]]] = {}
        sites: dict[str, tuple[Axes, tuple[int, ...]]] = {}
        times: Counter[str] = Counter()

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if not self._following:
                    return
                times[name] += 1
                called = name if times[name] == 1 else f"{name}#{times[name]}"
                if isinstance(output, Tensor):
                    modules[called] = self.of(output), tuple(output.shape)

            return hook

        def on_layer(layer: Layer) -> None:
            if self._following:
                sites[layer.name] = self.of(layer.post), tuple(layer.post.shape)

        with ExitStack() as undo:
            for name, part in model.named_modules():
                if name and next(part.children(), None) is None:
                    undo.callback(part.register_forward_hook(keep(name)).remove)
            if len(inputs) == 1:
                try:
                    taps = Taps(model, inputs[0].clone(), again=False)
                    writes = _writes(lambda x: taps.run(x, on_layer), inputs)
                except (TypeError, ValueError, RuntimeError):
                    self.run(model, inputs)  # no single tensor comes out, or layers differ
                else:
                    self.run(lambda x: taps.run(x, on_layer), inputs, writes)
            else:
                self.run(model, inputs)
        self.features = {**modules, **sites}

    def run(
        self,
        model: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        writes: _Writes | None = None,
        training: bool = False,
    ) -> None:
        """Follow one pass; ``writes``: what another one writes to, if that is known."""
        self.training = training
        writes = writes or _writes(model, inputs)
        self._written, self._calls = writes.written, 0
        inputs = tuple(x.clone() for x in inputs)  # a network may write to them
        for x in inputs:
            self._layouts[x] = tuple(INPUT if n > 1 else None for n in x.shape)
            self._constant[x] = False
        self._following = True
        try:
            with _NoDropout(), _Follow(self):
                output = model(*inputs)
        finally:
            self._following = False
        if self._calls != writes.calls:
            raise SpecError("two runs of the network differ in the operations that they consist of")
        found = tensors_in(output)
        if not found:
            raise TypeError(f"the network returns {type(output).__name__}, with no tensor in it")
        self.step += 1
        for tensor in found.values():
            axes = self.of(tensor)
            for k in range(len(axes)):
                fix(self, axes, k, OUTPUT)

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any, before: list[_Before]) -> None:
        """One operation; ``before``: the tensors that it wrote to, as they were."""
        self.step += 1
        self._calls += 1
        call = Call(func, args, kwargs, out)
        outs = list(out) if isinstance(out, (tuple, list)) else [out]
        operands = call.tensors()
        constant = all(self.is_constant(t) for t in operands)
        if torch.Tag.nondeterministic_seeded in func.tags and not self.training:
            raise SpecError(f"the network draws random numbers in eval mode ({call.name})")
        if not any(isinstance(o, Tensor) for o in outs):
            if not constant and operands and out is not None:
                raise SpecError(
                    f"the network looks at the value of a tensor as it runs ({call.name}): control "
                    "flow that depends on the data cannot be followed"
                )
            return
        result: Any
        turned = [b for b in before if (b.shape, b.strides) != (b.tensor.shape, b.tensor.stride())]
        if turned:  # transpose_, squeeze_ and the like
            x = turned[0].tensor
            result = restrided(
                self,
                self.of(x),
                (turned[0].shape, turned[0].strides),
                (x.shape, x.stride()),
            )
            if result is None:
                self._freeze_all(self.of(x), f"{call.name} is not followed")
                result = tuple(f"{call.name} is not followed" for _ in x.shape)
        else:
            result = rule_for(func)(self, call)
        if not isinstance(result, list):
            result = [result]
        written = {id(b.tensor) for b in before}
        for tensor, axes in zip(outs, result):
            if not isinstance(tensor, Tensor):
                continue
            if len(axes) != tensor.ndim:
                raise AssertionError(f"{call.name}: layout of {len(axes)} axes for {tensor.ndim}")
            axes = tuple(
                None if n == 1 and isinstance(a, str) else a for a, n in zip(axes, tensor.shape)
            )
            if id(tensor) in written and not turned:
                shape = tensor.shape
                axes = joint(self, [(self.of(tensor), shape), (axes, shape)], shape)
                if id(tensor) in self._entries:
                    continue
            if self._calls in self._written:
                # parts of it will be written to: then its indices are no longer all the same
                axes = tuple(
                    along(self.units.idle(n), k, tensor.ndim) if a is None and n > 1 else a
                    for k, (a, n) in enumerate(zip(axes, tensor.shape))
                )
            self._layouts[tensor] = axes
            self._constant[tensor] = constant
            if not func.is_view:
                self._note_blocks(axes)

    def _note_blocks(self, axes: Axes) -> None:
        """Blocks on an axis without their parts beside them: now it matters which is which."""
        for k, a in enumerate(axes):
            if not isinstance(a, np.ndarray) or id(a) in self._used:
                continue
            if not any(isinstance(b, np.ndarray) and b.shape[k] > 1 for b in axes if b is not a):
                self._used[id(a)] = a
                self.units.use(a)

    def unused(self) -> list[str]:
        """Weights and buffers (but counters) not seen so far."""
        return [
            entry.names[0]
            for entry in self._entries.values()
            if entry.axes is None and entry.tensor.ndim > 0
        ]

    # ---- what it comes to -----------------------------------------------------------------------

    def spec(self) -> PermutationSpec:
        """What follows from all that was seen."""
        for entry in self.order:
            self._note_blocks(entry.axes or ())
        held = [
            (entry, a.reshape(-1))
            for entry in self.order
            for a in entry.axes or ()
            if isinstance(a, np.ndarray)
        ]
        slots = [(entry.names[0], a) for entry, a in held]
        labels = np.concatenate([a for _, a in held]) if held else np.empty(0, np.int64)
        ends = np.cumsum([len(a) for _, a in held])
        solution = self.units.solve(labels)
        if (data := _data(held, solution)).size:
            self.units.freeze(data, DATA)
            solution = self.units.solve(labels)
        self._solution = solution
        number = np.full(len(solution.reason), -1)
        count = 0
        units: dict[str, np.ndarray] = {}
        groups: dict[str, Group] = {}
        names: list[str] = []
        self._family: dict[str, np.ndarray] = {}
        heads = np.zeros(len(solution.reason), bool)
        for a in self.units.heads:
            heads[solution.unit[a]] = True
        first = np.full(len(solution.reason), len(labels))
        np.minimum.at(first, solution.unit[labels], np.arange(len(labels)))
        for i, family in enumerate(solution.families):
            own = int(first[family.units].min())
            suffix = ""
            if own == len(labels):
                inner = [f for f in solution.families if f.parent == i]
                own = min(int(first[f.units].min()) for f in inner)
                suffix = " heads" if heads[family.units].all() else " blocks"
            name = slots[int(np.searchsorted(ends, own, side="right"))][0] + suffix
            if name in groups:
                n = 2
                while f"{name}#{n}" in groups:
                    n += 1
                name = f"{name}#{n}"
            names.append(name)
            blocks, size = family.units.shape
            parent = None if family.parent is None else names[family.parent]
            groups[name] = Group(name, size, parent, blocks)
            units[name] = np.arange(count, count + family.units.size).reshape(family.units.shape)
            number[family.units] = units[name]
            count += family.units.size
            self._family[name] = family.units

        layouts: dict[str, Layout] = {}
        reasons: dict[str, dict[int, str]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for entry in self._entries.values():
            layout, why = self._resolved(entry, solution, number)
            for name in entry.names:
                layouts[name], reasons[name] = layout, why
                shapes[name] = tuple(entry.tensor.shape)
        features = {}
        for name, (axes, shape) in self.features.items():
            on_data = any(
                isinstance(a, np.ndarray) and (k == 0 or a.shape[0] > 1) for k, a in enumerate(axes)
            )
            if len(shape) >= 2 and not on_data:
                features[name] = tuple(_axis(a, k, solution, number) for k, a in enumerate(axes))
        return PermutationSpec(groups, units, layouts, shapes, features, reasons)

    def freeze_groups(self, names: list[str], reason: str) -> None:
        """Fix groups of the last `spec`."""
        for name in names:
            self.units.freeze(
                np.flatnonzero(np.isin(self._solution.unit, self._family[name])), reason
            )

    def _resolved(
        self, entry: _Entry, solution: Solution, number: np.ndarray
    ) -> tuple[Layout, dict[int, str]]:
        shape = entry.tensor.shape
        if entry.tensor.ndim == 0:
            counter = not entry.tensor.is_floating_point()
            return (), {0: "a counter" if counter else "a single number"}
        if entry.axes is None:
            return (None,) * len(shape), dict.fromkeys(range(len(shape)), UNUSED)
        layout = tuple(_axis(a, k, solution, number) for k, a in enumerate(entry.axes))
        why: dict[int, str] = {}
        for k, a in enumerate(entry.axes):
            if not isinstance(a, np.ndarray):
                why[k] = "a single index"
                continue
            units = solution.unit[a.reshape(-1)]
            given = dict.fromkeys(solution.reason[u] for u in np.unique(units[number[units] < 0]))
            if text := "; ".join(reason for reason in given if reason):
                why[k] = text
        return layout, why


def _data(held: list[tuple[_Entry, np.ndarray]], solution: Solution) -> np.ndarray:
    """Labels of units that a buffer holds and no weight makes: one weight reads them, at most.

    To permute a grid of coordinates along with the weight that reads it would change nothing, but
    the grid is not learned: two networks have the same one, and it should stay so.
    """
    weights = np.zeros(len(solution.reason), np.int64)
    buffers = np.zeros(len(solution.reason), np.int64)
    for entry, labels in held:
        count = weights if isinstance(entry.tensor, nn.Parameter) else buffers
        count[np.unique(solution.unit[labels])] += 1
    units = [f.units.reshape(-1) for f in solution.families]
    data = [u for u in units if (buffers[u] > 0).all() and (weights[u] <= 1).all()]
    return (
        np.flatnonzero(np.isin(solution.unit, np.concatenate(data))) if data else np.empty(0, int)
    )


def _axis(labels: Ax, k: int, solution: Solution, number: np.ndarray) -> Axis | None:
    """An axis of labels as the spec has it: numbers of units, and positions within each."""
    if not isinstance(labels, np.ndarray):
        return None
    units = number[solution.unit[labels]]
    if not (units >= 0).any():
        return None
    along_k = np.arange(labels.shape[k]).reshape([-1 if j == k else 1 for j in range(labels.ndim)])
    index = np.broadcast_to(along_k, labels.shape)
    free = units[units >= 0]
    if np.bincount(free).max() == 1:  # one index each, as for channels
        return Axis(units, np.where(units < 0, index, 0))
    # (unit, index) pairs with the least rank that any row has there: by rank, then by index
    unit, place, rank = (a.reshape(-1) for a in (units, index, solution.rank[labels]))
    order = np.lexsort((rank, place, unit))
    unit, place, rank = unit[order], place[order], rank[order]
    first = np.r_[True, (np.diff(unit) != 0) | (np.diff(place) != 0)]
    pair = np.cumsum(first) - 1
    by_unit = np.lexsort((place[first], rank[first], unit[first]))
    starts = np.flatnonzero(np.r_[True, np.diff(unit[first][by_unit]) != 0])
    position = np.empty(len(by_unit), np.int64)
    position[by_unit] = np.arange(len(by_unit)) - np.repeat(
        starts, np.diff(np.r_[starts, len(by_unit)])
    )
    positions = np.empty(labels.size, np.int64)
    positions[order] = position[pair]
    return Axis(units, np.where(units < 0, index, positions.reshape(labels.shape)))


@dataclass
class _Before:
    """A tensor that an operation writes to, as it was before."""

    tensor: Tensor
    shape: torch.Size
    strides: tuple[int, ...]


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operation writes to."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            if isinstance(value, Tensor):
                found.append(value)
    return found


class _Follow(TorchDispatchMode):
    """Hands every operation to a `Trace`."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        before = [_Before(t, t.shape, t.stride()) for t in _written(func, args, kwargs)]
        out = func(*args, **kwargs)
        self._trace.follow(func, args, kwargs, out, before)
        return out


class _Writes(TorchDispatchMode):
    """Which operations' results are written to later on, themselves or through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[int] = set()  # numbers of operations
        self.calls = 0
        self._maker: dict[int, int] = {}  # by address of the memory

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        writes = _written(func, args, kwargs)
        for tensor in writes:
            if (maker := self._maker.get(tensor.untyped_storage().data_ptr())) is not None:
                self.written.add(maker)
        out = func(*args, **kwargs)
        if not writes and not func.is_view:
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    self._maker[tensor.untyped_storage().data_ptr()] = self.calls
        return out


def _writes(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> _Writes:
    """What one pass writes to."""
    inputs = tuple(x.clone() for x in inputs)
    with _NoDropout(), _Writes() as writes:
        model(*inputs)
    return writes
