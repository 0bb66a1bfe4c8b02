"""The streaming pass against features kept whole in float64, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.classification import errors
from llfc_core.features import Taps
from llfc_core.metrics import PARTS, Measurement, Part, measure
from llfc_core.metrics.commutativity import SUMS
from llfc_core.pairs import ModePair, interpolate
from tests.metrics.memory import LiveBytes

State = dict[str, Tensor]
Forward = Callable[[Mapping[str, Tensor], Tensor], dict[str, Tensor]]
ALPHAS = (0.0, 0.2, 0.5, 0.75, 1.0)
LLFC = ("one_minus_cos", "coef", "one_minus_cos_ab")


@pytest.fixture(autouse=True)
def _seeded_and_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


# ---- networks, and their features written out by hand -------------------------------------------


class MLP(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (12, 16, 16, 5), module_relu: bool = False):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(i, o) for i, o in pairwise(widths))
        self.relu = nn.ReLU() if module_relu else F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x.flatten(1))))))


def mlp_features(w: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    h1 = (x.flatten(1) @ w["fc1.weight"].T + w["fc1.bias"]).clamp_min(0)
    h2 = (h1 @ w["fc2.weight"].T + w["fc2.bias"]).clamp_min(0)
    return {"fc1": h1, "fc2": h2, "fc3": h2 @ w["fc3.weight"].T + w["fc3.bias"]}


class Block(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x += self.bn2(self.conv2(h))  # in place: overwrites the features of the layer before
        return F.relu(x)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.block = Block(4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(F.relu(self.bn(self.conv(x))))
        return self.fc(h.mean((2, 3)))


def resnet_features(w: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    def bn(name: str, h: Tensor) -> Tensor:
        mean, var, gain, bias = (
            w[f"{name}.{k}"][:, None, None]
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (h - mean) / (var + 1e-5).sqrt() * gain + bias

    def conv(name: str, h: Tensor) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w.get(f"{name}.bias"), padding=1)

    h0 = bn("bn", conv("conv", x)).clamp_min(0)
    h1 = bn("block.bn1", conv("block.conv1", h0)).clamp_min(0)
    h2 = (bn("block.bn2", conv("block.conv2", h1)) + h0).clamp_min(0)
    logits = h2.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    return {"bn": h0, "block.bn1": h1, "block": h2, "fc": logits}


def state(make: Callable[[], nn.Module], dtype: torch.dtype) -> State:
    """Weights of a network and, of its BatchNorms, statistics that are not 0 and 1."""
    own = {k: v.clone() for k, v in make().state_dict().items()}
    for k, v in own.items():
        if "running_mean" in k:
            own[k] = torch.randn_like(v)
        elif "running_var" in k or ("bn" in k and k.endswith("weight")):
            own[k] = torch.rand_like(v) + 0.2
        elif "num_batches" in k:
            own[k] = torch.randint(1, 100, ())
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in own.items()}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Forward]] = {
    "mlp": (MLP, mlp_features),
    "resnet": (ResNet, resnet_features),
}


def a_pair(network: str, dtype: torch.dtype, link: str = "planted") -> ModePair:
    """B is A and a step half as large, so that A and B agree in part."""
    make = NETWORKS[network][0]
    a, other = state(make, dtype), state(make, dtype)
    b = {k: v + 0.5 * (other[k] - v) if v.is_floating_point() else other[k] for k, v in a.items()}
    return ModePair(link, make().to(dtype), a, b)


def images(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 3, 4, dtype=dtype), torch.randint(5, (n,))


def split(x: Tensor, y: Tensor, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def oracle(pair: ModePair, forward: Forward, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """All numbers by their definitions, all features in memory, float64."""

    def double(state: Any) -> State:
        return {k: v.double() for k, v in state.items()}

    def cosine(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))

    a, b, x = double(pair.a), double(pair.b), x.double()
    fa, fb = forward(a, x), forward(b, x)
    out: dict[str, list[Any]] = {k: [] for k in ("error", "loss", "one_minus_cos", "coef")}
    for alpha in ALPHAS:
        f = forward({k: alpha * a[k] + (1 - alpha) * b[k] for k in a}, x)
        logits = list(f.values())[-1]
        out["error"].append((logits.argmax(1) != y).double())
        log_p = logits - logits.exp().sum(1, keepdim=True).log()
        out["loss"].append(-log_p[range(len(y)), y])
        cosines, coefs = [], []
        for layer in f:
            u = f[layer].flatten(1)
            z = alpha * fa[layer].flatten(1) + (1 - alpha) * fb[layer].flatten(1)
            cosines.append(1 - cosine(u, z))
            coefs.append(u.norm(dim=1) * cosine(u, z) / z.norm(dim=1))
        out["one_minus_cos"].append(torch.stack(cosines))
        out["coef"].append(torch.stack(coefs))
    stacked = {k: torch.stack(v, dim=1 if v[0].dim() > 1 else 0) for k, v in out.items()}
    stacked["one_minus_cos_ab"] = torch.stack(
        [1 - cosine(fa[k].flatten(1), fb[k].flatten(1)) for k in fa]
    )
    return {k: v.numpy() for k, v in stacked.items()}


# ---- against the oracle -------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 5e-5)], ids=["f64", "f32"]
)
def test_measure_oracle(network: str, dtype: torch.dtype, tolerance: float) -> None:
    """float64 shows that the formulas are right, float32 that little is lost as it is used."""
    pair, (x, y) = a_pair(network, dtype), images(23, dtype)
    m = measure(pair, split(x, y, 9, 13, 1), alphas=ALPHAS)
    want = oracle(pair, NETWORKS[network][1], x, y)
    assert m.layers == tuple(NETWORKS[network][1](pair.a, x))
    assert (m.alphas, m.n, m.classes, m.link) == (ALPHAS, 23, 5, "planted")
    for name, expected in want.items():
        assert m.values[name].dtype == np.float64
        assert m.values[name].shape == expected.shape, name
        np.testing.assert_allclose(
            m.values[name], expected, rtol=tolerance, atol=tolerance, err_msg=name
        )
    # The oracle has something to say: no layer is trivially aligned, coef is not 1 throughout.
    assert want["one_minus_cos"][:, 1:-1].max(axis=(1, 2)).min() > 1e-3
    assert abs(want["coef"][:, 2].mean(axis=-1) - 1).min() > 1e-3
    assert 0 < want["error"].mean() < 1


@pytest.mark.parametrize("network", NETWORKS)
def test_measure_does_not_depend_on_the_batches(network: str) -> None:
    pair, (x, y) = a_pair(network, torch.float64), images(24, torch.float64)
    whole = measure(pair, [(x, y)], alphas=ALPHAS)
    for sizes in ((8, 8, 8), (1, 22, 1), (5, 19)):
        parts = measure(pair, iter(split(x, y, *sizes)), alphas=ALPHAS)
        assert parts.values.keys() == whole.values.keys()
        for name, value in parts.values.items():
            np.testing.assert_allclose(value, whole.values[name], 1e-10, 1e-12, err_msg=name)


def test_measure_float32_agrees_for_all_batches_to_rounding() -> None:
    pair, (x, y) = a_pair("mlp", torch.float32), images(24)
    one, other = (measure(pair, split(x, y, *s), alphas=ALPHAS) for s in ((24,), (7, 17)))
    for name in (*LLFC, "loss"):
        np.testing.assert_allclose(one.values[name], other.values[name], 1e-4, 1e-6, err_msg=name)


def test_measure_inputs_that_are_overwritten_later() -> None:
    """The block writes into its own input, which is the input of its first convolution too."""
    pair, (x, y) = a_pair("resnet", torch.float64), images(9, torch.float64)
    m = measure(pair, [(x, y)], alphas=ALPHAS)
    sums = m.values["commutativity"][m.linear.index("block.conv1")]
    for state, name in ((pair.a, "HA_HA"), (pair.b, "HB_HB")):
        want = resnet_features(state, x)["bn"].flatten(1).square().sum(1)
        np.testing.assert_allclose(sums[SUMS.index(name)], want, rtol=1e-10)


# ---- ends, order and orientation ----------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_measure_alpha_1_is_a_and_alpha_0_is_b(network: str) -> None:
    """Errors and losses at the ends are those of the modes themselves, loaded and run."""
    pair, (x, y) = a_pair(network, torch.float32), images(40)
    m = measure(pair, [(x, y)], alphas=ALPHAS)
    module = NETWORKS[network][0]().eval()
    losses = []
    for state, k in ((pair.b, 0), (pair.a, -1)):
        module.load_state_dict(state)
        with torch.no_grad():
            logits = module(x)
        np.testing.assert_array_equal(m.values["error"][k], (logits.argmax(1) != y).double())
        loss = F.cross_entropy(logits, y, reduction="none").double()
        np.testing.assert_allclose(m.values["loss"][k], loss, rtol=1e-5, atol=1e-6)
        losses.append(float(loss.mean()))
    assert abs(losses[0] - losses[1]) > 1e-3, "the ends must differ for this to mean anything"
    for k in (0, -1):
        np.testing.assert_allclose(m.values["one_minus_cos"][:, k], 0, atol=1e-6)
        np.testing.assert_allclose(m.values["coef"][:, k], 1, atol=1e-5)


def test_measure_of_the_reversed_pair_is_reversed() -> None:
    pair, (x, y) = a_pair("mlp", torch.float64), images(12, torch.float64)
    back = ModePair("back", pair.module, pair.b, pair.a)
    grid = (0.0, 0.25, 0.5, 0.75, 1.0)
    one, other = (measure(p, [(x, y)], alphas=grid).values for p in (pair, back))
    for name, axis in {"error": 0, "loss": 0, "one_minus_cos": 1, "coef": 1}.items():
        np.testing.assert_allclose(one[name], np.flip(other[name], axis), atol=1e-11, err_msg=name)
        assert not np.allclose(one[name], other[name]), name
    np.testing.assert_allclose(one["one_minus_cos_ab"], other["one_minus_cos_ab"], atol=1e-12)


def test_measure_alphas_are_sorted_and_have_both_ends() -> None:
    pair, batch = a_pair("mlp", torch.float64), images(6, torch.float64)
    m = measure(pair, [batch], alphas=[0.75, 0.5, 0.75])
    assert m.alphas == (0.0, 0.5, 0.75, 1.0)
    full = measure(pair, [batch], alphas=ALPHAS)
    picked = [full.alphas.index(alpha) for alpha in m.alphas]
    np.testing.assert_allclose(m.values["coef"], full.values["coef"][:, picked], rtol=1e-12)
    np.testing.assert_allclose(m.values["loss"], full.values["loss"][picked], rtol=1e-12)


def test_measure_default_alphas_have_those_of_the_paper() -> None:
    m = measure(a_pair("mlp", torch.float64), [images(2, torch.float64)])
    assert {0.0, 0.25, 0.5, 0.75, 1.0} <= set(m.alphas)


def test_measure_chosen_layers() -> None:
    pair, batch = a_pair("mlp", torch.float64), images(6, torch.float64)
    full = measure(pair, [batch], alphas=ALPHAS)
    part = measure(pair, [batch], alphas=ALPHAS, layers=["fc2", "fc3"])
    assert part.layers == ("fc2", "fc3")
    for name in LLFC:
        np.testing.assert_allclose(part.values[name], full.values[name][1:], rtol=1e-12)


PART_OF = {
    "dist_sigma": "additivity",
    "commutativity": "commutativity",
    "weights": "commutativity",
    "stitched_error": "stitching",
    "stable_rank": "ranks",
    "weight_rank": "ranks",
    "feature_rank": "ranks",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("network", ["mlp", "resnet"])
def test_measure_a_part_alone_is_what_it_is_among_the_others(network: str, part: Part) -> None:
    pair, (x, y) = a_pair(network, torch.float64), images(9, torch.float64)
    whole, alone = measure(pair, [(x, y)]), measure(pair, [(x, y)], parts=[part])
    for name, value in (whole.values | whole.constants).items():
        got = (alone.values | alone.constants)[name]
        assert got.shape == value.shape
        if PART_OF.get(name, part) == part:
            np.testing.assert_array_equal(got, value, err_msg=name)
        else:
            assert np.isnan(got).all(), name
    assert (alone.layers, alone.linear) == (whole.layers, whole.linear)


def test_measure_refuses_a_part_that_does_not_exist() -> None:
    pair, batch = a_pair("mlp", torch.float32), images(3)
    with pytest.raises(ValueError, match="no part 'cosine'; there are additivity, "):
        measure(pair, [batch], parts=["cosine"])  # type: ignore[list-item]


def test_measure_ignores_the_weights_and_the_mode_of_the_module() -> None:
    pair, batch = a_pair("resnet", torch.float32), images(8)
    first = measure(pair, [batch], alphas=ALPHAS)
    before = {k: v.clone() for k, v in pair.module.state_dict().items()}
    pair.module.train()
    second = measure(pair, [batch], alphas=ALPHAS)
    for name, value in first.values.items():
        np.testing.assert_array_equal(value, second.values[name], err_msg=name)
    assert pair.module.training
    for k, v in pair.module.state_dict().items():
        assert torch.equal(v, before[k]), f"measuring changed {k}"


def test_measure_functional_and_module_relu_agree() -> None:
    pair, batch = a_pair("mlp", torch.float32), images(8)
    as_module = ModePair(pair.link, MLP(module_relu=True), pair.a, pair.b)
    one, other = (measure(p, [batch], alphas=ALPHAS) for p in (pair, as_module))
    assert one.layers == other.layers == ("fc1", "fc2", "fc3")
    for name, value in one.values.items():
        np.testing.assert_array_equal(value, other.values[name], err_msg=name)


# ---- planted pairs ------------------------------------------------------------------------------


def test_measure_b_equal_to_a() -> None:
    pair, (x, y) = a_pair("resnet", torch.float64), images(9, torch.float64)
    same = ModePair("same", pair.module, pair.a, pair.a)
    m = measure(same, [(x, y)], alphas=ALPHAS)
    assert m.distance == 0
    np.testing.assert_allclose(m.values["one_minus_cos"], 0, atol=1e-12)
    np.testing.assert_allclose(m.values["one_minus_cos_ab"], 0, atol=1e-12)
    np.testing.assert_allclose(m.values["coef"], 1, atol=1e-12)
    for name in ("error", "loss"):
        np.testing.assert_allclose(m.values[name], m.values[name][:1].repeat(5, 0), atol=1e-12)


def test_measure_linear_network() -> None:
    """f(θ_α) = αf(θ_A) + (1−α)f(θ_B) whatever A and B: cos 1, coef 1, the loss convex."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    a, b = ({k: torch.randn_like(v) for k, v in net.state_dict().items()} for _ in range(2))
    m = measure(ModePair("linear", net, a, b), [images(50)], alphas=ALPHAS)
    assert len(m.layers) == 1
    np.testing.assert_allclose(m.values["one_minus_cos"], 0, atol=1e-6)
    np.testing.assert_allclose(m.values["coef"], 1, atol=1e-5)
    assert m.values["one_minus_cos_ab"].mean() > 0.5
    chord = (
        np.array(ALPHAS)[:, None] * m.values["loss"][-1:]
        + (1 - np.array(ALPHAS))[:, None] * m.values["loss"][:1]
    )
    assert (m.values["loss"] <= chord + 1e-5).all()


