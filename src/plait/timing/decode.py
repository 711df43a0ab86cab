"""Decoding: one token through each recurrence, against one token through transformers' recurrent delta rule.

transformers steps every gated recurrence in the same way, so its delta rule stands for all; its Mamba-2 step, which
computes what ``linear_attention`` with a decay per head computes, is a peer of that one.
"""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait import ops
from plait.errors import OptionError, PlaitError
from plait.timing.cases import Tokens
from plait.timing.ratios import Ratio, ratio, take_turns
from plait.timing.resident import grown_bytes
from plait.timing.shapes import Shape

#: From tokens and the state before them, which may be overwritten, to the output and the state after them.
Step = Callable[[Tokens, Tensor | None], tuple[Tensor, Tensor]]

RECURRENT, MAMBA2 = "transformers, recurrent", "transformers, Mamba-2 step"
#: Operation -> the peer that computes the same.
_SAME = {"delta_rule, decay per head": RECURRENT, "linear_attention, decay per head": MAMBA2}
#: Contexts are read in pieces of so many tokens.
_PIECE = 4096


@dataclass(frozen=True)
class Decoded:
    """One token a call, through one recurrence.

    Args:
        operation: plait's function, with its kind of decay.
        shape: ``B-T-H-D``, T the one token.
        backend: what plait ran on.
        microseconds: plait's median per token, after the shortest context.
        peers: by name, the peer's microseconds per token and its time over plait's.
        contexts: plait's microseconds per token by tokens read before, timed in turns.
        flatness: the largest of ``contexts`` over the smallest.
        state_bytes: what is carried from token to token, after the longest context.
        grown_bytes: memory held after ``steps`` more tokens beyond that before them.
        steps: tokens of that count.
        repeats: alternated turns.
    """

    operation: str
    shape: str
    backend: str
    microseconds: float
    peers: dict[str, PeerStep]
    contexts: dict[int, float]
    flatness: float
    state_bytes: int
    grown_bytes: int
    steps: int
    repeats: int


@dataclass(frozen=True)
class PeerStep:
    """A peer's microseconds per token, and its time over plait's: above 1, plait is faster."""

    microseconds: float
    ratio: Ratio


class Running:
    """A sequence being decoded: each call takes the same token once more and carries the state on, its own copy."""

    def __init__(self, step: Step, token: Tokens, state: Tensor | None) -> None:
        self.step, self.token, self.state = step, token, None if state is None else state.clone()

    def __call__(self) -> None:
        self.state = self.step(self.token, self.state)[1]


@torch.no_grad()
def time_decoding(
    heads: int = 8,
    width: int = 128,
    contexts: Sequence[int] = (1024, 16384, 131072, 1048576),
    steps: int = 10000,
    device: str = "cpu",
    repeats: int = 7,
    announce: Callable[[str], None] = lambda line: None,
) -> list[Decoded]:
    """Time one token of every recurrence, for one sequence.

    Args:
        heads: H.
        width: D; the scan runs over H D channels.
        contexts: tokens read before the timed ones, increasing; reading them in pieces leaves the state as it would
            be after that many single tokens.
        steps: tokens after which memory is compared.
        device: ``cpu`` or ``cuda``.
        repeats: alternated turns of each timing.
        announce: told in one line what is timed next.

    Raises:
        OptionError: contexts that do not increase.
        PlaitError: a peer's result differs from plait's.
    """
    if not contexts or contexts[0] < 1 or list(contexts) != sorted(set(contexts)):
        raise OptionError(f"contexts {list(contexts)} must increase, from at least 1 token: list each once, in order.")
    token = Tokens(Shape(1, 1, heads, width), device)
    piece = Tokens(Shape(1, min(_PIECE, contexts[-1]), heads, width), device)
    found = []
    for operation, (step, peers) in _recurrences().items():
        announce(operation)
        states = _states(step, piece, contexts)
        _agree(operation, step, peers, token, states[contexts[0]])
        found.append(_time(operation, step, peers, token, states, steps, device, repeats))
    return found


def _states(step: Step, piece: Tokens, contexts: Sequence[int]) -> dict[int, Tensor]:
    """The state after each context."""
    states: dict[int, Tensor] = {}
    state, read = None, 0
    for context in contexts:
        while read < context:
            tokens = min(piece.shape.tokens, context - read)
            _, state = step(piece.shorter(tokens), state)
            read += tokens
        assert state is not None
        states[context] = state.clone()
    return states


