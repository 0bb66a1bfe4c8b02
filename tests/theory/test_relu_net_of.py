"""Which modules are the MLPs that the theorems speak of."""

import pytest
import torch
from torch import nn

from llfc_core.theory import forward, relu_net_of


def mlp(*between: nn.Module, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), *between, nn.Linear(5, 3, bias=bias)).eval()


@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_is_taken_over_and_left_alone(bias):
    net, x = mlp(nn.ReLU(), bias=bias), torch.randn(4, 2, 3)
    found = relu_net_of(net, net.state_dict(), x)
    assert found.depth == 2
    ours = forward(found, x.flatten(1).double().T).post[-1].T
    torch.testing.assert_close(ours, net(x).double(), rtol=1e-5, atol=1e-6)
    assert next(net.parameters()).dtype == torch.float32
    assert not net[1]._forward_hooks


@pytest.mark.parametrize(
    "net",
    [
        mlp(nn.Tanh()),
        mlp(nn.ReLU(), nn.BatchNorm1d(5, affine=False).eval(), nn.Sigmoid()),
        mlp(nn.Linear(5, 5)),
        nn.Sequential(nn.Flatten(), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU()),
    ],
    ids=["tanh", "norm", "no relu", "no linear", "relu last"],
)
def test_anything_else_is_none(net):
    assert relu_net_of(net, net.state_dict(), torch.randn(4, 2, 3)) is None
