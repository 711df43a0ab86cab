"""Opening saved models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from plait.errors import OptionError
from plait.files import check_json_object, check_pointer, foreign, quoted, regular_file
from plait.hub import check_name, trusted
from plait.models.alignment import align_weights
from plait.models.classification import PlaitForSequenceClassification, PlaitForTokenClassification
from plait.models.configuration import PlaitConfig
from plait.models.decoder import PlaitForCausalLM, PlaitModel
from plait.models.heads import AutoencoderForCompression
from plait.models.tokenizer import TOKENIZER_FILES, open_tokenizer
from plait.sections import DEEPEST, WIDEST

#: Folder of a checkpoint with the weights and optimiser states that several processes wrote.
SHARDED_FOLDER = "sharded"


def register() -> None:
    """Make the Auto classes of transformers know plait's classes."""
    AutoConfig.register(PlaitConfig.model_type, PlaitConfig, exist_ok=True)
    AutoModel.register(PlaitConfig, PlaitModel, exist_ok=True)
    AutoModelForCausalLM.register(PlaitConfig, PlaitForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(PlaitConfig, PlaitForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(PlaitConfig, PlaitForTokenClassification, exist_ok=True)
    # transformers' Trainer shifts smoothed labels by one token only for causal models that this table names
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[PlaitConfig.model_type] = PlaitForCausalLM.__name__


def load(
    path_or_name: str | os.PathLike, *, trust_remote_code: bool | None = None, **options: Any
) -> tuple[PreTrainedModel, Tokenizer | None]:
    """A saved model, ready to run, and its tokenizer.

    Args:
        path_or_name: folder of a saved model, or a name on the Hugging Face hub; any causal language model that
            transformers can load, plait's own or not; or a folder of plait's auto-encoder; or a checkpoint of a run,
            sharded or whole.
        trust_remote_code: run Python code that the folder brings; None: as the command line says.
        options: for ``from_pretrained``, such as ``dtype`` or ``device_map``.

    Returns:
        the model in evaluation mode, and the tokenizer, or None for a local folder without one (a model of a
        synthetic task has none).

    Raises:
        OptionError: the folder does not exist, holds no model or a damaged one; or the hub has none of that name.
    """
    folder = Path(path_or_name)
    local = folder.is_dir()
    config = open_config(path_or_name, trust_remote_code)
    where = f"The model in {folder}" if local else f"The model {str(path_or_name)!r}"
    for file in sorted(folder.glob("*.safetensors")) if local else []:
        check_safetensors(file)
    with foreign(f"{where} cannot be loaded", kind=OptionError):
        if local and (folder / SHARDED_FOLDER).is_dir():
            model = _from_shards(folder, trust_remote_code=trusted(trust_remote_code), **options)
        else:
            kind = AutoencoderForCompression if _is_autoencoder(config) else AutoModelForCausalLM
            model = _whole(kind, path_or_name, where, trusted(trust_remote_code), options)
        align_weights(model)
    _check_generation(getattr(model, "generation_config", None), folder / "generation_config.json" if local else where)
    if local and not any(os.path.lexists(folder / name) for name in TOKENIZER_FILES):
        return model, None
    return model, open_tokenizer(path_or_name, trust_remote_code)


def open_config(path_or_name: str | os.PathLike, trust_remote_code: bool | None = None) -> PreTrainedConfig:
    """The configuration of a saved model, with sizes that somebody could have; reads no weight.

    Args:
        path_or_name: folder, or name on the hub.
        trust_remote_code: run Python code that the folder brings; None: as the command line says.

    Raises:
        OptionError: there is no such model, or a file of it is damaged; the message names it.
    """
    folder = Path(path_or_name)
    if folder.is_dir():
        check_folder(folder)
    else:
        check_name(str(path_or_name))
    where = str(folder / "config.json") if folder.is_dir() else f"The model {str(path_or_name)!r}"
    with foreign(f"{where} does not describe a model", kind=OptionError):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path_or_name, trust_remote_code=trusted(trust_remote_code)
        )
    check_sizes(config, where)
    return config


def check_folder(folder: Path) -> None:
    """Raise unless a folder holds a ``config.json``, and JSON files that can be read.

    Args:
        folder: of a saved model.

    Raises:
        OptionError: no model, or a file that is damaged; the message names it.
    """
    path = folder / "config.json"
    if not os.path.lexists(path):
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f" It has models inside: {', '.join(inside[:20])}." if inside else ""
        raise OptionError(f"{folder} holds no model: it has no config.json.{hint}")
    check_json_object(path, OptionError)
    for name in ("generation_config.json", "model.safetensors.index.json"):
        if os.path.lexists(folder / name):
            check_json_object(folder / name, OptionError)


def check_safetensors(path: Path) -> None:
    """Raise unless a file of weights has a header that fits its size; reads no weight.

    Args:
        path: of a safetensors file.

    Raises:
        OptionError: it is cut off, empty, a pointer of Git LFS, or no such file.
    """
    regular_file(path, OptionError)
    with path.open("rb") as file:
        check_pointer(file.read(64), path, OptionError)
    if path.stat().st_size == 0:
        raise OptionError(f"{path} is empty; copy it again.")
    with foreign(f"{path} is damaged", "Copy it again.", OptionError), safe_open(path, "pt") as weights:
        weights.keys()


def _whole(
    kind: Any, name: str | os.PathLike, where: str, trust_remote_code: bool, options: dict[str, Any]
) -> PreTrainedModel:
    """The model with all of its weights: one that is missing would be a random one."""
    model, report = kind.from_pretrained(name, trust_remote_code=trust_remote_code, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise OptionError(f"{where}: its weights do not fit its config.json: there is no {missing[0]}{more}.")
    found: PreTrainedModel = model
    return found


def _check_generation(config: Any, where: object) -> None:
    """Raise where the settings of ``generate`` have values that it stumbles over at the first token."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        ids = value if isinstance(value, list) else [value]
        if not all(one is None or (isinstance(one, int) and not isinstance(one, bool)) for one in ids):
            raise OptionError(f"{where}: {name} = {quoted(value)} is not an id of a token, nor a list of them.")
    for name in ("output_attentions", "output_hidden_states", "output_scores", "output_logits", "use_cache"):
        value = getattr(config, name, None)
        if value is not None and not isinstance(value, bool):
            raise OptionError(f"{where}: {name} = {quoted(value)} is neither true nor false.")


def check_sizes(config: Any, where: str) -> None:
    """Raise where a configuration asks for a model that nobody has, before it is built.

    Args:
        config: of any model of transformers.
        where: its file, for the message.

    Raises:
        OptionError: a size out of range; the message names it.
    """
    limits = {"num_hidden_layers": DEEPEST, "hidden_size": WIDEST, "intermediate_size": 2**24, "vocab_size": 2**28}
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name, most in limits.items():
        value = getattr(text, name, None)
        if isinstance(value, int) and not 0 < value <= most:
            raise OptionError(f"{where}: {name} = {quoted(value)} is not between 1 and {most:,}.")


def _from_shards(
    folder: Path, dtype: torch.dtype | str = "auto", trust_remote_code: bool | None = None
) -> PreTrainedModel:
    """The whole model of a checkpoint that several processes wrote; ``auto`` is the type it was trained in."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    from plait.models.pieces import read_pieces

    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=trusted(trust_remote_code)),
        trust_remote_code=trusted(trust_remote_code),
    )
    weights = get_model_state_dict(model)
    read_pieces({"model": weights}, folder / SHARDED_FOLDER, alone=True)
    set_model_state_dict(model, weights)
    return model.eval() if isinstance(dtype, str) else model.to(dtype).eval()  # type: ignore[arg-type]


def _is_autoencoder(config: Any) -> bool:
    """Whether it says so itself; the Auto classes go by the kind of configuration alone."""
    return AutoencoderForCompression.__name__ in (config.architectures or [])
