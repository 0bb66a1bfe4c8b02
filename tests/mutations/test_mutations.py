"""Break the code, and see a test go red.

    pytest tests/mutations -m slow

copies the checkout, changes one line of the copy, and runs the tests that should notice, one
mutation after the other. A mutation that survives fails; the table says which test caught each.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """``old`` must stand exactly once in ``file``; ``tests`` are run on the mutated copy."""

    name: str
    file: str
    old: str
    new: str
    tests: str


LLFC, MEASURE = "llfc_core/metrics/llfc.py", "llfc_core/metrics/measure.py"
C = "llfc_core/kernels/kernels.c"
CLAIMS, BOOTSTRAP = "llfc_core/claims.py", "llfc_core/metrics/bootstrap.py"
CONDITIONS = "tests/metrics/test_measure_conditions.py"
RESIDUALS = "llfc_core/matching/residuals.py"
COMMUTING = "tests/matching/test_commutativity.py"

MUTATIONS = [
    Mutation(
        "|cos| for cos",
        LLFC,
        "return 1 - _defined(alpha * fa + (1 - alpha) * fb, squares) / squares.sqrt()",
        "return 1 - _defined(alpha * fa + (1 - alpha) * fb, squares).abs() / squares.sqrt()",
        "tests/metrics/test_llfc.py",
    ),
    Mutation(
        "α swapped in the interpolated feature",
        LLFC,
        "return 1 - _defined(alpha * fa + (1 - alpha) * fb, squares) / squares.sqrt()",
        "return 1 - _defined((1 - alpha) * fa + alpha * fb, squares) / squares.sqrt()",
        "tests/metrics/test_llfc.py",
    ),
    Mutation(
        "cross term of ‖z‖² halved",
        LLFC,
        "2 * alpha * rest * self.ab",
        "alpha * rest * self.ab",
        "tests/metrics/test_llfc.py",
    ),
    Mutation(
        "coef over ‖z‖ instead of ‖z‖²",
        LLFC,
        "return _defined(alpha * fa + (1 - alpha) * fb, zz) / zz",
        "return _defined(alpha * fa + (1 - alpha) * fb, zz) / zz.sqrt()",
        "tests/metrics/test_llfc.py",
    ),
    Mutation(
        "sums in float32",
        "llfc_core/kernels/eager.py",
        "f = feature[rows].double()",
        "f, x, y = feature[rows].float(), a[rows].float(), b[rows].float()",
        "tests/metrics/test_kernels.py",
    ),
    Mutation(
        "α swapped in the weights",
        "llfc_core/pairs.py",
        "alpha * value + (1 - alpha) * b[name]",
        "(1 - alpha) * value + alpha * b[name]",
        "tests/test_pairs.py",
    ),
    Mutation(
        "bias left out of the interpolation",
        "llfc_core/pairs.py",
        "(1 - alpha) * b[name] if value.is_floating_point() else value",
        '(1 - alpha) * b[name] if "bias" not in name else value',
        "tests/test_pairs.py",
    ),
    Mutation(
        "last batch only",
        MEASURE,
        "torch.cat([c.pop(k) for c in collected], dim=-1)",
        "collected[-1][k]",
        "tests/metrics/test_measure.py",
    ),
    Mutation(
        "pre-activations for features",
        MEASURE,
        "found.post[layer.name] = layer.post.clone()",
        "found.post[layer.name] = layer.pre.clone()",
        "tests/metrics/test_measure.py",
    ),
    Mutation(
        "Dist_σ at α = ½ instead of its maximum",
        MEASURE,
        "found = dist_sigma(x, y) if x.shape[1] < HISTOGRAM_FROM else dist_sigma_histogram(x, y)",
        "from llfc_core.metrics.weak_additivity import dist_sigma_at\n"
        "    return dist_sigma_at(x, y, 0.5)",
        CONDITIONS,
    ),
    Mutation(
        "Dist_σ of features instead of pre-activations",
        MEASURE,
        "_dist_sigma(a.pre.pop(name), flatten(layer.pre))",
        "_dist_sigma(x, y)",
        CONDITIONS,
    ),
    Mutation(
        "stitching upside down",
        MEASURE,
        "return torch.stack([stitched(a, self.b), stitched(b, self.a)])",
        "return torch.stack([stitched(b, self.a), stitched(a, self.b)])",
        CONDITIONS,
    ),
    Mutation(
        "commutativity of A's features with themselves",
        MEASURE,
        "self.commutativity[name].update(a.inputs.pop(name), x)",
        "self.commutativity[name].update(x, x)",
        CONDITIONS,
    ),
    Mutation(
        "D without the difference of weights",
        "llfc_core/metrics/commutativity.py",
        "self._difference = (a.double() - b.double()).to(self._dtype)",
        "self._difference = a.double().to(self._dtype)",
        "tests/metrics/test_commutativity.py",
    ),
    Mutation(
        "ρ without its 4",
        "llfc_core/metrics/commutativity.py",
        "4 * dist_com / torch.where",
        "dist_com / torch.where",
        "tests/metrics/test_commutativity.py",
    ),
    Mutation(
        "ties count as right",
        "llfc_core/classification.py",
        "return ~(own > others).all(dim=1)",
        "return ~(own >= others).all(dim=1)",
        "tests/training/test_engine.py",
    ),
    Mutation(
        "singular values not squared",
        "llfc_core/metrics/low_rank.py",
        "return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)",
        "return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()",
        "tests/metrics/test_low_rank.py",
    ),
    Mutation(
        "Gram matrix of the last batch only",
        "llfc_core/kernels/__init__.py",
        "blocks[i].addmm_(x[:, start:stop].T, x[:, :stop])",
        "blocks[i].copy_(x[:, start:stop].T @ x[:, :stop])",
        "tests/metrics/test_low_rank.py",
    ),
    Mutation(
        "the last columns of a row left out",
        C,
        "sums[0] += x * ra[j];",
        "sums[0] += 0 * x * ra[j];",
        "tests/metrics/test_kernels.py",
    ),
    Mutation(
        "the last block of a row only",
        C,
        "for (int s = 0; s < 3; s++) to[s] += sums[s];",
        "for (int s = 0; s < 3; s++) to[s] = sums[s];",
        "tests/metrics/test_kernels.py",
    ),
    Mutation(
        "‖x − y‖² by subtracting sums",
        C,
        "memcpy(out + 4 * i, sums, sizeof sums);",
        "sums[3] = (float)sums[0] - 2 * (float)sums[1] + (float)sums[2];"
        " memcpy(out + 4 * i, sums, sizeof sums);",
        "tests/metrics/test_kernels.py",
    ),
    Mutation(
        "Dist_σ at the kinks alone",
        C,
        "search(on, &top);",
        "(void)on;",
        "tests/metrics/test_weak_additivity.py",
    ),
    Mutation(
        "what is called again above a cut is skipped below it",
        MEASURE,
        "if before.count(name) == ran.count(name)",
        "if name in ran",
        "tests/metrics/test_measure.py",
    ),
    Mutation(
        "a mode's features kept for good",
        MEASURE,
        "collected.append(one_pass.batch(inputs, labels))",
        "collected.append(one_pass.batch(inputs, labels))\n"
        "            one_pass.kept = [*getattr(one_pass, 'kept', []),"
        " one_pass._collect(inputs).post]",
        "tests/metrics/test_measure.py",
    ),
    Mutation(
        "rank from Cholesky's bound below alone",
        "llfc_core/metrics/low_rank.py",
        "if at_least == at_most:",
        "if at_most:",
        "tests/metrics/test_low_rank.py",
    ),
    Mutation(
        "cancelled z taken for a direction",
        LLFC,
        "CANCELLED = 1e-12",
        "CANCELLED = 0.0",
        "tests/metrics/test_llfc.py",
    ),
    Mutation(
        "barrier over a chord with its ends swapped",
        CLAIMS,
        "a, b = curve[..., -1:], curve[..., :1]",
        "b, a = curve[..., -1:], curve[..., :1]",
        "tests/test_claims.py",
    ),
    Mutation(
        "maximum over the wrong axis",
        CLAIMS,
        'return means["one_minus_cos"].max(axis=-1)',
        'return means["one_minus_cos"].max(axis=-2)',
        "tests/test_claims.py",
    ),
    Mutation(
        "the favourable end of the interval decides",
        CLAIMS,
        "return self.high <= self.bound if self.at_most else self.low >= self.bound",
        "return self.low <= self.bound if self.at_most else self.high >= self.bound",
        "tests/test_claims.py",
    ),
    Mutation(
        "the best layer decides",
        CLAIMS,
        "worst = max(judged,",
        "worst = min(judged,",
        "tests/test_claims.py",
    ),
    Mutation(
        "pairs that are vacuous pass",
        CLAIMS,
        "note = vacuous(pairs, claim.pairs)",
        'note = ""',
        "tests/test_claims.py",
    ),
    Mutation(
        "images resampled, pairs not",
        BOOTSTRAP,
        "which = rng.integers(pairs, size=(resamples, pairs))",
        "which = np.broadcast_to(np.arange(pairs), (resamples, pairs))",
        "tests/metrics/test_bootstrap.py",
    ),
    Mutation(
        "ratio the wrong way round",
        BOOTSTRAP,
        "point, draws = other_point / point, other_draws / draws",
        "point, draws = point / other_point, draws / other_draws",
        "tests/metrics/test_bootstrap.py",
    ),
    Mutation(
        "the bound forgets commutativity",
        "llfc_core/theory/bound.py",
        "one_step=a_l + c_l + torch.stack(handed_on)",
        "one_step=a_l + torch.stack(handed_on)",
        "tests/theory/test_bound.py",
    ),
    Mutation(
        "similarity transposed",
        "llfc_core/matching/weight.py",
        "similarity.addmm_(of_a, of_b.T)",
        "similarity.addmm_(of_b, of_a.T)",
        "tests/matching/test_weight.py",
    ),
    Mutation(
        "steps that lower the objective accepted",
        "llfc_core/matching/weight.py",
        "if gain <= TOLERANCE",
        "if gain <= -1e9 + TOLERANCE",
        "tests/matching/test_weight.py",
    ),
    Mutation(
        "columns passed by a path keep their price",
        C,
        "p[m->scanned[k]] += low - m->final[m->scanned[k]];",
        "p[m->scanned[k]] += 0;",
        "tests/matching/test_assignment.py",
    ),
    Mutation(
        "neighbours solved side by side",
        "llfc_core/matching/weight.py",
        "if self.trees[i].neighbours.isdisjoint(ahead):",
        "if i not in ahead:",
        "tests/matching/test_weight.py",
    ),
    Mutation(
        "prices left behind by their units",
        "llfc_core/matching/weight.py",
        "self.prices[tree.root] = self.prices[tree.root][step[tree.root]]",
        "pass",
        "tests/matching/test_weight.py",
    ),
    Mutation(
        "statistics of the last batch only",
        "llfc_core/matching/activation.py",
        "self.cross += pair[0] @ pair[1].T",
        "self.cross = (pair[0] @ pair[1].T).double()",
        "tests/matching/test_activation.py",
    ),
    Mutation(
        "un-centred product for Pearson's correlation",
        "llfc_core/matching/activation.py",
        "covariance = self.cross - torch.outer(*self.sums) / self.count",
        "covariance = self.cross",
        "tests/matching/test_activation.py",
    ),
    Mutation(
        "permutations composed the wrong way round",
        "llfc_core/matching/spec.py",
        "both[name] = outer.gather(-1, then[name])",
        "both[name] = then[name].gather(-1, outer)",
        "tests/matching/test_spec.py",
    ),
    Mutation(
        "a permutation applied backwards",
        "llfc_core/matching/spec.py",
        "source[units[0]] = units[0][perm]",
        "source[units[0][perm]] = units[0]",
        "tests/matching/test_spec.py",
    ),
    Mutation(
        "buffers left out of the check",
        "llfc_core/matching/check.py",
        "_both(outputs, spec.permuted(written, perms)), _both(after, kept), when",
        "outputs, after, when",
        "tests/matching/test_check.py",
    ),
    Mutation(
        "random numbers taken for a wrong permutation",
        "llfc_core/matching/check.py",
        "if noise > BLIND / SLACK:",
        "if False:",
        "tests/matching/test_check.py",
    ),
    Mutation(
        "units one index each, whatever they are",
        "llfc_core/matching/derive.py",
        "if np.bincount(free).max() == 1:",
        "if True:",
        "tests/matching/test_derive.py",
    ),
    Mutation(
        "what rounding leaves of the mean left there",
        "llfc_core/batchnorm.py",
        "- count * left.square()",
        "",
        "tests/test_batchnorm.py",
    ),
    Mutation(
        "statistics of the average batch, not of all",
        "llfc_core/batchnorm.py",
        "+ delta.square() * (self.count * count / total)",
        "",
        "tests/test_batchnorm.py",
    ),
    Mutation(
        "commutativity matching: A.3's last sign",
        RESIDUALS,
        "return float(own - 2 * cross) + 0.5",
        "return float(own + cross) + 0.5",
        COMMUTING,
    ),
    Mutation(
        "commutativity matching: the wrong Gram matrix",
        RESIDUALS,
        "(x, y), (y, y))):",
        "(y, x), (y, y))):",
        COMMUTING,
    ),
    Mutation(
        "commutativity matching: kernels' places in the wrong order",
        RESIDUALS,
        "units = np.broadcast_to(units, positions.shape)",
        "units = np.resize(units, positions.shape)",
        COMMUTING,
    ),
    Mutation(
        "commutativity matching: the last start's result",
        "llfc_core/matching/commutativity.py",
        "best = min(runs, key=lambda run: run.trace[-1])",
        "best = runs[-1]",
        COMMUTING,
    ),
    Mutation(
        "methods compared on pairs drawn apart",
        BOOTSTRAP,
        "_group(group, statistic, resamples, seed, np.random.default_rng(seed))",
        "_group(group, statistic, resamples, seed, np.random.default_rng())",
        "tests/metrics/test_bootstrap.py",
    ),
    Mutation(
        "stitching judged inside residual blocks",
        CLAIMS,
        'if claim.judged == "cut":',
        'if claim.judged == "none":',
        "tests/test_claims.py",
    ),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("mutated")
    for name in ("llfc_core", "fixtures", "phenomena", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "pytest.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutations_are_written_for_the_code_as_it_is(mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert (ROOT / mutation.tests).exists()


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_mutation_is_caught(mutation, checkout, record_property):
    path = checkout / mutation.file
    original = path.read_text()
    path.write_text(original.replace(mutation.old, mutation.new))
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", mutation.tests, "-x", "-q", "-p", "no:cacheprovider"],
            cwd=checkout,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        path.write_text(original)
    caught = re.findall(r"^(?:FAILED|ERROR) (\S+)", result.stdout, flags=re.MULTILINE)
    record_property("mutation", [mutation.name, caught[0] if caught else "SURVIVED"])
    assert result.returncode == 1, f"survived:\n{result.stdout[-2000:]}"
    assert caught, result.stdout[-2000:]
