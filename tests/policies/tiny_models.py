"""Tiny random decoders of many families, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from plait.models import PlaitConfig, PlaitForCausalLM

VOCABULARY = 61
#: Sizes that every family takes.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
#: What a family needs beyond them: layers with windows, soft caps, sink logits, other head sizes.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 24},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 24,
    },
    "mistral": {"sliding_window": 7, "head_dim": 8},
    "phi3": {"sliding_window": None},
    "gpt_neox": {},
    "olmo2": {},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "starcoder2": {"sliding_window": None},
    "granite": {"attention_multiplier": 0.3},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "first_k_dense_replace": 2,
        "head_dim": 8,
    },
}


def decoder(family: str, **changes: Any) -> PreTrainedModel:
    """A random decoder in evaluation mode; weights are large enough for attention to be uneven."""
    torch.manual_seed(1)
    if family == "plait":
        config: Any = PlaitConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            intermediate_size=48,
            layer_types=["attention", "attention"],
            mixers={"attention": {"head_dim": 8, "num_kv_heads": 2} | changes},
        )
        model: PreTrainedModel = PlaitForCausalLM(config)
    else:
        config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **changes})
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 * parameter.shape[-1] ** -0.5)
            elif parameter.dim() == 1 and parameter.shape[0] == 4:  # sink logits
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tokens(rows: int, length: int, seed: int = 3) -> Tensor:
    """Random ids ``(rows, length)``."""
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_padded(rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows of different lengths as a batch with padding in front."""
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, batch: dict[str, Tensor], new: int = 4, **options: Any) -> Tensor:
    """New tokens, ``(rows, new)``, chosen greedily unless ``options`` say otherwise."""
    width = batch["input_ids"].shape[1]
    out: Tensor = model.generate(
        **batch, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, **options
    )
    return out[:, width:]
