"""A recipe says everything that decides a mode's weights, and its key changes with each of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llfc_core.data import Augmentation
from llfc_core.nets import Net, build
from llfc_core.training import (
    Optimiser,
    Point,
    Recipe,
    Schedule,
    Seeds,
    mode_key,
    spawn,
)
from llfc_core.training import modes as modes_module
from llfc_core.training.recipe import derive_seed
from tests.helpers import tiny_dataset, tiny_recipe

FULL = tiny_recipe(
    schedule=Schedule("step", warmup=1, warmup_from=0.1, milestones=(2,), gamma=0.5),
    augmentation=Augmentation(crop_padding=1, flip=True, zoom=(0.9, 1.1), rotation=5.0),
    stop=Point(2, 3),
    parent=tiny_recipe(
        8,
        schedule=Schedule("step", warmup=1, warmup_from=0.1, milestones=(2,), gamma=0.5),
        augmentation=Augmentation(crop_padding=1, flip=True, zoom=(0.9, 1.1), rotation=5.0),
        stop=Point(1, 1),
    ),
)


def changed(value: object) -> list[object]:
    """Every way of changing one thing in a recipe, its parts, and the parts of its parent."""
    if dataclasses.is_dataclass(value):
        return [
            _replace(value, field.name, other)
            for field in dataclasses.fields(value)
            for other in changed(getattr(value, field.name))
        ]
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1]
        case float():
            return [value * 1.0000001 or 1e-9]
        case tuple():
            return [
                (*value[:i], other, *value[i + 1 :])
                for i, item in enumerate(value)
                for other in changed(item)
            ]
    return []


def _replace(value: object, name: str, other: object) -> object:
    """`replace`, but unchecked: a parent that changes alone is not a valid parent any more."""
    copy = object.__new__(type(value))
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        kept = other if field.name == name else getattr(value, field.name)
        object.__setattr__(copy, field.name, kept)
    return copy


VARIANTS = {
    **{f"number {i}": recipe for i, recipe in enumerate(changed(FULL))},
    "net": replace(FULL, net=Net("mlp", (16, 12, 12)), parent=None),
    "data": replace(FULL, data="other", parent=None),
    "optimiser": replace(FULL, optimiser=Optimiser("sgd", lr=3e-3), parent=None),
    "schedule": replace(FULL, schedule=Schedule("cosine"), parent=None),
    "precision": replace(FULL, precision="bfloat16", parent=None),
    "parent": replace(FULL, parent=None),
    "stop": replace(FULL, stop=None),
    "zoom": replace(FULL, augmentation=Augmentation(crop_padding=1, flip=True), parent=None),
}


def test_the_variants_cover_every_number_of_the_recipe():
    text = json.dumps(FULL.to_dict())
    numbers = len(
        [
            t
            for t in text.replace("[", " ").replace("]", " ").replace("}", " ").split()
            if _number(t)
        ]
    )
    assert len([name for name in VARIANTS if name.startswith("number")]) == numbers > 40


def _number(token: str) -> bool:
    token = token.rstrip(",")
    return token in ("true", "false") or token.replace(".", "").replace("e-", "").isdigit()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_key_changes_with_every_part(name):
    assert VARIANTS[name].key() != FULL.key()


def test_no_two_variants_share_a_key():
    keys = {recipe.key() for recipe in VARIANTS.values()}
    assert len(keys) == len({repr(r) for r in VARIANTS.values()})


def test_the_key_changes_with_the_context():
    contexts = [{}, {"data": "a"}, {"data": "b"}, {"device": "a"}, {"data": "a", "device": "cpu"}]
    keys = [FULL.key(**context) for context in contexts]
    assert len(set(keys)) == len(keys)
    assert FULL.key(a=1, b=2) == FULL.key(b=2, a=1)


def test_a_modes_key_depends_on_data_device_stack_and_engine(monkeypatch):
    recipe, dataset = tiny_recipe(), tiny_dataset()
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    key = mode_key(recipe, dataset, cpu)
    assert len(key) == 64
    assert mode_key(recipe, tiny_dataset(), cpu) == key
    assert mode_key(recipe, replace(dataset, name="other"), cpu) == key
    assert mode_key(recipe, tiny_dataset(n_train=299), cpu) != key
    assert mode_key(recipe, replace(dataset, mean=(0.4,), digest=""), cpu) != key
    assert mode_key(recipe, dataset, cuda) != key
    assert mode_key(recipe, dataset, torch.device("cuda:0")) == mode_key(recipe, dataset, cuda)
    with monkeypatch.context() as patch:
        patch.setattr(modes_module, "stack_size", lambda device, net: 2)
        assert mode_key(recipe, dataset, cpu) != key
        assert mode_key(recipe, dataset, cpu) != mode_key(recipe, dataset, cuda)
    monkeypatch.setattr(modes_module, "ENGINE_VERSION", modes_module.ENGINE_VERSION + 1)
    assert mode_key(recipe, dataset, cpu) != key


def test_the_dictionary_goes_through_json_unchanged():
    assert json.loads(json.dumps(FULL.to_dict())) == FULL.to_dict()
    assert FULL.to_dict().keys() == {f.name for f in dataclasses.fields(Recipe)}
    assert FULL.to_dict()["parent"]["stop"] == {"epochs": 1, "steps": 1}


@pytest.mark.parametrize(
    "recipe",
    [
        FULL,
        FULL.parent,
        *(recipe for name, recipe in VARIANTS.items() if not name.startswith("number")),
        tiny_recipe(net=Net("resnet20", norm="layer", shortcut="conv3x3", shrink=2)),
    ],
    ids=lambda recipe: recipe.key()[:6],
)
def test_a_recipe_comes_back_from_json(recipe):
    again = Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.key() == recipe.key()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("net"),
        lambda content: content.update(colour="red"),
        lambda content: content["seeds"].pop("init"),
        lambda content: content["net"].update(name="lenet"),
        lambda content: content["parent"].update(stop=None),
    ],
)
def test_what_is_no_recipe_is_refused(spoil):
    content = FULL.to_dict()
    spoil(content)
    with pytest.raises((ValueError, TypeError)):
        Recipe.from_dict(content)


def test_the_key_is_the_hash_of_the_dictionary_and_the_context():
    text = json.dumps({"engine": 1, "recipe": FULL.to_dict()}, sort_keys=True)
    assert FULL.key(engine=1) == hashlib.sha256(text.encode()).hexdigest()


def test_equal_recipes_share_a_key_however_their_numbers_were_written():
    exact = Optimiser("sgd", lr=1.0, momentum=0.0, betas=(1.0, 0.0), eps=1.0)
    loose = Optimiser("sgd", lr=1, momentum=0, betas=[1, 0], eps=1)  # type: ignore[arg-type]
    schedules = Schedule(warmup_from=1.0, gamma=0.0), Schedule(warmup_from=1, gamma=0)
    # Written out or left out, as a float, an int or a list.
    turned = Augmentation(rotation=30.0, flip=False), Augmentation(rotation=30, flip=0)
    nets = Net("resnet20", (16, 32, 64), norm="batch", shortcut="pad", shrink=1), Net("resnet20")
    a = tiny_recipe(
        net=nets[0],
        optimiser=exact,
        schedule=schedules[0],
        augmentation=turned[0],
        max_test_error=100.0,
    )
    b = tiny_recipe(
        net=nets[1],
        optimiser=loose,
        schedule=schedules[1],
        augmentation=turned[1],
        max_test_error=100,
    )
    assert a == b
    assert hash(a) == hash(b)
    assert a.key() == b.key()


@pytest.mark.parametrize(
    "value", [FULL, FULL.seeds, FULL.optimiser, FULL.schedule, FULL.net, FULL.stop]
)
def test_recipes_are_frozen(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, getattr(value, name))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Point(epochs=-1), "negative"),
        (lambda: Point(steps=-1), "negative"),
        (lambda: Optimiser("rmsprop", lr=1.0), "rmsprop"),  # type: ignore[arg-type]
        (lambda: Optimiser("sgd", lr=0.0), "positive"),
        (lambda: Optimiser("sgd", lr=math.nan), "positive"),
        (lambda: Schedule("linear"), "linear"),  # type: ignore[arg-type]
        (lambda: tiny_recipe(epochs=-1), "epochs"),
        (lambda: tiny_recipe(batch_size=0), "batch_size"),
        (lambda: tiny_recipe(precision="float16"), "float16"),
        (lambda: tiny_recipe(net=Net("vgg", (8,))), "vgg"),
        (lambda: tiny_recipe(net=Net("mlp", (8, 0))), "widths"),
        (lambda: tiny_recipe(parent=tiny_recipe()), "where it stops"),
        (lambda: tiny_recipe(parent=tiny_recipe(epochs=4, stop=Point(1))), "only the seeds differ"),
        (
            lambda: tiny_recipe(parent=tiny_recipe(optimiser=Optimiser("sgd", 1.0), stop=Point(1))),
            "only the seeds differ",
        ),
        (lambda: tiny_recipe(optimiser=Optimiser("sgd", lr=math.inf)).key(), "JSON"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("recipe", "span"),
    [
        (tiny_recipe(), (0, 30)),
        (tiny_recipe(epochs=0), (0, 0)),
        (tiny_recipe(batch_size=300), (0, 3)),
        (tiny_recipe(batch_size=301), (0, 3)),
        (tiny_recipe(batch_size=299), (0, 6)),
        (tiny_recipe(stop=Point(1, 4)), (0, 14)),
        (tiny_recipe(stop=Point(steps=14)), (0, 14)),
        (tiny_recipe(parent=tiny_recipe(stop=Point(1, 4))), (14, 30)),
        (tiny_recipe(parent=tiny_recipe(stop=Point(1)), stop=Point(2)), (10, 20)),
        (tiny_recipe(parent=tiny_recipe(stop=Point(3))), (30, 30)),
    ],
)
def test_the_span_of_steps_with_300_images(recipe, span):
    assert recipe.span(300) == span


@pytest.mark.parametrize(
    "recipe",
    [
        tiny_recipe(stop=Point(3, 1)),
        tiny_recipe(parent=tiny_recipe(stop=Point(2)), stop=Point(1)),
        tiny_recipe(parent=tiny_recipe(stop=Point(4))),
    ],
)
def test_a_span_beyond_the_recipe_is_refused(recipe):
    with pytest.raises(ValueError, match="cannot train from step"):
        recipe.span(300)


def test_spawning_takes_order_and_augmentation_from_each_child_and_theta_from_the_base():
    base = tiny_recipe(5)
    a, b = spawn(base, Point(1, 2), [Seeds(6, 7, 8), Seeds(9, 10, 11)])
    assert a.seeds == Seeds(5, 7, 8)
    assert b.seeds == Seeds(5, 10, 11)
    assert a.parent == b.parent == replace(base, stop=Point(1, 2))
    assert replace(a, seeds=base.seeds, parent=None) == base
    a, b = spawn(base, Point(), [Seeds(6, 7, 8), Seeds(9, 10, 11)])
    assert a.parent is b.parent is None
    assert (a.seeds.init, b.seeds.init) == (5, 5)


def test_seeds_of_different_meaning_never_collide():
    parts = [(w, s, e) for w in ("order", "augmentation") for s in range(40) for e in range(40)]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert derive_seed("a", 1, 11) != derive_seed("a", 11, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("order", 0, 0) == 0x5EF637C0A017687C


# ---- schedules ----------------------------------------------------------------------------------

PER_EPOCH, EPOCHS = 5, 6


def factors(schedule: Schedule) -> list[float]:
    return [schedule.factor(step, PER_EPOCH, EPOCHS) for step in range(PER_EPOCH * EPOCHS)]


def torchs(make) -> list[float]:
    """What a torch scheduler of steps gives for a learning rate of 1."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimiser)
    rates = []
    for _ in range(PER_EPOCH * EPOCHS):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return rates


