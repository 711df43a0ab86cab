"""The model under test, with what identifies it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.data.order import stable_hash
from plait.devices import default_device
from plait.models import load
from plait.runs.config import DataSection
from plait.runs.folder import model_folder, read_run_file
from plait.runtime.policy import Policy
from plait.training.runner import quiet


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Args:
        name: what the user called it.
        model: in evaluation mode.
        tokenizer: None for a model of token ids.
        fingerprint: changes with the weights.
        data: what it was trained on, where it says so.
        policy: the policy that is in force, or None.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    fingerprint: str
    data: DataSection | None = None
    policy: Policy | None = None

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, data: DataSection | None = None
    ) -> Subject:
        """A model at hand."""
        return cls(type(model).__name__, model, tokenizer, fingerprint(model), data)

    @property
    def vocab_size(self) -> int:
        """Entries of its embedding."""
        embedding: Any = self.model.get_input_embeddings()
        size: int = embedding.weight.shape[0]
        return size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device


def open_subject(name: str) -> Subject:
    """The model that a user names: folder of a run or of a saved model, or a name on the hub.

    Raises:
        TrainingError: a run that has not finished.
    """
    place = model_folder(name)
    model, tokenizer = open_model(place)
    run = read_run_file(Path(place))
    return Subject(name, model.eval(), tokenizer, fingerprint(model), run.data if run else None)


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits of the SHA-256 of names, shapes and samples of the weights.

    Of each tensor 64 evenly spaced numbers are read, so that large models cost no second.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, min(64, flat.numel()), dtype=torch.float64).long()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(flat[places.to(flat.device)].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def measurement_key(fingerprint: str, spec: dict[str, Any]) -> str:
    """Names the result of one measurement of one model."""
    return f"{stable_hash(fingerprint, sorted(spec.items())):016x}"


def open_model(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """:func:`plait.models.load`, without transformers' bars, on this machine's accelerator where it has one."""
    with quiet():
        model, tokenizer = load(folder)
    model.to(default_device())  # type: ignore[arg-type]
    return model, tokenizer
