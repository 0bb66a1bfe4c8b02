"""The training loop: against a plain one, batch by batch, and alone against in company."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.data import Augmentation, Dataset, Split
from llfc_core.nets import NETS, Net, build
from llfc_core.numerics import repeatable_convolutions
from llfc_core.training import (
    Optimiser,
    Point,
    Recipe,
    Schedule,
    Seeds,
    TrainingFailed,
    evaluate,
    spawn,
)
from llfc_core.training import engine as engine_module
from llfc_core.training.engine import (
    TrainingState,
    _Epoch,
    errors,
    initial_state,
    stack_size,
    train,
)
from llfc_core.training.recipe import derive_seed
from tests.helpers import identical, tiny_dataset, tiny_recipe

CPU = torch.device("cpu")
DATASET = tiny_dataset()
ADAM = Optimiser("adam", lr=3e-3)
ADAM_DECAY = Optimiser("adam", lr=3e-3, weight_decay=0.01, betas=(0.8, 0.99), eps=1e-6)
SGD = Optimiser("sgd", lr=0.1)
MOMENTUM = Optimiser("sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
OPTIMISERS = {"adam": ADAM, "adam-decay": ADAM_DECAY, "sgd": SGD, "momentum": MOMENTUM}
AUGMENTATION = Augmentation(crop_padding=1, flip=True)


@pytest.fixture(autouse=True)
def one_thread():
    """As the fleet trains; two threads would cut sums at other places."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(recipe: Recipe, start: TrainingState | None = None, **options) -> TrainingState:
    [state] = train([recipe], DATASET, [start or initial_state(recipe, DATASET)], CPU, **options)
    return state


def same_state(a: TrainingState, b: TrainingState) -> bool:
    return a.step == b.step and identical(a.model, b.model) and identical(a.optimiser, b.optimiser)


def close(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


# ---- against a plain loop -----------------------------------------------------------------------


def plain_network(seed: int) -> nn.Module:
    """What `Net("mlp", (16, 12))` is, written out."""
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 16), nn.Linear(16, 12), nn.Linear(12, 4)]
    return nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def named(network: nn.Module) -> dict[str, Tensor]:
    linear = [m for m in network if isinstance(m, nn.Linear)]
    return {
        f"fc{i}.{name}": tensor.detach()
        for i, layer in enumerate(linear, 1)
        for name, tensor in (("weight", layer.weight), ("bias", layer.bias))
    }


def plain_training(recipe: Recipe, rates: list[float]) -> dict[str, Tensor]:
    """The loop that a book would print: one image after the other into a batch, default kernels."""
    torch.manual_seed(99)
    network = plain_network(recipe.seeds.init)
    o = recipe.optimiser
    if o.name == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(
            network.parameters(),
            lr=123.0,
            betas=o.betas,
            eps=o.eps,
            weight_decay=o.weight_decay,
            fused=False,
            foreach=False,
        )
    else:
        optimiser = torch.optim.SGD(
            network.parameters(),
            lr=123.0,
            momentum=o.momentum,
            weight_decay=o.weight_decay,
            fused=False,
            foreach=False,
        )
    images, labels = DATASET.train.images, DATASET.train.labels
    rate = iter(rates)
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(derive_seed("order", recipe.seeds.order, epoch))
        order = torch.randperm(300, generator=generator).tolist()
        generator = torch.Generator().manual_seed(
            derive_seed("augmentation", recipe.seeds.augmentation, epoch)
        )
        # The i-th drawn parameters go to the i-th image of the epoch.
        parameters = recipe.augmentation.draw(300, generator)
        for begin in range(0, 300, recipe.batch_size):
            places = range(begin, min(begin + recipe.batch_size, 300))
            batch = torch.cat(
                [recipe.augmentation(images[order[i]][None], parameters[i : i + 1]) for i in places]
            )
            x = (batch.float() / 255 - DATASET.mean[0]) / DATASET.std[0]
            y = torch.tensor([int(labels[order[i]]) for i in places])
            optimiser.param_groups[0]["lr"] = o.lr * next(rate)
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
    assert next(rate, None) is None
    return named(network)


