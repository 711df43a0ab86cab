"""The four claims of "A Systematic Analysis of Hybrid Linear Attention" (2507.06457) that a laptop can try.

A claim holds or does not hold only where intervals decide it; overlapping ones, a missing part of the grid, or a
transformer that did not learn leave it inconclusive.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from plait.claims.contract import Outcome
from plait.claims.from_study import ClaimFromStudy
from plait.drawing.lines import Line, LinesFigure
from plait.drawing.style import mixer_styles
from plait.report.labels import ordered_ratios
from plait.report.series import is_transformer
from plait.statistics.comparisons import average, below, spearman
from plait.statistics.interval import Interval
from plait.study.summary import Configuration, Guard, Verdict

#: Claim (b): a mixer's loss may differ this much between ratios, as a fraction of its best loss.
LOSS_SPREAD = 0.03
#: Claim (c): the part of the gain in recall that must be there at 3:1.
GAIN_SHARE = 0.5
#: Claims (c) and (d): where a pure model recalls this much, nothing is left to gain.
CEILING = 0.98
#: Claim (d): reaching the transformer's recall means to be at most this far below it.
REACH = 0.05

#: Claim (d): the paper's two groups.
GATED_OR_DELTA = ("gated_deltanet", "deltanet", "gla", "hgrn2")
NEITHER = ("hgrn", "retnet")


_SIZE = "The transformer and six linear mixers, pure and at 7:1, 3:1 and 1:1: 8 layers of width 64, three seeds each."
_TEXT = "Language modelling: 256,000 tokens of Python source code (the interpreter's own library), BPE of 512 entries."
_PAIRS = "Recall: MQAR with 4, 8 and 14 pairs in rows of 16, 32 and 56 tokens, 400 steps of 32 rows."
_SCALE = (
    "The paper's models are a thousand times larger and saw 20 to 100 billion tokens; its recall is RULER's, here "
    "it is MQAR. "
)


@dataclass(frozen=True)
class _Table:
    """The configurations that differ in mixer and ratio only, and the transformer."""

    mixers: dict[str, dict[str, Configuration]]
    transformer: Configuration | None

    @classmethod
    def of(cls, configurations: Sequence[Configuration]) -> _Table:
        """Of several configurations that share mixer and ratio only the first counts."""
        mixers: dict[str, dict[str, Configuration]] = {}
        transformer = None
        for configuration in configurations:
            if configuration.ratio == "full":
                transformer = transformer or configuration
            else:
                mixers.setdefault(configuration.mixer, {}).setdefault(configuration.ratio, configuration)
        return cls(mixers, transformer)

    def measured(self, metric: str) -> dict[str, dict[str, Interval]]:
        """mixer -> ratio -> interval, for the configurations that have the metric."""
        table = {
            mixer: {
                ratio: configuration.metrics[metric]
                for ratio, configuration in ratios.items()
                if metric in configuration.metrics
            }
            for mixer, ratios in self.mixers.items()
        }
        return {mixer: ratios for mixer, ratios in table.items() if ratios}


class _HybridStudy(ClaimFromStudy):
    """A claim on one metric of the study.

    Attributes:
        metric: ``loss`` or ``recall``.
    """

    study = "hybrid-linear-mini"
    tracks = ("lm", "recall")
    metrics = ("loss", "recall")
    metric: ClassVar[str]

    @abstractmethod
    def compare(self, table: _Table) -> Outcome:
        """Apply the rule, whatever the transformer learnt."""

    def judge(self, configurations: Sequence[Configuration], guards: Sequence[Guard]) -> Outcome:
        table = _Table.of(configurations)
        verdict, seen = self.compare(table)
        intervals = [interval for ratios in table.measured(self.metric).values() for interval in ratios.values()]
        if any(interval.over == "samples" for interval in intervals):
            seen += " One seed: the intervals are over samples and leave out the spread between seeds."
        void = next((guard.message for guard in guards if guard.metric == "recall" and not guard.learnt), None)
        if self.metric == "recall" and void:
            return "inconclusive", f"{void} {seen}"
        return verdict, seen

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        """The metric that decides, against the ratio, a line for each mixer."""
        configurations = [
            configuration for configuration in self.configurations(data) if self.metric in configuration.metrics
        ]
        ratios = ordered_ratios(configurations)
        lines = []
        for mixer, style in mixer_styles(configuration.mixer for configuration in configurations).items():
            by_ratio = {
                configuration.ratio: configuration for configuration in configurations if configuration.mixer == mixer
            }
            values = [by_ratio[ratio].metrics[self.metric] if ratio in by_ratio else None for ratio in ratios]
            lines.append(Line(style.label, values, baseline=is_transformer(next(iter(by_ratio.values())))))
        title, bounds = {
            "loss": ("Held-out loss, nats per token", None),
            "recall": ("Recall, accuracy on MQAR", (0.0, 1.0)),
        }[self.metric]
        label = f"{title} against the ratio, by mixer"
        return LinesFigure(title, ratios, "linear layers per full layer", lines, label, bounds)


class BestPureIsNotBestHybrid(_HybridStudy):
    """Claim (a): the best mixer on its own is another than the best in a hybrid."""

    metric = "loss"
    sentence = "The mixer that is best on its own is not the mixer that is best in a hybrid."
    published = (
        "Average of six language tasks, both scales: pure, Gated DeltaNet .487 before HGRN2 .486; at 6:1, "
        "HGRN2 .494 before HGRN .486 and Gated DeltaNet .481 (single runs)."
    )
    rule = (
        "On the held-out loss, each mixer pure and at its best ratio. Holds if the best pure mixer is another "
        "than the best hybrid's, its pure loss lies below the other's and its hybrid loss above, intervals apart. "
        "Does not hold if one mixer leads both, apart from all others."
    )
    experiment = (
        _SIZE,
        _TEXT,
        "Compared: each mixer on its own, and each at its best ratio.",
        "Measured: held-out loss, with 95 % intervals over seeds.",
    )
    change = _SCALE + (
        "More seeds or more text narrow the intervals, which overlap among the best three mixers; more seeds can only "
        "decide the claim, not reverse it, unless the order of the means changes too."
    )

    def compare(self, table: _Table) -> Outcome:
        losses = table.measured("loss")
        pure = {mixer: ratios["pure"] for mixer, ratios in losses.items() if "pure" in ratios}
        hybrid = {}
        for mixer, ratios in losses.items():
            mixed = [(loss.mean, ratio) for ratio, loss in ratios.items() if ratio != "pure"]
            if mixed:
                hybrid[mixer] = (ratios[min(mixed)[1]], min(mixed)[1])
        common = [mixer for mixer in pure if mixer in hybrid]
        if len(common) < 2:
            return "inconclusive", "Needs the loss of two mixers, each pure and in a hybrid."
        first = min(common, key=lambda mixer: pure[mixer].mean)
        second = min(common, key=lambda mixer: hybrid[mixer][0].mean)
        hybrid_loss, ratio = hybrid[second]
        seen = (
            f"Best pure: {first}, loss {_span(pure[first])}. Best hybrid: {second} {ratio}, loss {_span(hybrid_loss)}."
        )
        if first != second:
            seen += f" {second} pure has {_span(pure[second])}, {first} at its best ratio {_span(hybrid[first][0])}."
            swapped = below(pure[first], pure[second]) and below(hybrid_loss, hybrid[first][0])
            return ("holds" if swapped else "inconclusive"), seen
        others = [mixer for mixer in common if mixer != first]
        ahead = all(below(pure[first], pure[mixer]) and below(hybrid_loss, hybrid[mixer][0]) for mixer in others)
        return ("does not hold" if ahead else "inconclusive"), seen


class LossHardlyDependsOnRatio(_HybridStudy):
    """Claim (b): language modelling is stable over ratios."""

    metric = "loss"
    sentence = "Language modelling hardly depends on the ratio of linear to full layers."
    published = "Average of six language tasks over all mixers: 24:1 .476, 12:1 .478, 6:1 .480, 3:1 .479, pure .472."
    rule = (
        "Per mixer, the worst ratio's loss over the best ratio's. Holds if the spread, at the ends of the "
        f"intervals, stays under {LOSS_SPREAD:.0%} for every mixer. Does not hold if it surely is "
        f"{LOSS_SPREAD:.0%} or more for one."
    )
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

    def compare(self, table: _Table) -> Outcome:
        verdicts: list[Verdict] = []
        parts = []
        for mixer, ratios in table.measured("loss").items():
            if len(ratios) < 2:
                continue
            best, worst = (pick(ratios.values(), key=lambda loss: loss.mean) for pick in (min, max))
            spread = (worst.mean - best.mean) / best.mean
            least, most = max(0.0, worst.low - best.high) / best.mean, (worst.high - best.low) / best.mean
            parts.append(f"{mixer} {spread:.1%} ({least:.1%} to {most:.1%})")
            if "none" in (best.over, worst.over):
                verdicts.append("inconclusive")
            else:
                verdicts.append(
                    "holds" if most < LOSS_SPREAD else "does not hold" if least >= LOSS_SPREAD else "inconclusive"
                )
        if not verdicts:
            return "inconclusive", "Needs the loss of a mixer at two ratios."
        seen = f"Spread of the loss over ratios: {', '.join(parts)}."
        if "does not hold" in verdicts:
            return "does not hold", seen
        return ("holds" if set(verdicts) == {"holds"} else "inconclusive"), seen


class RecallGrowsWithFullLayers(_HybridStudy):
    """Claim (c): recall improves with more full layers, most of it below 3:1."""

    metric = "recall"
    sentence = "Recall improves with more full-attention layers, and most of the gain is there at 3:1."
    published = (
        "RULER average, 1.3B, four mixers: pure .256, 24:1 .338, 12:1 .340, 6:1 .390, 3:1 .397 "
        "(no ratio under 3:1 was trained)."
    )
    rule = (
        f"Mean recall over the mixers. Holds if 3:1 lies above pure, intervals apart, has at least "
        f"{GAIN_SHARE:.0%} of the gain from pure to the hybrid with most full layers, and recall ranks with the "
        "number of full layers. Does not hold if recall falls, or if that part surely is smaller. "
        f"Pure at {CEILING} or more leaves nothing to tell."
    )
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

    def compare(self, table: _Table) -> Outcome:
        recalls = table.measured("recall")
        needed = ("pure", "3:1")
        mixers = [mixer for mixer, ratios in recalls.items() if all(ratio in ratios for ratio in needed)]
        if not mixers:
            return "inconclusive", "Needs the recall of a mixer pure and at 3:1."
        shared = [ratio for ratio in recalls[mixers[0]] if all(ratio in recalls[mixer] for mixer in mixers)]
        mean = {ratio: average([recalls[mixer][ratio] for mixer in mixers]) for ratio in shared}
        count = {ratio: table.mixers[mixers[0]][ratio].n_full for ratio in shared}
        order = sorted(shared, key=lambda ratio: count[ratio])
        pure, three, top = mean["pure"], mean["3:1"], mean[order[-1]]
        ranks = spearman([count[ratio] for ratio in order], [mean[ratio].mean for ratio in order])
        seen = f"Mean recall over {len(mixers)} mixers: " + ", ".join(f"{r} {_span(mean[r])}" for r in order) + "."
        if ranks is not None:
            seen += f" Rank correlation with the number of full layers: {ranks:.2f}."
        if pure.mean >= CEILING:
            seen += " The pure models already recall nearly everything: the task is too easy to tell."
            return "inconclusive", seen
        if below(top, pure) or below(three, pure):
            return "does not hold", seen
        if not below(pure, three):
            gains_later = below(pure, top) and below(three, top)
            return ("does not hold" if gains_later and _late(pure, three, top) else "inconclusive"), seen
        if _late(pure, three, top):
            return "does not hold", seen
        early = three.mean - pure.mean >= GAIN_SHARE * (top.mean - pure.mean)
        return ("holds" if early and ranks is not None and ranks > 0 else "inconclusive"), seen


class GatesReachTheTransformer(_HybridStudy):
    """Claim (d): gated and delta mixers reach the transformer's recall at 3:1, HGRN and RetNet do not."""

    metric = "recall"
    sentence = "At 3:1, gated and delta-rule mixers reach the transformer's recall; HGRN and RetNet do not."
    published = (
        "RULER average, 1.3B, at 3:1: Gated DeltaNet .436, DeltaNet .426, HGRN2 .395, GLA .332, "
        "Transformer .423; RetNet and HGRN near zero at every ratio. GLA's own figure stays below."
    )
    rule = (
        f"Reaching is an interval that stays above the transformer's mean minus {REACH}; falling short is one "
        "below the transformer's interval and below that line. Holds if every gated or delta mixer of the grid "
        "reaches, and HGRN and RetNet fall short. Does not hold if one surely does the opposite."
    )
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

    def compare(self, table: _Table) -> Outcome:
        recalls = {mixer: ratios["3:1"] for mixer, ratios in table.measured("recall").items() if "3:1" in ratios}
        target = table.transformer.metrics.get("recall") if table.transformer else None
        able, unable = ([mixer for mixer in group if mixer in recalls] for group in (GATED_OR_DELTA, NEITHER))
        if target is None or not able or not unable:
            return "inconclusive", "Needs the transformer, a gated or delta mixer, and HGRN or RetNet, each at 3:1."
        listed = ", ".join(f"{mixer} {_span(recalls[mixer])}" for mixer in able + unable)
        seen = f"Transformer {_span(target)}. At 3:1: {listed}."
        if "none" in (target.over, *(recall.over for recall in recalls.values())):
            return "inconclusive", seen
        reached = {mixer: recalls[mixer].low >= target.mean - REACH for mixer in able + unable}
        short = {
            mixer: recalls[mixer].high < target.mean - REACH and below(recalls[mixer], target)
            for mixer in able + unable
        }
        if any(short[mixer] for mixer in able) or any(reached[mixer] for mixer in unable):
            return "does not hold", seen
        sure = all(reached[mixer] for mixer in able) and all(short[mixer] for mixer in unable)
        return ("holds" if sure else "inconclusive"), seen


def _late(pure: Interval, three: Interval, top: Interval) -> bool:
    """Whether even the largest gain that the intervals allow at 3:1 is too small a part of the smallest in all."""
    return three.high - pure.low < GAIN_SHARE * (top.low - pure.high)


def _span(interval: Interval) -> str:
    text = f"{interval.mean:.3f}"
    return text if interval.over == "none" else f"{text} ({interval.low:.3f} to {interval.high:.3f})"
