"""What a calibration leaves for later use: a file that says which model it belongs to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from plait.errors import DataError, OptionError
from plait.files.reading import foreign, read_json_object, regular_file
from plait.files.writing import write_json
from plait.runtime.call import ModelInfo

#: Version of the files.
FORMAT = "plait artefact 1"
#: Entries of a parameter that its fingerprint reads.
_ENTRIES = 64


@dataclass(frozen=True)
class Artefact:
    """The result of a calibration.

    Args:
        kind: what it is, such as ``head_table``; whoever reads it asks for this kind.
        fingerprint: of the architecture it was made for (:attr:`~plait.runtime.call.ModelInfo.fingerprint`); None if
            unknown.
        values: plain numbers, texts, lists and mappings.
        tensors: larger parts, by name.
        weights: fingerprint of the weights (:func:`weights_fingerprint`) where they matter, else None.
        source: what messages call it.
    """

    kind: str
    fingerprint: str | None
    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: str | None = None
    source: str = "the given artefact"

    def save(self, path: str | Path) -> None:
        """Write a file: ``NAME.json`` where there are no tensors, ``NAME.safetensors`` otherwise.

        Raises:
            OptionError: another name.
        """
        path = Path(path)
        wanted = ".safetensors" if self.tensors else ".json"
        if path.suffix != wanted:
            raise OptionError(f"An artefact of kind {self.kind!r} is saved as a {wanted} file, not as {path.name!r}.")
        head = {"format": FORMAT, **{key: value for key, value in asdict(replace(self, tensors={})).items()}}
        del head["tensors"], head["source"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self.tensors:
            write_json(path, head)
            return
        partial = path.with_name(path.name + ".partial")
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}
        save_file(tensors, partial, metadata={"artefact": json.dumps(head)})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path, kind: str) -> Artefact:
        """The artefact of a file of :meth:`save`.

        Raises:
            DataError: the file cannot be read, or holds something else than this kind.
        """
        path, tensors = Path(path), {}
        if path.suffix == ".safetensors":
            try:
                with safe_open(regular_file(path), "pt") as file:
                    head = json.loads((file.metadata() or {}).get("artefact", "{}"))
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            except (SafetensorError, ValueError) as error:
                raise DataError(f"{path} cannot be read: {error}.") from None
        else:
            head = read_json_object(path)
        with foreign(f"{path} is no artefact of plait"):
            if head.get("format") != FORMAT:
                raise DataError(f"{path} is no artefact of plait: make one with plait calibrate.")
            if head["kind"] != kind:
                raise DataError(f"{path} is an artefact of kind {head['kind']!r}, and {kind!r} is needed.")
            for name, types in (("fingerprint", str | None), ("weights", str | None), ("values", dict)):
                if not isinstance(head[name], types):
                    raise DataError(f"{path}: {name} is {type(head[name]).__name__}, which no artefact has.")
            return cls(kind, head["fingerprint"], head["values"], tensors, head["weights"], str(path))

    def check(self, model: ModelInfo) -> None:
        """Refuse another model than the one it was made for.

        Raises:
            OptionError: the architecture, or the weights where they matter, are others.
        """
        if self.fingerprint is not None and self.fingerprint != model.fingerprint:
            raise OptionError(
                f"{self.source} was made for another model (fingerprint {self.fingerprint}, this {model.name} has "
                f"{model.fingerprint}): calibrate again."
            )
        if self.weights is not None and model.weights is not None and self.weights != model.weights:
            raise OptionError(
                f"{self.source} was made for another model: the layers of this {model.name} are the same, its weights "
                "are not. Calibrate again."
            )


@torch.no_grad()
def weights_fingerprint(model: nn.Module) -> str:
    """Names, shapes and some entries of all parameters, as a hash: the same after saving, loading and in another dtype.

    Entries are rounded to bf16, so a model that was loaded in bf16 has the fingerprint of its fp32 original.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // _ENTRIES)][:_ENTRIES].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
