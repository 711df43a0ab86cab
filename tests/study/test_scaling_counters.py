"""Parameters and FLOPs by formula: the cost table of 2406.16690, and the sum over a plan's layers worked by hand."""

import pytest

from plait.errors import OptionError
from plait.models.configuration import PlaitConfig
from plait.study.scaling.counters import (
    Architecture,
    Shape,
    hybrid_training_flops,
    leading_factor,
    parameters,
    training_flops,
)
from plait.study.scaling.plan import plan_count

#: Sizes of the paper's grid: layers, width, heads of the cost table.
SIZES = {
    "70M": Shape(6, 512, 4),
    "160M": Shape(12, 768, 6),
    "410M": Shape(26, 1024, 8),
    "1B": Shape(32, 1536, 16),
    "3B": Shape(35, 2560, 20),
    "7B": Shape(32, 4096, 32),
}

#: Printed PFLOPs of a step of 480 sequences of 8,192 tokens.
PRINTED = [
    ("llama", "70M", 1.6),
    ("llama", "160M", 5.6),
    ("llama", "410M", 18.0),
    ("llama", "1B", 40.4),
    ("llama", "3B", 99.6),
    ("llama", "7B", 202.7),
    ("tnl", "3B", 66.6),
    ("tnl", "7B", 154.4),
    ("hgrn2", "410M", 8.0),
    ("hgrn2", "3B", 66.0),
    ("hgrn2", "7B", 153.6),
    ("cosformer2", "160M", 2.3),
    ("cosformer2", "3B", 67.4),
    ("cosformer2", "7B", 155.6),
]


@pytest.mark.parametrize(("architecture", "size", "printed"), PRINTED)
def test_printed_cost_of_a_step(architecture: Architecture, size: str, printed: float) -> None:
    flops = training_flops(architecture, SIZES[size], context=8192, batch=480, leading=True)
    assert round(flops / 1e15, 1) == printed


def test_tnl_of_410m_has_25_layers() -> None:
    flops = training_flops("tnl", Shape(25, 1024, 8), context=8192, batch=480, leading=True)
    assert round(flops / 1e15, 1) == 7.9


def test_formulas_at_1b_differ_from_what_is_printed_there() -> None:
    """The paper prints 22.3, 22.0 and 22.7, which its own formulas do not give."""
    found = [
        training_flops(one, SIZES["1B"], context=8192, batch=480, leading=True) / 1e15
        for one in ("tnl", "hgrn2", "cosformer2")
    ]
    assert found == pytest.approx([22.05, 21.83, 22.38], abs=0.005)


def test_parameters_with_the_real_width_of_the_gated_unit() -> None:
    assert parameters("llama", Shape(6, 512, 4, glu_width=1536)) == 20_447_232
    assert parameters("llama", Shape(32, 4096, 32, glu_width=11008)) == 6_476_005_376


def test_parameters_of_the_linear_models_beyond_llama() -> None:
    """l d^2 = 400: 12 l d^2, then 2 l d^2 / h, l d, and 2 l d^2 / h + d^2 / h."""
    shape = Shape(4, 10, 2)
    expected = {"llama": 4800, "tnl": 4800 + 400, "hgrn2": 4800 + 40, "cosformer2": 4800 + 400 + 50}
    assert {name: parameters(name, shape, leading=True) for name in expected} == pytest.approx(expected)  # type: ignore[arg-type]
    assert parameters("tnl", Shape(4, 10, 2, gate_rank=3)) == pytest.approx(4800 + 2 * 4 * 10 * 3)


@pytest.mark.parametrize("architecture", ["tnl", "hgrn2"])
def test_the_leading_form_is_exact_without_softmax(architecture: Architecture) -> None:
    shape = SIZES["410M"]
    exact = training_flops(architecture, shape, context=4096)
    assert training_flops(architecture, shape, context=4096, leading=True) == pytest.approx(exact, rel=1e-12)


def test_what_the_leading_form_drops() -> None:
    """LLaMA: 9 n^2 h a layer for the softmax; cosFormer2: 12 n d e once."""
    shape, n = Shape(3, 64, 4), 32
    llama = training_flops("llama", shape, n) - training_flops("llama", shape, n, leading=True)
    assert llama == pytest.approx(3 * 9 * n**2 * 4)
    cosformer = training_flops("cosformer2", shape, n) - training_flops("cosformer2", shape, n, leading=True)
    assert cosformer == pytest.approx(12 * n * 64 * 16)


def test_only_softmax_costs_more_per_token_in_longer_contexts() -> None:
    shape = SIZES["1B"]
    for linear in ("tnl", "hgrn2", "cosformer2"):
        factors = [leading_factor(linear, shape, n) for n in (2048, 2**20, 2**30)]  # type: ignore[arg-type]
        assert factors[0] == factors[1] == factors[2]
    assert leading_factor("llama", shape, 2**30) > 1e5
    growth = leading_factor("llama", shape, 2**21) - leading_factor("llama", shape, 2**20)
    assert growth == pytest.approx(2**20 / (6 * 1536))


@pytest.mark.parametrize("leading", [False, True])
def test_a_hybrid_is_the_sum_of_its_layers(leading: bool) -> None:
    one = Shape(1, 64, 4)
    parts = [training_flops(name, one, 128, 2, leading) for name in ("tnl", "tnl", "tnl", "llama")]  # type: ignore[arg-type]
    found = hybrid_training_flops(["tnl", "tnl", "tnl", "llama"], one, 128, 2, leading)
    assert found == pytest.approx(sum(parts))


def test_plan_worked_by_hand() -> None:
    """Attention of width 16: 4 * 256 weights, 3 * 16 * 32 of the feed-forward, two norms; 2 T^2 d for the mixing."""
    config = PlaitConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        layer_types=["attention", "attention"],
        mixers={"attention": {"num_heads": 2}},
        intermediate_size=32,
    )
    layer = 1024 + 1536 + 32
    count = plan_count(config, length=8)
    assert count.parameters == 2 * layer
    assert count.flops_per_token == 2 * (6 * layer + 3 * 2 * 8 * 16)


def test_plan_of_a_hybrid_lies_between_its_mixers() -> None:
    def count(*layers: str) -> float:
        mixers = {name: {"num_heads": 2} for name in set(layers)}
        config = PlaitConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            layer_types=list(layers),
            mixers=mixers,
            intermediate_size=32,
        )
        return plan_count(config, length=64).flops_per_token

    hybrid = count("gla", "attention")
    assert hybrid == pytest.approx((count("gla", "gla") + count("attention", "attention")) / 2)


def test_wrong_names_and_sizes() -> None:
    with pytest.raises(OptionError, match=r"'llama2'.*Did you mean 'llama'"):
        parameters("llama2", SIZES["70M"])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="heads = 0"):
        Shape(1, 64, 0)
