"""Models of transformers that plait reads and writes; their logits are the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from plait.errors import OptionError
from plait.models.checkpoints.fields import sentence
from plait.models.checkpoints.folders import model_type
from plait.models.checkpoints.kimi_linear import KimiLinear
from plait.models.checkpoints.llama import Llama, Qwen3
from plait.models.checkpoints.olmo_hybrid import OlmoHybrid
from plait.models.checkpoints.qwen3_next import Qwen3Next, Qwen35
from plait.models.checkpoints.twin import Twin, common_fields
from plait.models.decoder import PlaitForCausalLM

#: By the name that ``plait export --to`` takes.
TWINS: dict[str, Twin] = {
    "llama": Llama(),
    "qwen3": Qwen3(),
    "qwen3_next": Qwen3Next(),
    "qwen3_5": Qwen35(),
    "olmo_hybrid": OlmoHybrid(),
    "kimi_linear": KimiLinear(),
}
#: By the ``model_type`` of a ``config.json``; the text model of Qwen3.5 also stands inside one that sees images.
BY_MODEL_TYPE = {twin.model_type: twin for twin in TWINS.values()} | {"qwen3_5": TWINS["qwen3_5"]}


def to_transformers(model: PlaitForCausalLM, kind: str) -> PreTrainedModel:
    """The same model as a class of transformers.

    Args:
        model: with layers that the class has.
        kind: ``llama``, ``qwen3``, ``qwen3_next``, ``qwen3_5``, ``olmo_hybrid`` or ``kimi_linear``.

    Raises:
        OptionError: the class cannot express the plan or an option, which the message names, or is not in the
            installed transformers.
    """
    twin, config = TWINS[kind], model.config
    fields = twin.write_config(config, twin.settings(config))
    shared = {"num_hidden_layers": len(config.layers()), "rms_norm_eps": config.norm_eps, **common_fields(config)}
    config_class, model_class = twin.classes()
    written: PreTrainedModel = model_class(config_class(**shared | fields)).to(model.dtype)
    written.load_state_dict(twin.write_weights(model.state_dict(), config))
    return written.eval()


def from_transformers(model: PreTrainedModel) -> PlaitForCausalLM:
    """A model of transformers as a plait model.

    Args:
        model: one that :func:`to_transformers` can write.

    Raises:
        OptionError: another class, or an option that plait cannot express; the message names it.
    """
    twin = _twin(model.config.model_type)
    twin.check_fields(model.config)
    config = twin.read_config(model.config)
    weights = twin.read_weights(model.state_dict(), config)
    with torch.device("meta"):
        read = PlaitForCausalLM(config)
    dtype = weights["model.embeddings.weight"].dtype  # some classes keep a few small parameters wider
    read.load_state_dict({name: tensor.to(dtype, copy=True) for name, tensor in weights.items()}, assign=True)
    read.tie_weights()
    return read.eval()


def load_transformers(folder: str | os.PathLike) -> PlaitForCausalLM:
    """The model of transformers in a folder as a plait model.

    Args:
        folder: holds ``config.json`` and the weights, in one safetensors file or in shards with an index.

    Returns:
        The model in evaluation mode, in the precision of the file.

    Raises:
        OptionError: another class, a field that plait cannot express, or weights that are missing; the message names
            the folder.
    """
    folder = Path(folder)
    twin = _twin(model_type(folder))
    if model_type(folder) not in CONFIG_MAPPING:
        raise OptionError(
            f"{folder} is a {twin.title} model, which transformers {transformers.__version__} does not know: "
            "pip install --upgrade transformers."
        )
    _check_config(folder, twin)  # before the weights, which may be large
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, trust_remote_code=False
        )
    except (OSError, SafetensorError) as error:
        raise OptionError(f"{folder} holds no weights that transformers reads: {sentence(error)}") from None
    except Exception as error:  # whatever a class raises whose sizes fit nothing
        raise OptionError(f"The weights in {folder} do not fit its config.json: {sentence(error)}") from None
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise OptionError(f"The weights in {folder} do not fit its config.json: no {missing[0]}{more}.")
    return from_transformers(model)


def _check_config(folder: Path, twin: Twin) -> None:
    """The configuration in a folder is one that plait can express.

    Raises:
        OptionError: it is not, or transformers cannot make sense of it; names the file.
    """
    path = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        twin.check_fields(config)
        spec = twin.read_config(config)
        for layer in spec.layers():
            layer.options.heads(spec.dims)  # type: ignore[attr-defined]
    except OptionError as error:
        raise OptionError(f"{path}: {sentence(error)}") from None
    except Exception as error:  # a damaged file fails anywhere inside of transformers
        raise OptionError(f"{path} is damaged, transformers cannot read it: {sentence(error)}") from None


def _twin(kind: str | None) -> Twin:
    if kind not in BY_MODEL_TYPE:
        called = repr(kind) if len(str(kind)) < 60 else f"{str(kind)[:57]!r}..."
        raise OptionError(f"plait reads models of transformers of the kinds {', '.join(BY_MODEL_TYPE)}, not {called}.")
    return BY_MODEL_TYPE[kind]
