"""Probes against hand-made attention, and their contract over the catalogue."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from plait import catalog
from plait.data.tasks.niah import NeedleInHaystack
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.cache import CACHE_NAME
from plait.probes import NeedleRun, masking_experiment, probe, task_runs
from plait.probes.masking import MaskedHeads, mean_outputs
from plait.probes.needles import find_span, greedy_answer, recall
from plait.probes.retrieval_heads import RetrievalHeads
from plait.runtime.applied import Applied
from plait.runtime.call import Call
from plait.runtime.dense import Dense

HEADS, LAYERS, VOCABULARY = 4, 2, 32


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        attn_implementation="eager",
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def hybrid() -> PlaitForCausalLM:
    torch.manual_seed(0)
    config = PlaitConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        layer_types=["gated_deltanet", "attention"],
        mixers={"gated_deltanet": {"num_heads": 2}, "attention": {"num_heads": 2}},
    )
    return PlaitForCausalLM(config).eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))


def eager_weights(model: LlamaForCausalLM, ids: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(model(input_ids=ids, output_attentions=True, use_cache=False).attentions)


@pytest.mark.parametrize("name", catalog.names("probe"))
def test_a_probe_leaves_a_typed_table_a_figure_and_the_model(name: str, hybrid: PlaitForCausalLM, ids: Tensor) -> None:
    before = hybrid(input_ids=ids).logits
    measured = probe(hybrid, name)
    with pytest.raises(OptionError, match="has seen nothing yet"):
        measured.table()
    if isinstance(measured, RetrievalHeads):
        measured.detect([learnt_run(hybrid, ids[0])])
    else:
        measured.run(ids)
    table = measured.table()
    assert {column: str(kind) for column, kind in table.dtypes.items()} == dict(measured.columns)
    ET.fromstring(measured.svg())
    sentence, top = measured.sentence(), measured.top()
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "nan" not in sentence
    ranks = top[measured.ranked].tolist()
    assert ranks == sorted(ranks, reverse=True)
    assert measured.latest is None or set(top[measured.latest]) == {table[measured.latest].max()}
    assert torch.equal(hybrid(input_ids=ids).logits, before)


@pytest.mark.parametrize("name", catalog.names("probe"))
def test_a_probe_names_an_unknown_option(name: str, hybrid: PlaitForCausalLM) -> None:
    with pytest.raises(OptionError, match="has no option 'colour'"):
        probe(hybrid, name, colour="red")


def learnt_run(model: nn.Module, text: Tensor) -> NeedleRun:
    """A question whose right answer is what the model says anyway."""
    answer = greedy_answer(model, NeedleRun(text, (0, 0, 0), (0, 3)), 3)
    return NeedleRun(text, tuple(answer), (5, 8))


def test_sentences_hold_the_figures_of_the_table(hybrid: PlaitForCausalLM, ids: Tensor) -> None:
    sinks = probe(hybrid, "attention_sinks")
    sinks.run(ids)
    primary = sinks.table().query("primary")
    heads = f"{int((primary['score'] > 0.3).sum())} of {len(primary)} heads"
    assert f"gets {primary['score'].mean():.0%} of the weight" in sinks.sentence()
    assert heads in sinks.sentence()

    norms = probe(hybrid, "state_norms", step=10)
    norms.run(ids)
    table = norms.table()
    last, half = (table[table["tokens"] == at]["norm"].mean() for at in (40, 20))
    assert f"norm of {last:.3g} on average, {last / half - 1:+.0%} since 20 tokens" in norms.sentence()

    entropy = probe(hybrid, "attention_entropy")
    entropy.run(ids)
    shares = torch.tensor(entropy.shares())
    assert f"reach {shares.mean():.0%} of the entropy" in entropy.sentence()
    assert f"({shares.min():.0%}), the widest" in entropy.sentence()


# ---- attention sinks


def test_sink_scores_are_column_means_of_eager_attention(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """score(k) = mean over the queries i >= k of A[i, k], whatever the block of queries."""
    measured = probe(llama, "attention_sinks", candidates=3, block=7)
    measured.run(ids)
    for layer, weights in enumerate(eager_weights(llama, ids)):
        for token in range(3):
            expected = weights[:, :, token:, token].mean(dim=(0, 2))
            torch.testing.assert_close(measured.scores()[layer, :, token].float(), expected, rtol=1e-5, atol=1e-6)


def test_uniform_attention_has_the_score_of_the_harmonic_sum(llama: LlamaForCausalLM) -> None:
    """Card's oracle: 1 / (T - k + 1) times the sum of 1 / i; weights of all keys sum to T."""
    T = 12
    zeroed = LlamaForCausalLM(llama.config).eval()
    for layer in zeroed.model.layers:
        nn.init.zeros_(layer.self_attn.q_proj.weight)
    measured = probe(zeroed, "attention_sinks", candidates=T, block=5)
    measured.run(torch.zeros(1, T, dtype=torch.long))
    expected = torch.tensor([sum(1 / i for i in range(k, T + 1)) / (T - k + 1) for k in range(1, T + 1)])
    torch.testing.assert_close(measured.scores()[0, 0].float(), expected)
    assert float((measured.scores()[0, 0] * torch.arange(T, 0, -1)).sum()) == pytest.approx(T)
    assert measured.primary == int(expected.argmax())


def test_sinks_refuse_what_they_cannot_score(llama: LlamaForCausalLM, ids: Tensor) -> None:
    with probe(llama, "attention_sinks") as measured, torch.no_grad():
        cache = llama(input_ids=ids, use_cache=True)
        with pytest.raises(OptionError, match="whole texts"):
            llama(input_ids=ids[:, :1], use_cache=True, **{CACHE_NAME: cache[CACHE_NAME]})
    with pytest.raises(OptionError, match="shorter than 2"):
        measured.run(ids[:, :1])


def test_layers_with_a_window_are_watched_within_it(ids: Tensor) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": 2, "sliding_window": 6, "initializer_range": 0.3}
    model = MistralForCausalLM(MistralConfig(**sizes, **heads, attn_implementation="eager")).eval()
    sinks, growth = probe(model, "attention_sinks"), probe(model, "logit_growth", queries=64)
    sinks.run(ids)
    growth.run(ids)
    table = growth.table()
    for layer, weights in enumerate(eager_weights(model, ids)):  # type: ignore[arg-type]
        expected = weights[:, :, :, 0].mean(dim=(0, 2))
        torch.testing.assert_close(sinks.scores()[layer, :, 0].float(), expected, rtol=1e-5, atol=1e-6)
        rows = table[(table["layer"] == layer) & (table["first"] == 16)]
        np.testing.assert_allclose(rows["largest_weight"], weights[:, :, 15:31].amax(-1).mean(dim=(0, 2)), rtol=1e-5)


# ---- logit growth


def test_log_sum_exp_and_largest_are_those_of_the_logits(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """exp(largest - log_sum_exp) is the largest weight of eager attention."""
    measured = probe(llama, "logit_growth", queries=64)
    measured.run(ids)
    table = measured.table()
    for layer, weights in enumerate(eager_weights(llama, ids)):
        for first, last in ((1, 1), (2, 3), (16, 31), (32, 63)):
            rows = table[(table["layer"] == layer) & (table["first"] == first)]
            part = weights[:, :, first - 1 : min(last, 40)].amax(-1).mean(dim=(0, 2))
            np.testing.assert_allclose(rows["largest_weight"], part, rtol=1e-5)
            assert rows["queries"].iloc[0] == 2 * (min(last, 40) - first + 1)


def test_equal_logits_grow_with_the_logarithm_of_the_context(llama: LlamaForCausalLM) -> None:
    zeroed = LlamaForCausalLM(llama.config).eval()
    for layer in zeroed.model.layers:
        nn.init.zeros_(layer.self_attn.q_proj.weight)
    measured = probe(zeroed, "logit_growth", queries=1)
    measured.run(torch.zeros(1, 33, dtype=torch.long))
    table = measured.table().query("layer == 0 and head == 0").set_index("first")
    for start in (1, 2, 4, 8, 16, 32):
        assert table.loc[start, "log_sum_exp"] == pytest.approx(np.log(start))
        assert table.loc[start, "largest"] == 0


# ---- state norms


def test_state_norms_are_those_of_the_cache(hybrid: PlaitForCausalLM, ids: Tensor) -> None:
    measured = probe(hybrid, "state_norms", step=16)
    measured.run(ids)
    table = measured.table()
    assert sorted(table["tokens"].unique()) == [16, 32, 40]
    assert set(table["layer"]) == {0}
    state = hybrid(input_ids=ids, use_cache=True)[CACHE_NAME].layers[0].state["recurrent"].value
    expected = state.flatten(2).norm(dim=2).mean(0)
    np.testing.assert_allclose(table[table["tokens"] == 40]["norm"], expected.tolist(), rtol=1e-4)


def test_state_norms_need_states(llama: LlamaForCausalLM, ids: Tensor) -> None:
    with pytest.raises(OptionError, match="LlamaForCausalLM is none"):
        probe(llama, "state_norms").run(ids)


# ---- retrieval heads


class Script:
    """A model that says fixed tokens while chosen heads look at fixed positions."""

    def __init__(self, said: list[int], looks: dict[tuple[int, int], list[int]]) -> None:
        self.said, self.looks = said, looks

    def scores(self, run: NeedleRun, **options: Any) -> Tensor:
        measured = RetrievalHeads(nn.Linear(1, 1), RetrievalHeads.Options(**options))
        strongest = torch.full((HEADS, len(self.said)), -1)
        for (_, head), places in self.looks.items():
            strongest[head] = torch.tensor(places)
        return measured._score(run, self.said, strongest)


PROMPT = torch.tensor([9, 1, 2, 3, 7, 2, 8])
NEEDLE = NeedleRun(PROMPT, (1, 2, 3), (1, 4))


def test_a_head_that_copies_the_needle_scores_one_and_others_nothing() -> None:
    looks = {
        (0, 0): [1, 2, 3],  # the tokens themselves
        (0, 1): [0, 1, 2],  # one to the left
        (0, 2): [5, 5, 5],  # the same token, outside of the needle
        (0, 3): [1, 1, 1],  # the needle, but the right token only once
    }
    torch.testing.assert_close(Script([1, 2, 3], looks).scores(NEEDLE), torch.tensor([1.0, 0.0, 0.0, 1 / 3]))


def test_looking_at_the_needle_while_saying_something_else_scores_nothing() -> None:
    assert Script([4, 4, 4], {(0, 0): [1, 2, 3]}).scores(NEEDLE)[0] == 0


def test_repeated_tokens_count_as_the_option_says() -> None:
    twice = Script([1, 2, 3, 1, 2, 3], {(0, 0): [1, 2, 3, 1, 2, 3]})
    assert [float(twice.scores(NEEDLE, dedupe=kind)[0]) for kind in ("position", "token", "none")] == [1, 1, 2]
    double = NeedleRun(torch.tensor([9, 1, 1, 7]), (1, 1), (1, 3))
    once = Script([1, 1], {(0, 0): [1, 1]})
    assert [float(once.scores(double, dedupe=kind)[0]) for kind in ("position", "token", "none")] == [0.5, 1, 1]


def test_one_row_is_the_last_row_of_eager_attention(llama: LlamaForCausalLM, ids: Tensor) -> None:
    """Watched while decoding: the strongest position of each head is that of the full attention matrix."""
    seen: dict[int, Tensor] = {}
    measured = RetrievalHeads(llama)
    run = NeedleRun(ids[0], (0,), (1, 2))

    def keep() -> None:
        measured._rows, measured._strongest = slice(None), seen

    with measured, torch.no_grad():
        greedy_answer(llama, run, 1, keep)
    for layer, weights in enumerate(eager_weights(llama, ids[:1])):
        assert seen[layer][:, 0].tolist() == weights[0, :, -1].argmax(-1).tolist()


def test_teacher_form_equals_the_greedy_one_where_the_answer_is_right(llama: LlamaForCausalLM, ids: Tensor) -> None:
    run = learnt_run(llama, ids[0])
    scores = []
    for form in ("greedy", "teacher"):
        measured = probe(llama, "retrieval_heads", form=form)
        measured.detect([run])
        scores.append(measured.scores())
    assert torch.equal(*scores)


def test_wrong_answers_count_as_asked_only(llama: LlamaForCausalLM, ids: Tensor) -> None:
    right = learnt_run(llama, ids[0])
    wrong = NeedleRun(right.prompt, tuple((token + 1) % VOCABULARY for token in right.answer), right.span)
    wrong = NeedleRun(wrong.prompt, tuple(t for t in wrong.answer if t not in right.answer) or (31,), wrong.span)
    measured = probe(llama, "retrieval_heads")
    measured.detect([wrong])
    with pytest.raises(OptionError, match="none of 1 answers was right"):
        measured.scores()
    measured.detect([right])
    table = measured.table()
    assert (table["answers"].iloc[0], table["asked"].iloc[0]) == (1, 2)


def test_spans_allow_a_tenth_of_other_tokens() -> None:
    answer = list(range(10, 21))  # 11 tokens: one may differ
    text = [1, 2, *answer, 3]
    assert find_span(text, answer) == (2, 13)
    text[12] = 99  # the last: the windows at 1 and 2 now hold the same ten tokens, that at 2 in their places
    assert find_span(text, answer) == (2, 13)
    text[12], text[5] = 20, 99
    assert find_span(text, answer) == (2, 13)
    text[6] = 98
    assert find_span(text, answer) is None


def test_recall_clips_what_is_said_too_often() -> None:
    assert recall([1, 1, 2], [1, 1, 1]) == pytest.approx(2 / 3)
    assert recall([1, 2], [3]) == 0


def test_rows_of_niah_know_where_their_answer_stands() -> None:
    for options in ({}, {"key_tokens": 2, "value_tokens": 3, "keys": 3}):
        for run in task_runs(NeedleInHaystack(vocab_size=64, length=64, **options), 20, 0):
            assert tuple(run.prompt[slice(*run.span)].tolist()) == run.answer
            key = options.get("key_tokens", 1) if options else NeedleInHaystack().key_tokens
            start = run.span[0]
            assert run.prompt[start - key : start].tolist() == run.prompt[-key:].tolist(), "the asked key"
    with pytest.raises(OptionError, match="one of each"):
        task_runs(NeedleInHaystack(queries=2), 1, 0)


# ---- masking


def watch(model: nn.Module, ids: Tensor, policy: MaskedHeads) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Outputs and mean visible values of the last token's decode step, by layer."""
    outputs, means = {}, {}
    attend = policy.attend

    def looked(call: Call) -> Tensor:
        o = attend(call)
        if call.phase == "decode":
            outputs[call.layer.index] = o
            means[call.layer.index] = policy.keys(call).values.mean(2).repeat_interleave(call.layer.group, 1)
        return o

    policy.attend = looked  # type: ignore[method-assign]
    with Applied(model, policy, "masked"), torch.no_grad():
        greedy_answer(model, NeedleRun(ids[0], (0,), (0, 1)), 1)
    return outputs, means


def test_a_masked_head_averages_the_values_in_sight(llama: LlamaForCausalLM, ids: Tensor) -> None:
    outputs, means = watch(llama, ids, MaskedHeads([(0, 1), (1, 3)]))
    torch.testing.assert_close(outputs[0][:, 1, 0], means[0][:, 1])
    torch.testing.assert_close(outputs[1][:, 3, 0], means[1][:, 3])
    assert (outputs[0][:, 0, 0] - means[0][:, 0]).abs().max() > 1e-3, "the others attend"


def test_a_zeroed_head_gives_nothing(llama: LlamaForCausalLM, ids: Tensor) -> None:
    outputs, _ = watch(llama, ids, MaskedHeads([(0, 2)], mode="zero"))
    assert outputs[0][:, 2].abs().max() == 0
    assert outputs[0][:, 1].abs().max() > 0


def test_a_head_gives_its_mean_output_over_questions(llama: LlamaForCausalLM, ids: Tensor) -> None:
    runs = [NeedleRun(row, (0, 0), (0, 2)) for row in ids]
    seen: list[Tensor] = []
    attend = Dense.decode

    class Kept(Dense):
        def decode(self, call: Call) -> Tensor:
            o = attend(self, call)
            if call.layer.index == 1:
                seen.append(o[0, 3, 0])
            return o

    with Applied(llama, Kept(), "kept"), torch.no_grad():
        for run in runs:
            greedy_answer(llama, run, 50)
    means = mean_outputs(llama, runs)
    torch.testing.assert_close(means[1][3].float(), torch.stack(seen).mean(0))
    assert len(seen) == 4, "two tokens of two answers"
    outputs, _ = watch(llama, ids, MaskedHeads([(1, 3)], "mean", means=means))
    torch.testing.assert_close(outputs[1][0, 3, 0].double(), means[1][3])
    assert (outputs[1][0, 2, 0].double() - means[1][2]).abs().max() > 1e-4, "the others attend"
    with pytest.raises(OptionError, match="mean_outputs"):
        MaskedHeads([(1, 3)], "mean")
    assert len(masking_experiment(llama, runs, [(0, 0), (0, 1), (1, 0)], [1], draws=2, mode="mean")) == 3


def test_masking_in_prefill_stays_causal(llama: LlamaForCausalLM, ids: Tensor) -> None:
    every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    with Applied(llama, MaskedHeads(every, phase="all"), "masked"), torch.no_grad():
        whole = llama(input_ids=ids, use_cache=False).logits
        part = llama(input_ids=ids[:, :25], use_cache=False).logits
    torch.testing.assert_close(whole[:, :25], part)


def test_no_heads_and_prefill_under_decode_change_nothing(llama: LlamaForCausalLM, ids: Tensor) -> None:
    with torch.no_grad():
        plain = llama(input_ids=ids, use_cache=False).logits
        for policy in (MaskedHeads([], phase="all"), MaskedHeads([(0, 0)])):
            with Applied(llama, policy, "masked"):
                torch.testing.assert_close(llama(input_ids=ids, use_cache=False).logits, plain)


def test_random_heads_are_never_the_best_and_differ(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[tuple[int, int]]] = []

    def record(model: nn.Module, runs: Any, heads: Any, mode: str, means: Any) -> list[float]:
        asked.append(list(heads))
        return [1.0]

    monkeypatch.setattr("plait.probes.masking.answers_without", record)
    ranking = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    rows = masking_experiment(llama, [], ranking, [3], draws=4)
    assert [row.chosen for row in rows] == ["none", "top", "random"]
    assert asked[1] == ranking[:3]
    for drawn in asked[2:]:
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(ranking[:3])
    with pytest.raises(OptionError, match="only 3 are left"):
        masking_experiment(llama, [], ranking, [5])


def test_an_absent_head_is_named(llama: LlamaForCausalLM, ids: Tensor) -> None:
    with (
        Applied(llama, MaskedHeads([(0, 7)], phase="all"), "masked"),
        pytest.raises(OptionError, match="has 4 heads, not 8"),
    ):
        llama(input_ids=ids)
