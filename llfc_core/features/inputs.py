"""What goes into modules, as they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def inputs_of(
    modules: Mapping[str, nn.Module], on_input: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Within, ``on_input(name, x)`` is told the input of each module's first call."""
    seen: set[str] = set()

    def hook(name: str):  # type: ignore[no-untyped-def]
        def tell(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name not in seen:
                seen.add(name)
                on_input(name, args[0])

        return tell

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
