"""Every mixer: split, padded and packed runs equal one plain pass; weights give outputs; bytes are as declared."""

from __future__ import annotations

import pytest
import torch

from mixers.layers import CASES, case, inputs, near, run, shared
from plait import catalog
from plait.mixers import Context, Dims


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pieces", [[1, 2, 9, 7], [12, 1, 1, 1, 4]], ids=str)
def test_split(name: str, pieces: list[int]) -> None:
    m, x, state = case(name), inputs(), case(name).new_state()
    parts, first = [], 0
    for part in x.split(pieces, dim=1):
        length = part.shape[1]
        positions = torch.arange(first, first + length).expand(2, -1)
        parts.append(m(part, Context(positions, state=state, parameters=shared(m))))
        first += length
    near(torch.cat(parts, dim=1), run(m, x))


@pytest.mark.parametrize("name", CASES)
def test_padding_in_two_calls(name: str) -> None:
    """Rows padded on the left, then continued by a call that is padded otherwise."""
    m, x, state = case(name), inputs(batch=3), case(name).new_state()
    first, second = torch.tensor([8, 3, 0]), torch.tensor([2, 5, 4])
    alone = [run(m, x[b : b + 1, : first[b] + second[b]])[0] for b in range(3)]
    done = torch.zeros(3, dtype=torch.long)
    for lengths, width in ((first, 8), (second, 5)):
        batch = 50 + inputs(batch=3, length=width, seed=9)  # padding slots hold anything
        positions = (done[:, None] + torch.arange(width) - (width - lengths)[:, None]).clamp(min=0)
        for b in range(3):
            batch[b, width - lengths[b] :] = x[b, done[b] : done[b] + lengths[b]]
        y = m(batch, Context(positions, padding=width - lengths, state=state, parameters=shared(m)))
        assert torch.isfinite(y).all()
        for b in range(3):
            near(y[b, width - lengths[b] :], alone[b][done[b] : done[b] + lengths[b]])
        done = done + lengths


@pytest.mark.parametrize("name", CASES)
def test_packing(name: str) -> None:
    m, x = case(name), inputs(batch=1)
    sizes = [6, 1, 2, 10]
    borders = torch.tensor([0, 6, 7, 9, 19])
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    y = m(x, Context(positions, cu_seqlens=borders, parameters=shared(m)))
    near(y, torch.cat([run(m, part) for part in x.split(sizes, dim=1)], dim=1))


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_a_split_pass_are_those_of_one(name: str) -> None:
    m, x, state = case(name), inputs(batch=1, length=9).requires_grad_(True), case(name).new_state()
    (whole,) = torch.autograd.grad(run(m, x).sin().sum(), x)
    parts = [
        m(part, Context(torch.arange(first, first + part.shape[1])[None], state=state, parameters=shared(m)))
        for first, part in zip((0, 4), x.split([4, 5], dim=1), strict=True)
    ]
    (split,) = torch.autograd.grad(torch.cat(parts, dim=1).sin().sum(), x)
    near(split, whole)


@pytest.mark.parametrize(
    "name", [n for n, (mixer, _) in CASES.items() if mixer not in ("attention", "mla", "hgrn", "lizard")]
)
def test_effective_weights_applied_to_the_values(name: str) -> None:
    m, x = case(name), inputs(length=11)
    context = Context.plain(x, parameters=shared(m))
    r = m.recurrence(x, context)
    weights = m.effective_weights(x, context)
    near(torch.einsum("bhts,bshv->bthv", weights, r.v), m.run(r, context))
    assert torch.equal(weights, weights.tril())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_cost_is_what_is_allocated(name: str, dtype: torch.dtype) -> None:
    m, x = case(name).to(dtype), inputs(batch=1, length=6).to(dtype)
    for length in (1, 6):
        state = m.new_state()
        with torch.no_grad():
            run(m, x[:, :length], state=state)
        assert state.bytes() == type(m).cost(m.dims, length, m.options, cache_dtype=dtype).state_bytes


@pytest.mark.parametrize("name", CASES)
def test_fixed_states_stay_fixed(name: str) -> None:
    """A decoding step of a constant-state mixer keeps every segment's size, and so do a thousand tokens more."""
    mixer, options = CASES[name]
    m, x, state = case(name), inputs(batch=1, length=12), case(name).new_state()
    sizes = []
    with torch.no_grad():
        for t in range(12):
            m(x[:, t : t + 1], Context(torch.tensor([[t]]), state=state, parameters=shared(m)))
            sizes.append(state.bytes())
        x = inputs(batch=1, length=1000)
        m(x, Context(torch.arange(12, 1012)[None], state=state, parameters=shared(m)))
        sizes.append(state.bytes())
    bounded = catalog.get(mixer).state == "constant" or "window" in options
    assert (len(set(sizes[4:])) == 1) is bounded


@pytest.mark.parametrize("name", CASES)
def test_bf16_keeps_its_dtype_and_stays_near(name: str) -> None:
    m, x = case(name).bfloat16(), inputs().bfloat16()
    y = run(m, x)
    assert y.dtype == torch.bfloat16
    exact = run(m.double(), x.double())
    assert (y.double() - exact).abs().max() < 0.06 * exact.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_layers_can_be_built_without_memory(name: str) -> None:
    mixer, options = CASES[name]
    cls = catalog.get(mixer).load()
    with torch.device("meta"):
        m = cls(Dims(24, 3), cls.Options.parse(mixer, options), 1)
        m.init_parameters(0.02)
    assert all(parameter.is_meta for parameter in m.parameters())
