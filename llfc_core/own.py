"""Networks that the suite did not train: a user's own pair, made ready to be measured and judged.

Mistakes are found when an `OwnPair` is made, and said in one line: a pair that was made can be
measured. Neither the modules nor the random numbers of the program that gives them are touched.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from llfc_core import claims
from llfc_core.batchnorm import reestimate_statistics
from llfc_core.claims import Claim
from llfc_core.evidence import Named
from llfc_core.features import Layer, Taps, flatten
from llfc_core.matching import METHODS, derive_spec, match
from llfc_core.metrics import ALPHAS, PARTS, Part
from llfc_core.metrics.measure import Loss
from llfc_core.metrics.points import Points
from llfc_core.pairs import ModePair, State, check_states, interpolate

Weights = nn.Module | State
# (inputs, targets), a data set, or batches of (inputs, targets) that can be read again and again.
Data = tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any]

_PARTS: tuple[Part, ...] = tuple(part for part in PARTS if part != "ranks")
TRIAL = 3  # data points that tell whether a network can be measured at all


class OwnPairError(ValueError):
    """What is wrong with a pair, in one line, and what to do about it."""


@contextmanager
def in_one_line() -> Iterator[None]:
    """Whatever a user's networks, data and losses raise within is an OwnPairError."""
    try:
        yield
    except OwnPairError:
        raise
    except Exception as error:
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise OwnPairError(what + one_line(error)) from error


