"""Which layers are full attention: layer plans by ratio and placement, or by an explicit list."""

from __future__ import annotations

import re
from collections.abc import Sequence

from plait.errors import OptionError, nearest

PLACEMENTS = ("block_r_plus_1", "period_r")


def layer_plan(
    mixer: str,
    ratio: str | Sequence[int] = "3:1",
    layers: int = 24,
    placement: str = "block_r_plus_1",
    full: str = "attention",
) -> list[str]:
    """The mixers of a hybrid by depth, to be used as ``layer_types``.

    Args:
        mixer: the linear mixer, a name of the catalogue or a key of ``PlaitConfig.mixers``.
        ratio: ``pure``, ``full``, ``R:1``, or the indices of the full layers.
        layers: depth.
        placement: for ``R:1``, see :func:`full_layers`.
        full: the mixer at full-attention layers.

    Returns:
        ``layers`` names.

    Raises:
        OptionError: as :func:`full_layers`.
    """
    chosen = set(full_layers(ratio, layers, placement))
    return [full if index in chosen else mixer for index in range(layers)]


def full_layers(ratio: str | Sequence[int], layers: int, placement: str = "block_r_plus_1") -> list[int]:
    """Indices of the full-attention layers, from 0.

    Two conventions are in use for "R:1" (2507.06457, section 3, and the checkpoints released with it):
    ``block_r_plus_1`` is R linear layers, then a full one, so layer i is full iff ``(i + 1) % (R + 1) == 0``;
    ``period_r`` is one full layer in every R, so layer i is full iff ``(i + 1) % R == 0``.

    Args:
        ratio: ``pure`` (none), ``full`` (all), ``R:1``, or an explicit list of indices.
        layers: depth.
        placement: ``block_r_plus_1`` or ``period_r``.

    Returns:
        The indices in increasing order.

    Raises:
        OptionError: a ratio that does not fit the depth, or a list with duplicates or indices out of range.
    """
    if placement not in PLACEMENTS:
        raise OptionError(f"placement={placement!r} is not a placement.{nearest(str(placement), PLACEMENTS)}")
    if not isinstance(ratio, str):
        return _explicit(ratio, layers)
    if ratio in ("pure", "full"):
        return list(range(layers)) if ratio == "full" else []
    match = re.fullmatch(r"([1-9][0-9]*):1", ratio)
    if match is None:
        raise OptionError(f"ratio={ratio!r} is not a ratio: write 'pure', 'full', or 'R:1' such as '3:1'.")
    linear = int(match[1])
    if placement == "period_r" and linear == 1:
        raise OptionError(
            "ratio='1:1' with placement='period_r' means one full layer in every 1, which is the transformer: "
            "write ratio='full' for that, or placement='block_r_plus_1' for alternating layers."
        )
    period = linear if placement == "period_r" else linear + 1
    if period > layers:
        raise OptionError(
            f"ratio={ratio!r} with placement={placement!r} needs {period} layers for its first full layer, "
            f"but the model has {layers}: use {period} layers, another ratio or placement, or list the full layers."
        )
    return [index for index in range(layers) if (index + 1) % period == 0]


def _explicit(indices: Sequence[int], layers: int) -> list[int]:
    """A list of indices, checked."""
    seen: set[int] = set()
    for position, index in enumerate(indices):
        if not isinstance(index, int) or isinstance(index, bool):
            raise OptionError(f"Full layer {index!r} (entry {position} of the list) is not an integer.")
        if not 0 <= index < layers:
            raise OptionError(
                f"Full layer {index} (entry {position} of the list) is not a layer of a model with {layers} layers: "
                f"indices run from 0 to {layers - 1}."
            )
        if index in seen:
            raise OptionError(f"Full layer {index} is listed twice (again as entry {position} of the list).")
        seen.add(index)
    return sorted(seen)
