"""The kernels, path by path, against features kept whole in float64."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core import kernels
from llfc_core.kernels import native, reference
from llfc_core.metrics.commutativity import CommutativityAccumulator
from llfc_core.metrics.llfc import Dots, coef, one_minus_cos
from llfc_core.metrics.weak_additivity import dist_sigma, dist_sigma_histogram

needs_compiler = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
PATHS = [pytest.param("native", marks=needs_compiler), "eager"]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels.using(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle_dots(features: Tensor, a: Tensor, b: Tensor) -> Tensor:
    f, a, b = features.double(), a.double(), b.double()
    return torch.stack([(f * a).sum(2), (f * b).sum(2), (f * f).sum(2)], dim=2)


def assert_sums(got: Tensor, want: Tensor, sizes: Tensor) -> None:
    """To 4e-15 of ‖x‖‖y‖, whatever cancels."""
    assert got.dtype == torch.float64
    assert got.shape == want.shape
    error = (got - want).abs() / sizes.clamp_min(1e-300)
    assert not error.numel() or float(error.max()) < 4e-15


# ---- accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [512, 4096, 65_536, 262_144])
@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_one_minus_cos_keeps_its_digits(path: str, d: int, size: float) -> None:
    """1 − cos of 1e-7 has seven digits right or more; from float32 products it would have three."""
    a, b, noise = normal(3, 2, d, seed=d).relu()
    a, b = a + 0.1, a + 0.1 + 0.3 * b
    alphas = (0.25, 0.5, 0.75)
    f = torch.stack([0.7 * (p * a + (1 - p) * b) + (2 * size) ** 0.5 * noise for p in alphas])
    want, slopes = reference.llfc(list(f), a, b, alphas)
    assert size / 10 < float(want.mean()) < size * 10
    ends, sums = Dots.of(a, b), kernels.dots(f, a, b)
    for k, alpha in enumerate(alphas):
        fa, fb, ff = sums[k].unbind(1)
        defect, slope = one_minus_cos(ends, fa, fb, ff, alpha), coef(ends, fa, fb, alpha)
        assert float((defect - want[k]).abs().max()) < 1e-14
        # norm() itself is off by 1e-13 at d = 262,144
        torch.testing.assert_close(slope, slopes[k], rtol=1e-12, atol=0)


def test_sums_are_float64(path: str) -> None:
    """2^24 + 1 is no float32, and a product of float32 has up to 48 bits."""
    x = torch.tensor([[4096.0, 1.0]])
    assert kernels.pair_sums(x, x)[0, 0] == 2**24 + 1
    y = torch.tensor([[1 + 2.0**-23]])
    assert kernels.dots([y], y, y)[0, 0, 2] == (1 + 2.0**-23) ** 2
    x, y = torch.tensor([[1.0]]), torch.tensor([[1 + 2.0**-23]])
    assert kernels.pair_sums(x, y)[0, 3] == 2.0**-46


# ---- shapes -------------------------------------------------------------------------------------

WIDTHS = (1, 7, 8, 9, 16, 23, 8191, 8192, 8193, 8208, 16_390)


@pytest.mark.parametrize("d", WIDTHS)
def test_every_width_to_the_last_column(path: str, d: int) -> None:
    """Blocks, lanes and what is left over; the weight is on the last column of all."""
    f, (a, b) = normal(3, 2, d), normal(2, 2, d, seed=1)
    for x in (*f, a, b):
        x[:, -1] += 30
    sizes = torch.stack([f.norm(dim=2) * x.norm(dim=1) for x in (a, b)] + [f.norm(dim=2) ** 2], 2)
    assert_sums(kernels.dots(f, a, b), oracle_dots(f, a, b), sizes)
    x, y = a.double(), b.double()
    want = torch.stack([(x * x).sum(1), (x * y).sum(1), (y * y).sum(1), (x - y).square().sum(1)], 1)
    assert_sums(kernels.pair_sums(a, b), want, want.abs() + 1)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
@pytest.mark.parametrize("d", [0, 1, 5])
@pytest.mark.parametrize("k", [0, 1, 4])
def test_small_shapes(path: str, n: int, d: int, k: int) -> None:
    f, a, b = normal(k, n, d), normal(n, d, seed=1), normal(n, d, seed=2)
    torch.testing.assert_close(kernels.dots(f, a, b), oracle_dots(f, a, b))
    assert kernels.pair_sums(a, b).shape == (n, 4)
    for kernel in (dist_sigma, dist_sigma_histogram):
        assert kernel(a, b).distance.shape == (n,)


def test_strides_do_not_matter(path: str) -> None:
    a, b = normal(6, 20), normal(6, 20, seed=1)
    want = kernels.dots([a], a, b), kernels.pair_sums(a, b), dist_sigma(a, b).distance
    spread = torch.empty(6, 60)[:, ::3].copy_(a)
    for odd in (a.T.contiguous().T, spread, F.pad(a, (3, 0))[:, 3:]):
        got = kernels.dots([odd], odd, b), kernels.pair_sums(odd, b), dist_sigma(odd, b).distance
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    row = normal(1, 20).expand(6, 20)
    torch.testing.assert_close(kernels.pair_sums(row, a), kernels.pair_sums(row.contiguous(), a))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(path: str, dtype: torch.dtype) -> None:
    a, b = normal(4, 33).to(dtype), normal(4, 33, seed=1).to(dtype)
    torch.testing.assert_close(kernels.dots([b], a, b), oracle_dots(b[None], a, b))
    assert torch.equal(kernels.pair_sums(a, b), kernels.pair_sums(a.double(), b.double()))


def test_zeros_and_gradients(path: str) -> None:
    zero = torch.zeros(3, 9)
    assert not kernels.dots([zero], zero, zero).any()
    x = normal(3, 9).requires_grad_()
    assert not kernels.dots([x], x, x).requires_grad
    assert not kernels.pair_sums(x, x).requires_grad


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_refused(path: str, bad: float) -> None:
    for at in (0, 8, 10):
        a, b = normal(3, 11), normal(3, 11, seed=1)
        a[2, at] = bad
        for call in (
            lambda x, y, check=True: kernels.dots([y], x, y, check),
            lambda x, y, check=True: kernels.dots([x], y, y, check),
            kernels.pair_sums,
        ):
            with pytest.raises(ValueError, match="finite"):
                call(a, b)
            assert call(a, b, check=False).isfinite().any()
        for kernel in (dist_sigma, dist_sigma_histogram):
            with pytest.raises(ValueError, match="finite"):
                kernel(a, b)


def test_refusals(path: str) -> None:
    a = normal(3, 4)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\)"):
        kernels.dots([normal(3, 5)], a, a)
    with pytest.raises(ValueError, match=r"\(4,\)"):
        kernels.pair_sums(a[0], a[0])
    with pytest.raises(ValueError, match="device"):
        kernels.pair_sums(a, a.to("meta"))
    with pytest.raises(TypeError, match="int64"):
        kernels.pair_sums(a.long(), a.long())


# ---- the other kernels --------------------------------------------------------------------------


def hard_pairs(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Close, unrelated and opposed pairs, with zeros, ties and undefined points among them."""
    a, other = normal(6 * n, d, seed=3), normal(6 * n, d, seed=4)
    b = torch.cat([a[:n] + 0.1 * other[:n], other[n:]])
    b[2 * n : 3 * n] = -a[2 * n : 3 * n] * (1 + other[2 * n : 3 * n].abs())
    a[3 * n : 4 * n], b[3 * n : 4 * n] = a[3 * n : 4 * n].round(), b[3 * n : 4 * n].round()
    a[4 * n : 5 * n] *= 1e-30
    b[5 * n :] -= 2
    return a, b


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 3, 40, 1000])
def test_dist_sigma_in_c_is_that_of_eager_torch(d: int, dtype: torch.dtype) -> None:
    a, b = (x.to(dtype) for x in hard_pairs(20, d))
    loosely = functools.partial(dist_sigma_histogram, rtol=math.inf)
    for kernel in (dist_sigma, loosely, functools.partial(loosely, bins=7)):
        with kernels.using("native"):
            ours = kernel(a, b)
        with kernels.using("eager"):
            theirs = kernel(a, b)
        assert torch.equal(ours.undefined, theirs.undefined)
        for left, right in ((ours.distance, theirs.distance), (ours.upper, theirs.upper)):
            known = right.isfinite()
            assert torch.equal(known, left.isfinite())
            error = (left - right).abs()[known] / (right * (1 + right)).clamp_min(1e-300)[known]
            assert not error.numel() or float(error.max()) < 1e-12