@dataclass(frozen=True, eq=False)
class OwnPair:
    """Two networks of one architecture, data to measure them on, and what is known of them.

    Attributes
    ----------
    a, b
        Modules in eval mode, or state dicts.
    data
        What to measure on, data that the networks were not trained on: ``(inputs, targets)``, a
        `torch.utils.data.Dataset` of such pairs, or a DataLoader or other iterable of batches of
        them, which must be the same in every pass. Inputs are one tensor ``(n, …)`` of what the
        networks take; targets int64 labels ``(n,)``, or ``(n, …)`` for sequences (−100 counts
        for nothing), or what ``loss`` takes.
    module
        The architecture, where both are state dicts. Its own weights do not matter.
    link
        What is said to connect A and B, for the tables.
    match
        A method of `llfc_core.matching.METHODS`: B is first permuted towards A, and the pair as it
        was, and B permuted at random, are controls.
    independent
        A mode C that has nothing in common with A: A and C are the control on which claims must
        be rejected.
    early, initial
        A early in its training, and before it, for the claims about rank (Appendix B.5).
    train
        Training data, without augmentation, for "activation" and "ste" matching and to estimate
        BatchNorm's statistics anew; by default ``data``.
    loss
        For what is no classification: given a batch of outputs and its targets, the loss of each
        data point. Claims about errors are not run then.
    layers
        Which layers, as `llfc_core.features.Taps` names them; by default every activation. The
        output is always among them.
    alphas
        Where the line between A and B is measured; ¼, ½ and ¾ among them.
    findings
        Claims that are known not to hold, with the reason: expected failures, strictly. "<claim> on
        <control>" is a control that cannot reject the claim.
    bounds
        Claims whose bound is another one: the bound, or the bound and its reason.
    batch_size
        Data points that are measured at a time, where ``data`` is not in batches.

    Raises
    ------
    OwnPairError
        Whatever would keep the pair from being measured.
    """

    a: Weights
    b: Weights
    data: Data
    module: nn.Module | None = None
    link: str = "given"
    match: str | None = None
    independent: Weights | None = None
    early: Weights | None = None
    initial: Weights | None = None
    train: Data | None = None
    loss: Loss | None = None
    layers: Sequence[str] | None = None
    alphas: Sequence[float] = ALPHAS
    findings: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, float | tuple[float, str]] = field(default_factory=dict)
    batch_size: int = 100

    def __post_init__(self) -> None:
        _check_words(self)
        with untouched_randomness():
            _check_modes(self)
            x, y = _first(self.batches, "data")
            for key, mode in self.modes.items():
                self._try(_called(key), self.states[key], mode, x[:TRIAL], y[:TRIAL])
            if self.train is not None:
                x_train, labels = _first(self.training_batches, "train")
                y_train = labels[:TRIAL] if self.match == "ste" else None
                self._try("A", self.states["a"], None, x_train[:TRIAL], y_train, "train")
            self._try_layers(x[:TRIAL])

    # ---- what is to be measured -----------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """The architecture: ``module``, or else A or B."""
        given = (self.module, self.a, self.b)
        return next(m for m in given if isinstance(m, nn.Module))

    @property
    def modes(self) -> dict[str, Weights]:
        """Every mode given, by name; C is the independent one."""
        modes = {"a": self.a, "b": self.b, "c": self.independent}
        modes |= {"early": self.early, "initial": self.initial}
        return {k: v for k, v in modes.items() if v is not None}

    @cached_property
    def states(self) -> dict[str, State]:
        """The state dicts of ``modes``."""
        return {k: _state(v) for k, v in self.modes.items()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return _device(self.states["a"])

    @property
    def batches(self) -> Batches:
        return Batches(self.data, self.batch_size)

    @property
    def training_batches(self) -> Batches:
        return Batches(self.data if self.train is None else self.train, self.batch_size)

    @property
    def batchnorm(self) -> bool:
        """Whether there are running statistics, to be interpolated or estimated again."""
        return any(name.endswith("running_var") for name in self.states["a"])

    def named(self, device: torch.device | str, seed: int = 0) -> tuple[list[Named], dict]:
        """The pairs to be measured, and facts about the matching. B is matched here if at all.

        ``seed``: of the matching and of the random permutation.
        """
        device = torch.device(device)
        states = {
            which: {k: v.to(device) for k, v in state.items()}
            for which, state in self.states.items()
        }
        network = copy.deepcopy(self.network).to(device).eval()
        a, b, link, facts = states["a"], states["b"], self.link, {}
        chosen = {"linked": (link, a, b)}
        if self.match is not None:
            x, _ = _first(self.batches, "data")
            spec = derive_spec(network, x[:2].to(device))
            data = None if self.match == "weight" else self.training_batches
            found = match(a, b, spec, self.match, module=network, data=data, seed=seed)
            facts = {
                "method": self.match,
                "objective": list(found.objective),
                "seconds": dict(found.seconds),
                "unmatched": dict(found.unmatched),
            }
            at_random = spec.random(torch.Generator().manual_seed(seed))
            chosen["linked"] = (f"{self.match}-matched", a, found.apply(b))
            chosen["independent"] = ("unmatched", a, b)
            chosen["random"] = ("randomly permuted", a, spec.apply(b, at_random))
        elif self.independent is not None:
            chosen["independent"] = ("independent", a, states["c"])
        pairs = {name: ModePair(link, network, a, b) for name, (link, a, b) in chosen.items()}
        if self.batchnorm:
            inputs = [name for name in ("linked", "independent") if name in pairs]
            for name in inputs:
                again = "re-estimated" if name == "linked" else f"{name} re-estimated"
                # Once for each α, not for each batch.
                between = cache(partial(self._reestimated, pairs[name]))
                pairs[again] = replace(pairs[name], between=between)
        if "early" in states:
            pairs["training"] = ModePair("training", network, a, states["early"])
            if "initial" in states:
                initial, early = states["initial"], states["early"]
                pairs["untrained"] = ModePair("untrained", network, initial, early)
        guessing = math.nan if self.loss is None else self._guessing(network, a)
        return [
            Named(
                name,
                pair,
                self.batches,
                loss=self.loss,
                guessing=guessing,
                # Ranks are of "training", and dear where features are wide.
                parts=_PARTS if name in ("linked", "independent") else None,
            )
            for name, pair in pairs.items()
        ], facts

    def _guessing(self, network: nn.Module, a: State) -> float:
        """The loss of an output that knows nothing of the input: the mean of A's."""
        assert self.loss is not None
        network.load_state_dict(dict(a))
        device, count, total = _device(a), 0, torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for x, _ in self.batches:
                output = network(x.to(device))
                count, total = count + len(x), total.to(device) + output.double().sum(dim=0)
            guess, loss = (total / count).to(output.dtype), 0.0
            for x, y in self.batches:
                constant = guess.expand(len(x), *guess.shape)
                loss += float(flatten(self.loss(constant, y.to(device))).double().mean(1).sum())
        return loss / count

    def _reestimated(self, pair: ModePair, alpha: float) -> State:
        inputs = (x for x, _ in self.training_batches)
        return reestimate_statistics(pair.module, interpolate(pair.a, pair.b, alpha), inputs)

    # ---- whether it can be ----------------------------------------------------------------------

    def _try(
        self,
        which: str,
        state: State,
        given: Weights | None,
        x: Tensor,
        y: Tensor | None,
        data: str = "the data",
    ) -> None:
        """See that a mode runs, that its outputs fit the targets, and that it is what was given.

        ``y``: None where nothing will look at the targets.
        """
        network, (x,) = copy.deepcopy(self.network).to(self.device).eval(), _on(self.device, x)
        with torch.no_grad():
            try:
                network.load_state_dict(dict(state))
                output = network(x.clone())
            except Exception as error:
                raise OwnPairError(
                    f"{which} cannot run on {data} ({_shape(x)}): {one_line(error)}"
                ) from error
            if not isinstance(output, Tensor):
                raise OwnPairError(
                    f"{which} returns a {type(output).__name__}, not a tensor: wrap it in a module "
                    "that returns one"
                )
            if not bool(output.isfinite().all()):
                raise OwnPairError(f"{which}'s outputs are not finite")
            if isinstance(given, nn.Module):
                theirs = copy.deepcopy(given)(x.clone())
                if theirs.shape != output.shape or not torch.allclose(theirs, output, 1e-4, 1e-5):
                    raise OwnPairError(
                        f"{which} with its own weights computes something else than the "
                        "architecture with these weights: all modes must be of one architecture, "
                        "without random numbers"
                    )
            if y is None:
                return
            y = y.to(self.device)
            try:
                if self.loss is None:
                    Points.of(output, y)
                    return
                loss = self.loss(output, y)
            except Exception as error:
                raise OwnPairError(one_line(error)) from error
            if not isinstance(loss, Tensor) or loss.dim() == 0 or len(loss) != len(x):
                raise OwnPairError(
                    f"the loss must give a number for each of {len(x)} data points, and gives "
                    f"{_shape(loss)}: reduction='none'?"
                )

    def _try_layers(self, x: Tensor) -> None:
        network, (x,) = copy.deepcopy(self.network).to(self.device), _on(self.device, x)

        def look(layer: Layer) -> None:
            if len(layer.post) != len(x):
                raise OwnPairError(
                    f"layer {layer.name!r} gives {_shape(layer.post)} for {len(x)} data points, "
                    "which must be on the first axis: choose other layers"
                )

        try:
            names = Taps(network, x).names
            if self.layers is not None:
                names = (*self.layers, names[-1])
            Taps(network, x, names).run(x, look, self.states["a"])
        except OwnPairError:
            raise
        except Exception as error:
            raise OwnPairError(one_line(error)) from error


@dataclass(frozen=True, eq=False)
class OwnRow:
    """A row of the suite that the user brought: pairs of one kind, its replicates.

    What is known beforehand is said by the first. Raises OwnPairError where the replicates differ
    in it.
    """

    id: str
    replicates: tuple[OwnPair, ...]

    # Settings of the paper are looked at at several widths, and have a control of shuffled steps.
    narrower: tuple[float, ...] = ()
    shuffled: bool = False

    def __post_init__(self) -> None:
        if not self.replicates:
            raise OwnPairError("there are no pairs")
        first = self.replicates[0]
        for other in self.replicates[1:]:
            for what in ("match", "link", "layers", "findings", "bounds", "alphas"):
                if getattr(other, what) != getattr(first, what):
                    raise OwnPairError(f"the pairs of one row differ in {what!r}")
            if other.states.keys() != first.states.keys() or other.batchnorm != first.batchnorm:
                raise OwnPairError("the pairs of one row differ in what is given of each")

    @property
    def first(self) -> OwnPair:
        return self.replicates[0]

    @property
    def title(self) -> str:
        """The network, how A and B are linked, and the id."""
        network = type(self.first.network).__name__
        how = f"{self.first.match}-matched" if self.first.match else self.first.link
        return f"{network}, {how} ({self.id})"

    @property
    def findings(self) -> Mapping[str, str]:
        return self.first.findings

    @property
    def matched(self) -> bool:
        return self.first.match is not None

    @property
    def batchnorm(self) -> bool:
        return self.first.batchnorm

    @property
    def independent(self) -> bool:
        return self.matched or self.first.independent is not None

    @property
    def untrained(self) -> bool:
        return {"early", "initial"} <= self.first.states.keys()

    def claim(self, claim: Claim) -> Claim:
        """The claim as it is judged here: with the user's bound, and of the user's loss."""
        if claim.name == claims.LMC_LOSS.name and self.first.loss is not None:
            claim = claims.LMC_OWN_LOSS
        given = self.first.bounds.get(claim.name)
        if given is None:
            return claim
        bound, reason = given if isinstance(given, tuple) else (given, "As given with the pair.")
        return replace(claim, bound=float(bound), reason=reason)

    def claims(self) -> tuple[Claim, ...]:
        """The claims to be judged, as `llfc_core.claims` has them."""
        return (
            *claims.ALL,
            *(claims.LMC_REESTIMATED if self.batchnorm else ()),
            *(claims.MATCHING[:2] if self.matched else ()),
        )

    def controls(self) -> dict[str, tuple[Claim, ...]]:
        """The controls that there are, and the claims that they must reject."""
        there = {
            "independent": self.independent,
            "independent re-estimated": self.independent and self.batchnorm,
            "random": self.matched,
            "untrained": self.untrained,
        }
        return {name: judged for name, judged in claims.CONTROLS.items() if there.get(name)}

    def named(self, device: torch.device | str) -> tuple[list[Named], list[dict[str, Any]]]:
        """All replicates' pairs, and facts about the matching of each.

        Raises OwnPairError for whatever the matching raises.
        """
        with untouched_randomness(), in_one_line():
            found = [pair.named(device, seed) for seed, pair in enumerate(self.replicates)]
        return [named for pairs, _ in found for named in pairs], [facts for _, facts in found]


class Batches:
    """``(inputs, targets)`` by batches, as often as wanted, each batch checked as it comes."""

    def __init__(self, data: Data, size: int) -> None:
        """Raises OwnPairError for what is no data, or can be gone through once only."""
        self._source: Iterable[Any]
        if isinstance(data, tuple) and len(data) == 2 and all(torch.is_tensor(t) for t in data):
            x, y = data
            if len(x) != len(y):
                raise OwnPairError(f"the data are {len(x)} inputs and {len(y)} targets")
            # Nothing split gives one empty part.
            self._source = list(zip(x.split(size), y.split(size), strict=True)) if len(x) else []
        elif isinstance(data, tuple) and any(hasattr(part, "shape") for part in data):
            parts = ", ".join(type(part).__name__ for part in data)
            raise OwnPairError(f"the data are ({parts}): give two tensors, (inputs, targets)")
        elif isinstance(data, Dataset):
            self._source = DataLoader(data, batch_size=size)
        elif torch.is_tensor(data) or isinstance(data, Mapping) or not hasattr(data, "__iter__"):
            raise OwnPairError(
                f"the data are a {type(data).__name__}: give (inputs, targets), a Dataset or a "
                "DataLoader"
            )
        elif isinstance(data, Iterator):
            raise OwnPairError(
                "the data can be gone through only once: give a list of batches or a DataLoader"
            )
        else:
            self._source = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._source:
            x, y = _checked_batch(batch)
            if len(x):
                yield x, y


def _checked_batch(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)):
        keys = f" with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
        raise OwnPairError(
            f"the data give batches that are a {type(batch).__name__}{keys}: each must be "
            "(inputs, targets)"
        )
    if len(batch) != 2 or not all(torch.is_tensor(part) for part in batch):
        parts = ", ".join(type(part).__name__ for part in batch)
        raise OwnPairError(f"a batch must be two tensors, (inputs, targets), not ({parts})")
    x, y = batch
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
        raise OwnPairError(f"a batch has inputs {_shape(x)} and targets {_shape(y)}")
    if not bool(x.isfinite().all()):
        raise OwnPairError("the inputs have values that are not finite")
    return x, y