def test_constant():
    assert factors(Schedule()) == [1.0] * 30


def test_steps_by_hand():
    got = factors(Schedule("step", milestones=(2, 5), gamma=0.5))
    assert got == [1.0] * 10 + [0.5] * 15 + [0.25] * 5


def test_steps_as_torch():
    expected = torchs(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 25], gamma=0.1))
    assert factors(Schedule("step", milestones=(2, 5))) == pytest.approx(expected, rel=1e-12)


def test_cosine_by_hand():
    got = factors(Schedule("cosine"))
    assert got[0] == 1.0
    assert got[10] == pytest.approx(0.75)  # a third of the way: (1 + cos 60°) / 2
    assert got[15] == pytest.approx(0.5)
    assert 0 < got[29] < 0.01


def test_cosine_as_torch():
    expected = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=30))
    assert factors(Schedule("cosine")) == pytest.approx(expected, rel=1e-9)


def test_warm_up_by_hand():
    got = factors(Schedule(warmup=2))
    assert got[:11] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert got[10:] == [1.0] * 20


def test_warm_up_as_torch():
    expected = torchs(lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.25, total_iters=10))
    assert factors(Schedule(warmup=2, warmup_from=0.25)) == pytest.approx(expected, rel=1e-9)


def test_cosine_after_warm_up_goes_over_the_epochs_that_remain():
    got = factors(Schedule("cosine", warmup=2, warmup_from=0.5))
    assert got[:10] == pytest.approx([0.5 + 0.05 * i for i in range(10)])
    assert got[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 20)) for i in range(20)])


