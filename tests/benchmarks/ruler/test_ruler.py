"""What holds for all thirteen: budgets kept and used, streams, too short lengths, chat, catalogue."""

from __future__ import annotations

import pickle

import pytest

from benchmarks.ruler.material import task, tokenizer
from plait import catalog
from plait.benchmarks.ruler import TASKS
from plait.data.tokenizers import byte_tokenizer
from plait.errors import DataError, OptionError

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


@pytest.mark.parametrize("name", TASKS)
def test_budget_is_kept_and_used(name: str) -> None:
    """Sample 0 has the largest size that fits, others lose only the steps that they must."""
    benchmark = task(name)
    shared = benchmark.largest(tokenizer())
    room = benchmark.length - benchmark.new_tokens
    for index in range(min(10, len(benchmark))):
        prompt = benchmark.prompt(index, tokenizer())
        size = int(prompt.facts["size"])
        assert len(prompt.text.encode()) == prompt.facts["tokens"] <= room
        assert prompt.max_new_tokens == benchmark.new_tokens
        assert prompt.facts["length"] == benchmark.length
        assert size <= shared
        step = benchmark.increment if benchmark.length >= 2048 else 1
        if size < shared:
            assert benchmark.tokens(index, size + step, tokenizer()) > room
    if name != "fwe":  # which grows in steps
        assert benchmark.tokens(0, shared, tokenizer()) <= room < benchmark.tokens(0, shared + 1, tokenizer())


@pytest.mark.parametrize("name", TASKS)
def test_samples_depend_on_seed_and_index_alone(name: str) -> None:
    benchmark = task(name)
    other = pickle.loads(pickle.dumps(task(name, samples=5)))
    assert other.prompt(3, byte_tokenizer()) == benchmark.prompt(3, tokenizer())
    texts = {benchmark.prompt(index, tokenizer()).text for index in range(6)}
    assert len(texts) == 6
    assert task(name, seed=1).prompt(3, tokenizer()).text != benchmark.prompt(3, tokenizer()).text or name == "qa_1"


@pytest.mark.parametrize(
    ("name", "step"),
    [("niah_single_1", (5, 25)), ("niah_single_2", (500, 500)), ("niah_multikey_3", (5, 25)), ("vt", (5, 10))]
    + [("cwe", (10, 10)), ("qa_1", (10, 10)), ("fwe", (126, 126))],
)
def test_increments(name: str, step: tuple[int, int]) -> None:
    assert (task(name, length=4095).increment, task(name, length=4096).increment) == step


def test_a_sample_that_does_not_fit_loses_a_whole_increment() -> None:
    """At 4096 bytes the essays have some 600 words; NVIDIA takes 500 away at once."""
    benchmark = task("niah_multiquery", length=4096)
    shared = benchmark.largest(tokenizer())
    sizes = {int(benchmark.prompt(index, tokenizer()).facts["size"]) for index in range(20)}
    assert sizes == {shared, shared - 500}


@pytest.mark.parametrize("name", TASKS)
def test_too_short_a_length_names_one_that_fits(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: length=100 is too short: .*; use length >= \d+\.") as error:
        task(name, length=100, samples=8).prompt(0, tokenizer())
    shortest = int(str(error.value).rsplit(" ", 1)[1].rstrip("."))
    fits = task(name, length=shortest, samples=8)
    for index in range(len(fits)):
        assert fits.prompt(index, tokenizer()).facts["tokens"] + fits.new_tokens <= shortest
    less = task(name, length=shortest - 1, samples=8)
    with pytest.raises(DataError, match="too short"):
        [less.prompt(index, tokenizer()) for index in range(len(less))]


@pytest.mark.parametrize("name", ["niah_single_1", "cwe", "fwe"])
def test_chat_template_stands_around_the_question_and_the_prefix_after_it(name: str) -> None:
    benchmark = task(name, length=3000, chat=True, template=TEMPLATE)
    prompt = benchmark.prompt(0, tokenizer())
    draft = benchmark.draft(0, int(prompt.facts["size"]), tokenizer())
    shown = ""
    if name == "cwe":
        assert draft.example
        prefix = "Answer: The top 10 words that appear most often in the list are:"
        shown = f"<user>{draft.example[0]}<assistant>{prefix} {draft.example[1]}"
    assert prompt.text == f"{shown}<user>{draft.question}<model>{draft.prefix}"
    assert draft.prefix.startswith(" ")


def test_encoding_a_chat_gives_one_token_of_the_beginning() -> None:
    from tokenizers.processors import TemplateProcessing

    with_bos = byte_tokenizer()
    with_bos.add_special_tokens({"bos_token": "<s>"})
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", with_bos.bos_token_id)]
    )
    with_bos.chat_template = "{{ bos_token }}" + TEMPLATE
    prompt = task("niah_single_1", chat=True).prompt(0, with_bos)
    ids = with_bos(prompt.text)["input_ids"]
    assert ids.count(with_bos.bos_token_id) == 1
    assert ids[0] == with_bos.bos_token_id
    assert len(ids) == prompt.facts["tokens"]


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(DataError, match="has no chat template; set template, or chat to false"):
        task("fwe", chat=True).prompt(0, tokenizer())
    with pytest.raises(OptionError, match="set chat to true"):
        task("fwe", template=TEMPLATE)
    with pytest.raises(OptionError, match=r"fwe has no compat 'lm-eval'. Did you mean 'lm_eval'"):
        type(task("fwe"))(compat="lm-eval")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="compat"):
        task("fwe", compat="lm-eval")
    with pytest.raises(OptionError, match="length=0"):
        task("fwe", length=0)
    with pytest.raises(IndexError):
        task("fwe").prompt(20, tokenizer())


def test_catalogue_has_the_thirteen() -> None:
    found = {name: catalog.get(name, "benchmark").load() for name in TASKS}
    assert {name: cls.name for name, cls in found.items()} == {name: name for name in TASKS}
    assert {name: cls.metric for name, cls in found.items() if cls.metric != "string_match_all"} == {
        "qa_1": "string_match_part",
        "qa_2": "string_match_part",
    }
    assert {cls.new_tokens for cls in found.values()} == {128, 30, 120, 50, 32}
