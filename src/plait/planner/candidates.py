"""Every layer plan worth considering at one shape, with what it holds and moves while decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from plait import catalog
from plait.errors import OptionError, nearest
from plait.models.configuration import PlaitConfig
from plait.models.cost import LayerCost, layer_costs
from plait.models.plan import PLACEMENTS, full_layers
from plait.planner.devices import Device
from plait.planner.recall import Recall, RecallTable
from plait.planner.shapes import Shape

#: The mixer whose key and value heads and window are varied.
ATTENTION = "attention"
RATIOS = ("pure", "24:1", "12:1", "6:1", "3:1", "1:1")
#: Windows of the full layers that are tried; None sees everything.
WINDOWS = (None, 4096)


@dataclass(frozen=True)
class Grid:
    """Which plans are made; each also stands once as the transformer.

    Args:
        mixers: of the layers that are not full; None: every one of the catalogue.
        full: mixers of the full layers; None: every one of the catalogue.
        ratios: ``pure`` and ``R:1``.
        placements: what ``R:1`` means, see :func:`plait.models.full_layers`.
        kv_heads: key and value heads of full layers of softmax attention; None: all, and a quarter of them.
        windows: of full layers of softmax attention.
    """

    mixers: Sequence[str] | None = None
    full: Sequence[str] | None = None
    ratios: Sequence[str] = RATIOS
    placements: Sequence[str] = PLACEMENTS
    kv_heads: Sequence[int] | None = None
    windows: Sequence[int | None] = WINDOWS

    def __post_init__(self) -> None:
        for name in self.placements:
            if name not in PLACEMENTS:
                raise OptionError(f"There is no placement {name!r}.{nearest(name, PLACEMENTS)}")


@dataclass(frozen=True)
class Point:
    """A layer plan as a point of the grid; for the fields see :class:`Candidate`."""

    mixer: str
    ratio: str
    placement: str | None
    full: str | None
    kv_heads: int | None
    window: int | None


@dataclass(frozen=True)
class Load:
    """What is decoded.

    Args:
        context: tokens that each sequence holds.
        batch: sequences at a time.
        dtype: of weights, keys, values and convolution inputs; recurrent states are fp32.
    """

    context: int
    batch: int
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Candidate:
    """A layer plan and its figures; bytes and FLOPs are those of the whole batch.

    Args:
        mixer, ratio, placement: of the plan; placement is None for ``pure`` and ``full``.
        full: mixer of the full layers; None without any.
        kv_heads, window: of the full layers; None without any, for all tokens, and for other mixers than attention.
        n_linear, n_full, full_layers: counts and indices.
        parameters: of the model.
        weight_bytes: in the load's dtype.
        cache_bytes: keys and values of full layers without a window, which grow with the context.
        window_bytes: keys and values of full layers with a window, which bounds them.
        state_bytes: recurrent states and convolution inputs, which are constant.
        working_bytes: the largest layer's keys and values once more, while a token is appended.
        prefill_flops: 2 a parameter and token, without the embedding, plus token mixing (2507.06457).
        decode_flops: of one more token of every sequence.
        decode_bytes: moved for that: weights once, cache and states read, states and the new keys and values written.
        tokens_per_second: of the batch, at most: what the bandwidth, or the peak, allows.
        bound: ``bandwidth`` or ``compute``, whichever is slower.
        recall: measured, or None where unknown.
    """

    mixer: str
    ratio: str
    placement: str | None
    full: str | None
    kv_heads: int | None
    window: int | None
    n_linear: int
    n_full: int
    full_layers: list[int]
    parameters: int
    weight_bytes: int
    cache_bytes: int
    window_bytes: int
    state_bytes: int
    working_bytes: int
    prefill_flops: int
    decode_flops: int
    decode_bytes: int
    tokens_per_second: float
    bound: str
    recall: Recall | None

    @property
    def key(self) -> str:
        """Label for people, unique among candidates."""
        parts = ["transformer" if self.ratio == "full" else f"{self.mixer} {self.ratio}"]
        parts += [] if self.placement is None else [self.placement]
        parts += [] if self.full in (None, ATTENTION) else [f"full={self.full}"]
        parts += [] if self.kv_heads is None else [f"kv={self.kv_heads}"]
        parts += [] if self.window is None else [f"window={self.window}"]
        return " ".join(parts)

    @property
    def memory(self) -> int:
        """Bytes that decoding needs."""
        return self.weight_bytes + self.cache_bytes + self.window_bytes + self.state_bytes + self.working_bytes

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"key": self.key, **asdict(self), "memory": self.memory}


@dataclass
class Candidates:
    """All plans of a grid.

    Args:
        found: those that are models.
        refused: why others are none, with how many.
    """

    found: list[Candidate] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)


def candidates(shape: Shape, load: Load, device: Device, recall: RecallTable, grid: Grid | None = None) -> Candidates:
    """Every plan of the grid with its figures; builds no tensor.

    Args:
        shape: sizes of the models.
        load: what is decoded.
        device: gives bandwidth and peak.
        recall: what is known of plans without window and grouped heads.
        grid: which plans.

    Raises:
        OptionError: a context or batch below 1.
    """
    if load.context < 1 or load.batch < 1:
        raise OptionError(f"context {load.context} and batch {load.batch}: give at least 1 of each.")
    grid = Grid() if grid is None else grid
    heads = shape.hidden_size // 64
    kv_heads = grid.kv_heads or sorted({heads, max(1, heads // 4)}, reverse=True)
    result, seen = Candidates(), set()
    blocks: dict[str, LayerCost] = {}
    for point in _points(grid, kv_heads):
        try:
            full = full_layers(point.ratio, shape.layers, point.placement or PLACEMENTS[0])
            made = _candidate(_config(shape, point, full), point, full, load, device, blocks, heads, recall)
        except OptionError as error:
            reason = str(error)
            result.refused[reason] = result.refused.get(reason, 0) + 1
            continue
        plan = (point.mixer, point.full, tuple(full), point.kv_heads, point.window)
        if plan not in seen:  # two placements may give one plan
            seen.add(plan)
            result.found.append(made)
    return result


def _points(grid: Grid, kv_heads: Sequence[int]) -> Iterator[Point]:
    every = [method.name for method in catalog.methods("mixer", full=False, bidirectional=False)]
    full = catalog.names("mixer", full=True) if grid.full is None else grid.full
    settings = [
        (name, count, window)
        for name in full
        for count in (kv_heads if name == ATTENTION else [None])
        for window in (grid.windows if name == ATTENTION else [None])
    ]
    for name, count, window in settings:
        yield Point(name, "full", None, name, count, window)
    for mixer in every if grid.mixers is None else grid.mixers:
        for ratio in grid.ratios:
            if ratio == "pure":
                yield Point(mixer, ratio, None, None, None, None)
                continue
            for placement in grid.placements:
                for name, count, window in settings:
                    yield Point(mixer, ratio, placement, name, count, window)


def _config(shape: Shape, point: Point, full: list[int]) -> PlaitConfig:
    options = {name: shape.options(name) for name in (point.mixer, point.full) if name is not None}
    if point.full == ATTENTION:
        options[ATTENTION] |= {"num_kv_heads": point.kv_heads, "window": point.window}
    return PlaitConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        layer_types=[point.full or point.mixer if index in full else point.mixer for index in range(shape.layers)],
        mixers=options,
        hidden_ratio=shape.hidden_ratio(point.mixer),
    )


def _candidate(
    config: PlaitConfig,
    point: Point,
    full: list[int],
    load: Load,
    device: Device,
    blocks: dict[str, LayerCost],
    heads: int,
    recall: RecallTable,
) -> Candidate:
    rows = _rows(config, load, blocks)
    parameters = _parameters(config, rows)
    table = config.vocab_size * config.hidden_size
    growing = [row.cost.state_bytes for row in rows if row.state == "grows"]
    bounded = [row.cost.state_bytes for row in rows if row.state == "bounded"]
    constant = [row.cost.state_bytes for row in rows if row.state == "constant"]
    itemsize = load.dtype.itemsize
    appended = sum(
        spec.type.cost(config.dims, load.context + 1, spec.options, cache_dtype=load.dtype).state_bytes
        - row.cost.state_bytes
        for spec, row in zip(config.layers(), rows, strict=True)
        if row.state == "grows"
    )
    mixing = sum(row.cost.flops_decode for row in rows)
    decode_flops = load.batch * (2 * (parameters - table) + mixing)
    decode_bytes = itemsize * (parameters - table + load.batch * config.hidden_size)
    read = sum(row.cost.read_bytes for row in rows)
    decode_bytes += load.batch * (read + sum(bounded) + sum(constant) + appended)
    seconds = {"bandwidth": decode_bytes / device.bandwidth, "compute": decode_flops / device.peak}
    bound = max(seconds, key=lambda name: seconds[name])
    known = point.full in (None, ATTENTION) and point.window is None and point.kv_heads in (None, heads)
    return Candidate(
        **asdict(point),
        n_linear=len(rows) - len(full),
        n_full=len(full),
        full_layers=full,
        parameters=parameters,
        weight_bytes=itemsize * parameters,
        cache_bytes=load.batch * sum(growing),
        window_bytes=load.batch * sum(bounded),
        state_bytes=load.batch * sum(constant),
        working_bytes=load.batch * max(growing, default=0),
        prefill_flops=load.batch
        * (2 * (parameters - table) * load.context + sum(row.cost.flops_prefill for row in rows)),
        decode_flops=decode_flops,
        decode_bytes=decode_bytes,
        tokens_per_second=load.batch / seconds[bound],
        bound=bound,
        recall=recall.get(point.mixer, point.ratio, point.placement) if known else None,
    )


def _rows(config: PlaitConfig, load: Load, blocks: dict[str, LayerCost]) -> list[LayerCost]:
    """A row for each layer; blocks of the same options are counted once for all plans."""
    rows = []
    for spec in config.layers():
        name = f"{spec.mixer} {spec.options} {config.mlp_size}"
        if name not in blocks:
            alone = PlaitConfig(
                vocab_size=1,
                hidden_size=config.hidden_size,
                layer_types=[spec.name],
                mixers=config.mixers,
                hidden_ratio=config.hidden_ratio,
            )
            blocks[name] = layer_costs(alone, load.context, load.dtype)[0]
        rows.append(blocks[name])
    return rows


def _parameters(config: PlaitConfig, rows: list[LayerCost]) -> int:
    """As :func:`plait.models.count_parameters`, from blocks that were counted before."""
    specs = {spec.name: spec for spec in config.layers()}
    shared = [spec.type.shared_parameters(config.dims, spec.options) for spec in specs.values()]
    outside = 2 * config.vocab_size * config.hidden_size + config.hidden_size
    tables = sum(tensor.numel() for group in shared for tensor in group.values())
    return sum(row.parameters for row in rows) + outside + tables
