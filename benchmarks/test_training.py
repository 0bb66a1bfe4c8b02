"""Training throughput: modes by the engine and by the loop everybody writes.

    pytest benchmarks/test_training.py

Compare the two rows of a group in one run; single times on a shared machine mean little.
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

MLP = Recipe(
    net=Net("mlp", (512, 512, 512)),
    data="mnist5k",
    epochs=6,
    batch_size=60,
    optimiser=Optimiser("adam", 5e-4),
    seeds=Seeds(0, 0, 0),
)
CNN = replace(
    MLP,
    net=Net("vgg16", (16, 32, 64, 128, 128, 128, 128), shrink=2),
    epochs=2,
    batch_size=100,
    optimiser=Optimiser("sgd", 0.05, momentum=0.9, weight_decay=1e-4),
)
# A recipe and how many modes of it.
CASES = {
    "12 MLP modes": (MLP, 12),
    "2 VGG-16 modes": (CNN, 2),
    "2 ResNet-20 modes": (replace(CNN, net=Net("resnet20", (8, 16, 32), shrink=2)), 2),
}
groups = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.benchmark(group=f"training {n}")) for n in CASES]
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("mnist5k")


def throughput(benchmark, row, recipe, count, dataset, **info):
    benchmark.extra_info.update(row=row, **info)
    if benchmark.stats is not None:  # None with --benchmark-disable
        seconds = benchmark.stats.stats.min
        images = count * recipe.epochs * len(dataset.train.labels)
        benchmark.extra_info["images_per_second"] = images / seconds
        benchmark.extra_info["modes_per_minute"] = 60 * count / seconds


@groups
def test_engine(name, benchmark, dataset, tmp_path):
    """From recipes to stored, checked modes, locks and checkpoints included."""
    recipe, count = CASES[name]
    recipes = [replace(recipe, seeds=Seeds(i, i, i)) for i in range(count)]
    stores = iter(range(100))
    modes = benchmark.pedantic(
        lambda: ensure(recipes, dataset, Store(tmp_path / str(next(stores)))),
        rounds=3,
        warmup_rounds=1,
    )
    throughput(benchmark, "engine", recipe, count, dataset, against="DataLoader loop")
    assert all(mode.test_error < 30 for mode in modes)


@groups
def test_plain_loop(name, benchmark, dataset):
    """A DataLoader over normalised tensors, the optimiser as it comes, one mode after the other."""
    recipe, count = CASES[name]
    train = TensorDataset(dataset.normalise(dataset.train.images), dataset.train.labels)

    def plain():
        for seed in range(count):
            module = build(recipe.net, dataset.shape, dataset.classes, seed)
            o = recipe.optimiser
            if o.name == "adam":
                optimiser = torch.optim.Adam(module.parameters(), lr=o.lr)
            else:
                optimiser = torch.optim.SGD(
                    module.parameters(), o.lr, momentum=o.momentum, weight_decay=o.weight_decay
                )
            for _ in range(recipe.epochs):
                for images, labels in DataLoader(train, recipe.batch_size, shuffle=True):
                    optimiser.zero_grad()
                    F.cross_entropy(module(images), labels).backward()
                    optimiser.step()
        return module.eval()

    module = benchmark.pedantic(plain, rounds=3, warmup_rounds=1)
    throughput(benchmark, "DataLoader loop", recipe, count, dataset)
    logits = module(dataset.normalise(dataset.test.images))
    assert (logits.argmax(1) != dataset.test.labels).float().mean() < 0.3
