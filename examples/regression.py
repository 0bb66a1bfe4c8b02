"""Regression: a number that depends on sixteen others, judged by its squared error.

pytest phenomena/ --modes examples/regression.py:pair
python -m llfc_core check examples/regression.py:pair
"""

import copy

import torch
from torch import nn

VARIABLES = 16


def table(points: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sixteen variables, and a number that depends on them by fixed random weights."""
    weights = torch.Generator().manual_seed(0)
    hidden = torch.randn(VARIABLES, 32, generator=weights)
    out = torch.randn(32, 1, generator=weights)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(points, VARIABLES, generator=generator)
    y = torch.tanh(x @ hidden / 4) @ out
    return x, y + 0.1 * torch.randn(points, 1, generator=generator)


def squared_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """One number for each data point, not their mean."""
    return (output - target).square().mean(dim=1)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(VARIABLES, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, 1),
    )


def train(start: nn.Module, epochs: int, seed: int) -> nn.Module:
    """``start``, which stays as it is, after some epochs; the seed is that of the order."""
    net = copy.deepcopy(start).train()
    x, y = table(4000, seed=1)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=6e-3)
    for _ in range(epochs):
        for points in torch.randperm(len(x), generator=order).split(50):
            loss = squared_error(net(x[points]), y[points]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


def pair(first: int = 0):
    """A and B part after an epoch; C has nothing in common with them."""
    parent = train(network(first), 1, first)
    return {
        "a": train(parent, 8, first + 1),
        "b": train(parent, 8, first + 2),
        "data": table(1000, seed=2),
        "loss": squared_error,
        "link": "spawned",
        "independent": train(network(first + 3), 9, first + 3),
        "findings": {
            "llfc-contrast on independent": "in hidden layers independent networks differ so much "
            "that between them there is less of a difference to both",
        },
    }
