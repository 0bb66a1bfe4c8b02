"""A plan deals every mode out once, parents with their children, and keeps all GPUs busy."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llfc_core.data import SIZES, DataMissing, Size, load_dataset
from llfc_core.nets import Net, build
from llfc_core.store import Entry, Store
from llfc_core.training import (
    Costs,
    Optimiser,
    Plan,
    Point,
    Recipe,
    Seeds,
    ensure,
    make_plan,
    spawn,
    with_parents,
)
from llfc_core.training.cost import measured_steps
from llfc_core.training.plan import Pack, describe
from tests.helpers import tiny_dataset, tiny_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TINY = {"tiny": tiny_dataset().size}
CONV = Net("resnet20", (2, 2, 2), shrink=2)


def family(base: Recipe, seed: int, children: int) -> list[Recipe]:
    """Children of one parent, which is not said."""
    base = replace(base, seeds=Seeds(seed, seed, seed))
    return spawn(base, Point(epochs=1), [Seeds(seed, seed, 1000 + i) for i in range(children)])


@cache
def mix(n: int, seed: int, kinds: int = 30) -> tuple[list[Recipe], Costs]:
    """About n modes of networks whose steps cost from microseconds to seconds, measured on a GPU.

    A third are spawned; stacked MLPs and single convolutional networks are among them.
    """
    draw = random.Random(seed)
    bases, measured = [], {}
    for i in range(kinds):
        base = tiny_recipe(
            net=draw.choice((Net("mlp", (4 + i,)), replace(CONV, widths=(i + 1, 2, 2)))),
            epochs=draw.randint(3, 300),
        )
        bases.append(base)
        measured[base.along()] = math.exp(draw.gauss(-4, 2))
    recipes: list[Recipe] = []
    while len(recipes) < n:
        base = draw.choice(bases)
        if draw.random() < 1 / 9:  # three modes at once
            recipes += with_parents(family(base, len(recipes), 2))
        else:
            recipes.append(replace(base, seeds=Seeds(*[len(recipes)] * 3)))
    return recipes, Costs(CUDA, TINY, measured)


def simulated(plan: Plan, seconds: Callable[[Pack], float] = lambda pack: pack.seconds) -> float:
    """Seconds to the end, moment by moment: whoever is free takes the next pack of the list."""
    waiting = list(plan.packs)
    running: list[float] = []
    now = 0.0
    while waiting or running:
        while waiting and len(running) < plan.gpus:
            running.append(now + seconds(waiting.pop(0)))
        now = min(running)
        running.remove(now)
    return now


# ---- what is in a plan --------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 60), seed=st.integers(0, 99), gpus=st.integers(1, 9), rounds=st.integers(1, 5)
)
def test_each_mode_is_in_one_pack_after_its_parent(n, seed, gpus, rounds):
    recipes, costs = mix(n, seed, kinds=4)
    plan = make_plan(recipes, costs, gpus, rounds=rounds)
    assert Counter(r for pack in plan.packs for r in pack.recipes) == Counter(recipes)
    assert len(plan.packs) <= gpus * rounds
    for pack in plan.packs:
        for i, recipe in enumerate(pack.recipes):
            assert recipe.parent is None or recipe.parent in pack.recipes[:i]


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), seed=st.integers(0, 99), gpus=st.integers(1, 9))
def test_the_makespan_is_that_of_the_simulation_and_within_grahams_bound(n, seed, gpus):
    recipes, costs = mix(n, seed, kinds=4)
    plan = make_plan(recipes, costs, gpus)
    assert plan.makespan == pytest.approx(simulated(plan))
    assert plan.seconds == pytest.approx(sum(pack.seconds for pack in plan.packs))
    longest = max(pack.seconds for pack in plan.packs)
    assert plan.bound <= plan.makespan * (1 + 1e-9)
    assert plan.makespan <= plan.seconds / gpus + longest * (1 + 1e-9)


def test_a_child_whose_parent_is_stored_is_planned_alone():
    a, b = family(tiny_recipe(net=CONV), 0, 2)
    plan = make_plan([a, b], Costs(CUDA, TINY), 2)
    assert sorted(len(pack.recipes) for pack in plan.packs) == [1, 1]


def test_small_networks_share_a_gpu():
    """40 MLPs are 3 stacks of 16 at most, and a stack costs what it costs, full or not."""
    mlps = [tiny_recipe(i) for i in range(40)]
    costs = Costs(CUDA, TINY)
    assert make_plan(mlps, costs, 1).seconds == pytest.approx(3 * costs.seconds(mlps[0]))
    assert sorted(len(p.recipes) for p in make_plan(mlps, costs, 8).packs) == [8, 16, 16]
    assert len(make_plan([replace(m, net=CONV) for m in mlps], costs, 8).packs) == 8
    assert len(make_plan(mlps, Costs(CPU, TINY), 8).packs) == 8


def test_families_alike_train_their_generations_as_stacks():
    """16 parents are a stack, their 32 children two."""
    base = tiny_recipe()
    recipes = with_parents(r for seed in range(16) for r in family(base, seed, 2))
    costs = Costs(CUDA, TINY, {base.along(): 1.0})
    plan = make_plan(recipes, costs, 4)
    [pack] = plan.packs
    assert [r.stop for r in pack.recipes] == [Point(1)] * 16 + [None] * 32
    assert pack.seconds == plan.seconds == 10 + 2 * 20  # steps of a second
    assert plan.critical == 30


def test_cores_train_side_by_side():
    recipes = [tiny_recipe(i) for i in range(8)]
    costs = Costs(CPU, TINY)
    one, four = (make_plan(recipes, costs, 1, lanes) for lanes in (1, 4))
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert make_plan(recipes[:1], costs, 1, 4).makespan == pytest.approx(one.seconds / 8)


def test_no_pack_is_too_short_to_start_a_process_for():
    """But where the whole is short: then for half of a GPU's share."""
    long = [tiny_recipe(i, net=CONV, epochs=300) for i in range(8)]
    short = [tiny_recipe(i, net=CONV) for i in range(100, 140)]
    for scale, least in ((1.0, 300), (0.01, None)):
        costs = Costs(CUDA, TINY, {r.along(): scale for r in (long[0], short[0])})
        plan = make_plan([*long, *short], costs, 8)
        own = costs.seconds(short[0])
        least = least or plan.seconds / 8 / 2
        assert own < least
        assert sum(pack.seconds < least for pack in plan.packs) <= 1
        assert plan.makespan <= 1.1 * plan.bound


