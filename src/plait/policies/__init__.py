"""Policies: ways to run a pretrained transformer with less attention work or less cache, without retraining.

with plait.policy(model, "streaming", sinks=4, window=256) as applied:
    model.generate(...)
print(applied.report().share)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from plait import catalog
from plait.policies.build import build, names
from plait.policies.duo_data import passkey_rows, task_rows
from plait.policies.duo_optimise import FindHeadsOptions, find_heads
from plait.policies.head_table import HeadTable
from plait.policies.scored import ScoredOptions, ScoredPolicy
from plait.runtime.applied import Applied
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.dense import Dense
from plait.runtime.meter import Report, Work
from plait.runtime.policy import CalibrationRow, Policy
from plait.runtime.store import Keys


def policy(model: nn.Module, policy: str | Mapping[str, Any] | Policy, **options: Any) -> Applied:
    """A policy for a model, in force inside a ``with`` block.

    Args:
        model: a decoder of transformers whose layers attend through its attention interface, or a
            :class:`~plait.models.PlaitForCausalLM`, whose softmax layers it then serves.
        policy: see :func:`build`.
        options: the policy's options.

    Returns:
        a context manager; ``applied.report()`` says what the policy did. On leaving, the model is as it was.

    Raises:
        CatalogError, OptionError: see :func:`build`; on entering, :class:`~plait.errors.OptionError` for a model that
            cannot run under a policy, with the reason.
    """
    return Applied(model, build(policy, **options), _name(policy))


def masked_reference(model: nn.Module, policy: str | Mapping[str, Any] | Policy, **options: Any) -> Applied:
    """The same as :func:`policy`, computed with dense masks: slow, and what a policy must agree with.

    What is chosen and what is forgotten is the policy's own doing; each product, gathered by the policy, is a masked
    product over all stored keys here.
    """
    return Applied(model, build(policy, **options), _name(policy), reference=True)


def _name(policy: str | Mapping[str, Any] | Policy) -> str:
    if isinstance(policy, Policy):
        return catalog.name_of(type(policy), "policy")
    return policy if isinstance(policy, str) else str(policy["name"])


__all__ = [
    "Applied",
    "CalibrationRow",
    "Call",
    "Dense",
    "FindHeadsOptions",
    "HeadTable",
    "Keys",
    "LayerInfo",
    "ModelInfo",
    "Policy",
    "Report",
    "ScoredOptions",
    "ScoredPolicy",
    "Work",
    "build",
    "find_heads",
    "masked_reference",
    "names",
    "passkey_rows",
    "policy",
    "task_rows",
]
