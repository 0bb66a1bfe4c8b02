"""What the kernels' benchmarks share: a stopwatch, the speed of memory, and the table of ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.compare import ratios, report

CLOCK = time.process_time  # of one thread: what others do on the machine hardly shows


@pytest.fixture(scope="session")
def bandwidth() -> float:
    """Bytes read and written a second by ``copy_`` of 128 MB: the floor the kernels stand on."""
    source = torch.randn(2**25)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(8):
        start = CLOCK()
        target.copy_(source)
        seconds.append(CLOCK() - start)
    return 2 * source.nbytes / min(seconds[1:])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the suite, where pairs are measured side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def row(benchmark, bandwidth: float, one_thread: None) -> Callable[..., Any]:
    """``row(run, moved=bytes)`` times ``run``; ``extra_info`` has what was moved, and how well."""

    def measure(
        run: Callable[[], Any],
        *,
        moved: int | None = None,
        rounds: int = 7,
        warmup: int = 1,
        setup: Any = None,
        **info: Any,
    ) -> Any:
        result = benchmark.pedantic(run, setup=setup, rounds=rounds, warmup_rounds=warmup)
        benchmark.extra_info.update(info)
        if moved is not None and benchmark.stats is not None:  # None with --benchmark-disable
            floor = moved / bandwidth
            benchmark.extra_info.update(
                bytes_moved=moved,
                copy_bandwidth=bandwidth,
                fraction_of_copy_bandwidth=floor / benchmark.stats.stats.min,
            )
        return result

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Ratios between the rows of this run, beside those of the committed run."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    rows = [
        {
            "group": b.group,
            "name": b.name,
            "stats": {"min": b.stats.min},
            "extra_info": b.extra_info,
        }
        for b in getattr(session, "benchmarks", ())
        if b.stats.data
    ]
    if found := ratios(rows):
        terminalreporter.section("ratios between rows of this run")
        for line in report(found):
            terminalreporter.line(line)