def test_dist_sigma_is_above_its_values_on_a_grid(path: str) -> None:
    """Independent of both implementations: the eager grid of 21 values of α."""
    a, b = normal(40, 300), 0.9 * normal(40, 300) + 0.4 * normal(40, 300, seed=1)
    grid, exact = reference.dist_sigma(a, b), dist_sigma(a, b).distance
    assert bool((exact >= grid * (1 - 1e-12)).all())
    torch.testing.assert_close(exact, grid, rtol=0.05, atol=0)
    between = dist_sigma_histogram(a, b)
    assert bool((between.distance <= exact * (1 + 1e-12)).all())
    assert bool((between.upper >= exact * (1 - 1e-12)).all())


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_commutativity(path: str, kind: str) -> None:
    if kind == "linear":
        layer: nn.Linear | nn.Conv2d = nn.Linear(30, 20)
        apply, h_a, h_b = F.linear, normal(9, 30).relu(), normal(9, 30, seed=1).relu()
    else:
        layer = nn.Conv2d(3, 5, 3, padding=1)
        apply = functools.partial(F.conv2d, padding=1)
        h_a, h_b = normal(9, 3, 6, 6).relu(), normal(9, 3, 6, 6, seed=1).relu()
    w_a, w_b = normal(*layer.weight.shape, seed=2), normal(*layer.weight.shape, seed=3)
    accumulator = CommutativityAccumulator(layer, w_a, w_b)
    accumulator.update(h_a[:4], h_b[:4])
    accumulator.update(h_a[4:], h_b[4:])
    want = reference.commutativity(lambda w, h: apply(h, w), w_a, w_b, h_a, h_b)
    assert accumulator.result().dist_com == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("d", [1, 255, 256, 257, 600])