@pytest.mark.parametrize("augmentation", [Augmentation(), AUGMENTATION], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_does_what_a_plain_loop_does(name, augmentation):
    recipe = tiny_recipe(
        seeds=Seeds(3, 4, 5), optimiser=OPTIMISERS[name], augmentation=augmentation
    )
    expected = plain_training(recipe, [1.0] * 30)
    close(run(recipe).model, expected, rtol=1e-3, atol=1e-5)
    start = initial_state(recipe, DATASET).model
    moved = max(float((expected[k] - start[k]).abs().max()) for k in start)
    assert moved > 0.02  # against a tolerance of 1e-5


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (Schedule("step", milestones=(1,), gamma=0.1), [1.0] * 10 + [0.1] * 20),
        (Schedule(warmup=1), [i / 10 for i in range(10)] + [1.0] * 20),
        (
            Schedule("cosine"),
            [0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * i / 30.0))) for i in range(30)],
        ),
    ],
    ids=["step", "warm-up", "cosine"],
)
@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_the_schedule_is_followed_step_by_step(name, schedule, rates):
    recipe = tiny_recipe(3, optimiser=OPTIMISERS[name], schedule=schedule)
    close(run(recipe).model, plain_training(recipe, rates), rtol=1e-3, atol=1e-5)


def test_theta_0_is_what_torch_draws_from_the_seed():
    for seed in (0, 1):
        state = initial_state(tiny_recipe(seed), DATASET)
        assert identical(state.model, named(plain_network(seed)))
        assert (state.step, state.optimiser) == (0, {})


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(Net("mlp", (4,)), (1, 8, 8), 4, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_training_does_not_depend_on_the_global_generator_nor_move_it():
    torch.manual_seed(1)
    a = run(tiny_recipe(augmentation=AUGMENTATION))
    after = torch.rand(3)
    torch.manual_seed(2)
    assert same_state(run(tiny_recipe(augmentation=AUGMENTATION)), a)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)


def test_bfloat16_trains_in_bfloat16_and_keeps_float32():
    full, half = run(tiny_recipe()), run(tiny_recipe(precision="bfloat16"))
    close(half.model, full.model, rtol=0, atol=0.05)
    assert not identical(half.model, full.model)
    assert {t.dtype for t in half.model.values()} == {torch.float32}


def test_no_epochs_leave_theta_0():
    recipe = tiny_recipe(epochs=0)
    assert same_state(run(recipe), initial_state(recipe, DATASET))


def test_the_data_are_not_written_to():
    dataset = tiny_dataset()
    recipe = tiny_recipe(augmentation=AUGMENTATION)
    train([recipe], dataset, [initial_state(recipe, dataset)], CPU)
    assert torch.equal(dataset.train.images, DATASET.train.images)
    assert torch.equal(dataset.train.labels, DATASET.train.labels)


def test_steps_and_epochs_are_reported():
    seen: list[object] = []
    run(
        tiny_recipe(epochs=2),
        on_step=lambda: seen.append("step"),
        on_epoch=lambda states: seen.append([s.step for s in states()]),
    )
    assert seen == [*["step"] * 10, [10], *["step"] * 10, [20]]


# ---- batches ------------------------------------------------------------------------------------


def numbered(n: int) -> Dataset:
    """Image i is filled with i, so that a batch says which images it holds."""
    images = torch.arange(n).byte().view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    split = Split(images, torch.arange(n) % 3)
    return Dataset("numbered", split, split, 3, (0.0,), (1.0,))


def batches(recipe: Recipe, dataset: Dataset, epoch: int, device: torch.device = CPU):
    cut = _Epoch([recipe], epoch, dataset.to(device), device)
    return [cut[i] for i in range(recipe.steps_per_epoch(len(dataset.train.labels)))]


def orders(recipe: Recipe, dataset: Dataset, epoch: int) -> list[int]:
    return [int(i) for images, _ in batches(recipe, dataset, epoch) for i in images[:, 0, 0, 0]]


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(100, 32, [32, 32, 32, 4]), (96, 32, [32, 32, 32]), (5, 9, [5]), (3, 1, [1, 1, 1])],
)
def test_an_epoch_shows_each_image_once_with_its_label(n, batch_size, sizes):
    recipe = tiny_recipe(batch_size=batch_size)
    parts = batches(recipe, numbered(n), 0)
    assert [len(labels) for _, labels in parts] == sizes
    assert sorted(orders(recipe, numbered(n), 0)) == list(range(n))
    for images, labels in parts:
        assert torch.equal(images[:, 0, 0, 0].long() % 3, labels)