def scaled_states(c: float) -> tuple[State, State]:
    a = MLP().double().state_dict()
    a = {k: torch.zeros_like(v) if "bias" in k else v for k, v in a.items()}
    return a, {k: c * v for k, v in a.items()}


@pytest.mark.parametrize("c", [0.25, 2.0])
def test_measure_scaled_mode(c: float) -> None:
    """B = cA without biases: f⁽ℓ⁾(θ_α) = (α + (1−α)c)^ℓ f⁽ℓ⁾(A), so cos is 1 and coef is known."""
    m = measure(ModePair("scaled", MLP().double(), *scaled_states(c)), [images(9, torch.float64)])
    depth, alpha = np.arange(1, 4)[:, None], np.array(m.alphas)
    want = (alpha + (1 - alpha) * c) ** depth / (alpha + (1 - alpha) * c**depth)
    np.testing.assert_allclose(m.values["one_minus_cos"], 0, atol=1e-12)
    np.testing.assert_allclose(m.values["coef"], np.repeat(want[..., None], 9, 2), rtol=1e-12)
    assert abs(want[1:, 1:-1] - 1).min() > 0.01
    assert m.distance == pytest.approx(abs(1 - c))


def test_measure_modes_on_disjoint_units() -> None:
    """f⁽ℓ⁾(θ_α) = α^ℓ f_A + (1−α)^ℓ f_B, the other way to LMC (arXiv 2510.08023).

    At α = ½ the cosine is 1 and coef is 2^(1−ℓ): cos alone would take this for LLFC.
    """
    ours, theirs = (MLP((12, 8, 8, 5)).double().state_dict() for _ in range(2))
    a, b = {}, {}
    for k in ours:
        if "bias" in k:
            a[k] = b[k] = torch.zeros(5 if "fc3" in k else 16, dtype=torch.float64)
            continue
        rows, columns = ours[k].shape
        shape = (5 if "fc3" in k else 16, 12 if "fc1" in k else 16)
        a[k], b[k] = torch.zeros(2, *shape, dtype=torch.float64)
        a[k][:rows, :columns] = ours[k]
        b[k][-rows:, -columns:] = theirs[k]
    m = measure(ModePair("disjoint", MLP().double(), a, b), [images(9, torch.float64)])
    half, quarter = m.alphas.index(0.5), m.alphas.index(0.25)
    np.testing.assert_allclose(m.values["one_minus_cos"][:, half], 0, atol=1e-12)
    want = np.repeat([[1.0], [0.5], [0.25]], 9, axis=1)
    np.testing.assert_allclose(m.values["coef"][:, half], want, rtol=1e-12)
    np.testing.assert_allclose(m.values["one_minus_cos"][0], 0, atol=1e-12)
    assert m.values["one_minus_cos"][1:, quarter].mean(axis=-1).min() > 0.005
    np.testing.assert_allclose(m.values["one_minus_cos_ab"][:2], 1, atol=1e-12)


