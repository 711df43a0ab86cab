"""The four claims of "A Systematic Analysis of Hybrid Linear Attention" (2507.06457) that a laptop can try.

Their rules stand in :mod:`plait.study.claims`, since every study's report applies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from plait.claims.contract import Outcome
from plait.claims.from_study import ClaimFromStudy
from plait.drawing.lines import Line, LinesFigure
from plait.drawing.style import mixer_styles
from plait.report.labels import ordered_ratios
from plait.report.series import is_transformer
from plait.study.claims import STUDY_CLAIMS, paper_claims
from plait.study.summary import Configuration, Guard

_SIZE = "The transformer and six linear mixers, pure and at 7:1, 3:1 and 1:1: 8 layers of width 64, three seeds each."
_TEXT = "Language modelling: 256,000 tokens of Python source code (the interpreter's own library), BPE of 512 entries."
_PAIRS = "Recall: MQAR with 4, 8 and 14 pairs in rows of 16, 32 and 56 tokens, 400 steps of 32 rows."
_SCALE = (
    "The paper's models are a thousand times larger and saw 20 to 100 billion tokens; its recall is RULER's, here "
    "it is MQAR. "
)


class _HybridStudy(ClaimFromStudy):
    study = "hybrid-linear-mini"
    tracks = ("lm", "recall")
    metrics = ("loss", "recall")
    name: ClassVar[str]
    shown: ClassVar[str]

    def judge(self, configurations: Sequence[Configuration], guards: Sequence[Guard]) -> Outcome:
        judged = next(one for one in paper_claims(configurations, guards) if one.name == self.name)
        return judged.verdict, judged.seen

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        """The metric that decides, against the ratio, a line for each mixer."""
        configurations = [one for one in self.configurations(data) if self.shown in one.metrics]
        ratios = ordered_ratios(configurations)
        lines = []
        for mixer, style in mixer_styles(one.mixer for one in configurations).items():
            found = {one.ratio: one for one in configurations if one.mixer == mixer}
            values = [found[ratio].metrics[self.shown] if ratio in found else None for ratio in ratios]
            lines.append(Line(style.label, values, baseline=is_transformer(next(iter(found.values())))))
        title, bounds = {
            "loss": ("Held-out loss, nats per token", None),
            "recall": ("Recall, accuracy on MQAR", (0.0, 1.0)),
        }[self.shown]
        label = f"{title} against the ratio, by mixer"
        return LinesFigure(title, ratios, "linear layers per full layer", lines, label, bounds)


def _texts(name: str) -> tuple[str, str, str]:
    claim = STUDY_CLAIMS[name]
    return claim.sentence, claim.published, claim.rule


class BestPureIsNotBestHybrid(_HybridStudy):
    """Claim (a): the best mixer on its own is another than the best in a hybrid."""

    name, shown = "best-pure-is-not-best-hybrid", "loss"
    sentence, published, rule = _texts(name)
    experiment = (
        _SIZE,
        _TEXT,
        "Compared: each mixer on its own, and each at its best ratio.",
        "Measured: held-out loss, with 95 % intervals over seeds.",
    )
    change = _SCALE + (
        "More seeds or more text narrow the intervals, which overlap among the best three mixers; more seeds can only "
        "decide the claim, not turn it, unless the order of the means changes too."
    )


class LossHardlyDependsOnRatio(_HybridStudy):
    """Claim (b): language modelling is stable over ratios."""

    name, shown = "loss-hardly-depends-on-ratio", "loss"
    sentence, published, rule = _texts(name)
    experiment = (
        _SIZE,
        _TEXT,
        "Compared: the ratios of one mixer.",
        "Measured: held-out loss; its spread over ratios.",
    )
    change = _SCALE + (
        "The intervals of three seeds are wider than the rule's 3 % for most mixers: five seeds would decide. DeltaNet "
        "alone, without a gate and at this learning rate, is far from the others; its own rate may change that."
    )


class RecallGrowsWithFullLayers(_HybridStudy):
    """Claim (c): recall improves with more full layers, most of it below 3:1."""

    name, shown = "recall-grows-with-full-layers", "recall"
    sentence, published, rule = _texts(name)
    experiment = (
        _SIZE,
        _PAIRS,
        "Compared: the mean over mixers at each ratio.",
        "Measured: share of asked keys whose value is the most likely token.",
    )
    change = _SCALE + (
        "At this size most pure mixers recall all pairs and HGRN and HGRN2 hardly any, so the mean moves little: a "
        "task that a pure mixer of this size half solves (more pairs than its state holds) would tell more."
    )


class GatesReachTheTransformer(_HybridStudy):
    """Claim (d): gated and delta mixers reach the transformer's recall at 3:1, HGRN and RetNet do not."""

    name, shown = "gates-reach-the-transformer", "recall"
    sentence, published, rule = _texts(name)
    experiment = (
        _SIZE,
        _PAIRS,
        "Compared: each mixer at 3:1 with the transformer.",
        "Measured: share of asked keys whose value is the most likely token.",
    )
    change = _SCALE + (
        "Every mixer has short convolutions here, the paper's RetNet has none: those alone can carry a pair of "
        "neighbours. HGRN2 misses its recall at this learning rate and length of training; more steps may let it reach."
    )