def test_nothing_to_do_is_no_plan():
    plan = make_plan([], Costs(CPU, TINY), 4)
    assert plan.packs == ()
    assert plan.makespan == plan.bound == 0


def test_what_a_task_reads_is_what_was_planned(tmp_path):
    recipes, costs = mix(30, 1)
    plan = make_plan(recipes, costs, 3)
    plan.save(tmp_path / "plan.json", store="here")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert read["store"] == "here"
    assert [tuple(map(Recipe.from_dict, pack)) for pack in read["packs"]] == [
        pack.recipes for pack in plan.packs
    ]


# ---- ten thousand modes -------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [None, 1], ids=["array", "local"])
@pytest.mark.parametrize("gpus", [1, 8, 64])
@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_modes_keep_the_gpus_busy(seed, gpus, rounds):
    """The makespan is within 10% of what no schedule can beat."""
    recipes, costs = mix(10_000, seed)
    plan = make_plan(recipes, costs, gpus, rounds=rounds)
    assert plan.bound <= plan.makespan * (1 + 1e-9) <= 1.1 * plan.bound


def calls(function: Callable[[], object]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_planning_is_linear_in_the_modes():
    """The exponent of n in the number of calls, by least squares on the logarithms."""
    sizes = [625, 1250, 2500, 5000]
    points = []
    for n in sizes:
        recipes, costs = mix(n, seed=0)
        made = calls(lambda recipes=recipes, costs=costs: make_plan(recipes, costs, 64))
        points.append((math.log(len(recipes)), math.log(made)))
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum(
        (x - mean_x) ** 2 for x, _ in points
    )
    assert slope < 1.1, points


# ---- costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_data(name):
    try:
        dataset = load_dataset(name)
    except DataMissing:
        pytest.skip(f"{name} is not here")
    assert dataset.size == SIZES[name]


@pytest.mark.parametrize(
    "optimiser", [Optimiser("adam", 1e-3), Optimiser("sgd", 0.1, 0.9), Optimiser("sgd", 0.1)]
)
@pytest.mark.parametrize("net", [Net("mlp", (16, 12)), CONV])
def test_bytes_are_those_of_the_tensors_in_the_store(net, optimiser, tmp_path):
    recipe = tiny_recipe(net=net, optimiser=optimiser, epochs=1)
    modes = [recipe, replace(recipe, stop=Point(1)), replace(recipe, stop=Point(steps=0))]
    store = Store(tmp_path)
    for mode in ensure(modes, tiny_dataset(), store):
        entry = store.get(mode.key)
        tensors = [(k, t) for group in entry.groups.values() for k, t in group.items()]
        # Adam's count of steps, a number for each tensor, is not worth a plan.
        real = sum(t.nbytes for k, t in tensors if not k.startswith("step."))
        assert Costs(CPU, TINY).bytes(mode.recipe) == real


def test_measured_steps_are_those_of_the_manifests(tmp_path):
    base = tiny_recipe(net=CONV, epochs=2)
    pair = family(base, 0, 2)
    store = Store(tmp_path)
    modes = ensure([*pair, pair[0].parent, tiny_recipe(5)], tiny_dataset(), store, workers=1)
    measured = measured_steps(store, TINY, CPU)
    assert measured.keys() == {base.along(), tiny_recipe(5).along()}
    seconds = sum(mode.facts["seconds"] for mode in modes[:3])
    assert measured[base.along()] == pytest.approx(seconds / 30)
    assert measured_steps(store, TINY, CUDA) == {}
    costs = Costs(CPU, TINY, measured)
    assert costs.seconds(pair[0]) == pytest.approx(10 * seconds / 30)


def test_a_mode_of_a_stack_took_its_share_of_the_time(tmp_path):
    store = Store(tmp_path)
    [mode] = ensure([tiny_recipe()], tiny_dataset(), store)
    entry = store.get(mode.key)
    store.remove(mode.key)
    store.put(mode.key, Entry(entry.groups, entry.facts | {"stack": 4, "seconds": 1.5}))
    assert measured_steps(store, TINY, CPU) == {mode.recipe.along(): 4 * 1.5 / 30}


def test_a_guess_at_a_stack_counts_the_operations_of_all_its_slots():
    wide = tiny_recipe(net=Net("mlp", (8192, 8192)))
    products = 64 * 8192 + 8192 * 8192 + 8192 * 4
    assert Costs(CUDA, TINY).seconds(wide) == pytest.approx(30 * 16 * 3 * 2 * products * 32 / 1e14)


def test_a_guess_counts_operations_or_launches_whichever_take_longer():
    """On a GPU a narrow network's step is bound by launches: half as wide is no faster."""
    sizes = {"tiny": Size(1000, (3, 32, 32), 10)}
    recipe = tiny_recipe(net=Net("resnet20"), batch_size=100)

    def seconds(factor: float, device: torch.device) -> float:
        return Costs(device, sizes).seconds(replace(recipe, net=recipe.net.times(factor)))

    assert seconds(0.5, CUDA) == seconds(1, CUDA)
    assert seconds(64, CUDA) > 3 * seconds(32, CUDA) > 6 * seconds(1, CUDA)
    assert seconds(1, CPU) > 2 * seconds(0.5, CPU)
    tensors = len(list(build(recipe.net, (3, 32, 32), 10).parameters()))
    assert seconds(1, CUDA) == pytest.approx(30 * tensors * 6e-5)


def test_a_plan_in_words():
    pair = family(tiny_recipe(net=CONV), 0, 2)
    alone = [tiny_recipe(i) for i in range(3)]
    costs = Costs(CUDA, TINY, {alone[0].along(): 120.0})
    todo = with_parents([*pair, *alone])[1:]  # the parent is stored
    lines = describe(
        {"pair": pair, "alone": alone, "both": [*pair, *alone]},
        todo,
        costs,
        make_plan(todo, costs, 2),
    )
    rows = {line.split()[0]: line.split()[1:3] for line in lines[1:4]}
    assert rows == {"pair": ["3", "2"], "alone": ["3", "3"], "both": ["0", "0"]}
    assert "GPU-hours" in lines[0]
    text = "\n".join(lines)
    assert "6 modes, 5 to train" in text
    assert "in 13 files of 6 folders" in text
    assert "on 2 GPUs: 1.0 h in all" in text
    assert "costs of 3 modes are measured" in text