def test_steps_after_warm_up_keep_their_epochs():
    got = factors(Schedule("step", warmup=1, milestones=(3,), gamma=0.1))
    assert got[5:15] == [1.0] * 10
    assert got[15:] == pytest.approx([0.1] * 15)


# ---- docs/recipes.md ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Recipe]:
    """The recipes of Appendix B.1, as the document writes them."""
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    found: dict[str, Recipe] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)
    return {name: value for name, value in found.items() if isinstance(value, Recipe)}


@pytest.mark.parametrize(
    ("name", "images", "epochs", "rates"),
    [
        ("mlp_mnist_spawn", 60_000, 30, {0: 1.2e-4, 29: 1.2e-4}),
        ("vgg16_cifar10_spawn", 50_000, 160, {0: 0.1, 79: 0.1, 80: 0.01, 119: 0.01, 120: 0.001}),
        ("resnet20_cifar10_spawn", 50_000, 160, {0: 0.1, 79: 0.1, 80: 0.01, 120: 0.001}),
        (
            "resnet50_tiny_imagenet_spawn",
            100_000,
            90,
            {0: 0.0, 1: 0.08, 5: 0.4, 29: 0.4, 30: 0.04, 59: 0.04, 60: 0.004, 80: 0.0004},
        ),
        ("mlp_mnist_permutation", 60_000, 100, {0: 1e-3, 99: 1e-3}),
        ("mlp_cifar10_permutation", 50_000, 100, {0: 1e-6, 1: 0.1, 100: 0.0}),
        ("resnet20_cifar10_permutation", 50_000, 250, {0: 1e-6, 1: 0.1, 250: 0.0}),
    ],
)
def test_the_papers_learning_rates_at_the_start_of_epochs(document, name, images, epochs, rates):
    recipe = document[name]
    per_epoch = recipe.steps_per_epoch(images)
    assert recipe.epochs == epochs
    assert recipe.span(images) == (0, epochs * per_epoch)
    for epoch, rate in rates.items():
        factor = recipe.schedule.factor(epoch * per_epoch, per_epoch, recipe.epochs)
        assert recipe.optimiser.lr * factor == pytest.approx(rate, abs=1e-12), f"epoch {epoch}"


def test_the_papers_recipes_train_networks_of_the_documents_sizes(document):
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    shapes = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "tiny-imagenet": (3, 64, 64)}
    assert len(document) == 7
    for recipe in document.values():
        classes = 200 if recipe.data == "tiny-imagenet" else 10
        with torch.device("meta"):
            module = build(recipe.net, shapes[recipe.data], classes)
        assert f"({sum(p.numel() for p in module.parameters()):,})" in text
