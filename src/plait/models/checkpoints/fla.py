"""Checkpoints in the layout of flash-linear-attention (fla): a folder with ``config.json`` and safetensors.

plait names its parameters as fla does, so most weights are taken as they are. What differs: HGRN's lower bounds, which
fla keeps at ``model.lower_bounds``, and what older versions of fla wrote (see :func:`from_fla_weights`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

from plait.errors import OptionError
from plait.files import foreign, read_json_object
from plait.models.checkpoints.fla_config import from_fla_config, to_fla_config
from plait.models.configuration import PlaitConfig
from plait.models.decoder import PlaitForCausalLM
from plait.models.loading import check_safetensors

_BOUNDS = "model.lower_bounds"
_HEAD, _EMBEDDINGS = "lm_head.weight", "model.embeddings.weight"


def load_fla(folder: str | os.PathLike) -> PlaitForCausalLM:
    """The model in a folder of fla.

    Args:
        folder: holds ``config.json`` and the weights, in one safetensors file or in shards with an index.

    Returns:
        The model in evaluation mode. Where the file mixes precisions, all weights are in the widest of them.

    Raises:
        OptionError: a field that plait cannot express, or weights that do not fit the fields; the message names the
            file.
    """
    folder = Path(folder)
    config = from_fla_config(_read_json(folder / "config.json"), str(folder / "config.json"))
    weights = from_fla_weights(_read_weights(folder), config)
    with torch.device("meta"):
        model = PlaitForCausalLM(config)
    _check(weights, model.state_dict(), folder)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in weights.values()))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    model.tie_weights()
    return model.eval()


def save_fla(model: PlaitForCausalLM, folder: str | os.PathLike) -> None:
    """Write a model as a folder that fla can load.

    Args:
        model: at most one linear mixer, beside attention.
        folder: where to; it is created.

    Raises:
        OptionError: fla's layout cannot express the model; names the option that stands in the way.
    """
    values = to_fla_config(model.config) | {"torch_dtype": str(model.dtype).removeprefix("torch.")}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(to_fla_weights(model.state_dict(), model.config), folder, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def from_fla_weights(weights: Mapping[str, Tensor], config: PlaitConfig) -> dict[str, Tensor]:
    """Weights under plait's names.

    Understands what fla wrote before: ``mlp.gate_proj`` with the rows of ``up_proj`` below its own (until 2025-02),
    ``attn.D`` of Gated DeltaNet, which no output depends on (until 2025-03), the frequencies of rotary embeddings, and
    ``attn.g_norm`` for the gated norm where norm and gate are not fused.

    Args:
        weights: by fla's names.
        config: the model that they belong to.
    """
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith(".rotary.inv_freq")}
    for index, spec in enumerate(config.layers()):
        layer = f"model.layers.{index}"
        if spec.mixer == "gated_deltanet":
            weights.pop(f"{layer}.attn.D", None)
        gated = spec.mixer in ("gla", "retnet") and spec.options.use_output_gate  # type: ignore[attr-defined]
        if gated and f"{layer}.attn.g_norm.weight" in weights:
            weights[f"{layer}.attn.g_norm_swish_gate.weight"] = weights.pop(f"{layer}.attn.g_norm.weight")
        gate, up = f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"
        if up not in weights and gate in weights and len(weights[gate]) == 2 * config.mlp_size:
            weights[gate], weights[up] = (half.clone() for half in weights[gate].chunk(2))
    own = _bounds_name(config)
    if own is not None and _BOUNDS in weights:
        weights[own] = weights.pop(_BOUNDS)
    elif all(spec.mixer == "attention" for spec in config.layers()):  # bounds of a hybrid without a linear layer
        weights.pop(_BOUNDS, None)
    if config.tie_word_embeddings and _EMBEDDINGS in weights:
        weights[_HEAD] = weights[_EMBEDDINGS]
    return weights


def to_fla_weights(weights: Mapping[str, Tensor], config: PlaitConfig) -> dict[str, Tensor]:
    """Weights under fla's names; a tied head is left out."""
    own = _bounds_name(config)
    tied = config.tie_word_embeddings
    return {
        _BOUNDS if name == own else name: tensor for name, tensor in weights.items() if not (tied and name == _HEAD)
    }


def _bounds_name(config: PlaitConfig) -> str | None:
    """plait's name of the lower bounds, which belong to one layer type."""
    for spec in config.layers():
        for name in spec.type.shared_parameters(config.dims, spec.options):
            return f"model.shared.{spec.name}.{name}"
    return None


def _read_json(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise OptionError(f"{path.parent} holds no model: it has no {path.name}.")
    return read_json_object(path, OptionError)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder, by name."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        listed = _read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(_is_file_name(name) for name in listed.values()):
            raise OptionError(f"{index} has no 'weight_map' from weights to files of its folder.")
        names = sorted(set(listed.values()))
    weights: dict[str, Tensor] = {}
    for name in names:
        if not os.path.lexists(folder / name):
            raise OptionError(f"{folder} holds no weights that plait reads: it has no {name}.")
        check_safetensors(folder / name)
        with foreign(f"{folder / name} is damaged", "Copy it again.", OptionError):
            weights |= load_file(folder / name)
    return weights


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _check(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    """Every weight of the model is there, in its shape, and nothing else is."""
    differences = [f"no {name}" for name in expected if name not in weights]
    differences += [f"{name}, which this model does not have" for name in weights if name not in expected]
    differences += [
        f"{name} of shape {list(weights[name].shape)} where {list(tensor.shape)} is needed"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if differences:
        more = f" and {len(differences) - 3} more differences" if len(differences) > 3 else ""
        raise OptionError(f"The weights in {folder} do not fit its config.json: {'; '.join(differences[:3])}{more}.")
