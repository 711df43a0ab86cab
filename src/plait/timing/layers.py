"""Whole layers on a GPU: plait's mixers against the layers of flash-linear-attention (fla), with the same weights.

Both get the same bf16 input; their outputs and gradients must agree before they are timed. Beside them stands plait's
softmax attention at the same width, on torch's fused kernel: what a linear layer would replace.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from plait import catalog, ops
from plait.catalog import Peer
from plait.errors import BackendUnavailable, OptionError, PlaitError
from plait.extras import install_command
from plait.mixers import Context, Dims, Mixer
from plait.models import PlaitConfig
from plait.models.checkpoints.fla import from_fla_weights
from plait.timing.machine import timed_dtype
from plait.timing.operations import DIRECTIONS
from plait.timing.ratios import ratio, take_turns
from plait.timing.shapes import LayerShape

#: Epsilon of the norms of fla's layers.
NORM_EPS = 1e-5
#: Largest difference of two layers, as a share of the norm: thirty roundings to bf16, of at most 2^-9 each.
TOLERANCE = 30 * 2**-9


#: Sizes of a plain run.
SHAPES = [LayerShape(batch, tokens, 1024) for tokens in (4096, 16384) for batch in (1, 4)]


@dataclass(frozen=True)
class LayerTiming:
    """One layer, in one direction, against one peer.

    Args:
        layer: the mixer's name in the catalogue.
        shape: ``B-T-D``.
        direction: ``forward`` or ``forward+backward``.
        backend: what plait's recurrence ran on.
        milliseconds: plait's median.
        peer: ``fla`` or ``attention (SDPA)``.
        peer_milliseconds: the peer's median.
        ratio, ratio_low, ratio_high: the peer's time over plait's, median and quartiles; above 1, plait is faster.
        error: largest difference of output or gradients, relative; None for a peer that computes something else.
        repeats: alternated turns.
    """

    layer: str
    shape: str
    direction: str
    backend: str
    milliseconds: float
    peer: str
    peer_milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    error: float | None
    repeats: int


def require_fla(device: str) -> None:
    """Check that fla's layers can run.

    Raises:
        BackendUnavailable: there is no CUDA device, or fla is not installed; the message says what to do.
    """
    if device != "cuda" or not torch.cuda.is_available():
        seen = "a CPU was asked for" if device != "cuda" else f"torch {torch.__version__} sees none"
        raise BackendUnavailable(
            f"fla's layers run on a CUDA device only, and {seen}. Run the command with --device cuda on a machine that "
            "has a GPU, with a torch built for CUDA."
        )
    if importlib.util.find_spec("fla") is None or importlib.util.find_spec("fla.layers") is None:
        raise BackendUnavailable(
            f"flash-linear-attention, the peer of the layers, is not installed. Install it: {install_command('gpu')}"
        )


def chosen_layers(named: Sequence[str]) -> list[str]:
    """The layers of these names, in catalogue order; without a name, all that have a peer in fla.

    Raises:
        OptionError: fla has no layer of one of these names.
    """
    known = catalog.names("mixer", peer=...)
    for name in named:
        if name not in known:
            raise OptionError(f"layer {name!r} has no counterpart in fla. Known: {', '.join(known)}.")
    return [name for name in known if not named or name in named]


def peer_of(name: str) -> Peer:
    """What the catalogue says of fla's layer for a mixer that has one."""
    peer = catalog.get(name).peer
    assert peer is not None
    return peer


def fla_layer(name: str, hidden_size: int) -> nn.Module:
    """fla's layer at its own defaults, as the first layer of a model."""
    return getattr(import_module("fla.layers"), peer_of(name).name)(hidden_size=hidden_size, layer_idx=0)


def plait_layer(name: str, hidden_size: int, weights: Mapping[str, Tensor]) -> Mixer:
    """plait's mixer with the weights of fla's layer.

    Args:
        name: in the catalogue.
        hidden_size: width d.
        weights: of fla's layer, by fla's names.

    Raises:
        RuntimeError: a weight is missing, is too many, or has another shape.
    """
    options = dict(peer_of(name).options)
    config = PlaitConfig(hidden_size=hidden_size, layer_types=[name], mixers={name: options}, norm_eps=NORM_EPS)
    prefix = "model.layers.0.attn."
    renamed = from_fla_weights({prefix + key: value for key, value in weights.items()}, config)
    mixer = _mixer(name, hidden_size, options)
    mixer.load_state_dict({key.removeprefix(prefix): value for key, value in renamed.items()})
    return mixer