def _first(batches: Batches, what: str) -> tuple[Tensor, Tensor]:
    """The first batch; the whole is refused if it is empty, or comes otherwise a second time."""
    one, again = (next(iter(batches), None) for _ in range(2))
    if one is None or again is None:
        raise OwnPairError(f"{what} is empty")
    if not all(torch.equal(p, q) for p, q in zip(one, again, strict=True)):
        raise OwnPairError(
            f"{what} comes otherwise the second time: no shuffling, no random augmentation"
        )
    return one


def _check_words(pair: OwnPair) -> None:
    if pair.match is not None and pair.match not in METHODS:
        raise OwnPairError(f"no matching method {pair.match!r}; there are {', '.join(METHODS)}")
    if pair.match is not None and pair.independent is not None:
        raise OwnPairError("with match the pair as it was is the control: leave out independent")
    if pair.match == "ste" and pair.loss is not None:
        raise OwnPairError("'ste' matches by cross-entropy: use another method with a loss")
    if pair.initial is not None and pair.early is None:
        raise OwnPairError("initial is compared with early: give both, or early alone")
    if not {0.25, 0.5, 0.75} <= {*pair.alphas} or not all(0 <= x <= 1 for x in pair.alphas):
        raise OwnPairError("alphas must lie in [0, 1] and have 0.25, 0.5 and 0.75")
    size = pair.batch_size
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise OwnPairError(f"batch_size must be a whole number from 1, not {size!r}")
    known = {c.name for c in (*claims.ALL, *claims.MATCHING, *claims.LMC_REESTIMATED)}
    on = {f"{c.name} on {k}" for k, judged in claims.CONTROLS.items() for c in judged}
    for what, names, allowed in (
        ("findings", pair.findings, known | on),
        ("bounds", pair.bounds, known),
    ):
        if not isinstance(names, Mapping):
            raise OwnPairError(f"{what} must be a dict by claim, not a {type(names).__name__}")
        for name in names:
            if name not in allowed:
                close = difflib.get_close_matches(name, allowed, 1)
                hint = f": did you mean {close[0]!r}?" if close else ""
                raise OwnPairError(f"{what}: no claim {name!r}{hint}")
    for name, why in pair.findings.items():
        if not isinstance(why, str) or not why:
            raise OwnPairError(f"findings: say why {name!r} does not hold")
    for name, given in pair.bounds.items():
        bound, why = given if isinstance(given, tuple) and len(given) == 2 else (given, "")
        number = isinstance(bound, int | float) and math.isfinite(bound)
        if not number or not isinstance(why, str):
            raise OwnPairError(f"bounds: {name!r} is {given!r}, not a number or (number, reason)")


