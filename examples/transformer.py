"""Sequences: a small causal transformer that adds each token to the one before it.

pytest phenomena/ --modes examples/transformer.py:pair
python -m llfc_core check examples/transformer.py:pair
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

TOKENS, LENGTH, WIDTH = 7, 12, 32


def sequences(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (n, t), and at each place their sum with the one before, modulo TOKENS (n, t)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(TOKENS, (count, LENGTH), generator=generator)
    y = (x + x.roll(1, dims=1)) % TOKENS
    y[:, 0] = -100  # nothing comes before: does not count
    return x, y


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        hidden = self.layers(self.tokens(x) + self.places(places), mask=mask, is_causal=True)
        return self.head(hidden)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer()


def train(start: nn.Module, steps: int, seed: int) -> nn.Module:
    """``start``, which stays as it is, after some steps; the seed is that of the order."""
    net = copy.deepcopy(start).train()
    x, y = sequences(4000, seed=1)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,), generator=order)
        loss = F.cross_entropy(net(x[rows]).flatten(0, 1), y[rows].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def pair(first: int = 0):
    """A and B part when the loss has begun to fall; C has nothing in common with them."""
    parent = train(network(first), 30, first)
    return {
        "a": train(parent, 150, first + 1),
        "b": train(parent, 150, first + 2),
        "data": sequences(300, seed=2),
        "link": "spawned",
        "independent": train(network(first + 3), 180, first + 3),
        "findings": {
            "llfc-apart-output": "without errors, both have logits of nearly one direction",
            "commutativity-rho": "Dist_com is small because Dist_W and Dist_H are (ρ of 1.3 in the "
            "second block)",
        },
    }
