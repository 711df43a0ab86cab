"""Measures a model while a policy runs in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from plait.data.order import stable_hash
from plait.evaluation.subject import Subject
from plait.policies import Applied, policy


@contextmanager
def under_policy(subject: Subject, name: str, options: Mapping[str, Any]) -> Iterator[tuple[Subject, Applied]]:
    """The subject with a policy in force, under a name and fingerprint of its own.

    Token-id tasks are then read in one pass up to the first asked position and token by token from there, so that what
    a policy does while decoding is measured too.

    Args:
        subject: a model that can run under a policy.
        name: of the policy.
        options: of the policy.

    Raises:
        CatalogError: there is no such policy.
        OptionError: an unknown option, or a model that cannot run under a policy.
    """
    said = json.dumps(dict(options), sort_keys=True)
    applied = policy(subject.model, name, **options)
    label = f"{subject.name} under {name}" + (f" {said}" if options else "")
    fingerprint = f"{stable_hash(subject.fingerprint, name, said):016x}"
    with applied:
        yield replace(subject, name=label, fingerprint=fingerprint, policy=applied.policy), applied
