"""Weights of another model as the start of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.data.tokenizers import tokenizer_hash
from plait.errors import OptionError
from plait.models import load
from plait.runs.folder import model_folder

#: Keys of a configuration that say nothing of the computation.
_NO_DIFFERENCE = {"transformers_version", "dtype", "_name_or_path", "architectures", "use_cache"}


@dataclass(frozen=True)
class WarmStart:
    """A model whose weights a run starts from.

    Args:
        source: what the user named: a run's folder, a saved model or a name.
        model: the model.
        tokenizer: None for a model of a synthetic task.
        sha256: of the weights' names, shapes, types and bytes.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    sha256: str

    @property
    def record(self) -> dict[str, str]:
        """What ``run.json`` keeps of it."""
        place = Path(self.source)
        return {"source": str(place.resolve()) if place.exists() else self.source, "sha256": self.sha256}


def read(source: str) -> WarmStart:
    """The model that ``source`` names.

    Raises:
        OptionError: there is none.
        TrainingError: a run that has not finished; the message names its last checkpoint.
    """
    model, tokenizer = load(model_folder(source))
    return WarmStart(source, model, tokenizer, _hash(model.state_dict()))


def apply(warm: WarmStart, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Put the weights into a new model.

    Args:
        warm: where they come from.
        model: changed in place.
        tokenizer: of the run's data.

    Returns:
        settings of the two configurations that differ without changing a shape, as ``key: there -> here``.

    Raises:
        OptionError: weights that are missing, left over or of another shape, or another tokenizer.
    """
    if _tokens(tokenizer) != _tokens(warm.tokenizer):
        raise OptionError(
            f"--init-from {warm.source}: its {_named(warm.tokenizer)}, this run's {_named(tokenizer)}; its weights "
            "would read other ids. Use the same data.tokenizer (hf:PATH takes that of a saved model)."
        )
    own, given = model.state_dict(), warm.model.state_dict()
    wrong = [f"{name} is missing there" for name in own if name not in given]
    wrong += [f"{name} is left over" for name in given if name not in own]
    wrong += [
        f"{name} is {tuple(given[name].shape)} there and {tuple(own[name].shape)} here"
        for name in own
        if name in given and own[name].shape != given[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise OptionError(
            f"--init-from {warm.source}: its weights do not fit the model section: {'; '.join(wrong[:3])}{more}. "
            "Give the run the same architecture."
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])
    return _differences(warm.model.config.to_dict(), model.config.to_dict())


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    keys = sorted((there.keys() & here.keys()) - _NO_DIFFERENCE)
    return [f"{key}: {there[key]!r} -> {here[key]!r}" for key in keys if there[key] != here[key]]


def _tokens(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    return None if tokenizer is None else tokenizer_hash(tokenizer)


def _named(tokenizer: PreTrainedTokenizerBase | None) -> str:
    return "task has no tokenizer" if tokenizer is None else f"tokenizer has {len(tokenizer):,} entries"


def _hash(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