def _check_modes(pair: OwnPair) -> None:
    for key in ("a", "b"):
        if key not in pair.modes:
            raise OwnPairError(f"{_called(key)} is missing: give a module or a state dict")
    for which, mode in ((_called(key), mode) for key, mode in pair.modes.items()):
        if isinstance(mode, nn.Module):
            if any(part.training for part in mode.modules()):
                raise OwnPairError(
                    f"{which} is in train mode: call eval() first, features are those of evaluation"
                )
        else:
            if not isinstance(mode, Mapping):
                raise OwnPairError(
                    f"{which} is a {type(mode).__name__}, not a module or a state dict"
                )
            for name, value in mode.items():
                if not torch.is_tensor(value):
                    raise OwnPairError(
                        f"{which}'s {name!r} is a {type(value).__name__}, not a tensor"
                    )
    if pair.module is not None and not isinstance(pair.module, nn.Module):
        raise OwnPairError(f"module is a {type(pair.module).__name__}, not a module")
    if not any(isinstance(m, nn.Module) for m in (pair.module, pair.a, pair.b)):
        raise OwnPairError("A and B are state dicts: give the module that they are weights of")
    own, states = pair.network.state_dict(), pair.states
    devices = sorted({str(v.device) for state in states.values() for v in state.values()})
    if len(devices) > 1:
        raise OwnPairError(f"the modes are on several devices: {', '.join(devices)}")
    if not devices:
        raise OwnPairError("the networks have no weights")
    for key, state in states.items():
        which = _called(key)
        _check_names(which, state, own)
        try:
            check_states(pair.network, states["a"], state)
        except ValueError as error:
            # It is checked beside A, and called B.
            text = str(error).replace("mode B", f"mode {which}").replace(" in B", f" in {which}")
            raise OwnPairError(text) from None
    for name, value in states["a"].items():
        if value.is_complex() or value.dtype in (torch.float16, torch.bfloat16):
            raise OwnPairError(
                f"{name!r} is {value.dtype}, too coarse for what is measured: call float() first"
            )


