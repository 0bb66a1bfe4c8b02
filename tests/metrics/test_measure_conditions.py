"""The numbers behind weak additivity, commutativity, stitching and rank, against plain oracles.

Two small MLPs and 30 points in batches of 13: every number is recomputed from materialised
float64 features.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llfc_core.classification import errors
from llfc_core.metrics import measure
from llfc_core.metrics.weak_additivity import dist_sigma_at
from llfc_core.pairs import ModePair

N = 30


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def state(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: 0.4 * torch.randn(v.shape, generator=g) for k, v in Net().state_dict().items()}


A, B = state(0), state(1)
X = torch.randn(N, 8, generator=torch.Generator().manual_seed(2))
Y = torch.randint(4, (N,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def measured():
    batches = zip(X.split(13), Y.split(13), strict=True)
    return measure(ModePair("test", Net(), A, B), batches)


def features(s):
    """Inputs and pre-activations of the three layers, float64."""
    s = {k: v.double() for k, v in s.items()}
    h, inputs, pre = X.double(), [], []
    for i in (1, 2, 3):
        inputs.append(h)
        pre.append(h @ s[f"fc{i}.weight"].T + s[f"fc{i}.bias"])
        h = pre[-1].relu()
    return inputs, pre


def dist(x, y):
    return float((x - y).square().sum() / (x.norm() * y.norm()))


def test_dist_sigma_is_the_maximum_over_a_dense_grid(measured):
    (_, pre_a), (_, pre_b) = features(A), features(B)
    for layer in (0, 1):
        a, b = pre_a[layer], pre_b[layer]
        grid = torch.stack([dist_sigma_at(a, b, t / 2000) for t in range(2001)]).amax(0)
        ours = torch.from_numpy(measured.values["dist_sigma"][layer])
        assert (ours >= grid * (1 - 1e-5)).all()  # the features are float32 there
        torch.testing.assert_close(ours, grid, rtol=2e-3, atol=1e-6)
    assert np.isnan(measured.values["dist_sigma"][2]).all()


def test_commutativity_is_that_of_definition_4(measured):
    (h_a, _), (h_b, _) = features(A), features(B)
    from llfc_core.claims import commutativity

    found = commutativity(measured.means())
    for i, name in enumerate(measured.linear):
        w_a, w_b = A[f"{name}.weight"].double(), B[f"{name}.weight"].double()
        left = h_a[i] @ w_a.T + h_b[i] @ w_b.T
        right = h_b[i] @ w_a.T + h_a[i] @ w_b.T
        expected = (dist(left, right), dist(w_a, w_b), dist(h_a[i], h_b[i]))
        for ours, oracle in zip(found, expected):
            assert float(ours[0, i]) == pytest.approx(oracle, rel=1e-5, abs=1e-12)
    assert measured.linear == ("fc1", "fc2", "fc3")
    assert float(found.dist_com[0, 0]) == 0  # the first layer's input is the data


def test_stitching_goes_both_ways(measured):
    (h_a, _), (h_b, _) = features(A), features(B)

    def upper(s, h, first):
        for i in range(first, 4):
            h = h @ s[f"fc{i}.weight"].double().T + s[f"fc{i}.bias"].double()
            h = h.relu() if i < 3 else h
        return errors(h, Y).double().numpy()

    stitched = measured.values["stitched_error"]
    for layer in (0, 1):
        np.testing.assert_array_equal(stitched[layer, 0], upper(B, h_a[layer + 1], layer + 2))
        np.testing.assert_array_equal(stitched[layer, 1], upper(A, h_b[layer + 1], layer + 2))
    assert np.isnan(stitched[2]).all()
    assert (stitched[0, 0] != stitched[0, 1]).any()  # the two directions can be told apart


@pytest.mark.parametrize(("lower", "upper", "side"), [(A, B, 0), (B, A, 1)])
def test_stitching_before_the_activation_is_the_same_network(measured, lower, upper, side):
    """Handing over pre-activations, by a hook, errs on the very points that features err on."""
    _, pre = features(lower)
    net = Net()
    net.load_state_dict(upper)
    for layer in (0, 1):
        handed_over = pre[layer].float()
        hook = getattr(net, f"fc{layer + 1}").register_forward_hook(
            lambda module, args, out, handed_over=handed_over: handed_over
        )
        found = errors(net(X), Y).double().numpy()
        hook.remove()
        np.testing.assert_array_equal(found, measured.values["stitched_error"][layer, side])


def test_mixture_errors_are_those_of_mixed_logits(measured):
    (_, pre_a), (_, pre_b) = features(A), features(B)
    for k, alpha in enumerate(measured.alphas):
        mixed = alpha * pre_a[2] + (1 - alpha) * pre_b[2]
        np.testing.assert_array_equal(measured.values["mixture_error"][k], errors(mixed, Y))


def test_ranks_are_those_of_a_direct_svd(measured):
    for side, s in enumerate((A, B)):
        for i, name in enumerate(measured.linear):
            w = s[f"{name}.weight"].double()
            expected = w.square().sum() / torch.linalg.matrix_norm(w, 2) ** 2
            ours = measured.constants["stable_rank"][i, side]
            assert ours == pytest.approx(float(expected), rel=1e-9)
    h, pre = features(A)
    for layer, feature in enumerate([h[1], h[2], pre[2]]):
        squares = torch.linalg.svdvals(feature).square()
        needed = int((squares.cumsum(0) < 0.95 * squares.sum()).sum()) + 1
        share = needed / feature.shape[1]
        assert measured.constants["feature_rank"][layer] == pytest.approx(share)
