"""Questions: frame, which documents are shown, the two metrics, files of each form."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.ruler.material import folder, paragraph, task, tokenizer
from plait.benchmarks.ruler.questions import hotpotqa, squad
from plait.errors import DataError, OptionError

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)


def documents(text: str) -> list[str]:
    """The texts of ``Document i:``, which must be numbered from 1."""
    context = text.split("The following are given documents.\n\n")[1].split(f"\n\n{INSTRUCTION}")[0]
    parts = re.split(r"(?:^|\n\n)Document (\d+):\n", context)
    assert parts[1::2] == [str(number) for number in range(1, len(parts) // 2 + 1)]
    return parts[2::2]


def test_frame_and_answers() -> None:
    prompt = task("qa_1").prompt(4, tokenizer())  # the fifth answerable: article 1, paragraph 1
    context = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(documents(prompt.text), 1))
    assert prompt.text == (
        f"{INSTRUCTION}\n\nThe following are given documents.\n\n{context}\n\n{INSTRUCTION}\n\n"
        "Question: Which is 1 1? Answer:"
    )
    assert prompt.references == ("right11", "right")
    assert prompt.max_new_tokens == 32


def test_own_document_first_then_its_article_then_others() -> None:
    benchmark = task("qa_1", length=100_000)
    for index in range(9):
        article, number = divmod(index, 3)
        for size in range(1, 12):
            shown = documents(benchmark.draft(index, size, tokenizer()).question)
            assert len(shown) == len(set(shown)) == size
            assert paragraph(article, number) in shown
            same = sum(f"of article {article}." in text for text in shown)
            assert same == min(size, 4)
    orders = {documents(benchmark.draft(0, 8, tokenizer()).question).index(paragraph(0, 0))}
    orders |= {documents(benchmark.draft(4, 8, tokenizer()).question).index(paragraph(1, 1))}
    assert len(orders) == 1  # the shuffle is that of Random(42) in every sample


def test_all_documents_are_repeated_where_there_are_too_few() -> None:
    shown = documents(task("qa_1").draft(0, 30, tokenizer()).question)
    counts = sorted(shown.count(text) for text in set(shown))
    assert counts == [2] * 6 + [3] * 6


def test_unanswerable_questions_are_left_out_and_their_paragraphs_stay() -> None:
    found = squad(str(folder() / "squad.json"))
    assert len(found.questions) == 9
    assert len(found.documents) == 12
    assert list(found.documents) == sorted(found.documents)
    assert len(task("qa_1", samples=500)) == 9
    assert len(task("qa_1", samples=4)) == 4
    with pytest.raises(IndexError):
        task("qa_1", samples=500).prompt(9, tokenizer())


def test_hotpotqa_shows_all_its_paragraphs() -> None:
    prompt = task("qa_2").prompt(2, tokenizer())
    shown = documents(prompt.text)
    assert {f"Title 2 {number}\nOne of 2. Two." for number in range(10)} <= set(shown)
    assert prompt.facts["size"] == len(shown) > 10
    assert prompt.references == ("answer 2",)
    assert task("qa_2").smallest(0) == 10


def test_any_reference_counts_and_for_lm_eval_the_share() -> None:
    plain, other = (task("qa_1", compat=compat) for compat in ("nvidia", "lm_eval"))
    prompt = plain.prompt(0, tokenizer())
    assert prompt.references == ("right00", "right")
    assert plain.score("The RIGHT one", prompt) == 1.0
    assert other.score("The RIGHT one", prompt) == 0.5
    assert plain.score("wrong", prompt) == other.score("wrong", prompt) == 0.0
    assert plain.metric == "string_match_part"


def test_rows_of_the_hub_have_the_same_content_as_files(tmp_path: Path) -> None:
    """Folders that the package datasets loads, in the columns of squad_v2 and of hotpot_qa."""
    squad_rows, hotpot_rows = [], []
    for number, article in enumerate(json.loads((folder() / "squad.json").read_text())["data"]):
        for part in article["paragraphs"]:
            for asked in part["qas"]:
                texts = [] if asked["is_impossible"] else [answer["text"] for answer in asked["answers"]]
                row = {"title": f"article {number}", "context": part["context"], "question": asked["question"]}
                squad_rows.append({**row, "answers": {"text": texts, "answer_start": [0] * len(texts)}})
    for row in json.loads((folder() / "hotpotqa.json").read_text()):
        titles, texts = zip(*row["context"], strict=True)
        hotpot_rows.append({**row, "context": {"title": titles, "sentences": texts}})
    for name, rows in (("squad", squad_rows), ("hotpot", hotpot_rows)):
        (tmp_path / name).mkdir()
        for split, chosen in (("train", rows[:1]), ("validation", rows)):
            lines = "".join(json.dumps(row) + "\n" for row in chosen)
            (tmp_path / name / f"{split}.jsonl").write_text(lines)
    assert squad(f"hf:{tmp_path / 'squad'}") == squad(str(folder() / "squad.json"))
    assert hotpotqa(f"hf:{tmp_path / 'hotpot'}") == hotpotqa(str(folder() / "hotpotqa.json"))


def test_files_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="qa_1 asks questions of SQuAD: set questions"):
        task("qa_1", questions="")
    with pytest.raises(DataError, match="is not of SQuAD's form: TypeError"):
        task("qa_1", questions=str(folder() / "hotpotqa.json")).prompt(0, tokenizer())
    with pytest.raises(DataError, match="is not of HotpotQA's form"):
        task("qa_2", questions=str(folder() / "squad.json")).prompt(0, tokenizer())
    with pytest.raises(DataError, match="There is no file"):
        task("qa_1", questions=str(tmp_path / "none.json")).prompt(0, tokenizer())
    broken = tmp_path / "broken.json"
    broken.write_text('{"data": [')
    with pytest.raises(DataError, match=r"broken.json is not JSON: .* column"):
        task("qa_1", questions=str(broken)).prompt(0, tokenizer())
    empty = tmp_path / "empty.json"
    empty.write_text('{"data": []}')
    with pytest.raises(DataError, match="has no questions"):
        task("qa_1", questions=str(empty)).prompt(0, tokenizer())
