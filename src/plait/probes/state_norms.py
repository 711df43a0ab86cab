"""How large recurrent states grow while a model reads: whether it keeps forgetting in balance with writing.

The Frobenius norm of each head's state after every ``step`` tokens. A state that still grows at the length of training
is one that longer texts will carry out of the range that later layers know. The measure is plait's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from plait.drawing.lines import Line, LinesFigure, lines_svg
from plait.errors import OptionError
from plait.models import PlaitForCausalLM, PlaitModel
from plait.models.cache import CACHE_NAME, PlaitCache
from plait.options import Options
from plait.probes.contract import Probe
from plait.statistics.interval import Interval


@dataclass(frozen=True)
class NormOptions(Options):
    """Options of the probe.

    Args:
        step: tokens between two measurements of ``plait probe``.

    Raises:
        OptionError: not a positive number.
    """

    step: int = 64

    def __post_init__(self) -> None:
        if self.step < 1:
            raise OptionError(f"state_norms: step={self.step} must be at least 1.")


class StateNorms(Probe):
    """Norm of every head's recurrent state after each pass that has a cache, mean over the batch's rows."""

    Options = NormOptions
    columns: ClassVar = {
        "layer": "int64",
        "mixer": "str",
        "segment": "str",
        "head": "int64",
        "tokens": "int64",
        "norm": "float64",
    }
    ranked = "norm"
    latest = "tokens"

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        super().__init__(model, options)
        self._found: list[dict[str, Any]] = []
        self._handle: Any = None
        self._watching: ContextVar[bool] = ContextVar("plait_state_norms")

    def __enter__(self) -> Self:
        if not isinstance(self.model, (PlaitForCausalLM, PlaitModel)):
            raise OptionError(
                f"state_norms reads the recurrent states of plait's models; {type(self.model).__name__} is none. "
                "'plait import' takes over models of other libraries."
            )
        if self._handle is not None:
            raise OptionError("This StateNorms is already in force: make another one for another thread.")
        self._mixers = [spec.mixer for spec in self.model.config.layers()]
        self._handle = self.model.register_forward_hook(self._after)
        self._watching.set(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.remove()
        self._handle = None
        self._watching.set(False)

    def _after(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if not self._watching.get(False):  # a pass of another thread
            return
        cache = outputs[CACHE_NAME]
        if not isinstance(cache, PlaitCache):
            return
        for index, layer in enumerate(cache.layers):
            for name, segment in layer.state.segments.items():
                for _, value in segment.tensors() if segment.recurrent else ():
                    self._note(index, name, value, cache.get_seq_length())

    def _note(self, layer: int, segment: str, value: Tensor, tokens: int) -> None:
        heads = value[:, None] if value.dim() == 2 else value
        norms = heads.float().flatten(2).norm(dim=2).mean(0)
        for head, norm in enumerate(norms.tolist()):
            self._found.append(
                {
                    "layer": layer,
                    "mixer": self._mixers[layer],
                    "segment": segment,
                    "head": head,
                    "tokens": tokens,
                    "norm": norm,
                }
            )

    def run(self, ids: Tensor) -> None:
        """Read ``ids`` ``(B, T)`` in pieces of ``step`` tokens."""
        with self, torch.no_grad():
            cache = None
            for piece in ids.split(self.options.step, dim=1):
                cache = self.model(input_ids=piece, use_cache=True, **{CACHE_NAME: cache})[CACHE_NAME]
        if not self._found:
            raise OptionError("state_norms: no layer of this model holds a recurrent state.")

    def records(self) -> Sequence[Mapping[str, Any]]:
        return self._found

    def sentence(self) -> str:
        means = self.table().groupby("tokens")["norm"].mean()
        last = int(means.index[-1])
        half = min(means.index, key=lambda tokens: abs(tokens - last / 2))
        said = f"After {last:,} tokens a head's state has a norm of {means[last]:.3g} on average"
        if half == last:
            return f"{said}; a longer text would show whether it grows."
        change = means[last] / means[half] - 1
        word = "has settled" if abs(change) < 0.05 else "still grows" if change > 0 else "shrinks"
        return f"{said}, {change:+.0%} since {half:,} tokens: it {word}."

    def svg(self) -> str:
        """Mean norm of each layer's heads against the tokens read (of eight layers where there are more)."""
        table = self.table()
        layers = sorted(table["layer"].unique())
        if len(layers) > 8:
            layers = [layers[round(i * (len(layers) - 1) / 7)] for i in range(8)]
        tokens = sorted(table["tokens"].unique())
        if len(tokens) > 10:
            tokens = [tokens[round(i * (len(tokens) - 1) / 9)] for i in range(10)]
        means = table.groupby(["layer", "tokens"])["norm"].mean()
        lines = []
        for layer in layers:
            values = [float(means[layer, at]) for at in tokens]
            exact = [Interval(mean=value, low=value, high=value, n=1, over="none") for value in values]
            lines.append(Line(f"layer {layer}", exact))
        figure = LinesFigure(
            "Norm of the recurrent state, mean over heads",
            [str(at) for at in tokens],
            "tokens read",
            lines,
            "Norm of the recurrent state against the tokens read, by layer",
        )
        return lines_svg(figure)
