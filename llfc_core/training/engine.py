"""The training loop: a stack of modes of one architecture, all at the same step.

On a CPU a stack holds one mode, trained by one thread with one intra-operation thread (`fleet`
runs several side by side): measured fastest there, and the weights cannot depend on what else is
being trained. On a GPU MLPs are bound by kernel launches, so a stack holds `stack_size` modes whose
parameters are stacked along a first axis; empty slots are filled with copies, so that kernels see
the same shapes whether a mode trains alone or in company. Convolutional networks train one by one
there too: stacked convolutions are grouped ones, which are slower, and BatchNorm writes its
statistics in place, which vmap does not allow.

Batches are a function of the seeds alone: orders and augmentation parameters are drawn on the CPU
and moved, pixels stay uint8 until the batch is cut, so every device sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llfc_core.classification import errors
from llfc_core.data import Dataset, Split
from llfc_core.nets import Net, build
from llfc_core.numerics import ieee, repeatable_convolutions
from llfc_core.training.recipe import Recipe, derive_seed

# Part of every key. Raise it whenever a change here changes the weights that come out.
ENGINE_VERSION = 1


class TrainingFailed(RuntimeError):
    """Training gave weights that must not be kept; the message says why and what to try."""


@dataclass(frozen=True, eq=False)
class TrainingState:
    """One mode at one step: all that is needed to go on to the bit-identical end.

    ``model`` is a state dict, ``optimiser`` maps e.g. ``exp_avg.fc1.weight`` to the optimiser's
    tensors. Everything is on the CPU.
    """

    step: int
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]


def stack_size(device: torch.device, net: Net) -> int:
    """How many modes train as one stack.

    Fixed by the kind of device and of network, so that keys may name it.
    """
    return 16 if device.type == "cuda" and not net.convolutional else 1


def channels_last(device: torch.device) -> bool:
    """Whether convolutional networks train with channels last in memory.

    On a GPU they are faster so. On a CPU too (1.1 to 1.4 times), but there narrow ResNets have
    crashed natively in this format with two threads.
    """
    return device.type == "cuda"


def initial_state(recipe: Recipe, dataset: Dataset) -> TrainingState:
    """θ⁽⁰⁾ of a recipe, before any step."""
    module = build(recipe.net, dataset.shape, dataset.classes, recipe.seeds.init)
    return TrainingState(0, {k: v.clone() for k, v in module.state_dict().items()}, {})


def _raise(place: int, failure: TrainingFailed) -> None:
    raise failure


def train(
    recipes: Sequence[Recipe],
    dataset: Dataset,
    starts: Sequence[TrainingState],
    device: torch.device,
    *,
    slots: int | None = None,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[Callable[[], list[TrainingState]]], None] = lambda states: None,
    on_failure: Callable[[int, TrainingFailed], None] = _raise,
) -> list[TrainingState]:
    """Train a stack from ``starts`` to the end of the recipes' spans.

    Parameters
    ----------
    recipes
        At most ``slots`` recipes that agree in `Recipe.along` and in where they end.
    dataset
        On ``device`` already.
    starts
        One state per recipe, all at the same step: θ⁽⁰⁾, a parent's end, or a checkpoint.
    slots
        Width of the stack; by default `stack_size`. 1 for convolutional networks.
    on_step
        Called after each step; what it raises ends the training.
    on_epoch
        Called after each epoch with a function that gives the states there (it copies, so it is
        only called by those who want them).
    on_failure
        Called before ``on_epoch``, once for each recipe whose training loss became NaN or infinite,
        with its place in ``recipes``. Its state is worthless from then on; the others are not
        touched by it. By default it raises the `TrainingFailed` that it is given.
    """
    slots = slots or (stack_size(device, recipes[0].net) if recipes else 1)
    _check_stack(recipes, starts, slots)
    along, count = recipes[0].along(), len(recipes)
    # Fill the stack: a slot's numbers do not depend on its neighbours', only kernels' shapes do.
    recipes = [recipes[min(i, count - 1)] for i in range(slots)]
    starts = [starts[min(i, count - 1)] for i in range(slots)]

    n = len(dataset.train.labels)
    per_epoch = along.steps_per_epoch(n)
    last = recipes[0].span(n)[1]
    stack = _Stack(along, starts, dataset, device)
    step = starts[0].step
    failed: set[int] = set()
    with repeatable_convolutions(device):
        while step < last:
            epoch = step // per_epoch
            batches = _Epoch(recipes, epoch, dataset, device)
            total = torch.zeros(slots, device=device)
            for i in range(step % per_epoch, min(per_epoch, last - epoch * per_epoch)):
                factor = along.schedule.factor(step, per_epoch, along.epochs)
                images, labels = batches[i]
                total += stack.step(dataset.normalise(images), labels, along.optimiser.lr * factor)
                step += 1
                on_step()
            # One look an epoch: a look a step would make a GPU wait for the host each time.
            for place, finite in enumerate(torch.isfinite(total[:count]).tolist()):
                if not finite and place not in failed:
                    failed.add(place)
                    failure = TrainingFailed(
                        f"the training loss of {recipes[place].label()} is not finite in epoch "
                        f"{epoch + 1}; nothing was kept. Lower the learning rate "
                        f"({along.optimiser.lr:g})."
                    )
                    on_failure(place, failure)
            on_epoch(partial(stack.states, step, count))
    return stack.states(step, count)


def evaluate(
    module: nn.Module, split: Split, dataset: Dataset, batch_size: int = 1000
) -> tuple[float, float]:
    """Test error in per cent and mean cross-entropy in nats, in eval mode and IEEE float32.

    Ties for the largest logit count as errors (the strict reading of Lemma 1), and so do NaNs.
    """
    was_training = module.training
    module.eval()
    wrong, loss = 0, 0.0
    with torch.no_grad(), ieee():
        for images, labels in zip(
            split.images.split(batch_size), split.labels.split(batch_size), strict=True
        ):
            logits = module(dataset.normalise(images))
            wrong += int(errors(logits, labels).sum())
            loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
    module.train(was_training)
    return 100 * wrong / len(split.labels), loss / len(split.labels)


def _check_stack(recipes: Sequence[Recipe], starts: Sequence[TrainingState], slots: int) -> None:
    if not 1 <= len(recipes) <= slots or len(starts) != len(recipes):
        raise ValueError(f"{len(recipes)} recipes and {len(starts)} starts for {slots} slots")
    if slots > 1 and recipes[0].net.convolutional:
        raise ValueError("convolutional networks do not train as a stack: slots must be 1")
    if len({(r.along(), r.stop) for r in recipes}) > 1 or len({s.step for s in starts}) > 1:
        raise ValueError("a stack's recipes must differ in seeds only, and start at one step")


class _Epoch:
    """The mini-batches of one epoch, all slots side by side.

    Item ``i`` is ``(images, labels)`` with leading axes ``(slots, batch)``, or ``(batch,)`` alone
    for a single slot.
    """

    def __init__(
        self, recipes: Sequence[Recipe], epoch: int, dataset: Dataset, device: torch.device
    ) -> None:
        self.recipes, self.epoch, self.split = recipes, epoch, dataset.train
        self.batch_size = recipes[0].batch_size
        n = len(self.split.labels)
        orders = [
            torch.randperm(n, generator=_generator("order", r.seeds.order, epoch)) for r in recipes
        ]
        self.order = torch.stack(orders).to(device)
        augmentation = recipes[0].augmentation
        self.augmentation = augmentation
        self.parameters = None
        if not augmentation.identity:
            self.parameters = [
                augmentation.draw(n, _generator("augmentation", r.seeds.augmentation, epoch)).to(
                    device
                )
                for r in recipes
            ]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        cut = slice(i * self.batch_size, (i + 1) * self.batch_size)
        index = self.order[:, cut]
        images, labels = self.split.images[index], self.split.labels[index]
        if self.parameters is not None:
            images = torch.stack(
                [self.augmentation(x, p[cut]) for x, p in zip(images, self.parameters, strict=True)]
            )
        if len(self.recipes) == 1:
            return images[0], labels[0]
        return images, labels


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))


class _Stack:
    """Parameters, buffers and optimiser of all slots, and one step of them."""

    def __init__(
        self,
        recipe: Recipe,
        starts: Sequence[TrainingState],
        dataset: Dataset,
        device: torch.device,
    ) -> None:
        self.device, self.slots = device, len(starts)
        self.bf16 = recipe.precision == "bfloat16"
        self.channels_last = recipe.net.convolutional and channels_last(device)
        self.module = build(recipe.net, dataset.shape, dataset.classes).to(device)
        if self.channels_last:
            self.module.to(memory_format=torch.channels_last)
        kept = self.module.state_dict()  # not every buffer: some modules have passing ones
        self.parameters: dict[str, Tensor]
        if self.slots == 1:
            self.module.load_state_dict(starts[0].model)
            self.parameters = dict(self.module.named_parameters())
            self.buffers = {k: v for k, v in self.module.named_buffers() if k in kept}
        else:
            stacked = {k: torch.stack([s.model[k] for s in starts]).to(device) for k in kept}
            self.parameters = {
                k: stacked[k].requires_grad_() for k, _ in self.module.named_parameters()
            }
            self.buffers = {k: stacked[k] for k, _ in self.module.named_buffers() if k in stacked}
        self.module.train()
        self.optimiser = recipe.optimiser.build(list(self.parameters.values()))
        self._load_optimiser(starts)

    def step(self, images: Tensor, labels: Tensor, lr: float) -> Tensor:
        """One step of every slot; the losses ``(slots,)`` before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.slots == 1:
                losses = F.cross_entropy(self.module(images), labels)[None]
            else:
                losses = torch.func.vmap(self._loss)(self.parameters, self.buffers, images, labels)
        self.optimiser.zero_grad()
        losses.sum().backward()
        self.optimiser.step()
        return losses.detach()

    def _loss(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        logits = torch.func.functional_call(self.module, (parameters, buffers), (x,))
        return F.cross_entropy(logits, y)

    def states(self, step: int, count: int) -> list[TrainingState]:
        """Copies of the first ``count`` slots' states, on the CPU."""
        model = {k: v.detach() for k, v in {**self.parameters, **self.buffers}.items()}
        optimiser = {
            f"{field}.{name}": value
            for name, p in self.parameters.items()
            for field, value in self.optimiser.state[p].items()
            if isinstance(value, Tensor)
        }
        return [
            TrainingState(step, self._slot(model, i), self._slot(optimiser, i))
            for i in range(count)
        ]

    def _slot(self, tensors: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        # Scalars (Adam's step count) are common to all slots.
        alone = self.slots == 1
        return {
            k: (v if alone or v.dim() == 0 else v[i]).to("cpu", copy=True).contiguous()
            for k, v in tensors.items()
        }

    def _load_optimiser(self, starts: Sequence[TrainingState]) -> None:
        for key in starts[0].optimiser:
            field, name = key.split(".", 1)
            values = [s.optimiser[key] for s in starts]
            value = values[0] if self.slots == 1 or values[0].dim() == 0 else torch.stack(values)
            parameter = self.parameters[name]
            # A copy: the optimiser works in place, and a parent's state serves several children.
            # In the parameter's own memory format: fused steps go through both in one order.
            self.optimiser.state[parameter][field] = (
                torch.empty_like(parameter).copy_(value)
                if value.shape == parameter.shape
                else value.to(self.device, copy=True)
            ).detach()
