"""Where models compute: the one place that asks for this machine's accelerator and memory."""

from __future__ import annotations

import os

import torch


def default_device() -> torch.device:
    """This machine's accelerator, or its CPU.

    A CUDA build of torch names ``cuda`` as its accelerator also where there is no GPU or no driver, so it is asked
    whether one can be used.
    """
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def unusable_accelerator() -> str | None:
    """The accelerator that torch was built for and that this machine does not offer, such as ``"cuda"``; or None."""
    built_for = torch.accelerator.current_accelerator()
    usable = torch.accelerator.current_accelerator(check_available=True)
    return built_for.type if built_for is not None and usable is None else None


def memory_bytes() -> int:
    """Memory of this machine, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 2**50
