"""What exists: one line per method. Nothing is imported until a method is used.

Another package adds its own methods through the entry-point group ``plait.methods``; each entry point
names a :class:`Method` or a list of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from plait.errors import CatalogError, nearest


@dataclass(frozen=True)
class Method:
    """One method of the catalogue.

    Args:
        name: the name users write in configurations.
        kind: ``mixer``, ``task`` (of token ids), ``benchmark`` (of prompts); later ``policy``, ``recipe`` and others.
        target: ``module:Class``, imported on first use.
        title: the method's name in the literature.
        paper: arXiv number.
        state: ``constant`` if the decoding state does not grow with the context, ``bounded`` if it grows until a window
            is full, else ``grows``.
        notes: what the method cannot do, for the common tests and for readers.
    """

    name: str
    kind: str
    target: str
    title: str
    paper: str
    state: str = ""
    notes: str = ""

    def load(self) -> Any:
        """Import and return the class."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


_METHODS = [
    # name, kind, target, title, paper, state
    Method("attention", "mixer", "plait.mixers.attention:Attention", "Softmax attention", "1706.03762", "grows"),
    Method("retnet", "mixer", "plait.mixers.retnet:RetNet", "RetNet", "2307.08621", "constant"),
    Method("hgrn", "mixer", "plait.mixers.hgrn:HGRN", "HGRN", "2311.04823", "constant"),
    Method("hgrn2", "mixer", "plait.mixers.hgrn2:HGRN2", "HGRN2", "2404.07904", "constant"),
    Method("gla", "mixer", "plait.mixers.gla:GLA", "Gated Linear Attention", "2312.06635", "constant"),
    Method("deltanet", "mixer", "plait.mixers.deltanet:DeltaNet", "DeltaNet", "2406.06484", "constant"),
    Method(
        "gated_deltanet",
        "mixer",
        "plait.mixers.gated_deltanet:GatedDeltaNet",
        "Gated DeltaNet",
        "2412.06464",
        "constant",
    ),
    Method("kda", "mixer", "plait.mixers.kda:KDA", "Kimi Delta Attention", "2510.26692", "constant"),
    Method("mla", "mixer", "plait.mixers.mla:MLA", "Multi-head latent attention", "2405.04434", "grows"),
    Method("lightning", "mixer", "plait.mixers.lightning:Lightning", "Lightning attention", "2602.11761", "constant"),
    Method("lizard", "mixer", "plait.mixers.lizard:Lizard", "Lizard", "2507.09025", "bounded"),
    Method("halo", "recipe", "plait.conversion.halo:Halo", "HALO", "2601.22156"),
    Method("lizard", "recipe", "plait.conversion.lizard:Lizard", "Lizard", "2507.09025"),
    Method(
        "sliding_window",
        "recipe",
        "plait.conversion.sliding_window:SlidingWindow",
        "Sliding window attention",
        "2512.10411",
    ),
    Method("dense", "policy", "plait.runtime.dense:Dense", "Dense attention", "1706.03762", "grows"),
    Method("streaming", "policy", "plait.policies.streaming:Streaming", "StreamingLLM", "2309.17453", "constant"),
    Method(
        "vertical_slash",
        "policy",
        "plait.policies.vertical_slash:VerticalSlash",
        "Vertical-Slash (MInference)",
        "2407.02490",
        "grows",
    ),
    Method("flex_prefill", "policy", "plait.policies.flex_prefill:FlexPrefill", "FlexPrefill", "2502.20766", "grows"),
    Method("block_sparse", "policy", "plait.policies.block_sparse:BlockSparse", "Block-sparse", "2407.02490", "grows"),
    Method("quest", "policy", "plait.policies.quest:Quest", "Quest", "2406.10774", "grows"),
    Method("snapkv", "policy", "plait.policies.snapkv:SnapKV", "SnapKV", "2404.14469", "grows"),
    Method("ada_snapkv", "policy", "plait.policies.ada_snapkv:AdaSnapKV", "Ada-SnapKV", "2407.11550", "grows"),
    Method("h2o", "policy", "plait.policies.h2o:H2O", "H2O", "2306.14048", "constant"),
    Method("tova", "policy", "plait.policies.tova:Tova", "TOVA", "2401.06104", "constant"),
    Method("recycled", "policy", "plait.policies.recycled:Recycled", "Recycled Attention", "2411.05787", "grows"),
    Method(
        "duo_attention", "policy", "plait.policies.duo_attention:DuoAttention", "DuoAttention", "2410.10819", "grows"
    ),
    Method(
        "prefill_decode", "policy", "plait.policies.combined:PrefillDecode", "One for prefill, one for decoding", ""
    ),
    Method("per_layer", "policy", "plait.policies.combined:PerLayer", "One for each layer", ""),
    Method("mqar", "task", "plait.data.tasks.mqar:MQAR", "Multi-query associative recall", "2312.04927"),
    Method("lag", "task", "plait.data.tasks.lag:Lag", "Lag", "Jaeger 2002"),
    Method("key_value", "task", "plait.data.tasks.key_value:KeyValueRetrieval", "Key-value retrieval", "2307.03172"),
    Method("niah", "task", "plait.data.tasks.niah:NeedleInHaystack", "Needle in a haystack", "2404.06654"),
    Method("niah_multikey", "task", "plait.data.tasks.niah:MultiKey", "Needles, several keys", "2404.06654"),
    Method("niah_multiquery", "task", "plait.data.tasks.niah:MultiQuery", "Needles, several queries", "2404.06654"),
    Method("niah_multivalue", "task", "plait.data.tasks.niah:MultiValue", "Needles, several values", "2404.06654"),
    Method(
        "variable_tracking",
        "task",
        "plait.data.tasks.variable_tracking:VariableTracking",
        "Variable tracking",
        "2404.06654",
    ),
    Method("parity", "task", "plait.data.tasks.state_tracking:Parity", "Parity", "2207.02098"),
    Method(
        "cycle_navigation",
        "task",
        "plait.data.tasks.state_tracking:CycleNavigation",
        "Cycle navigation",
        "2207.02098",
    ),
    Method(
        "modular_arithmetic",
        "task",
        "plait.data.tasks.state_tracking:ModularArithmetic",
        "Modular arithmetic",
        "2207.02098",
    ),
    Method(
        "word_problem",
        "task",
        "plait.data.tasks.word_problems:WordProblem",
        "Word problems of groups",
        "2404.08819",
    ),
    Method(
        "mad_in_context_recall",
        "task",
        "plait.data.tasks.mad.recall:InContextRecall",
        "MAD: in-context recall",
        "2403.17844",
    ),
    Method(
        "mad_fuzzy_recall", "task", "plait.data.tasks.mad.fuzzy_recall:FuzzyRecall", "MAD: fuzzy recall", "2403.17844"
    ),
    Method("mad_noisy_recall", "task", "plait.data.tasks.mad.recall:NoisyRecall", "MAD: noisy recall", "2403.17844"),
    Method(
        "mad_selective_copying",
        "task",
        "plait.data.tasks.mad.selective_copying:SelectiveCopying",
        "MAD: selective copying",
        "2403.17844",
    ),
    Method("mad_compression", "task", "plait.data.tasks.mad.compression:Compression", "MAD: compression", "2403.17844"),
    Method(
        "mad_memorization", "task", "plait.data.tasks.mad.memorization:Memorization", "MAD: memorization", "2403.17844"
    ),
    Method("list_ops", "task", "plait.data.tasks.list_ops:ListOps", "ListOps", "2011.04006"),
    Method("pixels", "task", "plait.data.tasks.pixels:Pixels", "Pixel sequences", "2011.04006"),
    Method(
        "niah_single_1",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHSingle1",
        "RULER, one number in noise",
        "2404.06654",
    ),
    Method(
        "niah_single_2",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHSingle2",
        "RULER, one number in essays",
        "2404.06654",
    ),
    Method(
        "niah_single_3",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHSingle3",
        "RULER, one UUID in essays",
        "2404.06654",
    ),
    Method(
        "niah_multikey_1",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultikey1",
        "RULER, one of four keys",
        "2404.06654",
    ),
    Method(
        "niah_multikey_2",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultikey2",
        "RULER, needles only, numbers",
        "2404.06654",
    ),
    Method(
        "niah_multikey_3",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultikey3",
        "RULER, needles only, UUIDs",
        "2404.06654",
    ),
    Method(
        "niah_multivalue",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultivalue",
        "RULER, four values",
        "2404.06654",
    ),
    Method(
        "niah_multiquery",
        "benchmark",
        "plait.benchmarks.ruler.niah:NIAHMultiquery",
        "RULER, four keys",
        "2404.06654",
    ),
    Method(
        "vt",
        "benchmark",
        "plait.benchmarks.ruler.variable_tracking:VariableTracking",
        "RULER, variable tracking",
        "2404.06654",
    ),
    Method(
        "cwe",
        "benchmark",
        "plait.benchmarks.ruler.common_words:CommonWords",
        "RULER, common words",
        "2404.06654",
    ),
    Method(
        "fwe",
        "benchmark",
        "plait.benchmarks.ruler.frequent_words:FrequentWords",
        "RULER, frequent words",
        "2404.06654",
    ),
    Method("qa_1", "benchmark", "plait.benchmarks.ruler.question_answering:QA1", "RULER, SQuAD", "2404.06654"),
    Method("qa_2", "benchmark", "plait.benchmarks.ruler.question_answering:QA2", "RULER, HotpotQA", "2404.06654"),
    Method("passkey", "benchmark", "plait.benchmarks.passkey:Passkey", "Passkey retrieval", "2305.16300"),
    Method("needle", "benchmark", "plait.benchmarks.needle:Needle", "Needle in a haystack, grid", ""),
    Method(
        "json_retrieval",
        "benchmark",
        "plait.benchmarks.key_value_words:KeyValueWords",
        "Key-value retrieval from JSON",
        "2307.03172",
    ),
    Method("fda", "benchmark", "plait.benchmarks.based_recall:FDA", "FDA", "2402.18668"),
    Method("swde", "benchmark", "plait.benchmarks.based_recall:SWDE", "SWDE", "2402.18668"),
    Method(
        "squad_completion",
        "benchmark",
        "plait.benchmarks.based_recall:SquadCompletion",
        "SQuAD as completion",
        "2402.18668",
    ),
    Method(
        "xquad_completion",
        "benchmark",
        "plait.benchmarks.based_recall:XQuADCompletion",
        "XQuAD as completion",
        "1910.11856",
    ),
    Method("records", "benchmark", "plait.benchmarks.records:Records", "Made-up records", "2402.18668"),
    Method("longbench", "benchmark", "plait.benchmarks.longbench:LongBench", "LongBench", "2308.14508"),
    Method("retrieval_heads", "probe", "plait.probes.retrieval_heads:RetrievalHeads", "Retrieval heads", "2404.15574"),
    Method("attention_sinks", "probe", "plait.probes.attention_sinks:AttentionSinks", "Attention sinks", "2410.10781"),
    Method(
        "attention_entropy",
        "probe",
        "plait.probes.attention_entropy:AttentionEntropy",
        "Attention entropy",
        "2303.06296",
    ),
    Method(
        "logit_growth", "probe", "plait.probes.logit_growth:LogitGrowth", "Growth of attention logits", "2501.19399"
    ),
    Method(
        "secondary_sinks",
        "probe",
        "plait.probes.secondary_sinks:SecondarySinks",
        "Secondary attention sinks",
        "2512.22213",
    ),
    Method("state_norms", "probe", "plait.probes.state_norms:StateNorms", "Norms of recurrent states", ""),
    Method(
        "best_pure_is_not_best_hybrid",
        "claim",
        "plait.claims.hybrid_study:BestPureIsNotBestHybrid",
        "The best pure mixer is not the best in a hybrid",
        "2507.06457",
    ),
    Method(
        "loss_hardly_depends_on_ratio",
        "claim",
        "plait.claims.hybrid_study:LossHardlyDependsOnRatio",
        "The loss hardly depends on the ratio",
        "2507.06457",
    ),
    Method(
        "recall_grows_with_full_layers",
        "claim",
        "plait.claims.hybrid_study:RecallGrowsWithFullLayers",
        "Recall grows with full layers",
        "2507.06457",
    ),
    Method(
        "gates_reach_the_transformer",
        "claim",
        "plait.claims.hybrid_study:GatesReachTheTransformer",
        "Gated and delta mixers reach the transformer",
        "2507.06457",
    ),
    Method(
        "recall_grows_with_the_state",
        "claim",
        "plait.claims.state_size:RecallGrowsWithTheState",
        "Recall grows with the state",
        "2402.18668",
    ),
    Method(
        "retrieval_heads_are_sparse",
        "claim",
        "plait.claims.retrieval:RetrievalHeadsAreSparse",
        "Retrieval heads are sparse",
        "2404.15574",
    ),
    Method(
        "retrieval_heads_are_causal",
        "claim",
        "plait.claims.retrieval:RetrievalHeadsAreCausal",
        "Retrieval heads are causal",
        "2404.15574",
    ),
    Method(
        "sinks_keep_a_window_alive",
        "claim",
        "plait.claims.window_sinks:SinksKeepAWindowAlive",
        "Sinks keep a window alive",
        "2309.17453",
    ),
    Method(
        "a_fraction_of_heads_suffices",
        "claim",
        "plait.claims.duo:AFractionOfHeadsSuffices",
        "A fraction of the heads suffices",
        "2410.10819",
    ),
    Method(
        "chosen_layers_beat_even_ones",
        "claim",
        "plait.claims.halo:ChosenLayersBeatEvenOnes",
        "Chosen layers beat even ones",
        "2601.22156",
    ),
]