def test_measure_sign_flip_at_the_output_is_seen() -> None:
    """B's last layer is −A's: at the logits 1 − cos_{A,B} is 2 and z passes through 0."""
    a = MLP().double().state_dict()
    b = {k: -v if "fc3" in k else v for k, v in a.items()}
    m = measure(ModePair("flipped", MLP().double(), a, b), [images(9, torch.float64)])
    np.testing.assert_allclose(m.values["one_minus_cos_ab"][-1], 2, atol=1e-12)
    np.testing.assert_allclose(m.values["one_minus_cos_ab"][:-1], 0, atol=1e-12)
    # z = (2α − 1) f_A at the logits, and so is f: their cosine is 1 but at ½, where both vanish.
    assert np.isnan(m.values["one_minus_cos"][-1, m.alphas.index(0.5)]).all()
    assert m.undefined["cosine"].tolist() == [0, 0, 1]
    np.testing.assert_allclose(m.values["one_minus_cos"][-1, m.alphas.index(0.25)], 0, atol=1e-12)


def test_measure_batchnorm_statistics_are_interpolated() -> None:
    """A and B differ in running statistics alone, and the line between them is not constant."""
    pair, (x, y) = a_pair("resnet", torch.float64), images(9, torch.float64)
    b = {k: pair.b[k] if "running" in k else v for k, v in pair.a.items()}
    pair = ModePair("statistics", pair.module, pair.a, b)
    m = measure(pair, [(x, y)], alphas=ALPHAS)
    want = oracle(pair, resnet_features, x, y)
    np.testing.assert_allclose(m.values["loss"], want["loss"], atol=1e-11)
    assert np.abs(np.diff(want["loss"].mean(axis=1))).min() > 1e-4
    assert m.distance > 0


