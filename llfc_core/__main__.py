"""Commands: the store of trained modes, claims on networks of your own, and the report of a run.

``python -m llfc_core modes``: what the store holds; check it, or remove from it.
``python -m llfc_core check``: judge the claims on networks of your own.
``python -m llfc_core report``: draw the page of a ``results.json`` again, or compare two of them.
``python -m llfc_core train``: train one pack of a plan, see `llfc_core.training.plan`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llfc_core.check import check_row
from llfc_core.data import DATASETS, DataError
from llfc_core.job import stop
from llfc_core.matching import METHODS
from llfc_core.own import OwnPairError, one_line
from llfc_core.report import ResultsError, read_results
from llfc_core.store import CorruptEntry, Store, StoreError
from llfc_core.store.entry import read_entry, read_manifest
from llfc_core.targets import own_rows
from llfc_core.training import TrainingFailed, cache_dir
from llfc_core.training.cluster import ClusterError, train_pack


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0: well. 1: something in the store is corrupt or a mode failed, a verdict is unexpected, or one
    changed. 2: bad usage.
    """
    parser = argparse.ArgumentParser(
        prog="python -m llfc_core",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    modes = commands.add_parser("modes", help="list, verify or remove trained modes")
    modes.add_argument("--llfc-cache-dir", type=Path, default=None, help="the store's place")
    modes.add_argument("--verify", action="store_true", help="read and check every byte")
    modes.add_argument(
        "--remove", nargs="+", metavar="KEY", help="remove modes by the start of their keys, or all"
    )
    check = commands.add_parser("check", help="judge the claims on networks of your own")
    check.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="mypkg.zoo:pair or file.py:pair, a function that returns (a, b, data) or a dict",
    )
    check.add_argument("--mode-a", type=Path, metavar="FILE", help="checkpoint of A:")
    check.add_argument("--mode-b", type=Path, metavar="FILE", help=".safetensors or .pt")
    check.add_argument("--net", metavar="TARGET", help="their network: torchvision.models:resnet18")
    check.add_argument("--own-data", metavar="TARGET", help="a function that returns their data")
    check.add_argument("--data", choices=DATASETS, help="or the test set of this")
    check.add_argument("--match", choices=list(METHODS), help="permute B towards A first")
    check.add_argument("--device", help="cpu, cuda, …; by default where the weights are")
    report = commands.add_parser("report", help="draw a report again, or compare two results")
    report.add_argument(
        "results", nargs="?", type=Path, help="results.json, or the folder that has it"
    )
    report.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="two results instead of one"
    )
    report.add_argument(
        "-o", type=Path, metavar="DIR", help="where the page goes (default: beside results.json)"
    )
    train = commands.add_parser("train", help="train one pack of a plan into its store")
    train.add_argument("plan", type=Path, help="plan.json, as `pytest --train-only` writes it")
    train.add_argument("--pack", type=int, required=True, help="which, from 0")
    options = parser.parse_args(arguments)
    if options.command == "train":
        return _train(options.plan, options.pack)
    if options.command == "check":
        return _check(options)
    if options.command == "report":
        if (options.results is None) == (options.compare is None):
            report.error("name one results.json, or two after --compare")
        return _report(options)
    store = Store(options.llfc_cache_dir or cache_dir())
    try:
        if options.remove:
            return _remove(store, options.remove)
        return _list(store, verify=options.verify)
    except (StoreError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _report(options: argparse.Namespace) -> int:
    try:
        if options.compare:
            return _compare(options.compare[0], options.compare[1], options.o)
        from llfc_core.report.page import write_page

        path: Path = options.results
        folder = options.o or (path if path.is_dir() else path.parent)
        print(write_page(read_results(path), folder))
    except ImportError as error:
        print(f'{error}: pip install "llfc-core[report]"', file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except (ResultsError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _train(plan: Path, pack: int) -> int:
    # Told to stop, it gives its locks back: others need not find out that it is gone.
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, stop) for number in signals}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    try:
        train_pack(plan, pack)
    except (TrainingFailed, StoreError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _compare(a: Path, b: Path, folder: Path | None) -> int:
    from llfc_core.report.compare import compare, lines, write_comparison

    results = read_results(a), read_results(b)
    comparison = compare(*results)
    page = None if folder is None else write_comparison(*results, (str(a), str(b)), folder)
    print("\n".join(lines(comparison)))
    if page is not None:
        print(page)
    return 1 if comparison.changed else 0


def _check(options: argparse.Namespace) -> int:
    """Print the table of each row; 1 where something is not as the paper, or the row, has it."""
    status = 0
    try:
        rows = own_rows(
            options.targets,
            checkpoints=(options.mode_a, options.mode_b, options.net),
            own_data=options.own_data,
            data=options.data,
            match=options.match,
        )
        if not rows:
            raise OwnPairError("nothing to check: name a function, mypkg.zoo:pair, or checkpoints")
        for row in rows:
            verdicts = check_row(row, options.device)
            print(verdicts)
            for explanation in verdicts.explanations():
                status = 1
                print(f"\n{explanation}")
    except (OwnPairError, DataError, ValueError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    return status


def _list(store: Store, verify: bool) -> int:
    corrupt, total = 0, 0
    keys = store.keys()
    print(f"{store.root}: {len(keys)} modes")
    for key in keys:
        path = store.path(key)
        size = sum(p.stat().st_size for p in path.iterdir())
        total += size
        try:
            facts = read_entry(path).facts if verify else read_manifest(path)[0]
            if facts.get("key") != key:
                raise CorruptEntry(f"{path}: it is another mode's entry")
            state = "intact" if verify else ""
            print(f"{key[:12]}  {_describe(facts)}  {size / 1e6:7.1f} MB  {_age(facts)}  {state}")
        except CorruptEntry as error:
            corrupt += 1
            print(f"{key[:12]}  CORRUPT  {error}")
    print(f"{total / 1e6:.1f} MB" + (f", {corrupt} corrupt" if corrupt else ""))
    return 1 if corrupt else 0


def _remove(store: Store, prefixes: list[str]) -> int:
    chosen: dict[str, None] = {}
    for prefix in prefixes:
        keys = [k for k in store.keys() if prefix == "all" or k.startswith(prefix)]
        if not keys or (len(keys) > 1 and prefix != "all"):
            print(f"{prefix}: {len(keys)} modes have such a key; nothing removed", file=sys.stderr)
            return 2
        chosen.update(dict.fromkeys(keys))
    for key in chosen:
        store.remove(key)
        print(f"removed {key[:12]}")
    return 0


def _describe(facts: dict[str, Any]) -> str:
    recipe = facts["recipe"]
    seeds = recipe["seeds"]
    optimiser = recipe["optimiser"]
    stop = recipe["stop"]
    until = "" if stop is None else f" stopped at epoch {stop['epochs']} step {stop['steps']}"
    return (
        f"{recipe['net']['name']} on {recipe['data']}, {optimiser['name']} {optimiser['lr']:g}, "
        f"{recipe['epochs']} epochs{until}, init {seeds['init']} order {seeds['order']}: "
        f"error {facts['test_error']:.2f}%"
    )


def _age(facts: dict[str, Any]) -> str:
    seconds = time.time() - facts["finished"]
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} old"
    return f"{seconds:.0f} s old"


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
