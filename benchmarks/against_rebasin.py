"""Weight matching beside PyPI's `rebasin` on the same pairs: time, objective, and what came of B.

    python -m venv other && other/bin/pip install rebasin==0.0.47 torchvision
    python benchmarks/against_rebasin.py other/bin/python              # trains the pairs first
    python benchmarks/against_rebasin.py other/bin/python --untrained

`rebasin` is no dependency, so it runs in a process of its own, by the Python that is named. The
two take turns on one thread each, and the median of five counts (`rebasin` takes another order each
time, and more or fewer sweeps). Timed is everything from two modules to B's permuted weights, and
of that the matching, once it is known what may be permuted. `rebasin` checks nothing, so our check,
on by default, is left out of that and said beside it. Pairs come from the store, where they are
kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import IO, Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llfc_core.nets import Net, build  # noqa: E402

SHAPE, CLASSES, ROUNDS = (1, 28, 28), 10, 5
NETS = {
    "MLP 784-512-512-512-10": Net("mlp", (512, 512, 512)),
    "ResNet-20, 4× as wide, BatchNorm, 1×1 shortcuts": Net(
        "resnet20", norm="batch", shortcut="conv1x1", shrink=4
    ).times(4),
}
State = dict[str, Tensor]
Seconds = list[float]  # all in all, the matching's, and the check's


def modules(net: Net, states: list[State]) -> list[nn.Module]:
    made = []
    for state in states:
        module = build(net, SHAPE, CLASSES, 0).eval()
        module.load_state_dict(state)
        made.append(module)
    return made


# ---- the other process, which has torch and rebasin alone ---------------------------------------


def answer() -> None:
    """For each line of input, match the pair in the file that it names; answer with `Seconds`."""
    from rebasin import PermutationCoordinateDescent

    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # what the package prints is no answer
    for line in sys.stdin:
        path = Path(json.loads(line))
        task = torch.load(path, weights_only=True)
        net = Net(**task["net"])
        a, b = modules(net, [task["a"], task["b"]])
        began = perf_counter()
        descent = PermutationCoordinateDescent(a, b, torch.zeros(2, *SHAPE))
        known = perf_counter()
        descent.rebasin()
        done = perf_counter()
        torch.save(dict(b.state_dict()), path.with_suffix(".found"))
        print(json.dumps([done - began, done - known, 0.0]), file=answers, flush=True)


@contextmanager
def other(python: str) -> Iterator[tuple[IO[str], IO[str]]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, __file__, "--answer"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdin, process.stdout
        process.stdin.close()


# ---- this process -------------------------------------------------------------------------------


def pair(net: Net, trained: bool) -> list[State]:
    """A and B: five epochs on 5,000 digits, or as initialised."""
    if not trained:
        return [dict(build(net, SHAPE, CLASSES, seed).state_dict()) for seed in (0, 1)]
    from llfc_core.data import load_dataset
    from llfc_core.store import Store
    from llfc_core.training import Optimiser, Recipe, Seeds, ensure
    from llfc_core.training.modes import cache_dir

    recipes = [
        Recipe(
            net=net,
            data="mnist5k",
            epochs=5,
            batch_size=100,
            optimiser=Optimiser("adam", lr=1e-3),
            seeds=Seeds(seed, seed, seed),
        )
        for seed in (0, 1)
    ]
    modes = ensure(recipes, load_dataset("mnist5k"), Store(cache_dir()))
    print("  test errors", ", ".join(f"{m.test_error:.1f}%" for m in modes))
    return [dict(m.weights) for m in modes]


def ours(net: Net, states: list[State]) -> tuple[State, Seconds]:
    from llfc_core.matching import check, derive_spec, match

    a, b = modules(net, states)
    began = perf_counter()
    spec = derive_spec(a, torch.zeros(2, *SHAPE), verify=False)
    known = perf_counter()
    found = match(a, b, spec, check=False).apply(b.state_dict())
    done = perf_counter()
    check(spec, a, torch.zeros(2, *SHAPE), a.state_dict(), spec.random(torch.Generator()))
    return found, [done - began, done - known, perf_counter() - done]


def changed(net: Net, before: State, after: State) -> float:
    """How far the outputs are from what they were, of their scale; float64, random inputs."""
    x = torch.randn(64, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (module.double()(x) for module in modules(net, [before, after]))
    return float((one - two).abs().max() / one.abs().max())


def compare(name: str, net: Net, states: list[State], streams: tuple[IO[str], IO[str]]) -> None:
    from llfc_core.matching.weight import inner_product

    ask, reply = streams
    a, b = states
    seconds: dict[str, list[Seconds]] = {"ours": [], "rebasin": []}
    found: dict[str, State] = {}
    with tempfile.TemporaryDirectory() as scratch:
        task = Path(scratch) / "task"
        torch.save({"net": vars(net), "a": a, "b": b}, task)
        for _ in range(ROUNDS):
            found["ours"], here = ours(net, states)
            seconds["ours"].append(here)
            print(json.dumps(str(task)), file=ask, flush=True)
            if not (line := reply.readline()):
                raise SystemExit("the other process has ended: see above")
            seconds["rebasin"].append(json.loads(line))
        found["rebasin"] = torch.load(task.with_suffix(".found"), weights_only=True)
    print(f"{name}: ⟨A, B⟩ = {inner_product(a, b):.5g}")
    taken = {which: [median(part) for part in zip(*s, strict=True)] for which, s in seconds.items()}
    for which, state in found.items():
        gap = changed(net, b, state)
        whole, matching, check = taken[which]
        beside = f" (and {check:.3f} s for the check)" if check else ""
        print(
            f"  {which:<8} {whole:7.3f} s{beside}, matching {matching:7.3f} s"
            f"   ⟨A, π(B)⟩ = {inner_product(a, state):.6g}"
            f"   {'the same function' if gap < 1e-9 else 'ANOTHER FUNCTION'} ({gap:.1e})"
        )
    mine, theirs = taken["ours"], taken["rebasin"]
    print(
        f"  {theirs[0] / mine[0]:.1f} times as fast, with the check "
        f"{theirs[0] / (mine[0] + mine[2]):.1f}, matching {theirs[1] / mine[1]:.1f}"
    )


def main(arguments: Any = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("python", help="of a virtual environment that has rebasin")
    parser.add_argument("--untrained", action="store_true", help="pairs as they are initialised")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pairs = {name: pair(net, not options.untrained) for name, net in NETS.items()}
    with other(options.python) as streams:
        for name, net in NETS.items():
            compare(name, net, pairs[name], streams)


if __name__ == "__main__":
    answer() if sys.argv[1:] == ["--answer"] else main()