def test_the_order_depends_on_its_own_seed_and_the_epoch_only():
    def order(recipe: Recipe, epoch: int = 0) -> list[int]:
        return orders(recipe, numbered(100), epoch)

    recipe = tiny_recipe(batch_size=10)
    seeds = recipe.seeds
    first = order(recipe)
    assert order(replace(recipe, seeds=replace(seeds, init=9, augmentation=9))) == first
    assert order(replace(recipe, batch_size=32, optimiser=SGD, epochs=9)) == first
    assert order(recipe, epoch=1) != first
    assert order(replace(recipe, seeds=replace(seeds, order=1))) != first
    assert order(replace(recipe, seeds=replace(seeds, order=1))) != order(recipe, epoch=1)


def test_the_augmentation_depends_on_its_own_seed_and_the_epoch_only():
    def augmented(recipe: Recipe, epoch: int = 0) -> Tensor:
        return torch.cat([images for images, _ in batches(recipe, DATASET, epoch)])

    recipe = tiny_recipe(augmentation=AUGMENTATION)
    seeds = recipe.seeds
    first = augmented(recipe)
    assert not torch.equal(first, augmented(tiny_recipe()))
    assert torch.equal(augmented(replace(recipe, seeds=replace(seeds, init=9))), first)
    other = replace(recipe, seeds=replace(seeds, augmentation=1))
    assert not torch.equal(augmented(other), first)
    assert torch.equal(
        torch.cat([labels for _, labels in batches(other, DATASET, 0)]),
        torch.cat([labels for _, labels in batches(recipe, DATASET, 0)]),
    )
    assert not torch.equal(augmented(recipe, epoch=1), augmented(recipe))


