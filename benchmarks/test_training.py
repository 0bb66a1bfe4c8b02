"""Training throughput: twelve MLP modes by the engine and by the loop everybody writes.

    pytest benchmarks/test_training.py

Compare the two rows of one run; single times on a shared machine mean little.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from llfc_core.data import Dataset, load_dataset
from llfc_core.nets import Net, build
from llfc_core.store import Store
from llfc_core.training import Optimiser, Recipe, Seeds, ensure

MODES, EPOCHS = 12, 6

RECIPE = Recipe(
    net=Net("mlp", (512, 512, 512)),
    data="mnist5k",
    epochs=EPOCHS,
    batch_size=60,
    optimiser=Optimiser("adam", 5e-4),
    seeds=Seeds(0, 0, 0),
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("mnist5k")


@pytest.mark.benchmark(group="training 12 MLP modes")
def test_engine(benchmark, dataset, tmp_path):
    """From recipes to stored, checked modes, locks and checkpoints included."""
    recipes = [replace(RECIPE, seeds=Seeds(i, i, i)) for i in range(MODES)]
    stores = iter(range(100))
    modes = benchmark.pedantic(
        lambda: ensure(recipes, dataset, Store(tmp_path / str(next(stores)))),
        rounds=3,
        warmup_rounds=1,
    )
    assert all(mode.test_error < 30 for mode in modes)


@pytest.mark.benchmark(group="training 12 MLP modes")
def test_plain_loop(benchmark, dataset):
    """A DataLoader over normalised tensors and Adam as it comes, one mode after the other."""
    train = TensorDataset(dataset.normalise(dataset.train.images), dataset.train.labels)

    def plain():
        for seed in range(MODES):
            module = build(RECIPE.net, dataset.shape, dataset.classes, seed)
            optimiser = torch.optim.Adam(module.parameters(), lr=RECIPE.optimiser.lr)
            for _ in range(EPOCHS):
                for images, labels in DataLoader(train, batch_size=60, shuffle=True):
                    optimiser.zero_grad()
                    F.cross_entropy(module(images), labels).backward()
                    optimiser.step()
        return module

    module = benchmark.pedantic(plain, rounds=3, warmup_rounds=1)
    logits = module(dataset.normalise(dataset.test.images))
    assert (logits.argmax(1) != dataset.test.labels).float().mean() < 0.3
