"""torchvision's ResNet-18 on 5,000 digits of MNIST: minutes, where there is no GPU.

pytest phenomena/ --modes examples/resnet18.py:pair
python -m llfc_core check examples/resnet18.py:pair
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from llfc_core.data import Split, load_dataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIGITS = load_dataset("mnist5k", device=DEVICE)


def images(split: Split) -> torch.Tensor:
    """(n, 3, 14, 14): half the size, for time, and three colours, for torchvision's networks."""
    return F.avg_pool2d(DIGITS.normalise(split.images), 2).expand(-1, 3, -1, -1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnet18(num_classes=10).to(DEVICE)


def train(start: nn.Module, steps: int, seed: int) -> nn.Module:
    """``start``, which stays as it is, after some steps; the seed is that of the order."""
    net = copy.deepcopy(start).train()
    x, y = images(DIGITS.train), DIGITS.train.labels
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (50,), generator=order).to(DEVICE)
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def pair(first: int = 0):
    """A and B part after an epoch; C has nothing in common with them."""
    parent = train(network(first), 80, first)
    return {
        "a": train(parent, 75, first + 1),
        "b": train(parent, 75, first + 2),
        "data": (images(DIGITS.test), DIGITS.test.labels),
        "train": (images(DIGITS.train)[:1000], DIGITS.train.labels[:1000]),
        "link": "spawned",
        "independent": train(network(first + 3), 120, first + 3),
        "alphas": (0, 0.25, 0.5, 0.75, 1),
        "bounds": {
            "lmc-error": (
                3.0,
                "After 155 steps BatchNorm's statistics still lag behind the weights, which costs "
                "1 to 2 points in between; estimated anew, nothing.",
            ),
            "llfc-cosine": (0.08, "As of the suite's ResNet-50."),
        },
        "findings": {
            "llfc-apart": "the first layers hardly move after the first epoch",
            "commutativity": "in the last blocks, whose maps have one pixel, Dist_com is larger "
            "than the distances themselves",
            "commutativity-rho": "ΔW and ΔH are aligned there",
            "stitching": "12 points when it is cut in layer2, so early in training",
        },
    }