def test_gram_matrices(d: int) -> None:
    x, y = normal(50, d), normal(50, d, seed=1)
    blocks: list[Tensor] = []
    kernels.add_gram(blocks, x[:20])
    kernels.add_gram(blocks, x[20:])
    want = x.double().T @ x.double()
    torch.testing.assert_close(kernels.whole_gram(blocks), want)
    cross = kernels.add_cross_gram(torch.ones(d, d).double(), x, y)
    torch.testing.assert_close(cross, 1 + x.double().T @ y.double())


def test_lmc_is_cross_entropy_and_strict_errors() -> None:
    logits, labels = normal(4, 30, 10), torch.arange(30) % 10
    logits[1, 3] = 0  # a tie
    logits[2, 4, 0] = math.nan
    want_loss, want_error = reference.lmc(list(logits), labels)
    loss, error = kernels.lmc(logits, labels)
    torch.testing.assert_close(loss, want_loss, rtol=1e-14, atol=1e-14, equal_nan=True)
    assert error[1, 3] == error[2, 4] == 1
    want_error[2, 4] = 1  # comparisons with NaN are false: the reference does not see it
    assert torch.equal(error, want_error)


# ---- the same bits, whoever computes ------------------------------------------------------------


@needs_compiler
@pytest.mark.usefixtures("threads")
def test_threads_do_not_change_a_bit() -> None:
    f, (a, b) = normal(3, 37, 3000), normal(2, 37, 3000, seed=1)

    def everything() -> list[Tensor]:
        exact = dist_sigma(a, b)
        return [kernels.dots(f, a, b), kernels.pair_sums(a, b), exact.distance, exact.alpha]

    torch.set_num_threads(1)
    alone = everything()
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert all(torch.equal(x, y) for x, y in zip(everything(), alone, strict=True))
    rows = [kernels.dots(f[:, i : i + 1], a[i : i + 1], b[i : i + 1]) for i in range(37)]
    assert torch.equal(torch.cat(rows, dim=1), alone[0])
    with ThreadPoolExecutor(6) as pool:
        for result in pool.map(lambda _: everything(), range(24)):
            assert all(torch.equal(x, y) for x, y in zip(result, alone, strict=True))


