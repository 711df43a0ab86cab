"""Policies by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait import catalog
from plait.errors import OptionError
from plait.runtime.policy import Policy

#: A policy as options and files write it: its name, or a mapping with ``name`` and options.
Spec = str | dict[str, Any]


def names() -> list[str]:
    """Names of all policies."""
    return catalog.names("policy")


def build(policy: str | Mapping[str, Any] | Policy, **options: Any) -> Policy:
    """A policy from its name and options.

    Args:
        policy: a name of :func:`names`, a mapping with the name as ``name`` and options beside it, or a policy.
        options: the policy's options.

    Raises:
        CatalogError: no policy has this name.
        OptionError: an option that does not exist or is out of range.
    """
    if isinstance(policy, Policy):
        if options:
            raise OptionError("Give options with a policy's name, not with a policy that is already built.")
        return policy
    if isinstance(policy, Mapping):
        given = {**policy, **options}
        if not isinstance(given.get("name"), str):
            raise OptionError(f"A policy written as a mapping needs its name, as in {{'name': 'quest'}}: {policy}.")
        name: str = given.pop("name")
        return build(name, **given)
    kind: type[Policy] = catalog.get(policy, "policy").load()
    return kind(kind.Options.parse(policy, options))