def difference(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor, seed: int = 1) -> float:
    """Largest relative difference of output and gradient of the input, for one random cotangent."""
    found = []
    for function in (ours, theirs):
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf)
        generator = torch.Generator(x.device).manual_seed(seed)
        cotangent = torch.randn(y.shape, generator=generator, device=x.device).to(y.dtype)
        found.append((y.detach().float(), torch.autograd.grad(y, leaf, cotangent)[0].float()))
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))


def time_layers(
    shapes: Sequence[LayerShape],
    device: str = "cuda",
    repeats: int = 7,
    layers: Sequence[str] = (),
    directions: Sequence[str] = DIRECTIONS,
    announce: Callable[[str], None] = lambda line: None,
) -> list[LayerTiming]:
    """Time layers at every shape, against fla's layer and against softmax attention.

    Args:
        shapes: sizes.
        device: where they run.
        repeats: alternated turns of each timing.
        layers: names; none for all.
        directions: which of :data:`~plait.timing.operations.DIRECTIONS`.
        announce: told in one line what is timed next.

    Raises:
        OptionError: as :func:`chosen_layers`.
        PlaitError: the two layers differ, so that their times must not be compared.
    """
    timings = []
    for name in chosen_layers(layers):
        for shape in shapes:
            announce(f"{name} at {shape}")
            timings += _time(name, shape, device, repeats, directions)
    return timings


def _time(name: str, shape: LayerShape, device: str, repeats: int, directions: Sequence[str]) -> list[LayerTiming]:
    dtype = timed_dtype(device)
    generator = torch.Generator(device).manual_seed(0)
    x, gradient = torch.randn(2, shape.batch, shape.tokens, shape.width, generator=generator, device=device).to(dtype)
    torch.manual_seed(0)  # fla's layers draw their weights from the global generator
    peer = fla_layer(name, shape.width)
    modules = {
        "plait": plait_layer(name, shape.width, peer.state_dict()),
        "fla": peer,
        "attention (SDPA)": _mixer("attention", shape.width, {}),
    }
    functions = {who: _function(module.to(device, dtype).train()) for who, module in modules.items()}
    error = difference(functions["plait"], functions["fla"], x)
    if not error <= TOLERANCE:
        raise PlaitError(
            f"{name} at {shape}: plait and fla differ by {error:.1e} (relative, allowed {TOLERANCE:.0e}); their times "
            "are not comparable. Run make gpu on this machine."
        )
    timings = []
    for direction in directions:
        contenders = {
            who: _contender(function, modules[who], x, None if direction == "forward" else gradient)
            for who, function in functions.items()
        }
        seconds = take_turns(contenders, repeats, device)
        ours = seconds.pop("plait")
        for who, theirs in seconds.items():
            compared = ratio(ours, theirs)
            timings.append(
                LayerTiming(
                    layer=name,
                    shape=str(shape),
                    direction=direction,
                    backend=ops.choose(device)[0],
                    milliseconds=1e3 * statistics.median(ours),
                    peer=who,
                    peer_milliseconds=1e3 * statistics.median(theirs),
                    ratio=compared.median,
                    ratio_low=compared.low,
                    ratio_high=compared.high,
                    error=error if who == "fla" else None,
                    repeats=repeats,
                )
            )
    return timings


def _mixer(name: str, hidden_size: int, options: Mapping[str, Any]) -> Mixer:
    """A mixer of the catalogue as the only layer of a model."""
    mixer: type[Mixer] = catalog.get(name).load()
    return mixer(Dims(hidden_size, norm_eps=NORM_EPS), mixer.Options.parse(name, options), 0)


def _function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer as a function of its input alone."""
    if isinstance(module, Mixer):
        return lambda x: module(x, Context.plain(x))
    return lambda x: module(x)[0]


def _contender(
    function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, gradient: Tensor | None
) -> Callable[[], object]:
    """A call to be timed; with a gradient of the output, it also computes those of the input and of every weight."""
    leaf = x.detach().requires_grad_()
    wanted = [leaf, *module.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return function(x)

    def forward_and_backward() -> object:
        return torch.autograd.grad(function(leaf), wanted, gradient)

    return forward if gradient is None else forward_and_backward
