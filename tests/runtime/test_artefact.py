"""What a calibration leaves: written, read back, and refused by other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from plait.errors import DataError, OptionError
from plait.policies import Dense
from plait.runtime.artefact import Artefact, weights_fingerprint
from policies.tiny_models import decoder


def info(model: Any) -> Any:
    with plait.policy(model, Dense()) as applied:
        return applied.info


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    plain = Artefact("gates", "abc", {"heads": [[0.5, 1.0]], "steps": 3}, weights="def")
    plain.save(tmp_path / "new" / "gates.json")
    found = Artefact.load(tmp_path / "new" / "gates.json", "gates")
    assert (found.kind, found.fingerprint, found.weights, found.values) == ("gates", "abc", "def", plain.values)
    tensors = {"first": torch.arange(6.0).view(2, 3).T, "second": torch.tensor([1, 2])}
    large = Artefact("codes", None, {"size": 2}, tensors)
    large.save(tmp_path / "codes.safetensors")
    found = Artefact.load(tmp_path / "codes.safetensors", "codes")
    assert found.values == {"size": 2}
    assert found.fingerprint is None
    assert set(found.tensors) == set(tensors)
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    with pytest.raises(OptionError, match=r"\.safetensors file"):
        large.save(tmp_path / "codes.json")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gates.json"
    Artefact("gates", None, {}).save(path)
    with pytest.raises(DataError, match="kind 'gates', and 'codes' is needed"):
        Artefact.load(path, "codes")
    head = json.loads(path.read_text())
    for change in ({"format": "another"}, {"values": [1]}, {"fingerprint": 3}):
        path.write_text(json.dumps({**head, **change}))
        with pytest.raises(DataError, match=str(path)):
            Artefact.load(path, "gates")
    path.write_text(json.dumps({"format": head["format"]}))
    with pytest.raises(DataError, match="no artefact"):
        Artefact.load(path, "gates")
    damaged = tmp_path / "codes.safetensors"
    damaged.write_bytes(b"\x00" * 20)
    with pytest.raises(DataError, match="cannot be read"):
        Artefact.load(damaged, "codes")


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_architecture_and_weights_must_be_those_of_the_model(family: str) -> None:
    model = decoder(family)
    own = info(model)
    artefact = Artefact("gates", own.fingerprint, weights=own.weights)
    artefact.check(own)
    artefact.check(info(decoder(family)))
    other = decoder(family)
    with torch.no_grad():
        next(p for p in other.parameters() if p.dim() > 1).mul_(1.1)
    with pytest.raises(OptionError, match="its weights are not"):
        artefact.check(info(other))
    Artefact("gates", own.fingerprint).check(info(other))
    wider = decoder("qwen3")
    with pytest.raises(OptionError, match="another model"):
        artefact.check(info(wider))


def test_the_fingerprint_of_weights_survives_a_cast() -> None:
    model = decoder("llama").to(torch.bfloat16)
    one = weights_fingerprint(model)
    assert weights_fingerprint(model.float()) == one