def test_measure_dead_layer_is_undefined_and_counted() -> None:
    a = MLP().double().state_dict()
    b = {k: v + 0.3 * torch.randn_like(v) for k, v in a.items()}
    for s in (a, b):
        s["fc2.bias"] = torch.full_like(s["fc2.bias"], -1e6)
    m = measure(ModePair("dead", MLP().double(), a, b), [images(7, torch.float64)])
    for name in LLFC:
        assert np.isnan(m.values[name][1]).all(), name
        assert np.isfinite(m.values[name][[0, 2]]).all(), name
    assert m.undefined["cosine"].tolist() == [0, 1, 0]
    summary = m.summary()
    assert summary["undefined"]["cosine"] == [0, 1, 0]
    assert summary["one_minus_cos_ab"]["mean"][1] is None


def test_measure_means_and_summary() -> None:
    m = measure(a_pair("mlp", torch.float64), [images(7, torch.float64)], alphas=ALPHAS)
    means, summary = m.means(), m.summary()
    for name in ("error", "loss", *LLFC):
        np.testing.assert_allclose(means[name][0], m.values[name].mean(axis=-1))
        # six significant digits
        np.testing.assert_allclose(summary[name]["mean"], m.values[name].mean(axis=-1), rtol=1e-5)
        spread = m.values[name].std(axis=-1)
        np.testing.assert_allclose(summary[name]["std"], spread, rtol=1e-5, atol=1e-9)
    assert summary["layers"] == ["fc1", "fc2", "fc3"]
    assert (summary["alphas"], summary["images"]) == (list(ALPHAS), 7)


