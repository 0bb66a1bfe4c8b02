"""Switches of the whole process, where several threads want them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from llfc_core.matching import derive_spec
from llfc_core.numerics import finite, ieee, process_wide

PATIENCE = 60  # seconds, for what comes at once if it comes


def flags() -> tuple[bool, ...]:
    return (
        torch._C._get_mkldnn_enabled(),
        torch._C._get_cudnn_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("at", [0, 7, 1000, -1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_is_found(dtype: torch.dtype, at: int, bad: float) -> None:
    value = torch.randn(37, 41, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert finite(value)
    assert finite(value.T)
    value.view(-1)[at] = bad
    assert not finite(value)
    assert not finite(value.T)


def test_what_has_no_entries_or_whole_numbers_is_finite() -> None:
    for value in (torch.empty(0, 3), torch.tensor(3), torch.tensor([True]), torch.tensor([])):
        assert finite(value)
    assert finite(torch.tensor([torch.finfo(torch.float32).max, -1.0]))
    assert finite(torch.full((5,), torch.finfo(torch.float32).max))  # their sum is not


class Meeting(nn.Module):
    """Says that it runs, and goes on when it may."""

    def __init__(self, runs: threading.Event, may_go_on: threading.Event) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        self.runs, self.may_go_on = runs, may_go_on

    def __deepcopy__(self, memo: object) -> Meeting:  # events cannot be copied
        other = Meeting(self.runs, self.may_go_on)
        other.load_state_dict(self.state_dict())
        return other.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        self.runs.set()
        assert self.may_go_on.wait(PATIENCE)
        return self.layers(x)


def test_specs_derived_in_two_threads_leave_the_switches_as_they_were() -> None:
    """The first to come leaves first: the second came while the switches were set."""
    before = flags()
    assert before[0], "oneDNN is off to begin with"
    first_runs, second_runs, first_is_done = (threading.Event() for _ in range(3))
    found = []

    def derive(model: Meeting) -> None:
        found.append(derive_spec(model.eval(), torch.randn(2, 3), verify=False))

    def first() -> None:
        derive(Meeting(first_runs, second_runs))
        first_is_done.set()

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert first_runs.wait(PATIENCE)
    threads.append(threading.Thread(target=lambda: derive(Meeting(second_runs, first_is_done))))
    threads[1].start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 2
    assert flags() == before


def test_the_last_to_leave_puts_the_switches_back() -> None:
    said = []

    @process_wide
    @contextmanager
    def switches() -> Iterator[None]:
        said.append("set")
        yield
        said.append("back")

    one, other = switches(), switches()
    with one:
        other.__enter__()
    assert said == ["set"]
    other.__exit__(None, None, None)
    assert said == ["set", "back"]
    with pytest.raises(KeyError), switches(), switches():
        raise KeyError
    assert said == ["set", "back"] * 2


def test_ieee_switches_tf32_off_and_back() -> None:
    before = flags()
    torch.backends.cudnn.allow_tf32 = True
    try:
        with ieee(), ieee():
            assert flags()[-2:] == (False, False)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before[-1]
