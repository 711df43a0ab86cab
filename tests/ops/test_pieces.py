"""A recurrence cut into pieces, each run from zeros, joined by their transitions, is the recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ops.cases import DECAYS, inputs
from plait import ops
from plait.ops import Piece


def joined(pieces: list[Piece]) -> tuple[Tensor, Tensor]:
    """Outputs and last state."""
    state, outputs = torch.zeros_like(pieces[0].state), []
    for piece in pieces:
        outputs.append(piece.continued(state))
        state = (piece.transition @ state if piece.dense else piece.transition * state) + piece.state
    return torch.cat(outputs, 1), state


@pytest.mark.parametrize("lengths", [[5, 11], [1, 1, 14], [16]])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("decay", DECAYS)
def test_pieces_make_the_whole(decay: str, delta: bool, lengths: list[int]) -> None:
    leaves = inputs(16, decay=decay, delta=delta, states=None).leaves()
    o, last = leaves.run(backend="reference")
    weights = torch.randn(o.shape, dtype=o.dtype, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((o * weights).sum() + last.square().sum(), leaves.tensors())

    def piece(first: int, length: int) -> Piece:
        x = leaves.part(first, first + length, None)
        if x.beta is None:
            return ops.attention_piece(x.q, x.k, x.v, x.log_decay)
        return ops.delta_piece(x.q, x.k, x.v, x.beta, x.log_decay)

    pieces = [piece(sum(lengths[:i]), length) for i, length in enumerate(lengths)]
    o_joined, last_joined = joined(pieces)
    torch.testing.assert_close(o_joined, o, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last_joined, last, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad((o_joined * weights).sum() + last_joined.square().sum(), leaves.tensors())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    told = [p.rate is not None for p in pieces]
    assert told == [not delta and decay in ("none", "constant")] * len(pieces)


def test_the_rate_tells_the_transition_of_any_piece() -> None:
    x = inputs(7, decay="constant", states=None)
    piece = ops.attention_piece(x.q, x.k, x.v, x.log_decay)
    assert piece.rate is not None
    torch.testing.assert_close((7 * piece.rate).exp(), piece.transition)


@pytest.mark.parametrize("lengths", [[5, 11], [1, 15]])
def test_scans_in_pieces(lengths: list[int], generator: torch.Generator) -> None:
    log_a = -torch.rand(2, 16, 3, dtype=torch.float64, generator=generator)
    u = torch.randn(2, 16, 3, dtype=torch.float64, generator=generator)
    h, last = ops.linear_scan(log_a, u, backend="reference")
    pieces = [ops.scan_piece(a, b) for a, b in zip(log_a.split(lengths, 1), u.split(lengths, 1), strict=True)]
    h_joined, last_joined = joined(pieces)
    torch.testing.assert_close(h_joined, h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_joined, last, rtol=1e-12, atol=1e-12)


def test_a_decay_that_forgets_everything(generator: torch.Generator) -> None:
    """Nothing passes a log decay of ``-inf``, and no gradient is lost in it."""
    x = inputs(6, decay="head", states=None).leaves()
    assert x.log_decay is not None
    log_decay = x.log_decay.detach().index_fill(1, torch.tensor([2]), -torch.inf)
    piece = ops.attention_piece(x.q, x.k, x.v, log_decay)
    assert piece.transition.abs().max() == 0
    entering = torch.randn(piece.state.shape, dtype=torch.float64, generator=generator)
    o = piece.continued(entering)
    assert not torch.equal(o[:, :2], piece.output[:, :2])
    assert torch.equal(o[:, 2:], piece.output[:, 2:])
    assert all(g.isfinite().all() for g in torch.autograd.grad(o.sum(), [x.q, x.k, x.v]))