def test_measure_a_tie_is_an_error() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    a = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    b = {k: torch.ones_like(v) for k, v in net.state_dict().items()}
    m = measure(ModePair("ties", net, a, b), [images(7)], alphas=(0, 1))
    assert (m.values["error"] == 1).all()


# ---- memory -------------------------------------------------------------------------------------


def peak_bytes(batches: int) -> tuple[int, Measurement]:
    """Peak of one pass over so many batches of 8 images, which are made one at a time."""
    widths = (12, 400, 400, 5)
    make = lambda: MLP(widths)  # noqa: E731
    pair = ModePair("wide", make(), state(make, torch.float32), state(make, torch.float32))

    def stream() -> Iterable[tuple[Tensor, Tensor]]:
        for _ in range(batches):
            yield images(8)

    with LiveBytes() as live:
        m = measure(pair, stream(), alphas=(0.5,))
    return live.peak, m


def test_measure_memory_is_flat_in_the_number_of_images() -> None:
    """Only the numbers kept for the bootstrap grow: no features of earlier batches stay."""
    peaks, kept = {}, {}
    for batches in (4, 16):
        peaks[batches], m = peak_bytes(batches)
        kept[batches] = sum(v.nbytes for v in m.values.values())
    one_batch_of_features = 2 * 8 * (400 + 400 + 5) * 4
    assert peaks[4] > one_batch_of_features, "the count misses what it should count"
    growth = peaks[16] - peaks[4]
    numbers = kept[16] - kept[4]
    # Numbers exist twice while batches are put together; features would add 12 batches' worth.
    assert growth <= 2 * numbers + one_batch_of_features, f"{growth} bytes more"
    assert 12 * one_batch_of_features > 4 * (2 * numbers + one_batch_of_features)


