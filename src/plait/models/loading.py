"""Opening saved models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from plait.errors import OptionError, PlaitError
from plait.models.alignment import align_weights
from plait.models.classification import PlaitForSequenceClassification, PlaitForTokenClassification
from plait.models.configuration import PlaitConfig
from plait.models.decoder import PlaitForCausalLM, PlaitModel
from plait.models.heads import AutoencoderForCompression

#: Folder of a checkpoint with the weights and optimiser states that several processes wrote.
SHARDED_FOLDER = "sharded"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def register() -> None:
    """Make the Auto classes of transformers know plait's classes."""
    AutoConfig.register(PlaitConfig.model_type, PlaitConfig, exist_ok=True)
    AutoModel.register(PlaitConfig, PlaitModel, exist_ok=True)
    AutoModelForCausalLM.register(PlaitConfig, PlaitForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(PlaitConfig, PlaitForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(PlaitConfig, PlaitForTokenClassification, exist_ok=True)
    # transformers' Trainer shifts smoothed labels by one token only for causal models that this table names
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[PlaitConfig.model_type] = PlaitForCausalLM.__name__


def load(path_or_name: str | os.PathLike, **options: Any) -> tuple[PreTrainedModel, Tokenizer | None]:
    """A saved model, ready to run, and its tokenizer.

    Args:
        path_or_name: folder of a saved model, or a name on the Hugging Face hub; any causal language model that
            transformers can load, plait's own or not; or a folder of plait's auto-encoder; or a checkpoint of a run,
            sharded or whole.
        options: for ``from_pretrained``, such as ``dtype`` or ``device_map``.

    Returns:
        the model in evaluation mode, and the tokenizer, or None for a local folder without one (a model of a
        synthetic task has none).

    Raises:
        OptionError: the folder does not exist, holds no model or a damaged one; or the hub has none of that name.
    """
    folder = Path(path_or_name)
    local = folder.is_dir()
    if local and not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f" It has models inside: {', '.join(inside)}." if inside else ""
        raise OptionError(f"{folder} holds no model: it has no config.json.{hint}")
    if not local and (folder.is_absolute() or str(path_or_name).startswith(".") or len(folder.parts) > 2):
        raise OptionError(f"There is no folder {folder}.")
    try:
        kind = AutoencoderForCompression if local and _holds_autoencoder(folder) else AutoModelForCausalLM
        if local and (folder / SHARDED_FOLDER).is_dir():
            model = _from_shards(folder, **options)
        else:
            model = kind.from_pretrained(path_or_name, **options)
        align_weights(model)
    except PlaitError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        where = f"The model in {folder}" if local else f"There is no folder {folder}, and the model of that name"
        reason = str(error).strip().splitlines()[0]
        raise OptionError(f"{where} cannot be loaded: {reason}") from error
    if local and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return model, None
    return model, AutoTokenizer.from_pretrained(path_or_name)


def _from_shards(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The whole model of a checkpoint that several processes wrote; ``auto`` is the type it was trained in."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    weights = get_model_state_dict(model)
    checkpoint.load({"model": weights}, checkpoint_id=folder / SHARDED_FOLDER, no_dist=True)
    set_model_state_dict(model, weights)
    return model.eval() if isinstance(dtype, str) else model.to(dtype).eval()  # type: ignore[arg-type]


def _holds_autoencoder(folder: Path) -> bool:
    """Whether it says so itself; the Auto classes go by the kind of configuration alone."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return AutoencoderForCompression.__name__ in (config.get("architectures") or [])