# ---- where the compiled kernels come from -------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a new process, with an empty cache."""
    monkeypatch.setenv("LLFC_CACHE_DIR", str(tmp_path))
    native._library.cache_clear()
    yield tmp_path
    native._library.cache_clear()


def test_without_a_compiler_torch_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.library() is None
    assert kernels.path(torch.zeros(1)) == "eager"
    assert kernels.dots([torch.ones(2, 3)], torch.ones(2, 3), torch.ones(2, 3)).shape == (1, 2, 3)
    with pytest.raises(ValueError, match="compiler"), kernels.using("native"):
        pass
    assert not list(fresh.iterdir())


def test_a_compiler_that_fails_is_none(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: "/bin/false")
    assert native.library() is None


@needs_compiler
def test_compiled_once_and_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library() is not None
    (kept,) = (fresh / "kernels").iterdir()
    native._library.cache_clear()
    monkeypatch.setattr(native.subprocess, "run", None)
    assert native.library() is not None
    assert [kept] == list((fresh / "kernels").iterdir())


@needs_compiler
def test_a_cache_that_cannot_be_written(fresh: Path) -> None:
    (fresh / "kernels").write_text("no folder")
    assert native.library() is not None


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLFC_KERNELS", "eager")
    assert kernels.path(torch.zeros(1)) == "eager"


# ---- Triton -------------------------------------------------------------------------------------

INTERPRETED = """
import torch
from llfc_core import kernels
from llfc_core.kernels import eager, triton_gpu

for n, d in ((1, 1), (2, 1000), (2, triton_gpu.SPLIT + 5)):
    f, a, b = torch.randn(3, n, d, generator=torch.Generator().manual_seed(d))
    b = b.T.contiguous().T
    with kernels.using("triton"):
        ours = kernels.dots([f, b], a, b), kernels.pair_sums(a, b)
    theirs = eager.dots([f, b], a, b), eager.pair_sums(a, b)
    for x, y in zip(ours, theirs):
        assert x.dtype == torch.float64 and x.shape == y.shape
        assert float((x - y).abs().max()) < 1e-14 * d + 1e-14
print("agreed")
"""


@pytest.mark.skipif(not kernels._has_triton(), reason="needs Triton")
def test_triton_agrees_in_its_interpreter() -> None:
    """On the CPU: the arithmetic and the masks, not the speed."""
    found = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.stdout.strip() == "agreed", found.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("d", WIDTHS)
def test_cuda_agrees_with_cpu(d: int) -> None:
    f, (a, b) = normal(3, 5, d), normal(2, 5, d, seed=1)
    there = kernels.dots(f.cuda(), a.cuda(), b.cuda()), kernels.pair_sums(a.cuda(), b.cuda())
    for x, y in zip(there, (kernels.dots(f, a, b), kernels.pair_sums(a, b)), strict=True):
        assert x.is_cuda
        torch.testing.assert_close(x.cpu(), y, rtol=1e-13, atol=1e-13 * d)