class Wide(nn.Module):
    """Two maps of 16 × 24 × 24 and next to nothing beside them: features are all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(h.mean((2, 3)))


def wide_batch(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 24, 24), torch.randint(5, (n,))


def test_measure_memory_is_that_of_one_batch() -> None:
    """A's pre- and post-activations and inputs, B's post-activations, and what a layer computes.

    Keeping three models' features of the 24 batches, the straightforward way, would take 24 times
    three modes' features of a batch.
    """
    pair = ModePair("wide", Wide(), state(Wide, torch.float32), state(Wide, torch.float32))
    n, d = 8, 16 * 24 * 24
    mode = n * 2 * d * 4
    peaks = {}
    for batches in (1, 24):
        with LiveBytes() as live:
            m = measure(pair, (wide_batch(n) for _ in range(batches)), alphas=(0.25, 0.5, 0.75))
        peaks[batches] = live.peak
    assert peaks[1] > 2 * mode, "the count misses what it should count"
    assert peaks[24] < 6 * mode, f"{peaks[24] / mode:.1f} modes' features at once"
    # What grows are the numbers, which exist twice while batches are put together.
    assert peaks[24] - peaks[1] < 2 * sum(v.nbytes for v in m.values.values()) < mode
    assert 24 * 3 * mode > 12 * peaks[24]


# ---- stitching ----------------------------------------------------------------------------------


@pytest.fixture
def empty_is_nan() -> Iterator[None]:
    """Tensors whose memory nobody has written hold NaN, not what happened to be there."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("empty_is_nan")
