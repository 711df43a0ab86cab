"""Chats (``messages``) and packed files (``.gz``) as corpora: the same text as by hand, and one sentence where not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from plait.cli.app import main
from plait.data.chat import ChatTemplate, ChatText
from plait.data.corpora import open_corpus
from plait.data.corpus import Corpus
from plait.data.tokenizers import byte_tokenizer
from plait.errors import DataError

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
CHATS = [
    [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": f"it is {i % 7}, grüße 🎉"}]
    for i in range(40)
]
BY_HAND = [f"<user>what is {i}?\n<assistant>it is {i % 7}, grüße 🎉\n" for i in range(40)]


def template() -> ChatTemplate:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return ChatTemplate(tokenizer)


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix.lower() == ".gz" else content)
    return path


def texts(corpus: Corpus) -> list[str]:
    return [one.text for split in ("train", "validation", "test") for one in corpus.documents(split)]


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz", "CHATS.JSONL.GZ"])
@pytest.mark.parametrize("kind", ["text", "hf"])
def test_chats_are_written_by_the_template(tmp_path: Path, name: str, kind: str) -> None:
    if kind == "hf":
        pytest.importorskip("datasets")
        name = name.lower()
    path = write(tmp_path / "set" / name, [{"messages": chat, "n": 1} for chat in CHATS])
    corpus = open_corpus(f"{kind}:{path if kind == 'text' else path.parent}", field="messages")
    corpus.chat = template()
    found = texts(corpus)
    assert sorted(found) == sorted(BY_HAND)
    assert all(isinstance(text, ChatText) for text in found)


def test_the_fingerprint_follows_the_template(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    corpus = open_corpus(f"text:{path}", field="messages")
    prints = {corpus.fingerprint()}
    corpus.chat = template()
    prints.add(corpus.fingerprint())
    corpus.chat.tokenizer.chat_template = TEMPLATE + "."
    prints.add(corpus.fingerprint())
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user"}], "holds list"),
        ([{"role": "user", "content": "x"}, "y"], "holds list"),
        ("a text", ""),
        (7, "holds int"),
    ],
)
def test_rows_that_are_no_chats(tmp_path: Path, messages: Any, said: str) -> None:
    path = write(tmp_path / "chats.jsonl", [{"messages": CHATS[0]}, {"messages": messages}])
    corpus = open_corpus(f"text:{path}", field="messages")
    corpus.chat = template()
    if not said:
        assert sorted(texts(corpus)) == sorted([BY_HAND[0], messages])
        return
    with pytest.raises(DataError, match=said) as error:
        texts(corpus)
    assert "line 2" in str(error.value)


def test_what_a_chat_needs_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    with pytest.raises(DataError, match="'field: messages' and a tokenizer that has a chat template"):
        texts(open_corpus(f"text:{path}"))
    with pytest.raises(DataError, match="set 'tokenizer: hf:NAME'"):
        texts(open_corpus(f"text:{path}", field="messages"))


def test_a_role_that_the_template_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", [{"messages": [{"role": "poet", "content": "x"}]}])
    corpus = open_corpus(f"text:{path}", field="messages")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    corpus.chat = ChatTemplate(tokenizer)
    with pytest.raises(DataError, match=r"line 1: the chat template .* no such role"):
        texts(corpus)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py"])
def test_packed_text_is_the_text(tmp_path: Path, name: str) -> None:
    text = "".join(f"line {i} grüße 中文\n" for i in range(300))
    for folder, suffix in (("plain", ""), ("packed", ".gz")):
        path = tmp_path / folder / (name + suffix)
        path.parent.mkdir()
        path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    found = "".join(sorted(texts(open_corpus(f"text:{tmp_path / 'packed'}"))))
    assert len(found) == len(text)
    for split in ("train", "validation", "test"):
        packed, plain = (
            [one.text for one in open_corpus(f"text:{tmp_path / folder}").documents(split)]
            for folder in ("packed", "plain")
        )
        assert sum(map(len, packed)) > 0
        assert len("".join(packed)) == pytest.approx(len("".join(plain)), rel=0.7)  # which blocks goes by the name


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "empty"])
def test_a_damaged_packed_file_is_named(tmp_path: Path, damage: str) -> None:
    content = gzip.compress("".join(f"line {i * i}\n" for i in range(3000)).encode())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    made = {"cut": content[:-20], "flipped": bytes(flipped), "no gzip": b"plain text\n" * 9, "empty": b""}
    (tmp_path / "a.txt.gz").write_bytes(made[damage])
    with pytest.raises(DataError, match=r"a\.txt\.gz"):
        texts(open_corpus(f"text:{tmp_path / 'a.txt.gz'}"))


def test_a_model_learns_from_packed_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, with a tokenizer from a folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "chats.jsonl.gz", [{"messages": chat} for chat in CHATS * 5])
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "run.yaml").write_text(
        "name: chat\nmodel: {hidden_size: 16, num_hidden_layers: 2, mixer: gla, ratio: pure}\n"
        "data: {corpus: 'text:chats.jsonl.gz', field: messages, tokenizer: 'hf:tokenizer', length: 32}\n"
        "training: {steps: 2, batch_size: 2, warmup_steps: 1}\nevaluate: {limit: 2}\n"
    )
    with pytest.raises(SystemExit) as end:
        main(["train", "run.yaml"])
    assert end.value.code in (0, None)
    (measured,) = json.loads(Path("runs/chat/result.json").read_text())["evaluation"]["results"]
    assert measured["scores"][0]["score"] > 0
