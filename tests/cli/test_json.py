"""``--json``: one JSON document on stdout and nothing else, whatever the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from plait.cli.app import COMMANDS, build, main

MODEL, HYBRID = "fixture:recall-small", "fixture:recall-small-hybrid"
RUN = """
name: tiny
model: {hidden_size: 32, num_hidden_layers: 2, ratio: "1:1", mixer: gla, intermediate_size: 32}
data: {task: mqar, length: 16, options: {vocab_size: 32, pairs: 2}}
training: {steps: 2, batch_size: 4, warmup_steps: 1}
evaluate: {limit: 8}
"""
STUDY = """
name: tiny
seeds: [0]
contexts: [64]
grid: {mixers: [gla], ratios: ["1:1"]}
tracks:
  recall:
    kind: recall
    model: {hidden_size: 16, num_hidden_layers: 2, intermediate_size: 32}
    data: {task: mqar, length: 16, options: {pairs: 2, vocab_size: 32}}
    training: {steps: 1, batch_size: 2, warmup_steps: 1}
    evaluate: {limit: 8}
"""
MEASURE = ["--tasks", "niah", "--lengths", "64", "--limit", "2", "--batch-size", "2"]

#: Command -> calls of it, each with the calls that must come before it.
CALLS: dict[str, list[list[str]]] = {
    "list": [["list"]],
    "show": [["show", "gated_deltanet"]],
    "doctor": [["doctor"]],
    "explain": [["explain", HYBRID, "--length", "64"]],
    "train": [["train", "tiny.yaml"]],
    "runs": [["train", "tiny.yaml"], ["runs"]],
    "eval": [["eval", MODEL, *MEASURE, "--out", "a"]],
    "compare": [
        ["eval", MODEL, *MEASURE, "--out", "a"],
        ["eval", HYBRID, *MEASURE, "--out", "b"],
        ["compare", "a", "b"],
    ],
    "generate": [["generate", HYBRID, "--prompt", "ab", "--max-new-tokens", "2"]],
    "run": [["run", MODEL, "--policy", "streaming", "--prompt", "ab", "--max-new-tokens", "2"]],
    "calibrate": [
        ["calibrate", MODEL, "duo_attention", "--data", "task:niah", "--length", "64", "--preset", "small"]
        + ["--option", "steps=2", "--out", "heads.json"]
    ],
    "frontier": [
        ["frontier", MODEL, "--policies", "streaming", "--budgets", "0.5", "--tasks", "niah", "--lengths", "64"]
        + ["--limit", "2", "--out", "frontier"]
    ],
    "import": [["import", "llama", "imported"]],
    "export": [["export", HYBRID, "exported", "--to", "fla"]],
    "plan": [["plan", "--params", "340M", "--mixer", "gla", "--ratio", "3:1", "--out", "plan.html"]],
    "study plan": [["study", "plan", "study.yaml", "--device", "h100"]],
    "study run": [["study", "run", "study.yaml"]],
    "study status": [["study", "run", "study.yaml"], ["study", "status", "study.yaml"]],
    "study report": [["study", "run", "study.yaml"], ["study", "report", "study.yaml"]],
    "probe": [["probe", MODEL, "retrieval_heads", "--samples", "2", "--length", "64"]],
    "claim list": [["claim", "list"]],
    "claim show": [["claim", "show", "gates_reach_the_transformer"]],
    "claim table": [["claim", "table"]],
}
#: Minutes long at their smallest; the tests of these commands read their JSON.
ELSEWHERE = {"fixture", "convert", "study scaling", "claim run"}


def named(name: str) -> dict[str, list[str]]:
    """Each command or subcommand of ``name`` with the options that it takes."""
    group = typer.main.get_command(build([name]))
    found = group.commands[name]  # type: ignore[attr-defined]
    parts = {f"{name} {one}": command for one, command in getattr(found, "commands", {}).items()} or {name: found}
    return {one: [word for option in command.params for word in option.opts] for one, command in parts.items()}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_that_prints_json_is_called_here(name: str) -> None:
    takes = {one for one, options in named(name).items() if "--json" in options}
    assert takes, f"plait {name} takes no --json"
    assert {one for one in takes if not one.startswith("bench ")} <= CALLS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", sorted(CALLS))
def test_stdout_is_one_json_document(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RUN, encoding="utf-8")
    Path("study.yaml").write_text(STUDY, encoding="utf-8")
    if name == "import":
        _save_llama(Path("llama"))
    for arguments in CALLS[name]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--json"])
        out, err = capfd.readouterr()
        assert not end.value.code, err
        assert json.loads(out)


def _save_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
