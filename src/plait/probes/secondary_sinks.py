"""Secondary attention sinks: later tokens whose hidden states turn into that of the first one for some layers.

Wong et al., "On the Existence and Behaviour of Secondary Attention Sinks" (2512.22213). The *primary* sink is, of the
first tokens, the one with the largest hidden states. Where its norm has jumped and not yet dropped again, layers
``[first, last)``, another token is *on* in a layer if ``|cos(h[token], h[primary])| > 0.9``. A token that is on in some
layers, but not in nearly all, is a secondary sink. What it takes to find out who writes them stands beside the probe:
:func:`effective_components`, :func:`matched_inputs`, :func:`rescaled` and :func:`matrix_entropy`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.drawing.heat import heat_svg
from plait.errors import OptionError
from plait.options import Options
from plait.probes.contract import Probe


@dataclass(frozen=True)
class SecondarySinkOptions(Options):
    """Options of the probe.

    Args:
        candidates: first tokens among which the primary sink is looked for; 2 for plain text, 3 with a chat template.
        threshold: cosine above which a token is on in a layer.
        absolute: bounds as in the paper's code: at least L - 15 layers are a copy of the primary sink, 4 or fewer are
            noise. They leave nothing between them up to 20 layers; by default the bounds are 0.69 L and 0.1 L.

    Raises:
        OptionError: a number out of range.
    """

    candidates: int = 2
    threshold: float = 0.9
    absolute: bool = False

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise OptionError(f"secondary_sinks: candidates={self.candidates} must be at least 1.")
        if not 0 < self.threshold < 1:
            raise OptionError(f"secondary_sinks: threshold={self.threshold} must lie between 0 and 1.")


@dataclass(frozen=True)
class Level:
    """One sink.

    Args:
        token: its position.
        start: the first layer in which it is on.
        lifetime: number of layers in which it is on.
        span: layers from the first to the last of them; more than ``lifetime`` where there are gaps.
    """

    token: int
    start: int
    lifetime: int
    span: int


def active_layers(norms: Tensor) -> tuple[int, int]:
    """Where the primary sink lives: ``[first, last)`` of its norms ``(L,)`` by layer.

    The first layer after the largest rise, and the first after the largest fall behind it; L where none is left.
    """
    changes = norms.diff()
    if not len(changes):
        return 0, len(norms)
    first = int(changes.argmax()) + 1
    return first, (first + int(changes[first:].argmin()) + 1) if first < len(changes) else len(norms)


def sink_levels(cosines: Tensor, primary: int, active: tuple[int, int], threshold: float = 0.9) -> list[Level]:
    """The tokens behind the primary sink that are on in any active layer.

    Args:
        cosines: ``(L, T)`` of each token's hidden state with the primary sink's.
        primary: position of the primary sink.
        active: see :func:`active_layers`.
        threshold: of ``|cosine|``.
    """
    first, last = active
    on = cosines[first:last].abs() > threshold
    levels = []
    for token in (on[:, primary + 1 :].any(0).nonzero().flatten() + primary + 1).tolist():
        layers = (on[:, token].nonzero().flatten() + first).tolist()
        levels.append(Level(token, layers[0], len(layers), layers[-1] - layers[0] + 1))
    return levels


def label(lifetime: int, layers: int, absolute: bool = False) -> str:
    """``primary`` (a copy of the primary sink), ``secondary`` or ``noise``, by the number of layers it is on."""
    most, least = (layers - 15, 4) if absolute else (0.69 * layers, 0.1 * layers)
    return "primary" if lifetime >= most else "secondary" if lifetime > least else "noise"


class SecondarySinks(Probe):
    """Later tokens whose hidden states come close to the first one's for some layers: where they begin and end.

    Only the cosines ``(L, T)`` with each candidate are kept, never the hidden states. Every pass is one row, whole.
    """

    Options = SecondarySinkOptions
    columns: ClassVar = {
        "row": "int64",
        "token": "int64",
        "start": "int64",
        "lifetime": "int64",
        "span": "int64",
        "label": "str",
    }
    ranked = "lifetime"

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        super().__init__(model, options)
        self._layers = decoder_layers(model)
        self._handles: list[Any] = []
        self._watching: ContextVar[bool] = ContextVar("plait_secondary_sinks")
        self._norms: list[Tensor] = []
        self._cosines: list[Tensor] = []
        self._found: list[dict[str, Any]] = []
        self._rows = 0

    def __enter__(self) -> Self:
        if self._handles:
            raise OptionError("This SecondarySinks is already in force: make another one for another thread.")
        self._handles = [layer.register_forward_hook(self._after) for layer in self._layers]
        self._watching.set(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._watching.set(False)
        self._norms, self._cosines = [], []

    def _after(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if not self._watching.get(False):  # a pass of another thread
            return
        states = (outputs[0] if isinstance(outputs, tuple) else outputs).detach()
        if states.shape[0] != 1 or states.shape[1] < self.options.candidates:
            raise OptionError(
                f"secondary_sinks reads one row of at least {self.options.candidates} tokens a pass, whole and without "
                f"a cache from before; this pass has shape {tuple(states.shape[:2])}."
            )
        if module is self._layers[0]:
            self._norms, self._cosines = [], []
        states = states[0].float()  # norms are huge where sinks are
        first = states[: self.options.candidates]
        self._norms.append(first.norm(dim=-1).cpu())
        self._cosines.append((F.normalize(first, dim=-1) @ F.normalize(states, dim=-1).mT).cpu())
        if module is self._layers[-1]:
            self._note(torch.stack(self._norms), torch.stack(self._cosines))

    def _note(self, norms: Tensor, cosines: Tensor) -> None:
        """Add one row: ``norms`` ``(L, candidates)``, ``cosines`` ``(L, candidates, T)``."""
        primary, layers = int(norms.mean(0).argmax()), len(norms)
        active = active_layers(norms[:, primary])
        own = Level(primary, active[0], active[1] - active[0], active[1] - active[0])
        levels = sink_levels(cosines[:, primary], primary, active, self.options.threshold)
        for level, kind in [(own, "primary")] + [(x, label(x.lifetime, layers, self.options.absolute)) for x in levels]:
            self._found.append({"row": self._rows, **vars(level), "label": kind})
        self._rows += 1

    def run(self, ids: Tensor) -> None:
        """Read each row of ``ids`` ``(B, T)`` in a pass of its own."""
        with self, torch.no_grad():
            for row in ids:
                self.model(input_ids=row[None], use_cache=False)

    def records(self) -> Sequence[Mapping[str, Any]]:
        return self._found

    def sentence(self) -> str:
        table = self.table()
        own, later = table[table["label"] == "primary"].iloc[0], table[table["label"] == "secondary"]
        lives = f"layers {own['start']} to {own['start'] + own['lifetime'] - 1}"
        return (
            f"Token {own['token']} is the primary sink and lives in {lives} of {len(self._layers)} in the first text; "
            f"{len(later)} secondary sinks in {self._rows} texts."
        )

    def svg(self) -> str:
        """How many sinks begin in a layer and live for so many, as ``log(1 + count)``; the primary ones among them."""
        counts = Counter((row["start"], row["lifetime"]) for row in self._found)
        size = len(self._layers)
        grid = [[math.log1p(counts[start, life]) for life in range(size + 1)] for start in range(size)]
        return heat_svg(grid, "Sinks, log(1 + count)", rows="first layer", columns="lifetime")


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The model's layers, by depth.

    Raises:
        OptionError: they cannot be told.
    """
    config = getattr(model, "config", None)
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) if config is not None else None
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise OptionError(f"secondary_sinks finds no list of {depth} layers in this {type(model).__name__}.")