def _time(
    operation: str,
    step: Step,
    peers: dict[str, Step],
    token: Tokens,
    states: dict[int, Tensor],
    steps: int,
    device: str,
    repeats: int,
) -> Decoded:
    first, last = states[min(states)], states[max(states)]
    heads, width = token.shape.heads, token.shape.width
    matrices = first if first.dim() == 4 else first.new_zeros(1, heads, width, width)  # the scan has none for the peer
    seconds = take_turns(
        {
            "plait": Running(step, token, first),
            **{name: Running(peer, token, matrices) for name, peer in peers.items()},
        },
        repeats,
        device,
    )
    by_context = take_turns(
        {str(context): Running(step, token, state) for context, state in states.items()}, repeats, device
    )
    contexts = {context: 1e6 * statistics.median(by_context[str(context)]) for context in states}
    return Decoded(
        operation=operation,
        shape=str(token.shape),
        backend=ops.choose(device)[0],
        microseconds=1e6 * statistics.median(seconds["plait"]),
        peers={
            name: PeerStep(1e6 * statistics.median(seconds[name]), ratio(seconds["plait"], seconds[name]))
            for name in peers
        },
        contexts=contexts,
        flatness=max(contexts.values()) / min(contexts.values()),
        state_bytes=last.nbytes,
        grown_bytes=grown_bytes(Running(step, token, last), steps, device),
        steps=steps,
        repeats=repeats,
    )


def _agree(operation: str, step: Step, peers: dict[str, Step], token: Tokens, state: Tensor) -> None:
    """Check that the peer of the same function, where there is one, has the same output from the same state."""
    if operation not in _SAME:
        return
    peer = _SAME[operation]
    ours = step(token, state.clone())[0].float()
    theirs = peers[peer](token, state.clone())[0].float()
    error = ((theirs - ours).norm() / ours.norm()).item()
    if not error <= (1e-4 if token.dtype == torch.float32 else 5e-2):
        raise PlaitError(
            f"{operation}: one token of plait and of {peer} differ by {error:.1e} (relative); their times are not "
            "comparable. Run the tests of plait.ops on this machine."
        )


def _recurrences() -> dict[str, tuple[Step, dict[str, Step]]]:
    """Operation -> plait's step and those of its peers."""
    recurrent = {RECURRENT: _recurrent_delta_rule()}
    return {
        "delta_rule, decay per head": (
            lambda x, state: ops.delta_rule(x.q, x.k, x.v, x.beta, x.per_head, state=state, overwrite_state=True),
            recurrent,
        ),
        "linear_attention, decay per head": (
            lambda x, state: ops.linear_attention(x.q, x.k, x.v, x.per_head, state=state, overwrite_state=True),
            {**recurrent, MAMBA2: _mamba2_step()},
        ),
        "linear_attention, decay per channel": (
            lambda x, state: ops.linear_attention(x.q, x.k, x.v, x.per_channel, state=state, overwrite_state=True),
            recurrent,
        ),
        "linear_scan": (lambda x, state: ops.linear_scan(x.log_a, x.u, state=state), recurrent),
    }


def _recurrent_delta_rule() -> Step:
    """``torch_recurrent_gated_delta_rule`` of transformers' Qwen3-Next."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    recurrent = inspect.unwrap(torch_recurrent_gated_delta_rule)

    def step(x: Tokens, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return recurrent(x.q, x.k, x.v, g=x.per_head, beta=x.beta, initial_state=state, output_final_state=True)

    return step


def _mamba2_step() -> Step:
    """``mamba2_selective_state_update`` of transformers' Mamba-2, whose state is the transpose of plait's.

    With time steps of one, ``A`` takes the log decay. It updates the state in place; a transposed view is as fast.
    """
    from transformers.models.mamba2.modeling_mamba2 import mamba2_selective_state_update

    update = inspect.unwrap(mamba2_selective_state_update)

    def step(x: Tokens, state: Tensor | None) -> tuple[Tensor, Tensor]:
        assert state is not None
        decay, one = x.per_head[:, 0, :, None, None], torch.ones_like(x.per_head[:, 0, :, None])
        q = x.q[:, 0] * x.q.shape[-1] ** -0.5
        return update(state.mT, x.v[:, 0], one, decay[0], x.k[:, 0], q)[:, None], state

    return step