def test_a_stack_gives_each_slot_its_own_batches():
    recipes = [tiny_recipe(i, augmentation=AUGMENTATION) for i in range(3)]
    together = _Epoch(recipes, 1, DATASET, CPU)
    for i in (0, 9):
        images, labels = together[i]
        for slot, recipe in enumerate(recipes):
            alone = batches(recipe, DATASET, 1)[i]
            assert torch.equal(images[slot], alone[0])
            assert torch.equal(labels[slot], alone[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_sees_the_same_batches():
    recipe = tiny_recipe(augmentation=AUGMENTATION)
    device = torch.device("cuda")
    for here, there in zip(
        batches(recipe, DATASET, 2), batches(recipe, DATASET, 2, device), strict=True
    ):
        assert there[0].device.type == "cuda"
        assert torch.equal(here[0], there[0].cpu())
        assert torch.equal(here[1], there[1].cpu())
        assert torch.equal(DATASET.normalise(here[0]), DATASET.normalise(there[0]).cpu())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_to_the_same_weights_up_to_rounding_and_alone_as_in_company():
    device = torch.device("cuda")
    recipes = [tiny_recipe(i, epochs=1, optimiser=MOMENTUM) for i in range(3)]
    starts = [initial_state(r, DATASET) for r in recipes]
    together = train(recipes, DATASET.to(device), starts, device)
    for recipe, start, state in zip(recipes, starts, together, strict=True):
        [alone] = train([recipe], DATASET.to(device), [start], device)
        assert same_state(alone, state)
        close(state.model, run(recipe).model, rtol=1e-3, atol=1e-4)


# ---- a stack ------------------------------------------------------------------------------------

STACKED = {
    "adam": {"optimiser": ADAM_DECAY, "schedule": Schedule("cosine", warmup=1)},
    "momentum": {"optimiser": MOMENTUM, "augmentation": AUGMENTATION},
}


def stacked(recipes: list[Recipe], slots: int = 4, starts=None) -> list[TrainingState]:
    starts = starts or [initial_state(r, DATASET) for r in recipes]
    return train(recipes, DATASET, starts, CPU, slots=slots)


@pytest.mark.parametrize("name", STACKED)
def test_a_mode_in_a_stack_is_bit_identical_alone_in_company_and_at_any_place(name):
    recipes = [tiny_recipe(i, **STACKED[name]) for i in range(4)]
    alone = [stacked([recipe])[0] for recipe in recipes]
    assert not identical(alone[0].model, alone[1].model)
    for places in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3], [2, 0, 1]):
        for i, state in zip(places, stacked([recipes[i] for i in places]), strict=True):
            assert same_state(state, alone[i]), f"mode {i} among {places}"


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_trains_as_a_single_mode_does_up_to_rounding(name):
    recipes = [tiny_recipe(i, epochs=1, **STACKED[name]) for i in range(3)]
    for recipe, state in zip(recipes, stacked(recipes), strict=True):
        single = run(recipe)
        assert state.step == single.step == 10
        close(state.model, single.model, rtol=1e-3, atol=1e-5)
        close(state.optimiser, single.optimiser, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", STACKED)
def test_a_stack_goes_on_from_its_states_to_the_same_bits(name):
    recipes = [tiny_recipe(i, **STACKED[name]) for i in range(3)]
    saved: list[list[TrainingState]] = []
    starts = [initial_state(r, DATASET) for r in recipes]
    ends = train(
        recipes, DATASET, starts, CPU, slots=4, on_epoch=lambda states: saved.append(states())
    )
    assert [s[0].step for s in saved] == [10, 20, 30]
    for states in saved:
        for place in itertools.permutations(range(3), 2):
            some = stacked([recipes[i] for i in place], starts=[states[i] for i in place])
            assert all(same_state(s, ends[i]) for s, i in zip(some, place, strict=True))


def test_a_stack_starts_from_its_parents_ends():
    base = tiny_recipe(optimiser=MOMENTUM)
    children = spawn(base, Point(steps=13), [tiny_recipe(i).seeds for i in (1, 2)])
    [parent] = stacked([children[0].parent])
    for child, state in zip(children, stacked(children, starts=[parent, parent]), strict=True):
        assert same_state(stacked([child], starts=[parent])[0], state)
        close(state.model, run(child, parent).model, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("recipes", "steps"),
    [
        ([], []),
        ([tiny_recipe(i) for i in range(5)], [0] * 5),
        ([tiny_recipe(0)], [0, 0]),
        ([tiny_recipe(0), tiny_recipe(1, epochs=4)], [0, 0]),
        ([tiny_recipe(0), tiny_recipe(1, stop=Point(1))], [0, 0]),
        ([tiny_recipe(0), tiny_recipe(1)], [0, 10]),
    ],
    ids=["none", "too-many", "starts", "epochs", "stop", "step"],
)
def test_modes_that_cannot_share_a_stack_are_refused(recipes, steps):
    starts = [replace(initial_state(tiny_recipe(), DATASET), step=s) for s in steps]
    with pytest.raises(ValueError, match=r"stack|slots"):
        train(recipes, DATASET, starts, CPU, slots=4)


# ---- convolutional networks ---------------------------------------------------------------------

CNNS = {
    "vgg16": Net("vgg16", (4, 4, 6, 6, 8, 8, 8)),
    "resnet20": Net("resnet20", (4, 6, 8)),
    "resnet20-ln": Net("resnet20", (4, 6, 8), norm="layer", shortcut="conv3x3", shrink=2),
    "resnet50": Net("resnet50", (2, 2, 2, 2)),
}
# Rounding grows by the step in networks so deep and narrow. Small steps keep it small, but not in
# ResNet-50, whose maps are single pixels here: BatchNorm then sees 12 values in the last batch.
GENTLE = Optimiser("sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4)
COMPARABLE = ["vgg16", "resnet20", "resnet20-ln"]


def cnn_recipe(name: str, **changes) -> Recipe:
    """One epoch of ten steps."""
    arguments = {"net": CNNS[name], "epochs": 1, "optimiser": MOMENTUM, "seeds": Seeds(3, 4, 5)}
    return tiny_recipe(**(arguments | changes))


@pytest.mark.parametrize("name", COMPARABLE)
def test_convolutional_networks_train_as_in_a_plain_loop(name):
    """Weights, running statistics and counters; the network itself is the same, see tests/nets."""
    recipe = cnn_recipe(name, optimiser=GENTLE)
    network = build(recipe.net, DATASET.shape, DATASET.classes, seed=3).train()
    optimiser = torch.optim.SGD(
        network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=False, foreach=False
    )
    order = torch.randperm(300, generator=torch.Generator().manual_seed(derive_seed("order", 4, 0)))
    for places in order.split(recipe.batch_size):
        x = (DATASET.train.images[places].float() / 255 - DATASET.mean[0]) / DATASET.std[0]
        optimiser.zero_grad()
        F.cross_entropy(network(x), DATASET.train.labels[places]).backward()
        optimiser.step()
    trained = run(recipe)
    close(trained.model, dict(network.state_dict()), rtol=1e-3, atol=1e-4)
    counters = {k: int(v) for k, v in trained.model.items() if k.endswith("num_batches_tracked")}
    assert set(counters.values()) == (set() if name == "resnet20-ln" else {10})


@pytest.mark.parametrize("name", CNNS)
def test_convolutional_networks_go_on_from_a_state_to_the_same_bits(name):
    recipe = cnn_recipe(name, epochs=2, augmentation=AUGMENTATION)
    saved: list[TrainingState] = []
    end = run(recipe, on_epoch=lambda states: saved.extend(states()))
    assert [s.step for s in saved] == [10, 20]
    assert same_state(saved[1], end)
    assert same_state(run(recipe, saved[0]), end)
    assert same_state(run(recipe), end)
    if "ln" not in name:  # statistics are part of the state: without them the end would differ
        fresh = initial_state(recipe, DATASET).model
        forgotten = {k: fresh[k] if "running" in k else v for k, v in saved[0].model.items()}
        other = run(recipe, replace(saved[0], model=forgotten))
        assert not identical(other.model, end.model)


def test_a_state_is_a_copy_whose_statistics_do_not_move_on():
    saved: list[TrainingState] = []
    run(cnn_recipe("vgg16", epochs=2), on_epoch=lambda states: saved.extend(states()))
    assert int(saved[0].model["bn1_1.num_batches_tracked"]) == 10
    assert int(saved[1].model["bn1_1.num_batches_tracked"]) == 20


@pytest.mark.parametrize("name", CNNS)
def test_convolutional_networks_do_not_train_as_stacks(name):
    recipes = [cnn_recipe(name, seeds=Seeds(i, i, i)) for i in range(2)]
    with pytest.raises(ValueError, match="do not train as a stack"):
        stacked(recipes)
    for device in (CPU, torch.device("cuda")):
        assert stack_size(device, CNNS[name]) == 1
    assert stack_size(torch.device("cuda"), Net("mlp")) > 1


@pytest.mark.parametrize("name", COMPARABLE)
def test_channels_last_trains_to_the_same_weights_up_to_rounding(name, monkeypatch):
    """What a GPU does. States are contiguous, so that files and keys' weights are one format."""
    recipe = cnn_recipe(name, epochs=2, optimiser=GENTLE)
    saved: list[TrainingState] = []
    expected = run(recipe)
    monkeypatch.setattr(engine_module, "channels_last", lambda device: True)
    end = run(recipe, on_epoch=lambda states: saved.extend(states()))
    close(end.model, expected.model, rtol=1e-2, atol=1e-3)
    for tensors in (end.model, end.optimiser):
        assert all(t.is_contiguous() for t in tensors.values())
    assert same_state(run(recipe, saved[0]), end)  # momentum was put into the same format


def test_a_gpus_convolutions_are_repeatable_while_it_trains_and_a_cpus_switches_are_left_alone():
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with repeatable_convolutions(torch.device("cuda")):
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
    assert (cudnn.deterministic, cudnn.benchmark) == before
    with repeatable_convolutions(CPU):
        assert (cudnn.deterministic, cudnn.benchmark) == before


def test_buffers_that_a_state_dict_leaves_out_are_not_in_the_state(monkeypatch):
    class Network(nn.Module):
        def __init__(self, *_: object) -> None:
            super().__init__()
            self.fc1 = nn.Linear(64, 4)
            self.register_buffer("passing", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc1(x.flatten(1)) * self.passing

    monkeypatch.setitem(NETS, "mlp", replace(NETS["mlp"], module=Network))
    recipe = tiny_recipe(epochs=2)
    saved: list[TrainingState] = []
    end = run(recipe, on_epoch=lambda states: saved.extend(states()))
    assert end.model.keys() == {"fc1.weight", "fc1.bias"}
    assert same_state(run(recipe, saved[0]), end)
    together = stacked([recipe, replace(recipe, seeds=Seeds(1, 1, 1))])
    close(together[0].model, end.model, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", COMPARABLE)
def test_a_gpu_trains_convolutional_networks_to_the_same_bits_again(name, precision):
    device = torch.device("cuda")
    recipe = cnn_recipe(name, epochs=2, optimiser=GENTLE, precision=precision)
    dataset = DATASET.to(device)
    saved: list[TrainingState] = []
    start = initial_state(recipe, DATASET)
    [end] = train(
        [recipe], dataset, [start], device, on_epoch=lambda states: saved.extend(states())
    )
    [again] = train([recipe], dataset, [saved[0]], device)
    assert same_state(again, end)
    close(end.model, run(recipe).model, rtol=0.1, atol=0.1)


# ---- failing ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_reported_with_its_epoch():
    recipe = tiny_recipe(optimiser=Optimiser("sgd", lr=1e30))
    with pytest.raises(TrainingFailed, match=r"mlp/tiny init=0 order=0 .* epoch 1.*1e\+30"):
        run(recipe)


def one_of_three_fails() -> tuple[list[Recipe], list[TrainingState]]:
    recipes = [tiny_recipe(i) for i in range(3)]
    starts = [initial_state(r, DATASET) for r in recipes]
    starts[1].model["fc2.bias"][3] = torch.nan
    return recipes, starts


def test_in_a_stack_the_mode_that_failed_is_named():
    recipes, starts = one_of_three_fails()
    with pytest.raises(TrainingFailed, match="init=1 order=1"):
        stacked(recipes, starts=starts)


def test_in_a_stack_the_others_go_on_untouched():
    recipes, starts = one_of_three_fails()
    failures: list[tuple[int, str]] = []
    states = train(
        recipes,
        DATASET,
        starts,
        CPU,
        slots=4,
        on_failure=lambda place, failure: failures.append((place, str(failure))),
    )
    [(place, message)] = failures  # once, though it lasts for three epochs
    assert place == 1
    assert "init=1 order=1" in message
    assert "epoch 1" in message
    for i in (0, 2):
        assert same_state(states[i], stacked([recipes[i]])[0])


# ---- evaluation ---------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("logits", "label", "wrong"),
    [
        ([1.0, 2.0, 0.0], 1, False),
        ([1.0, 2.0, 0.0], 0, True),
        ([2.0, 2.0, 0.0], 1, True),
        ([2.0, 2.0, 0.0], 0, True),
        ([0.0, 0.0, 0.0], 2, True),
        ([0.0, -0.0, -1.0], 0, True),
        ([NAN, 2.0, 0.0], 1, True),
        ([1.0, NAN, 0.0], 1, True),
        ([NAN, NAN, NAN], 1, True),
        ([1.0, INF, 0.0], 1, False),
        ([INF, INF, 0.0], 1, True),
        ([-INF, -INF, -INF], 1, True),
        ([-INF, 0.0, -INF], 1, False),
        ([-INF, -5.0, -4.0], 1, True),
    ],
)
def test_only_a_strictly_largest_logit_is_right(logits, label, wrong):
    assert errors(torch.tensor([logits]), torch.tensor([label])).tolist() == [wrong]


def test_errors_against_a_loop_over_points_and_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 3, (500, 4), generator=generator).float()
    logits[torch.rand(500, 4, generator=generator) < 0.05] = torch.nan
    labels = torch.randint(4, (500,), generator=generator)
    expected = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        others = [v for c, v in enumerate(row) if c != label]
        expected.append(not all(row[label] > v for v in others))
    assert errors(logits, labels).tolist() == expected
    assert 0 < sum(expected) < 500


class Fixed(nn.Module):
    """Gives the pixels of a 1x1 image with C channels as logits; in training it would not."""

    def forward(self, x: Tensor) -> Tensor:
        return -x.flatten(1) if self.training else x.flatten(1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_evaluate_counts_and_averages_over_all_points_whatever_the_batches(batch_size):
    pixels = torch.tensor(
        [[9, 1, 1], [9, 9, 1], [1, 1, 9], [3, 2, 1], [0, 0, 0], [1, 2, 3], [7, 8, 0]]
    )
    labels = torch.tensor([0, 0, 0, 0, 0, 2, 1])
    split = Split(pixels.byte()[:, :, None, None], labels)
    dataset = Dataset("fixed", split, split, 3, (0.0,) * 3, (1 / 255,) * 3)
    module = Fixed()
    error, loss = evaluate(module, split, dataset, batch_size)
    assert error == pytest.approx(100 * 3 / 7)  # the second ties, the third and fifth are wrong
    by_hand = -torch.log_softmax(pixels.double(), 1)[range(7), labels].mean()
    assert loss == pytest.approx(float(by_hand), rel=1e-9)
    assert module.training


def test_evaluate_leaves_eval_mode_as_it_was():
    module = Fixed().eval()
    split = Split(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    dataset = Dataset("fixed", split, split, 3, (0.0,) * 3, (1.0,) * 3)
    evaluate(module, split, dataset)
    assert not module.training
