"""One forward pass is told once, to all layers; parts of a prompt have names."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.errors import OptionError
from plait.policies import Call, Dense
from policies.tiny_models import decoder, generate, left_padded, tokens


class Listening(Dense):
    """Dense attention that keeps its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def attend(self, call: Call) -> torch.Tensor:
        self.calls.append(call)
        return super().attend(call)


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_layers_of_a_pass_share_what_is_told_of_it(family: str) -> None:
    model, listening = decoder(family), Listening()
    with plait.policy(model, listening):
        generate(model, left_padded([tokens(1, 4)[0], tokens(1, 6)[0]]), new=3)
    passes = [listening.calls[i : i + 2] for i in range(0, 6, 2)]
    assert all(one.forward is other.forward for one, other in passes)
    assert len({id(one.forward) for one, _ in passes}) == 3
    assert [(one.phase, one.forward.past.tolist()) for one, _ in passes] == [
        ("prefill", [0, 0]),
        ("decode", [4, 6]),
        ("decode", [5, 7]),
    ]
    assert all(one.positions is other.positions for one, other in passes)


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_a_layer_finds_what_an_earlier_one_left(family: str) -> None:
    found: list[object] = []

    class Handing(Dense):
        def attend(self, call: Call) -> torch.Tensor:
            found.append(call.forward.shared.get("index"))
            call.forward.shared["index"] = call.layer.index
            return super().attend(call)

    model = decoder(family)
    with plait.policy(model, Handing()), torch.no_grad():
        model(tokens(1, 5))
        model(tokens(1, 5))
    assert found == [None, 0, None, 0]


def test_parts_of_a_prompt_have_names() -> None:
    model, listening = decoder("llama"), Listening()
    batch = left_padded([tokens(1, 8)[0], tokens(1, 9)[0]])
    with plait.policy(model, listening) as applied:
        applied.mark(context=(0, 5), question=[(5, 8), (5, 9)])
        generate(model, batch, new=2, num_beams=2)
        with pytest.raises(OptionError, match="2 rows, and the batch has 3"):
            model(tokens(3, 4))
        with pytest.raises(OptionError, match="first, last"):
            applied.mark(context=3)
    first = next(call for call in listening.calls if call.q.shape[0] == 4)
    begin, end = first.span("question")
    assert begin.tolist() == [5, 5, 5, 5]
    assert end.tolist() == [8, 8, 9, 9]
    assert first.rows(torch.tensor([3, 0])).span("question")[1].tolist() == [9, 8]
    assert first.span("context")[1].tolist() == [5] * 4
    with pytest.raises(OptionError, match=r"no part named 'answer'.*context.*question"):
        first.span("answer")
