"""Files for llama.cpp: what the package gguf, transformers and llama.cpp itself read back."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from plait.data.tokenizers import byte_tokenizer
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.checkpoints import save_gguf
from plait.models.checkpoints.gguf import architecture, gguf_weights

gguf = pytest.importorskip("gguf", reason="pip install gguf")

TEXT = "A café — 3 nights,\n\tnaïve: 東京 🚀"
GATED = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "qk_norm": True, "output_gate": True}
PLANS: dict[str, dict[str, Any]] = {
    "llama": {
        "layer_types": ["attention"] * 2,
        "mixers": {"attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "qkv_bias": True}},
    },
    "qwen3": {
        "layer_types": ["attention"] * 2,
        "mixers": {"attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "qk_norm": True}},
    },
    "qwen35": {
        "layer_types": ["gated_deltanet", "gated_deltanet", "attention", "attention"],
        "mixers": {
            "gated_deltanet": {"num_heads": 2, "num_v_heads": 4, "head_dim": 32},
            "attention": GATED | {"partial_rotary_factor": 0.5},
        },
    },
}


def model_of(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PlaitForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "norm_eps": 1e-6, "eos_token_id": 256}
    model = PlaitForCausalLM(PlaitConfig(**(sizes | PLANS[kind] | changes)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and fp32 tensors of a file."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return fields, tensors


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("tie", [False, True])
@torch.no_grad()
def test_transformers_reads_it(tmp_path: Path, kind: str, tie: bool) -> None:
    """Its reader of such files is independent code: the same logits and the same ids."""
    options = PLANS[kind]["mixers"]["attention"] | {
        "qkv_bias": False,
        "head_dim": 128,
        "num_heads": 2,
        "num_kv_heads": 1,
    }
    model = model_of(kind, tie_word_embeddings=tie, mixers={"attention": options})  # it reads neither biases nor widths
    save_gguf(model, tmp_path / "model.gguf", byte_tokenizer())
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(24).view(2, 12)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PLANS)
def test_names_and_sizes(tmp_path: Path, kind: str) -> None:
    """Every tensor is one that llama.cpp's architecture has, and none that it needs is missing."""
    model = model_of(kind)
    save_gguf(model, tmp_path / "new" / "model.gguf", byte_tokenizer())
    fields, tensors = read(tmp_path / "new" / "model.gguf")
    assert fields["general.architecture"] == kind
    known = {
        gguf.TENSOR_NAMES[tensor]
        for tensor in gguf.MODEL_TENSORS[next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)]
    }
    bare = {name.rsplit(".", 1)[0] if name.endswith((".weight", ".bias")) else name for name in tensors}
    assert {re.sub(r"blk\.\d+", "blk.{bid}", name) for name in bare} <= known
    assert sum(t.size for t in tensors.values()) == sum(p.numel() for p in model.parameters())
    assert fields[f"{kind}.block_count"] == len(model.config.layers())
    assert fields[f"{kind}.attention.head_count_kv"] == 2
    assert fields[f"{kind}.rope.dimension_count"] == (16 if kind == "qwen35" else 32)
    if kind == "qwen35":
        assert fields["qwen35.attention.recurrent_layers"] == [True, True, False, False]
        assert "qwen35.full_attention_interval" not in fields
        assert sum(fields["qwen35.rope.dimension_sections"]) == 8


def test_a_plan_with_an_even_rhythm_says_so(tmp_path: Path) -> None:
    plan = ["gated_deltanet", "gated_deltanet", "attention"] * 2
    save_gguf(model_of("qwen35", layer_types=plan), tmp_path / "model.gguf", None)
    fields, _ = read(tmp_path / "model.gguf")
    assert fields["qwen35.full_attention_interval"] == 3
    assert (fields["tokenizer.ggml.model"], fields["qwen35.vocab_size"]) == ("none", 258)


def test_value_heads_come_in_rounds(tmp_path: Path) -> None:
    """Heads 0 and 1 of plait read key head 0, 2 and 3 key head 1; llama.cpp's 0 and 2 do, and 1 and 3."""
    model = model_of("qwen35")
    weights = gguf_weights(model)
    layer, order = model.model.layers[1].attn, [0, 2, 1, 3]
    assert torch.equal(weights["blk.1.ssm_a"], -layer.A_log.exp()[order])
    assert torch.equal(weights["blk.1.ssm_dt.bias"], layer.dt_bias[order])
    assert torch.equal(weights["blk.1.ssm_beta.weight"], layer.b_proj.weight[order])
    values = layer.v_proj.weight.view(4, 32, 64)[order].flatten(0, 1)
    fused = torch.cat([layer.q_proj.weight, layer.k_proj.weight, values])
    assert torch.equal(weights["blk.1.attn_qkv.weight"], fused)
    taps = layer.v_conv1d.weight.view(4, 32, 4)[order].flatten(0, 1)
    assert torch.equal(weights["blk.1.ssm_conv1d.weight"][128:], taps)
    assert torch.equal(weights["blk.1.ssm_out.weight"], layer.o_proj.weight.view(64, 4, 32)[:, order].flatten(1))
    assert torch.equal(weights["blk.1.attn_norm.weight"], model.model.layers[1].attn_norm.weight)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_precision_is_kept(tmp_path: Path, dtype: torch.dtype, kept: str) -> None:
    model = model_of("qwen35", dtype)
    save_gguf(model, tmp_path / "model.gguf", byte_tokenizer())
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_qkv.weight"] == kinds["token_embd.weight"] == kept
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.ssm_conv1d.weight"] == "F32"
    _, tensors = read(tmp_path / "model.gguf")
    assert np.array_equal(
        tensors["blk.2.attn_output.weight"], model.model.layers[2].attn.o_proj.weight.float().detach()
    )


def bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a")]
    vocabulary = {token: index for index, token in enumerate([*letters, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), bpe()], ids=["bytes", "bpe"])
def test_the_tokenizer_is_inside(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    save_gguf(model_of("qwen3", vocab_size=300), tmp_path / "model.gguf", tokenizer)
    fields, _ = read(tmp_path / "model.gguf")
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == 300
    assert fields["tokenizer.ggml.tokens"][tokenizer.eos_token_id] == "<|endoftext|>"
    assert fields["tokenizer.ggml.token_type"][tokenizer.eos_token_id] == gguf.TokenType.CONTROL
    assert fields["tokenizer.ggml.token_type"][299] == gguf.TokenType.UNUSED
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.merges"]
    if tokenizer.eos_token_id == 256:  # bytes: two that no UTF-8 text has stand where llama.cpp wants merges
        assert fields["tokenizer.ggml.merges"] == ["À À"]
        assert fields["tokenizer.ggml.tokens"][0xC0] == "À"
        return
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in (TEXT, "abc ab a"):
        assert again.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)


def test_tokenizers_without_a_name(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    spaced = bpe()
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    other = bpe()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    wide = model_of("qwen3", vocab_size=100)
    for tokenizer, reason in (
        (PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"), "its model is WordLevel"),
        (spaced, "it splits text with ByteLevel"),
        (other, "it splits text with Digits and ByteLevel"),
    ):
        with pytest.raises(OptionError, match=f"no name for this tokenizer: {reason}"):
            save_gguf(model_of("qwen3"), tmp_path / "model.gguf", tokenizer)
    with pytest.raises(OptionError, match="its largest id is 257, and the model has 100 rows"):
        save_gguf(wide, tmp_path / "model.gguf", byte_tokenizer())


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"layer_types": ["gla", "attention"], "mixers": {}}, "layer_types has attention and gla, but"),
        ("llama", {"layer_types": ["gated_deltanet"], "mixers": {}}, "layer_types has gated_deltanet, but"),
        ("qwen3", {"mixers": {"attention": {"qk_norm": True, "qkv_bias": True}}}, "option qkv_bias=True"),
        ("llama", {"mixers": {"attention": {"window": 4}}}, "option window=4"),
        ("llama", {"mixers": {"attention": {"logit_scaling": 9.0}}}, r"option logit_scaling=9\.0"),
        (
            "qwen35",
            {"mixers": {"gated_deltanet": {"head_dim": 16, "expand_v": 2.0}, "attention": GATED}},
            r"option expand_v=2\.0: .*16 channels and not 32",
        ),
        (
            "qwen35",
            {"mixers": {"gated_deltanet": {"output_gate_activation": "sigmoid"}, "attention": GATED}},
            "option output_gate_activation='sigmoid'",
        ),
    ],
    ids=str,
)
def test_what_llama_cpp_cannot_express(tmp_path: Path, kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        save_gguf(model_of(kind, **changes), tmp_path / "model.gguf", None)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(OptionError, match="needs the package gguf: pip install gguf"):
        save_gguf(model_of("llama"), tmp_path / "model.gguf", None)


def test_architectures() -> None:
    assert [architecture(model_of(kind).config) for kind in PLANS] == list(PLANS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLANS)
@torch.no_grad()
def test_llama_cpp_computes_the_same(tmp_path: Path, kind: str) -> None:
    """Log-probabilities after a prompt, in llama.cpp itself with an fp32 cache."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp, which brings llama.cpp compiled")
    model, tokenizer = model_of(kind), byte_tokenizer()
    save_gguf(model, tmp_path / "model.gguf", tokenizer)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    options = xllamacpp.CommonParams()
    options.model.path = str(tmp_path / "model.gguf")
    options.n_ctx, options.n_parallel, options.warmup = 128, 1, False
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # A token is shown when its text is whole, so the next one is made a letter; the log-probabilities are those before.
    request = {"prompt": ids, "max_tokens": 1, "logprobs": 40, "temperature": 0, "logit_bias": [[ord("a"), 100]]}
    answer = xllamacpp.Server(options).handle_completions(request)
    theirs = {one["id"]: one["logprob"] for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    ours = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert len(theirs) == 40
    assert set(theirs) == set(ours.topk(40).indices.tolist())
    for token, value in theirs.items():
        assert value == pytest.approx(ours[token].item(), abs=1e-4)
