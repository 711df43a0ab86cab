"""Retrieval heads: heads whose strongest weight points at the very token that the model is copying.

Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality" (2404.15574). While the model answers a
question about a needle in a long text, head h *copies* the token w at a step if its largest weight lies on position j
inside the needle and the token at j is w. The retrieval score of one answer is the share of the needle that the head
copies; a head's score is the mean over the answers that are right, and from 0.1 on it counts as a retrieval head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plait.drawing.heat import heat_svg
from plait.errors import OptionError
from plait.options import Options
from plait.probes.needles import NeedleRun, greedy_answer, recall
from plait.probes.watching import AttentionProbe, logits
from plait.runtime.call import Call
from plait.runtime.store import Keys

#: Share of the answer's tokens that a right answer contains (ROUGE-1 recall over 50 %).
RIGHT = 0.5


@dataclass(frozen=True)
class RetrievalOptions(Options):
    """Options of the probe.

    Args:
        dedupe: what counts once: ``position`` (each position of the needle), ``token`` (each token of it: the paper's
            text) or ``none`` (every hit counts, so that a score may pass 1: the paper's code).
        form: ``greedy`` lets the model answer; ``teacher`` reads it the right answer and asks at each of its tokens
            in one pass (plait's own short cut; equal where the greedy answer is right).
        threshold: score from which a head counts as a retrieval head.
        max_new_tokens: of a greedy answer.

    Raises:
        OptionError: a value out of range.
    """

    dedupe: Literal["position", "token", "none"] = "position"
    form: Literal["greedy", "teacher"] = "greedy"
    threshold: float = 0.1
    max_new_tokens: int = 50

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise OptionError(f"retrieval_heads: max_new_tokens={self.max_new_tokens} must be at least 1.")
        if not 0 < self.threshold <= 1:
            raise OptionError(f"retrieval_heads: threshold={self.threshold} must lie between 0 and 1.")


class RetrievalHeads(AttentionProbe):
    """Retrieval score of every query head: how often its strongest weight lies on the needle token being copied.

    Only the rows of weights at the answer's tokens are looked at, one position each. Wrong answers are counted and left
    out of the scores.
    """

    Options = RetrievalOptions
    columns: ClassVar = {
        "layer": "int64",
        "head": "int64",
        "score": "float64",
        "frequency": "float64",
        "retrieval": "bool",
        "answers": "int64",
        "asked": "int64",
    }
    ranked = "score"

    def __init__(self, model: nn.Module, options: Any = None) -> None:
        super().__init__(model, options)
        self.asked = 0
        self._scores: list[Tensor] = []
        self._layers: list[int] = []
        self._rows: slice | None = None
        self._strongest: dict[int, Tensor] = {}

    def show(self, call: Call, keys: Keys) -> None:
        if self._rows is None:
            return
        q, positions = call.q[:, :, self._rows], call.positions[:, self._rows]
        slots = logits(call, keys, q, positions).argmax(-1)
        places = keys.places().expand(1, keys.keys.shape[1], -1)
        places = places.repeat_interleave(call.layer.group, dim=1)[0]
        self._strongest[call.layer.index] = places.gather(1, slots[0]).cpu()

    def detect(self, runs: Iterable[NeedleRun]) -> None:
        """Ask every question."""
        with self:
            for run in runs:
                self.ask(run)

    def ask(self, run: NeedleRun) -> bool:
        """Ask one question, inside the ``with`` block.

        Returns:
            Whether the answer was right; only then it counts.
        """
        if self._applied is None:
            raise OptionError("retrieval_heads: ask inside the probe's with block, or use detect.")
        self.asked += 1
        with torch.no_grad():
            said, strongest = self._teach(run) if self.options.form == "teacher" else self._listen(run)
        if recall(run.answer, said) <= RIGHT:
            return False
        self._layers = sorted(strongest)
        self._scores.append(torch.stack([self._score(run, said, strongest[layer]) for layer in self._layers]))
        return True

    def _listen(self, run: NeedleRun) -> tuple[list[int], dict[int, Tensor]]:
        """The model's own answer, watched at each token."""
        steps: list[dict[int, Tensor]] = []

        def before_step() -> None:
            self._rows, self._strongest = slice(None), {}
            steps.append(self._strongest)

        try:
            said = greedy_answer(self.model, run, self.options.max_new_tokens, before_step)
        finally:
            self._rows = None
        return said, {layer: torch.cat([step[layer] for step in steps], dim=1) for layer in steps[0]}

    def _teach(self, run: NeedleRun) -> tuple[list[int], dict[int, Tensor]]:
        """What the model would say next at each token of the right answer."""
        device, asked = next(self.model.parameters()).device, len(run.prompt)
        text = torch.cat([run.prompt, torch.tensor(run.answer[:-1], dtype=torch.long)]).to(device)[None]
        self._rows, self._strongest = slice(asked - 1, asked - 1 + len(run.answer)), {}
        try:
            outputs = self.model(input_ids=text, use_cache=False)
        finally:
            self._rows = None
        return outputs.logits[0, asked - 1 :].argmax(-1).tolist(), self._strongest

    def _score(self, run: NeedleRun, said: Sequence[int], strongest: Tensor) -> Tensor:
        """Share of the needle that each head copied; ``strongest`` is ``(H, steps)``."""
        start, end = run.span
        text = run.prompt.tolist()
        scores = torch.zeros(strongest.shape[0])
        for head, places in enumerate(strongest.tolist()):
            hits = [
                place
                for place, token in zip(places, said, strict=True)
                if start <= place < end and text[place] == token
            ]
            copied: Iterable[int] = hits
            size = end - start
            if self.options.dedupe == "position":
                copied = set(hits)
            elif self.options.dedupe == "token":
                copied, size = {text[place] for place in hits}, len(set(text[start:end]))
            scores[head] = len(list(copied)) / size
        return scores

    def scores(self) -> Tensor:
        """``(layers, heads)``: the mean over right answers.

        Raises:
            OptionError: no answer was right.
        """
        if not self._scores:
            raise OptionError(
                f"retrieval_heads: none of {self.asked} answers was right, so no head can be scored; ask questions "
                "that the model can answer (shorter texts, or the task that it was trained on)."
            )
        return torch.stack(self._scores).mean(0)

    def ranking(self) -> list[tuple[int, int]]:
        """(layer, head), the highest score first."""
        scores = self.scores()
        order = np.argsort(-scores.flatten().numpy(), kind="stable")
        heads = scores.shape[1]
        return [(self._layers[place // heads], int(place % heads)) for place in order.tolist()]

    def records(self) -> Sequence[Mapping[str, Any]]:
        if not self.asked:
            return []
        scores, all_scores = self.scores(), torch.stack(self._scores)
        return [
            {
                "layer": layer,
                "head": head,
                "score": float(scores[row, head]),
                "frequency": float((all_scores[:, row, head] > 0).double().mean()),
                "retrieval": float(scores[row, head]) >= self.options.threshold,
                "answers": len(self._scores),
                "asked": self.asked,
            }
            for row, layer in enumerate(self._layers)
            for head in range(scores.shape[1])
        ]

    def run(self, ids: Tensor) -> None:
        """Refused: a plain text asks nothing.

        Raises:
            OptionError: always.
        """
        raise OptionError("retrieval_heads needs questions, not a text: use detect with plait.probes.needles.")

    def sentence(self) -> str:
        table = self.top()
        best, found = table.iloc[0], int(table["retrieval"].sum())
        return (
            f"{found} of {len(table)} heads are retrieval heads (score of {self.options.threshold:g} or more, over "
            f"{len(self._scores)} right answers of {self.asked}); the highest is layer {best['layer']}, head "
            f"{best['head']}, with {best['score']:.2f}."
        )

    def svg(self) -> str:
        """Scores by layer and head."""
        return heat_svg(self.scores().tolist(), "Retrieval score", rows="layer", columns="head", high=1.0)
