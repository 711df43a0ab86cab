"""Tiny models, tokenizers, task files, and lm-eval's own model to compare with."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from tokenizers import processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from plait.data.tokenizers import byte_tokenizer
from plait.evaluation.harness.run import BOOTSTRAP
from plait.evaluation.harness.tasks import folder_tasks
from plait.models import PlaitConfig, PlaitForCausalLM

ROWS: dict[str, list[dict[str, Any]]] = {
    "piqa": [
        {"query": "Question: How to dry a cup?\n", "choices": ["With a towel", "With a hammer of stone"], "gold": 0},
        {"query": "Question: Cut bread\n", "choices": ["Use a knife.", "Use a spoon, then wait for it."], "gold": 0},
        {"query": "Question: Open a tin\n", "choices": ["Sing to it", "Opener"], "gold": 1},
    ],
    "arc_easy": [
        {"query": "Question: Which one is a metal?", "choices": ["wood", "iron", "milk", "wool"], "gold": 1},
        {"query": "Question: " + "Long. " * 30 + "What?", "choices": ["a", "b", "something longer", "c"], "gold": 2},
        {"query": "Question: Twice the same?", "choices": ["yes", "yes", "no"], "gold": 2},
    ],
    "copa": [
        {"query": "", "choices": ["it rained.", "the sun shone."], "gold": 0},
        {"query": "The man slept, because", "choices": ["he was tired.", "he sang."], "gold": 0},
    ],
    "lambada_openai": [
        {"context": "He gave the ring to", "continuation": "Frodo"},
        {"context": "She said goodbye, " * 12 + "and again", "continuation": "goodbye"},
        {"context": "Größe", "continuation": "ändert"},
    ],
    "winogrande": [
        {
            "context_options": ["The cup did not fit the bag, so the cup", "The cup did not fit the bag, so the bag"],
            "continuation": "was too large.",
            "gold": 0,
        },
        {"context_options": ["Ann thanked Eve. Ann", "Ann thanked Eve. Eve"], "continuation": "was glad.", "gold": 0},
    ],
}


def write_rows(folder: Path, rows: dict[str, list[dict[str, Any]]] = ROWS) -> Path:
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def llama(hidden_size: int = 32, layers: int = 2, **options: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,  # far from uniform, so that scores differ between rows
        **options,
    )
    return LlamaForCausalLM(config).eval()


def hybrid(hidden_size: int = 32, layers: int = 4) -> PreTrainedModel:
    """Three gated delta rules, then full attention."""
    torch.manual_seed(2)
    config = PlaitConfig(
        vocab_size=320,
        hidden_size=hidden_size,
        layer_types=[*["gated_deltanet"] * (layers - 1), "attention"],
        initializer_range=0.2,
    )
    return PlaitForCausalLM(config).eval()


MODELS = {"llama": llama, "hybrid": hybrid}


def bos_tokenizer() -> PreTrainedTokenizerBase:
    """Bytes, with a bos token before every text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    return tokenizer


def lm_eval_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, max_length=max_length, device="cpu")


def lm_eval_results(lm: Any, names: Sequence[str], data_dir: Path, limit: int | None = None) -> dict[str, Any]:
    """What lm-eval reports for any of its models on the same files."""
    with tempfile.TemporaryDirectory() as scratch:
        tasks = folder_tasks(list(names), data_dir, Path(scratch))
        for task in tasks["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
        return dict(evaluate(lm=lm, task_dict=tasks, limit=limit, bootstrap_iters=BOOTSTRAP) or {})


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]