def test_measure_stitched_networks_compute_all_that_can_be_seen() -> None:
    """Layers below the cut are skipped: the errors are those of networks run in full, and the
    module is as it was."""
    pair = ModePair("wide", Wide(), state(Wide, torch.float32), state(Wide, torch.float32))
    x, y = wide_batch(40)
    before = {name: dict(part.__dict__) for name, part in pair.module.named_modules()}
    m = measure(pair, [(x, y)], alphas=(0.5,))
    taps = Taps(pair.module, x[:2])
    assert taps.names == m.layers
    for layer, found in zip(m.layers[:-1], m.values["stitched_error"]):
        for side, (lower, upper) in enumerate([(pair.a, pair.b), (pair.b, pair.a)]):
            want = errors(taps.stitch(x, layer, lower, upper), y).double()
            np.testing.assert_array_equal(found[side], want)
    assert m.values["stitched_error"][:-1].std() > 0
    for name, part in pair.module.named_modules():
        assert part.__dict__.keys() == before[name].keys()


class CalledTwice(Wide):
    """conv2 runs below the first activation and above it: it must not be skipped there."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv2(self.conv1(x)))
        return self.fc(F.relu(self.conv2(h)).mean((2, 3)))


@pytest.mark.usefixtures("empty_is_nan")
def test_measure_stitching_runs_what_is_called_again_above() -> None:
    make = CalledTwice
    pair = ModePair("twice", make(), state(make, torch.float32), state(make, torch.float32))
    x, y = wide_batch(40)
    m = measure(pair, [(x, y)], alphas=(0.5,))
    taps = Taps(pair.module, x[:2])
    want = errors(taps.stitch(x, m.layers[0], pair.a, pair.b), y).double()
    np.testing.assert_array_equal(m.values["stitched_error"][0, 0], want)


def test_measure_refuses_hidden_features_that_overflow() -> None:
    """The loss alone does not show it: a sigmoid makes a finite number of infinity."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Sigmoid(), nn.Linear(5, 5))
    a = {k: torch.full_like(v, 3e38) if k == "1.bias" else v for k, v in net.state_dict().items()}
    a["1.weight"] = torch.full_like(a["1.weight"], 3e38)
    x = torch.ones(3, 1, 3, 4)
    with pytest.raises(ValueError, match="finite"):
        measure(ModePair("overflow", net, a, net.state_dict()), [(x, torch.zeros(3).long())])


