"""A table: 16 columns, 5 classes, and two MLPs that share their first steps.

pytest phenomena/ --modes examples/tabular.py:pair
python -m llfc_core check examples/tabular.py:pair
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

COLUMNS, CLASSES = 16, 5


def table(rows: int = 4000, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of noise, and a class that depends on them by fixed random weights."""
    weights = torch.Generator().manual_seed(0)
    hidden = torch.randn(COLUMNS, 32, generator=weights)
    out = torch.randn(32, CLASSES, generator=weights)
    x = torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed))
    return x, (torch.tanh(x @ hidden / 4) @ out).argmax(dim=1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(COLUMNS, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, CLASSES),
    )


def train(start: nn.Module, epochs: int, seed: int) -> nn.Module:
    """``start``, which stays as it is, after some epochs; the seed is that of the order."""
    net = copy.deepcopy(start).train()
    x, y = table(seed=1)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=8e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(50):
            loss = F.cross_entropy(net(x[rows]), y[rows])
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
        "data": table(),
        "link": "spawned",
        "independent": train(network(first + 3), 9, first + 3),
        "findings": {
            "lemma1 on independent": "the errors at the ends are so large that twice them is more "
            "than what independent networks have in between",
        },
    }


def pairs():
    """Three of them: an interval over one pair says nothing of the next."""
    return [pair(first) for first in (0, 10, 20)]
