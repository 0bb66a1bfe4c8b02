"""The CPU kernels in C: compiled once on this machine, where a compiler is found.

One file of plain C takes half a second to compile and needs no build system; the library is kept in
the user's cache under a name that says all it depends on. Without a compiler there are eager
kernels that give the same numbers but for rounding.

Rows are divided among torch's threads (`torch.get_num_threads`). Each row is summed in one fixed
order, so results do not depend on their number. Python's lock is released meanwhile: pairs measured
in several threads do not wait for each other.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
# No -ffast-math: sums keep their order, NaN and infinity their meaning.
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
LINK = ("-shared", "-fPIC", "-fvisibility=hidden")

# Fewer bytes than this are not worth a second thread.
_WORTH_A_THREAD = 2**18

_building = threading.Lock()


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = next(
        filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), ""
    )
    if not compiler or not SOURCE.exists():
        return None
    cpu = Path("/proc/cpuinfo")  # -march=native: another processor needs another build
    flags = (
        next((x for x in cpu.read_text().splitlines() if x.startswith("flags")), "")
        if (cpu.exists())
        else platform.processor()
    )
    what = (SOURCE.read_text(), compiler, *FLAGS, *LINK, platform.platform(), flags)
    name = hashlib.sha256("\0".join(what).encode()).hexdigest()[:20] + ".so"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = _cache() / name
            if not path.exists():
                built = Path(scratch) / name
                command = [compiler, *FLAGS, *LINK, "-o", str(built), str(SOURCE), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                path = _kept(built, path)
            return _declared(ctypes.CDLL(str(path)))
    except (OSError, subprocess.SubprocessError):
        return None  # a compiler that does not work is no compiler


def _cache() -> Path:
    import platformdirs

    root = os.environ.get("LLFC_CACHE_DIR") or platformdirs.user_cache_path("llfc")
    return Path(root) / "kernels"


def _kept(built: Path, path: Path) -> Path:
    """``built`` moved to ``path`` in one step, so that nobody sees half of it; else as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, partial = tempfile.mkstemp(dir=path.parent)
        os.close(handle)
        shutil.copyfile(built, partial)
        Path(partial).replace(path)
    except OSError:
        return built  # a folder that cannot be written: compiled again next time
    return path


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    p, i = ctypes.c_void_p, ctypes.c_int64
    for kind in ("float32", "float64"):
        getattr(library, f"llfc_dots_{kind}").argtypes = (p, i, p, p, i, i, i, i, p)
        getattr(library, f"pair_sums_{kind}").argtypes = (p, p, i, i, i, p)
        getattr(library, f"dist_sigma_{kind}").argtypes = (p, p, i, i, i, i, p)
    library.linear_assignment.argtypes = (p, i, i, p, p)
    return library


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there is no working compiler."""
    with _building:
        return _library()


def dots(features: Sequence[Tensor], a: Tensor, b: Tensor) -> Tensor:
    """`kernels.dots`: K features and a, b, all ``(n, d)`` of one dtype; gives ``(K, n, 3)``."""
    n, d = a.shape
    *features, a, b = _rows(*features, a, b)
    out = torch.empty(len(features), n, 3, dtype=torch.float64)
    pointers = (ctypes.c_void_p * len(features))(*(f.data_ptr() for f in features))
    run = _function("llfc_dots", a)

    def part(first: int, last: int) -> int:
        at = (a.data_ptr(), b.data_ptr())
        run(pointers, len(features), *at, n, d, first, last, out.data_ptr())
        return 0

    _divided(part, n, (len(features) + 2) * a.element_size() * d)
    return out


def pair_sums(x: Tensor, y: Tensor) -> Tensor:
    """`kernels.pair_sums`: x, y ``(n, d)``; gives ``(n, 4)``."""
    n, d = x.shape
    x, y = _rows(x, y)
    out = torch.empty(n, 4, dtype=torch.float64)
    run = _function("pair_sums", x)

    def part(first: int, last: int) -> int:
        run(x.data_ptr(), y.data_ptr(), d, first, last, out.data_ptr())
        return 0

    _divided(part, n, 2 * x.element_size() * d)
    return out


def dist_sigma(a: Tensor, b: Tensor, bins: int = 0) -> Tensor:
    """Dist_σ, α and an upper bound of each point: ``(n, 3)`` float64.

    a, b ``(n, d)``, d > 0. bins: 0 for the exact maximum, else cells of the histogram. Raises
    ValueError for an entry that is not finite.
    """
    n, d = a.shape
    a, b = _rows(a, b)
    out = torch.empty(n, 3, dtype=torch.float64)
    run = _function("dist_sigma", a)

    def part(first: int, last: int) -> int:
        at = (a.data_ptr(), b.data_ptr())
        return int(run(*at, d, first, last, bins, out.data_ptr()))

    status = _divided(part, n, 64 * d)
    if status == 1:
        raise ValueError("pre-activations must be finite: found inf or NaN")
    if status == 2:
        raise MemoryError(f"no memory for a row of {d} coordinates")
    return out


def linear_assignment(similarity: Tensor, prices: Tensor | None = None) -> Tensor:
    """The permutations with the greatest Σ_i similarity[i, perm[i]], one after the other.

    Parameters
    ----------
    similarity
        Float64 ``(k, n, n)``.
    prices
        Float64 ``(k, n)``, contiguous, written to. Prices of the columns at which the search
        begins, any finite ones (None: zeros); then an optimum of the dual: each row's perm[i] is
        where similarity − price is largest. They change the time, and which of equal optima is
        found.

    Returns int64 ``(k, n)``. Raises ValueError where values, or sums of them, are not finite.
    """
    k, n, _ = similarity.shape
    similarity = similarity.contiguous()
    if prices is None:
        prices = similarity.new_zeros(k, n)
    out = torch.empty(k, n, dtype=torch.int64)
    found = library()
    assert found is not None
    status = found.linear_assignment(similarity.data_ptr(), k, n, prices.data_ptr(), out.data_ptr())
    if status == 1:
        raise ValueError("the similarity has values that are not finite, or too large to be added")
    if status == 2:
        raise MemoryError(f"no memory to assign {n} units")
    return out


def _rows(*tensors: Tensor) -> list[Tensor]:
    """Row by row in memory, float32 or float64: half precision is exact in float32."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.detach().to(dtype).contiguous() for t in tensors]


def _function(name: str, like: Tensor) -> Callable[..., int]:
    found = library()
    assert found is not None
    return getattr(found, f"{name}_{str(like.dtype).removeprefix('torch.')}")


# ---- threads ------------------------------------------------------------------------------------

_pools: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a child has the pool, but not its threads


def _divided(part: Callable[[int, int], int], n: int, bytes_a_row: int) -> int:
    """``part(first, last)`` over all n rows, by torch's number of threads; the largest status."""
    threads = min(torch.get_num_threads(), n, max(1, n * bytes_a_row // _WORTH_A_THREAD))
    if threads <= 1:
        return part(0, n)
    if not _pools:
        _pools.append(ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="llfc-kernels"))
    cuts = [n * t // threads for t in range(threads + 1)]
    others = [_pools[0].submit(part, *cut) for cut in pairwise(cuts[1:])]
    return max(part(cuts[0], cuts[1]), *(other.result() for other in others))
