"""AR hits against examples worked by hand and against the definition written as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from plait.data.bigrams import BigramCounts
from plait.evaluation.ar_hits import ar_hits


def by_definition(input_ids: Tensor, targets: Tensor) -> Tensor:
    """A target is a hit if its bigram stands earlier in the row."""
    hits = torch.zeros_like(targets, dtype=torch.bool)
    for row in range(len(targets)):
        for t in range(targets.shape[1]):
            now = (input_ids[row, t], targets[row, t])
            earlier = [(input_ids[row, s], targets[row, s]) for s in range(t)]
            hits[row, t] = targets[row, t] != -100 and now in earlier
    return hits


def test_worked_by_hand() -> None:
    # tokens   a b c a b b b c: the bigrams ab and bc come back, and the second bb overlaps the first
    tokens = torch.tensor([0, 1, 2, 0, 1, 1, 1, 2])
    hits = ar_hits(tokens[None, :-1], tokens[None, 1:])
    #                        ab     bc     ca     ab    bb     bb    bc
    assert hits.tolist() == [[False, False, False, True, False, True, True]]


def test_equals_the_definition(generator: torch.Generator) -> None:
    tokens = torch.randint(5, (7, 61), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = -100
    expected = by_definition(inputs, targets)
    assert expected.any()
    assert torch.equal(ar_hits(inputs, targets), expected)


def test_rows_are_contexts_of_their_own() -> None:
    tokens = torch.tensor([[0, 1, 2], [0, 1, 2]])
    assert not ar_hits(tokens[:, :-1], tokens[:, 1:]).any()


def test_ignored_targets_complete_nothing() -> None:
    inputs = torch.tensor([[3, 1, 3, 1, 3]])
    targets = torch.tensor([[-100, 3, -100, 3, 1]])
    assert ar_hits(inputs, targets).tolist() == [[False, False, False, True, False]]


def test_documents_are_contexts_of_their_own() -> None:
    inputs = torch.tensor([[0, 1, 0, 0, 1, 0]])
    targets = torch.tensor([[1, 0, 1, 1, 0, 1]])
    borders = torch.tensor([0, 3, 6])
    assert ar_hits(inputs, targets).tolist() == [[False, False, True, True, True, True]]
    assert ar_hits(inputs, targets, cu_seqlens=borders).tolist() == [[False, False, True, False, False, True]]


def test_only_rare_bigrams_count() -> None:
    training = np.array([0, 1, 0, 1, 0, 1, 2, 3])  # 01 three times, 10 twice, 12 and 23 once
    counts = BigramCounts(training, 4)
    tokens = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 0]])
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    every = [False, False, False, False, True, True, True, True]
    assert ar_hits(inputs, targets).tolist() == [every]
    rare = ar_hits(inputs, targets, counts=counts, rare_below=3)
    assert rare.tolist() == [[*every[:4], False, True, True, True]]
    never = ar_hits(inputs, targets, counts=counts, rare_below=1)
    assert never.tolist() == [[*[False] * 7, True]]  # 30 is not in the training text


def test_rare_needs_counts() -> None:
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="bigram counts"):
        ar_hits(tokens, tokens, rare_below=2)