@cache
def _all() -> dict[tuple[str, str], Method]:
    methods = list(_METHODS)
    for entry in entry_points(group="plait.methods"):
        found = entry.load()
        methods.extend(found if isinstance(found, list) else [found])
    table: dict[tuple[str, str], Method] = {}
    for method in methods:
        key = (method.kind, method.name)
        if key in table:
            raise CatalogError(
                f"Two methods of kind {method.kind!r} are named {method.name!r} "
                f"({table[key].target} and {method.target}); rename one in its entry point."
            )
        table[key] = method
    return table


def methods(kind: str | None = None) -> list[Method]:
    """All methods, or those of one kind, in catalogue order."""
    return [method for method in _all().values() if kind is None or method.kind == kind]


def names(kind: str) -> list[str]:
    """Names of all methods of one kind, in catalogue order."""
    return [method.name for method in methods(kind)]


def get(name: str, kind: str = "mixer") -> Method:
    """The method of this name; :class:`~plait.errors.CatalogError` with the nearest name otherwise."""
    try:
        return _all()[kind, name]
    except KeyError:
        raise CatalogError(f"There is no {kind} named {name!r}.{nearest(name, names(kind))}") from None


def name_of(target: type, kind: str) -> str:
    """The catalogue's name of a class; the class's own name where it is not listed."""
    place = f"{target.__module__}:{target.__qualname__}"
    return next((method.name for method in methods(kind) if method.target == place), target.__name__)