def rescaled(outputs: Tensor, direction: Tensor, norm: float, threshold: float = 0.98, skip: int = 3) -> Tensor:
    """What the paper steers with: rows of an MLP's output along the sink's direction get another length.

    Args:
        outputs: ``(..., T, d)`` of the MLP in the layer that creates sinks.
        direction: ``(d,)`` the primary sink's own.
        norm: length that these rows get; their direction stays.
        threshold: cosine from which a row is along the direction.
        skip: first positions that are left alone.
    """
    along = F.cosine_similarity(outputs.float(), direction.float(), dim=-1) > threshold
    along[..., :skip] = False
    lengths = outputs.float().norm(dim=-1, keepdim=True)
    return torch.where(along[..., None], (outputs * (norm / lengths.clamp(min=1e-30))).to(outputs.dtype), outputs)


@torch.no_grad()
def effective_components(
    mlp: Callable[[Tensor], Tensor],
    components: Tensor,
    reach: Tensor,
    direction: Tensor,
    threshold: float = 0.98,
) -> list[int]:
    """Directions of an MLP's input that make it write the sink's direction, whatever else is there.

    Args:
        mlp: the MLP of the layer that creates sinks.
        components: ``(n, d)`` unit vectors, such as the principal components of its inputs.
        reach: ``(n,)`` largest projection of an input on each; whole numbers up to it are tried, with both signs.
        direction: ``(d,)`` what the MLP writes for the primary sink.
        threshold: cosine from which the output counts as that direction.
    """
    found = []
    for index, (component, most) in enumerate(zip(components, reach.tolist(), strict=True)):
        steps = torch.arange(1, max(1, math.ceil(most)) + 1, dtype=component.dtype, device=component.device)
        scales = torch.cat([-steps.flip(0), steps])
        written = mlp(scales[:, None] * component)
        if bool((F.cosine_similarity(written, direction[None], dim=-1) > threshold).any()):
            found.append(index)
    return found


def matched_inputs(ids: Tensor, sinks: Sequence[int], seed: int = 0) -> tuple[list[int], list[int]]:
    """Positions of sinks, and as many of other occurrences of the same token ids.

    Args:
        ids: ``(T,)``.
        sinks: positions of sinks.
        seed: of the draw.

    Returns:
        both lists; sinks whose id occurs nowhere else are left out of the first.
    """
    generator = torch.Generator().manual_seed(seed)
    taken, chosen, others = set(sinks), list[int](), list[int]()
    for token, wanted in sorted(Counter(int(ids[place]) for place in taken).items()):
        elsewhere = [place for place in (ids == token).nonzero().flatten().tolist() if place not in taken]
        size = min(wanted, len(elsewhere))
        own = sorted(place for place in taken if int(ids[place]) == token)
        chosen += own[:size]
        others += sorted(elsewhere[i] for i in torch.randperm(len(elsewhere), generator=generator)[:size].tolist())
    return chosen, others


def matrix_entropy(states: Tensor) -> float:
    """``-sum of p log p`` over the eigenvalues p of ``X X^T``, scaled to sum 1, for states X ``(n, d)``; nats."""
    shares = torch.linalg.svdvals(states.double()).square()
    return float(torch.special.entr(shares / shares.sum()).sum())
