"""A second device on a machine without one: to see whether code minds where its tensors are.

Tensors "on" it hold data of the CPU and say that they are elsewhere. As CUDA does, operations
refuse operands that are here and there (but 0-dimensional ones and indices), and generators of the
CPU.
What works here can still be wrong on a GPU; what breaks here breaks there.

`register` is for the whole process and cannot be undone: for processes of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"
aten = torch.ops.aten

# Operations that may have operands on both devices: copies, and indexing by indices on the CPU.
ACROSS = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
FACTORIES = ("arange", "arange.start", "arange.start_step", "empty.memory_format", "empty_strided")


class Elsewhere(Tensor):
    """A tensor on the second device; its data is ``here``."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        self = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=torch.device(NAME, 0),
        )
        self.here = here
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.here!r} on {self.device}"

    # What torch cannot do for a tensor whose data it does not see.

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        if id(self) not in memo:
            copy = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]

    def tolist(self) -> Any:
        return self.here.tolist()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.here.untyped_storage()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if func not in ACROSS:
            for x in tensors:
                if not isinstance(x, Elsewhere) and x.dim():
                    raise RuntimeError(f"{func}: expected all tensors on {NAME}, found one on cpu")
        if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in leaves):
            raise RuntimeError(f"{func}: expected a generator on {NAME}, found one on cpu")
        to = kwargs.get("device")
        there = isinstance(args[0], Elsewhere) if func in ACROSS and args else True
        if to is not None:
            kwargs["device"] = torch.device("cpu")
            there = torch.device(to).type == NAME
        known = {id(x.here): x for x in tensors if isinstance(x, Elsewhere)}

        def inwards(x: Any) -> Any:
            return x.here if isinstance(x, Elsewhere) else x

        def outwards(x: Any) -> Any:
            if not isinstance(x, Tensor) or isinstance(x, Elsewhere) or not there:
                return x
            # what was written to is what comes back
            return known[id(x)] if id(x) in known else Elsewhere(x)

        return tree_map(outwards, func(*tree_map(inwards, args), **tree_map(inwards, kwargs)))


def register() -> torch.device:
    """Make the device known to torch, in this process and for good."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    # `param.data = …` would exchange what torch knows of a tensor, and not what is ``here``.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for name in FACTORIES:
        operation, _, overload = name.partition(".")
        here = getattr(getattr(aten, operation), overload or "default")

        def make(*args: Any, here: Any = here, **kwargs: Any) -> Elsewhere:
            return Elsewhere(here(*args, **{**kwargs, "device": torch.device("cpu")}))

        torch.library.impl(f"aten::{name}", "privateuseone")(make)

    @torch.library.impl("aten::_copy_from", "privateuseone")
    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        data = (x.here if isinstance(x, Elsewhere) else x for x in (target, source))
        next(data).copy_(next(data))
        return target

    return torch.device(NAME, 0)