# ---- refusals -----------------------------------------------------------------------------------


def changed(pair: ModePair, **tensors: Tensor | None) -> State:
    new = {**pair.b, **{k.replace("__", "."): v for k, v in tensors.items()}}
    return {k: v for k, v in new.items() if v is not None}


@pytest.mark.parametrize("alpha", [-0.1, 1.5, math.nan])
def test_measure_refuses_alpha_outside_0_1(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"every α must lie in \[0, 1\], got .*"):
        measure(a_pair("mlp", torch.float32), [images(2)], alphas=(0.5, alpha))


def test_measure_refuses_no_images() -> None:
    with pytest.raises(ValueError, match="no images to measure on"):
        measure(a_pair("mlp", torch.float32), [])


def test_measure_refuses_mismatched_modes() -> None:
    pair = a_pair("mlp", torch.float32)
    for wrong, message in {
        "missing": (changed(pair, fc2__bias=None), r"mode B lacks 'fc2\.bias' \(1 names missing\)"),
        "foreign": (changed(pair, fc9__bias=torch.ones(1)), r"mode B has 'fc9\.bias', which the"),
        "shape": (
            changed(pair, fc1__bias=torch.ones(3)),
            r"mode B: 'fc1\.bias' has shape \(3,\), the network's has \(16,\)",
        ),
        "nan": (
            changed(pair, fc1__bias=torch.full((16,), torch.nan)),
            r"mode B: 'fc1\.bias' has values that are not finite",
        ),
        "inf": (
            changed(pair, fc1__bias=torch.full((16,), torch.inf)),
            r"mode B: 'fc1\.bias' has values that are not finite",
        ),
        "dtype": (
            changed(pair, fc1__bias=torch.zeros(16, dtype=torch.float64)),
            r"'fc1\.bias' is torch\.float32 in A and torch\.float64 in B",
        ),
    }.values():
        with pytest.raises(ValueError, match=message) as caught:
            measure(ModePair("wrong", pair.module, pair.a, wrong), [images(2)])
        assert "\n" not in str(caught.value)


def test_measure_refuses_a_loss_that_overflows() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    a = {k: torch.full_like(v, 3e38) for k, v in net.state_dict().items()}
    b = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="the loss is not finite somewhere on the line"):
        measure(ModePair("overflow", net, a, b), [images(3)])


def test_measure_refuses_outputs_that_are_no_logits() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    a = net.state_dict()
    with pytest.raises(ValueError, match=r"outputs \(3, 2, 3, 4\) and labels \(3,\) do not fit"):
        measure(ModePair("map", net, a, a), [images(3)])


def test_measure_refuses_unknown_layers() -> None:
    with pytest.raises(ValueError, match=r"no layer 'fc7'.*layers: fc1, fc2, fc3"):
        measure(a_pair("mlp", torch.float32), [images(2)], layers=["fc7"])


def test_interpolated_weights_are_what_the_oracle_uses() -> None:
    """The oracle writes αA + (1−α)B out; so the library's own function is checked on its own."""
    pair = a_pair("resnet", torch.float64)
    at = interpolate(pair.a, pair.b, 0.2)
    for k, v in at.items():
        want = 0.2 * pair.a[k] + 0.8 * pair.b[k] if v.is_floating_point() else pair.a[k]
        torch.testing.assert_close(v, want, rtol=1e-15, atol=0)
