"""``python -m llfc_core modes``: what the store holds; check it, or remove from it.

``python -m llfc_core train``: train one pack of a plan, see `llfc_core.training.plan`.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llfc_core.data import DataError
from llfc_core.job import stop
from llfc_core.store import CorruptEntry, Store, StoreError
from llfc_core.store.entry import read_entry, read_manifest
from llfc_core.training import TrainingFailed, cache_dir
from llfc_core.training.cluster import ClusterError, train_pack


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 well, 1 corrupt or failed modes, 2 bad usage."""
    parser = argparse.ArgumentParser(prog="python -m llfc_core", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    modes = commands.add_parser("modes", help="list, verify or remove trained modes")
    modes.add_argument("--llfc-cache-dir", type=Path, default=None, help="the store's place")
    modes.add_argument("--verify", action="store_true", help="read and check every byte")
    modes.add_argument(
        "--remove", nargs="+", metavar="KEY", help="remove modes by the start of their keys, or all"
    )
    train = commands.add_parser("train", help="train one pack of a plan into its store")
    train.add_argument("plan", type=Path, help="plan.json, as `pytest --train-only` writes it")
    train.add_argument("--pack", type=int, required=True, help="which, from 0")
    options = parser.parse_args(arguments)
    if options.command == "train":
        return _train(options.plan, options.pack)
    store = Store(options.llfc_cache_dir or cache_dir())
    try:
        if options.remove:
            return _remove(store, options.remove)
        return _list(store, verify=options.verify)
    except (StoreError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


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
    sys.exit(main())
