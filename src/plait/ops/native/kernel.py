"""A kernel as a function of tensors: called directly in eager mode, one node of the graph where torch traces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plait.ops.first_order import first_order


class Operator:
    """A kernel with its shapes for tracing and its backward.

    Eager calls do not pass through :mod:`torch.library`: its first call imports the compiler, which takes seconds, and
    each call costs as much as a decoding step.

    Args:
        name: in ``torch.ops.plait``.
        kernel: computes tensors from annotated arguments, which it trusts.
        guard: the same signature; raises for arguments that would make the kernel read or write foreign memory. Called
            where the operator is called by its name, since the public functions have checked theirs.
        fake: the same signature; returns empty tensors of the result's shapes.
        setup: ``(ctx, inputs, output)``, keeps what backward needs; None where there is no gradient.
        backward: ``(ctx, *gradients of the outputs)`` to those of the inputs.
    """

    def __init__(
        self,
        name: str,
        kernel: Callable[..., Any],
        guard: Callable[..., None],
        fake: Callable[..., Any],
        setup: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        self.kernel = kernel

        @functools.wraps(kernel)
        def guarded_kernel(*arguments: Any) -> Any:
            guard(*arguments)
            return kernel(*arguments)

        self.traced = torch.library.custom_op(f"plait::{name}", guarded_kernel, mutates_args=())
        self.traced.register_fake(fake)
        self.function: Any = None
        if setup is not None and backward is not None:
            self.traced.register_autograd(backward, setup_context=setup)
            guarded = first_order(f"The native backend ({name})")(backward)
            methods = {"forward": kernel, "setup_context": setup, "backward": guarded}
            parts = {key: staticmethod(method) for key, method in methods.items()}
            self.function = type(name, (torch.autograd.Function,), parts)

    def __call__(self, *arguments: Any) -> Any:
        if tracing():
            return self.traced(*arguments)
        if self.function is not None and torch.is_grad_enabled() and any(map(_needs_gradient, arguments)):
            return self.function.apply(*arguments)
        return self.kernel(*arguments)


def tracing() -> bool:
    """Whether tensors may be without data: inside a compiler, or in a mode, which is how a backward is traced."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def resolved(x: Tensor) -> Tensor:
    """``x`` with its numbers in memory: the imaginary part of a conjugate is stored with the other sign."""
    return x if torch.compiler.is_compiling() or not x.is_neg() else x.resolve_neg()


def _needs_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad
