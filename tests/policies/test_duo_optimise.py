from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import plait
from plait.data.tasks.niah import NeedleInHaystack
from plait.data.tokenizers import byte_tokenizer
from plait.errors import DataError, OptionError
from plait.policies import Applied, CalibrationRow, FindHeadsOptions, HeadTable, find_heads, passkey_rows, task_rows
from plait.policies.duo_optimise import GatedHeads, hidden_distance, rate_factor
from policies.driver import Driver
from policies.tiny_models import decoder, tokens

SYMBOLS, LENGTH = 8, 24
#: Streaming heads of the hand-made model see the first token and the last four.
BAND: dict[str, Any] = {"sinks": 1, "recent": 4}


def band(length: int, sinks: int, window: int) -> Tensor:
    return torch.tensor([[j <= i and (j < sinks or i - j < window) for j in range(length)] for i in range(length)])


def hand_made() -> PreTrainedModel:
    """Two layers of two kv heads. Layer 1's second finds a query's symbol anywhere, all others look one token back.

    Tokens 0..7 show a symbol (channels 0..7 of the embedding), tokens 8..15 ask for it (channels 8..15); channel 16 is
    1 everywhere. Slowly turning channels of a head carry symbols, quickly turning ones the step back.
    """
    theta = 1e6
    model = decoder(
        "llama",
        vocab_size=2 * SYMBOLS,
        hidden_size=64,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False,
    )
    slow = [4, 5, 6, 7, 12, 13, 14, 15]
    with torch.no_grad():
        embedding: Any = model.get_input_embeddings()
        embedding.weight.zero_()
        for symbol in range(2 * SYMBOLS):
            embedding.weight[symbol, symbol] = embedding.weight[symbol, 16] = 1.0
        for index, layer in enumerate(model.model.layers):  # type: ignore[union-attr]
            layer.mlp.down_proj.weight.zero_()
            attention = layer.self_attn
            q, k, v, o = (getattr(attention, f"{x}_proj").weight.zero_() for x in "qkvo")
            for head in range(2):
                finds = (index, head) == (1, 1)
                for pair in range(3):
                    turn = theta ** (-pair / 8)
                    if not finds:
                        k[16 * head + pair, 16] = 2.0
                        q[32 * head + pair, 16], q[32 * head + pair + 8, 16] = 2 * math.cos(turn), -2 * math.sin(turn)
                for symbol, channel in enumerate(slow):
                    if finds:
                        k[16 * head + channel, symbol] = q[32 * head + channel, 8 + symbol] = 2.0
                    v[16 * head + symbol, symbol] = 1.0
                    o[32 + 8 * head + symbol, 32 * head + symbol] = 1.0 if finds else 0.1
    return model


def asked_rows(seed: int = 0) -> Iterator[CalibrationRow]:
    """A symbol far back, others up to the end, where the last token asks for it."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        symbol, place = (int(torch.randint(high, (), generator=generator)) for high in (SYMBOLS, LENGTH - 10))
        ids = (symbol + torch.randint(1, SYMBOLS, (LENGTH,), generator=generator)) % SYMBOLS
        ids[2 + place], ids[-1] = symbol, SYMBOLS + symbol
        yield CalibrationRow(ids, torch.arange(LENGTH) == LENGTH - 1)


def quick(**changes: Any) -> FindHeadsOptions:
    return FindHeadsOptions(**{**BAND, "steps": 40, "batch_size": 2, "learning_rate": 0.05, **changes})


@pytest.mark.parametrize("full", ["teacher", "own"])
def test_only_the_head_that_is_needed_stays(full: Any, tmp_path: Path) -> None:
    """Oracles 4, 5: one gate of four; weights and settings of the model stay; the table serves duo_attention."""
    model = hand_made().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = find_heads(model, asked_rows(), quick(full=full))
    (a, b), (c, needed) = table.values
    assert needed > 0.9
    assert max(a, b, c) < 0.1
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    table.save(tmp_path / "heads.json")
    assert HeadTable.load(tmp_path / "heads.json").values == table.values
    model.eval()
    row = next(asked_rows(1)).ids[None]
    dense = model(input_ids=row).logits[0, -1]
    options: dict[str, Any] = {**BAND, "strict": True}
    with torch.no_grad():
        with plait.policy(model, "duo_attention", heads=str(tmp_path / "heads.json"), sparsity=0.75, **options):
            torch.testing.assert_close(model(input_ids=row).logits[0, -1], dense, atol=1e-4, rtol=1e-4)
        with plait.policy(model, "duo_attention", heads=[[1.0, 1.0], [1.0, 0.0]], sparsity=0.25, **options):
            assert (model(input_ids=row).logits[0, -1] - dense).abs().max() > 0.1
    with pytest.raises(OptionError, match="another model"):
        plait.policy(decoder("qwen3"), "duo_attention", heads=str(tmp_path / "heads.json")).__enter__()


def test_nothing_falls_without_regularisation() -> None:
    """Oracles 3, 5: with all gates at 1 the distance has no gradient."""
    assert find_heads(hand_made(), asked_rows(), quick(regularisation=0.0, steps=3)).values == ((1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "plait"])
def test_at_first_the_penalty_alone_pulls(family: str) -> None:
    """Oracle 3: distance and its gradient are exactly 0, each of n gates is pulled by 1 / n; windows have no gate."""
    model, policy = decoder(family), GatedHeads(quick())
    ids = tokens(2, 20)
    labelled = torch.zeros(2, 20, dtype=torch.bool)
    labelled[:, -3:] = True
    with Applied(model, policy, "gates") as applied:
        distance = hidden_distance(model, policy, ids, labelled)
        (distance + policy.penalty()).backward()  # type: ignore[no-untyped-call]
        assert distance.item() == 0
        gated = [layer.index for layer in applied.info.layers if layer.window is None]  # type: ignore[union-attr]
        assert list(policy.gates) == gated
        for gate in policy.gates.values():
            assert gate.grad.tolist() == [1 / (2 * len(gated))] * 2  # type: ignore[union-attr]
        assert [row[0] for row in policy.table(applied.info).values] == [float(i in gated) for i in range(2)]  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_with_gates_at_zero_the_model_streams(family: str) -> None:
    """Oracle 3: the same logits at the labelled positions as duo_attention with streaming heads."""
    model, policy, ids = decoder(family), GatedHeads(quick(full="own")), tokens(1, 20)
    with torch.no_grad():
        with plait.policy(model, "duo_attention", heads="streaming", strict=True, window_includes_self=True, **BAND):
            streaming = model(input_ids=ids, use_cache=False).logits
        with Applied(model, policy, "gates"):
            for gate in policy.gates.values():
                gate.zero_()
            gated = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(gated, streaming)


@pytest.mark.parametrize("full", ["teacher", "own"])
def test_a_gate_mixes_the_heads_of_its_group(full: Any) -> None:
    """Query heads 0, 1 at 0.25 and 2, 3 at 1, over the teacher's outputs or their own."""
    policy = GatedHeads(quick(full=full))
    taught, mixed = Driver(policy, 12, seed=1), Driver(policy, 12, seed=2)
    with torch.no_grad():
        policy.gates[0].copy_(torch.tensor([0.25, 1.0]))
        policy.teaching = True
        dense = taught.attention(torch.ones(12, 12).bool().tril())
        torch.testing.assert_close(taught.feed(12), dense)
        policy.teaching = False
        own = mixed.attention(torch.ones(12, 12).bool().tril())
        whole, streaming = (dense if full == "teacher" else own), mixed.attention(band(12, 1, 4))
        expected = torch.cat([0.25 * whole[:, :2] + 0.75 * streaming[:, :2], whole[:, 2:]], dim=1)
        torch.testing.assert_close(mixed.feed(12), expected)


def test_only_labelled_positions_count() -> None:
    """Before the window is full nothing differs; later it does."""
    model, policy, ids = decoder("llama"), GatedHeads(quick()), tokens(1, 20)
    with torch.no_grad(), Applied(model, policy, "gates"):
        for gate in policy.gates.values():
            gate.fill_(0.5)
        early, late = (torch.arange(20)[None] < 5, torch.arange(20)[None] >= 10)
        assert hidden_distance(model, policy, ids, early).item() < 1e-10
        assert hidden_distance(model, policy, ids, late).item() > 1e-3


def test_gates_stay_between_0_and_1() -> None:
    """A first step of 3 ends at 0; what the answers pull up then ends at 1."""
    model = decoder("llama")
    assert find_heads(model, asked_rows(), quick(learning_rate=3.0, steps=1)).values == ((0.0, 0.0), (0.0, 0.0))
    values = find_heads(model, asked_rows(), quick(learning_rate=3.0, steps=4)).values
    assert {0.0, 1.0} >= {value for row in values for value in row}


def test_the_rate_of_each_step() -> None:
    """Oracle 10, and halfway up."""
    assert [rate_factor(step, 2000) for step in (0, 199, 400, 1000, 1999)] == [0.1, 0.5, 1, 1, 0.1]


def test_published_settings() -> None:
    options = FindHeadsOptions()
    assert (options.sinks, options.recent, options.steps, options.batch_size) == (128, 256, 2000, 1)
    assert (options.learning_rate, options.regularisation) == (0.02, 0.05)


def test_rows_of_a_task() -> None:
    rows = list(islice(task_rows(NeedleInHaystack(length=40, keys=2, queries=2, vocab_size=30), 3), 40))
    assert not torch.equal(rows[0].ids, rows[33].ids)
    for row in rows:
        assert row.labelled.nonzero().flatten().tolist() == [32, 33, 37, 38]  # ... 2 k k v v 2 k k v v


def test_rows_of_passkeys(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Once upon a time. " * 9)
    tokenizer = byte_tokenizer()
    options: dict[str, Any] = {"shortest": 900, "longest": 1100, "lengths": 3, "passkeys": 3, "words": 4}
    rows = list(islice(passkey_rows(tokenizer, tmp_path / "story.txt", **options), 6))
    assert {len(row.ids) for row in rows} <= {896, 992, 1088}
    for row in rows:
        text = bytes(row.ids.tolist()).decode()
        tail = bytes(row.ids[row.labelled].tolist()).decode()
        assert text.endswith(f" </book>.\n\n{tail}")
        assert text.startswith("<|im_start|> This is a very long story book: <book> Once")
        places = [text.index(f"it's the {ordinal} passkey") for ordinal in ("first", "second", "third")]
        assert places == sorted(places)
        for ordinal in ("first", "second", "third"):
            key = tail.split(f"what is the {ordinal} passkey to the vault?\nPasskey: ")[1].split("\n\n")[0]
            assert len(key.split()) == 4
            assert f"it's the {ordinal} passkey to the vault: {key}\n\n" in text
    again = next(passkey_rows(tokenizer, tmp_path / "story.txt", **options))
    other = next(passkey_rows(tokenizer, tmp_path / "story.txt", seed=1, **options))
    assert torch.equal(again.ids, rows[0].ids)
    assert not torch.equal(other.ids, rows[0].ids)
    with pytest.raises(DataError, match="are too few"):
        next(passkey_rows(tokenizer, tmp_path / "story.txt", shortest=100, longest=100, lengths=1))
    with pytest.raises(DataError, match="passkeys=11"):
        next(passkey_rows(tokenizer, tmp_path / "story.txt", passkeys=11))
    (tmp_path / "story.txt").write_text("")
    with pytest.raises(DataError, match="has no text"):
        next(passkey_rows(tokenizer, tmp_path / "story.txt"))


def test_errors_say_what_and_how() -> None:
    model, row = decoder("llama"), CalibrationRow(tokens(1, 9)[0], torch.ones(9, dtype=torch.bool))
    with pytest.raises(DataError, match="end at step 1 of 40: give 80 rows"):
        find_heads(model, [row] * 3, quick())
    with pytest.raises(DataError, match=r"\[7, 9\] tokens in one step"):
        find_heads(model, [row, CalibrationRow(row.ids[:7], row.labelled[:7])], quick())
    with pytest.raises(DataError, match="no labelled position"):
        find_heads(model, [CalibrationRow(row.ids, ~row.labelled)] * 2, quick())
    with pytest.raises(OptionError, match="recent=0 must be 1 or more"):
        quick(recent=0)
    with pytest.raises(OptionError, match="would do nothing in the 2 layers of this Mistral"):
        find_heads(decoder("mistral"), [row] * 2, quick())
