"""One damaged case through the command line, in this process: how it ended, and what it said."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest

from fuzz.damage import damaged_bytes, damaged_json, damaged_values, damaged_yaml
from plait.cli import app as front
from plait.fixtures import fixture_folder

#: Seconds after which a case counts as hanging.
PATIENCE = 20
#: Characters of a message.
LONGEST = 2000

RUN: dict[str, Any] = {
    "name": "case",
    "seed": 1,
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "mixer": "gated_deltanet",
        "ratio": "1:1",
        "intermediate_size": 16,
        "mixers": {"attention": {"num_heads": 2, "rope_base": 10000.0}, "gated_deltanet": {"num_heads": 2}},
    },
    "data": {"task": "mqar", "length": 16, "options": {"vocab_size": 32, "pairs": 2}},
    "training": {"steps": 2, "batch_size": 2, "betas": [0.9, 0.95], "learning_rate": 1e-3, "warmup_steps": 1},
    "evaluate": {"limit": 4, "decode_contexts": [8], "settings": [{"length": 16, "pairs": 2}]},
}


class Hang(BaseException):
    """A case that does not end."""


@contextmanager
def guarded() -> Iterator[None]:
    """Raise :class:`Hang` in this thread after :data:`PATIENCE` seconds of processor time."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def faults(
    case: Callable[[Random, Path], list[str]], numbers: range, folder: Path, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """What is wrong with how these cases end; nothing, if each is done or is one sentence.

    Args:
        case: makes the files of a case and gives the command line.
        numbers: of the cases; each is a seed.
        folder: to work in.
        capsys: of the test.
    """
    found = []
    for number in numbers:
        place = folder / str(number)
        place.mkdir()
        arguments = case(Random(f"{case.__name__} {number}"), place)
        ended = _run(arguments)
        printed = capsys.readouterr()
        message = printed.err[printed.err.find("plait: ") :] if "plait: " in printed.err else ""
        if ended not in ("0", "1", "2", "130"):
            found.append(f"{number}: {ended[:300]}")
        elif "Traceback" in printed.err or "traceback" in message:
            found.append(f"{number}: unforeseen: {message[:300]}")
        elif len(message) > LONGEST:
            found.append(f"{number}: a message of {len(message)} characters")
        elif ended == "1" and not message.strip():
            found.append(f"{number}: failed without a word")
        shutil.rmtree(place, ignore_errors=True)
    return found


def _run(arguments: list[str]) -> str:
    try:
        with guarded():
            front.main(arguments)
    except SystemExit as end:
        return str(end.code)
    except Hang:
        return f"hangs: {arguments}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "0"


def run_file(rng: Random, folder: Path) -> list[str]:
    """A run file, to the point where its training would begin."""
    path = folder / "run.yaml"
    path.write_bytes(damaged_yaml(RUN, rng))
    if rng.random() < 0.3:
        return ["explain", str(path), "--json"]
    return ["train", str(path), "--out", str(folder / "out")]


def _model(rng: Random, folder: Path) -> Path:
    target = folder / "model"
    shutil.copytree(fixture_folder(rng.choice(["recall-small", "recall-small-hybrid"])), target)
    return target


def _generate(model: Path) -> list[str]:
    return ["generate", str(model), "--prompt", "import", "--max-new-tokens", "2", "--greedy"]


def model_config(rng: Random, folder: Path) -> list[str]:
    """A saved model with another ``config.json``."""
    model = _model(rng, folder)
    path = model / "config.json"
    path.write_bytes(damaged_json(json.loads(path.read_text(encoding="utf-8")), rng))
    return [["explain", str(model)], ["import", str(model), str(folder / "new")], _generate(model)][
        rng.choice([0, 1, 2, 2])
    ]


def stranger_file(rng: Random, folder: Path) -> list[str]:
    """A damaged file of a model, of a corpus, or of a table."""
    kind = rng.choice(["model", "model", "model", "text", "jsonl", "parquet", "hub", "table"])
    if kind == "model":
        return _model_file(rng, folder)
    if kind == "table":
        heads = {"heads": [[0.5, 0.1]] * 4}
        known = {"kind": "head_table", "fingerprint": None, "weights": None, "values": heads}
        table = {"format": "plait artefact 1", **known}
        (folder / "heads.json").write_bytes(damaged_json(table, rng))
        option = f"heads={folder / 'heads.json'}"
        policy = ["--policy", "duo_attention", "--option", option, "--max-new-tokens", "2"]
        return ["run", "fixture:recall-small", *policy, "--prompt", "import os"]
    corpus = _corpus(kind, rng, folder)
    return ["eval", "fixture:recall-small", "--corpus", corpus, "--lengths", "32", "--limit", "1", "--batch-size", "1"]


def _model_file(rng: Random, folder: Path) -> list[str]:
    model = _model(rng, folder)
    path = rng.choice([one for one in sorted(model.iterdir()) if one.name != "config.json" and one.is_file()])
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.5:
        path.write_bytes(json.dumps(damaged_values(json.loads(content), rng)).encode())
    else:
        path.write_bytes(damaged_bytes(content, rng))
    return _generate(model)


def _corpus(kind: str, rng: Random, folder: Path) -> str:
    rows = [{"text": f"row {i} grüße 中文 🎉 " * 3, "n": i} for i in range(80)]
    if kind == "text":
        text = "".join(row["text"] + "\n" for row in rows).encode() * 4
        packed = rng.random() < 0.3
        path = folder / ("a.txt.gz" if packed else "a.txt")
        path.write_bytes(damaged_bytes(gzip.compress(text, mtime=0) if packed else text, rng))
        return f"text:{path}"
    if kind == "parquet":
        path = folder / "a.parquet"
        _write_parquet(path, rows, rng)
        return f"text:{path}"
    changed = [damaged_values(row, rng) if rng.random() < 0.02 else row for row in rows]
    content = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in changed).encode()
    inside = folder / "set"
    inside.mkdir()
    path = inside / "train.jsonl"
    path.write_bytes(damaged_bytes(content, rng) if rng.random() < 0.6 else content)
    return f"hf:{inside}" if kind == "hub" else f"text:{path}"


def _write_parquet(path: Path, rows: list[dict[str, Any]], rng: Random) -> None:
    import pyarrow
    from pyarrow import parquet

    texts: list[Any] = [row["text"].encode() for row in rows]
    kind = rng.randrange(4)
    if kind == 0:
        texts[rng.randrange(len(texts))] = b"caf\xe9"  # a string that is not UTF-8
    column = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    if kind == 1:
        column = pyarrow.array(list(range(len(texts))))
    parquet.write_table(pyarrow.table({"text" if kind != 2 else "body": column}), path)
    if kind == 3:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