def _check_names(which: str, state: State, own: State) -> None:
    """Refuse a state that shares no name with the network, and say if a prefix is all it is."""
    if not own or own.keys() & state.keys():
        return
    for prefix in ("module.", "_orig_mod.", "model."):
        if {k.removeprefix(prefix) for k in state} == own.keys():
            raise OwnPairError(f"{which}'s names all begin with {prefix!r}: take that away")
    mine, theirs = next(iter(own)), next(iter(state), "nothing")
    raise OwnPairError(
        f"{which} and the network have no weights in common: {which} has {theirs!r}, "
        f"the network {mine!r}"
    )


def _called(key: str) -> str:
    """A mode's name as messages have it: A, B, C, early, initial."""
    return key.upper() if len(key) == 1 else key


def _state(mode: Weights) -> State:
    named = mode.state_dict() if isinstance(mode, nn.Module) else mode
    return {name: value.detach() for name, value in named.items()}


def _device(state: State) -> torch.device:
    return next(iter(state.values())).device


def _on(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(device) for t in tensors)


def _shape(value: Any) -> str:
    if not torch.is_tensor(value):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's message on one line, or its name where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def untouched_randomness() -> Any:
    """Within, torch's own random numbers may be drawn: outside, nothing has happened.

    Reading a DataLoader draws one, even if it does not shuffle.
    """
    return torch.random.fork_rng(devices=[])
