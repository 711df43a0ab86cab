"""What the study of hybrid linear attention (2507.06457) claims, each with a rule that decides from intervals.

A rule is fixed here, before any study runs. A claim holds or does not hold only where intervals decide it;
overlapping ones, a missing part of the grid, or a transformer that did not learn leave it inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plait.statistics.comparisons import average, below, spearman
from plait.statistics.interval import Interval
from plait.study.summary import Configuration, Guard, PaperClaim, Verdict

#: Claim (b): a mixer's loss may differ this much between ratios, as a fraction of its best loss.
LOSS_SPREAD = 0.03
#: Claim (c): the part of the gain in recall that must be there at 3:1.
GAIN_SHARE = 0.5
#: Claims (c) and (d): where a pure model recalls this much, nothing is left to gain.
CEILING = 0.98
#: Claim (d): reaching the transformer's recall means to be at most this far below it.
REACH = 0.05

GATED_OR_DELTA = ("gated_deltanet", "deltanet", "gla", "hgrn2")
NEITHER = ("hgrn", "retnet")

Outcome = tuple[Verdict, str]


@dataclass(frozen=True)
class _Grid:
    """The configurations that differ in mixer and ratio only, and the transformer."""

    mixers: dict[str, dict[str, Configuration]]
    transformer: Configuration | None

    def measured(self, metric: str) -> dict[str, dict[str, Interval]]:
        """mixer -> ratio -> interval, for the configurations that have the metric."""
        table = {
            mixer: {ratio: one.metrics[metric] for ratio, one in ratios.items() if metric in one.metrics}
            for mixer, ratios in self.mixers.items()
        }
        return {mixer: ratios for mixer, ratios in table.items() if ratios}


def paper_claims(configurations: Sequence[Configuration], guards: Sequence[Guard]) -> list[PaperClaim]:
    """The four claims with their verdicts.

    Args:
        configurations: of the study; of several that share mixer and ratio only the first counts.
        guards: recall decides nothing where its guard says "not learnt".
    """
    mixers: dict[str, dict[str, Configuration]] = {}
    transformer = None
    for one in configurations:
        if one.ratio == "full":
            transformer = transformer or one
        else:
            mixers.setdefault(one.mixer, {}).setdefault(one.ratio, one)
    grid = _Grid(mixers, transformer)
    void = next((guard.message for guard in guards if guard.metric == "recall" and not guard.learnt), None)
    return [_judge(claim, grid, void) for claim in STUDY_CLAIMS.values()]


def best_pure_is_not_best_hybrid(grid: _Grid) -> Outcome:
    """Claim (a), on the loss."""
    losses = grid.measured("loss")
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
    seen = f"Best pure: {first}, loss {_span(pure[first])}. Best hybrid: {second} {ratio}, loss {_span(hybrid_loss)}."
    if first != second:
        seen += f" {second} pure has {_span(pure[second])}, {first} at its best ratio {_span(hybrid[first][0])}."
        swapped = below(pure[first], pure[second]) and below(hybrid_loss, hybrid[first][0])
        return ("holds" if swapped else "inconclusive"), seen
    others = [mixer for mixer in common if mixer != first]
    ahead = all(below(pure[first], pure[one]) and below(hybrid_loss, hybrid[one][0]) for one in others)
    return ("does not hold" if ahead else "inconclusive"), seen


def loss_hardly_depends_on_ratio(grid: _Grid) -> Outcome:
    """Claim (b)."""
    verdicts: list[Verdict] = []
    parts = []
    for mixer, ratios in grid.measured("loss").items():
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


def recall_grows_with_full_layers(grid: _Grid) -> Outcome:
    """Claim (c), on the mean over mixers."""
    recalls = grid.measured("recall")
    needed = ("pure", "3:1")
    mixers = [mixer for mixer, ratios in recalls.items() if all(ratio in ratios for ratio in needed)]
    if not mixers:
        return "inconclusive", "Needs the recall of a mixer pure and at 3:1."
    shared = [ratio for ratio in recalls[mixers[0]] if all(ratio in recalls[mixer] for mixer in mixers)]
    mean = {ratio: average([recalls[mixer][ratio] for mixer in mixers]) for ratio in shared}
    count = {ratio: grid.mixers[mixers[0]][ratio].n_full for ratio in shared}
    order = sorted(shared, key=lambda ratio: count[ratio])
    pure, three, top = mean["pure"], mean["3:1"], mean[order[-1]]
    ranks = spearman([count[ratio] for ratio in order], [mean[ratio].mean for ratio in order])
    seen = f"Mean recall over {len(mixers)} mixers: " + ", ".join(f"{r} {_span(mean[r])}" for r in order) + "."
    if ranks is not None:
        seen += f" Rank correlation with the number of full layers: {ranks:.2f}."
    if pure.mean >= CEILING:
        return "inconclusive", seen + " The pure models already recall nearly everything: the task is too easy to tell."
    if below(top, pure) or below(three, pure):
        return "does not hold", seen
    if not below(pure, three):
        gains_later = below(pure, top) and below(three, top)
        return ("does not hold" if gains_later and _late(pure, three, top) else "inconclusive"), seen
    if _late(pure, three, top):
        return "does not hold", seen
    early = three.mean - pure.mean >= GAIN_SHARE * (top.mean - pure.mean)
    return ("holds" if early and ranks is not None and ranks > 0 else "inconclusive"), seen


def _late(pure: Interval, three: Interval, top: Interval) -> bool:
    """Whether even the largest gain that the intervals allow at 3:1 is too small a part of the smallest in all."""
    return three.high - pure.low < GAIN_SHARE * (top.low - pure.high)


def gates_reach_the_transformer(grid: _Grid) -> Outcome:
    """Claim (d), at 3:1."""
    recalls = {mixer: ratios["3:1"] for mixer, ratios in grid.measured("recall").items() if "3:1" in ratios}
    target = grid.transformer.metrics.get("recall") if grid.transformer else None
    able, unable = ([mixer for mixer in group if mixer in recalls] for group in (GATED_OR_DELTA, NEITHER))
    if target is None or not able or not unable:
        return "inconclusive", "Needs the transformer, a gated or delta mixer, and HGRN or RetNet, each at 3:1."
    seen = f"Transformer {_span(target)}. At 3:1: " + ", ".join(f"{m} {_span(recalls[m])}" for m in able + unable) + "."
    if "none" in (target.over, *(one.over for one in recalls.values())):
        return "inconclusive", seen
    reached = {mixer: recalls[mixer].low >= target.mean - REACH for mixer in able + unable}
    short = {
        mixer: recalls[mixer].high < target.mean - REACH and below(recalls[mixer], target) for mixer in able + unable
    }
    if any(short[mixer] for mixer in able) or any(reached[mixer] for mixer in unable):
        return "does not hold", seen
    sure = all(reached[mixer] for mixer in able) and all(short[mixer] for mixer in unable)
    return ("holds" if sure else "inconclusive"), seen


@dataclass(frozen=True)
class StudyClaim:
    """One sentence of the paper with its rule.

    Args:
        name: of the claim.
        sentence: what the paper says.
        published: its figures.
        rule: in words.
        decide: the rule.
        recall: decided on recall; else on the loss.
    """

    name: str
    sentence: str
    published: str
    rule: str
    decide: Callable[[_Grid], Outcome]
    recall: bool


def _judge(claim: StudyClaim, grid: _Grid, void: str | None) -> PaperClaim:
    verdict, seen = claim.decide(grid)
    metric = "recall" if claim.recall else "loss"
    if any(one.over == "batches" for ratios in grid.measured(metric).values() for one in ratios.values()):
        seen += " One seed: the intervals are over evaluation batches and leave out the spread between seeds."
    if claim.recall and void:
        verdict, seen = "inconclusive", f"{void} {seen}"
    return PaperClaim(
        name=claim.name,
        sentence=claim.sentence,
        published=claim.published,
        rule=claim.rule,
        verdict=verdict,
        seen=seen,
    )


def _span(one: Interval) -> str:
    text = f"{one.mean:.3f}"
    return text if one.over == "none" else f"{text} ({one.low:.3f} to {one.high:.3f})"


_CLAIM_LIST = [
    StudyClaim(
        name="best-pure-is-not-best-hybrid",
        sentence="The mixer that is best on its own is not the mixer that is best in a hybrid.",
        published="Average of six language tasks, both scales: pure, Gated DeltaNet .487 before HGRN2 .486; at 6:1, "
        "HGRN2 .494 before HGRN .486 and Gated DeltaNet .481 (single runs).",
        rule="On the held-out loss, each mixer pure and at its best ratio. Holds if the best pure mixer is another "
        "than the best hybrid's, its pure loss lies below the other's and its hybrid loss above, intervals apart. "
        "Does not hold if one mixer leads both, apart from all others.",
        decide=best_pure_is_not_best_hybrid,
        recall=False,
    ),
    StudyClaim(
        name="loss-hardly-depends-on-ratio",
        sentence="Language modelling hardly depends on the ratio of linear to full layers.",
        published="Average of six language tasks over all mixers: 24:1 .476, 12:1 .478, 6:1 .480, 3:1 .479, pure .472.",
        rule="Per mixer, the worst ratio's loss over the best ratio's. Holds if the spread, at the ends of the "
        f"intervals, stays under {LOSS_SPREAD:.0%} for every mixer. Does not hold if it surely is "
        f"{LOSS_SPREAD:.0%} or more for one.",
        decide=loss_hardly_depends_on_ratio,
        recall=False,
    ),
    StudyClaim(
        name="recall-grows-with-full-layers",
        sentence="Recall improves with more full-attention layers, and most of the gain is there at 3:1.",
        published="RULER average, 1.3B, four mixers: pure .256, 24:1 .338, 12:1 .340, 6:1 .390, 3:1 .397 "
        "(no ratio under 3:1 was trained).",
        rule=f"Mean recall over the mixers. Holds if 3:1 lies above pure, intervals apart, has at least "
        f"{GAIN_SHARE:.0%} of the gain from pure to the hybrid with most full layers, and recall ranks with the "
        "number of full layers. Does not hold if recall falls, or if that part surely is smaller. "
        f"Pure at {CEILING} or more leaves nothing to tell.",
        decide=recall_grows_with_full_layers,
        recall=True,
    ),
    StudyClaim(
        name="gates-reach-the-transformer",
        sentence="At 3:1, gated and delta-rule mixers reach the transformer's recall; HGRN and RetNet do not.",
        published="RULER average, 1.3B, at 3:1: Gated DeltaNet .436, DeltaNet .426, HGRN2 .395, GLA .332, "
        "Transformer .423; RetNet and HGRN near zero at every ratio. GLA's own figure stays below.",
        rule=f"Reaching is an interval that stays above the transformer's mean minus {REACH}; falling short is one "
        "below the transformer's interval and below that line. Holds if every gated or delta mixer of the grid "
        "reaches, and HGRN and RetNet fall short. Does not hold if one surely does the opposite.",
        decide=gates_reach_the_transformer,
        recall=True,
    ),
]

#: By name.
STUDY_CLAIMS = {claim.name: claim for claim in _CLAIM_LIST}
