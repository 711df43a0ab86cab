"""A sequence in pieces on several processes gives what one process gives, and sends what the formulas say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts.checks import cases, tiny_model, tokens
from distributed.processes import together
from distributed.runs import DOUBLE, WAYS, Found, all_checks, fits, hybrid, labels_of, run_whole, runs
from plait import catalog
from plait.distributed import sequence_parallel
from plait.errors import OptionError

TWO = [5, 11]
FOUR = [3, 1, 9, 7]
SIZES = [pytest.param(TWO, id="2"), pytest.param(FOUR, id="4", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[int]], list[dict[str, Any]]]:
    """What every process of a group with these pieces found, by rank; each group is started once."""
    known: dict[int, list[dict[str, Any]]] = {}
    started: set[int] = set()

    def of(lengths: list[int]) -> list[dict[str, Any]]:
        assert len(lengths) in known or len(lengths) not in started, "the processes failed in the first test"
        if len(lengths) not in known:
            started.add(len(lengths))
            folder = tmp_path_factory.mktemp("processes")
            known[len(lengths)] = together(len(lengths), folder, all_checks, lengths)
        return known[len(lengths)]

    return of


Results = Callable[[list[int]], list[dict[str, Any]]]


def assert_same(pieces: list[Found], whole: Found, dtype: torch.dtype, exact: Found | None = None) -> None:
    """Equal to 1e-10, or in fp32 to 1e-5 beside what ``whole`` itself is away from ``exact``."""
    tolerance = 1e-10 if dtype == DOUBLE else 1e-5

    def close(actual: Tensor, expected: Tensor, truth: Tensor | None, what: str) -> None:
        slack = tolerance * max(1.0, expected.abs().max().item())
        if truth is not None:
            slack += 2 * (expected - truth).abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=slack, msg=lambda text: f"{what}: {text}")

    def of(name: str) -> tuple[Tensor, Tensor | None]:
        return getattr(whole, name), None if exact is None else getattr(exact, name)

    close(torch.cat([piece.logits for piece in pieces], 1), *of("logits"), "logits")
    close(torch.cat([piece.d_inputs for piece in pieces], 1), *of("d_inputs"), "gradient of the input")
    for piece in pieces:
        close(piece.loss, *of("loss"), "loss")
        assert piece.d_parameters.keys() == whole.d_parameters.keys()
        for name, gradient in whole.d_parameters.items():
            truth = None if exact is None else exact.d_parameters[name]
            close(piece.d_parameters[name], gradient, truth, f"gradient of {name}")


def test_every_mixer_of_the_catalogue_runs_on_pieces() -> None:
    assert catalog.names("mixer", shards_sequence=False) == []


@pytest.mark.parametrize("lengths", SIZES)
@pytest.mark.parametrize("key", runs(), ids=lambda key: "-".join(map(str, key)).replace("torch.", ""))
def test_every_case_as_on_one_process(key: tuple[str, str, torch.dtype], lengths: list[int], found: Results) -> None:
    if not fits(key, len(lengths)):
        pytest.skip("these heads cannot be shared by so many processes")
    pieces = [process["cases"][key] for process in found(lengths)]
    exact, whole = (run_whole(tiny_model(key[0], dtype=dtype), sum(lengths)) for dtype in (DOUBLE, key[2]))
    assert_same(pieces, whole, key[2], exact)


@pytest.mark.parametrize("lengths", SIZES)
@pytest.mark.parametrize("name", [*WAYS, "checkpointing"])
def test_hybrid_as_on_one_process(name: str, lengths: list[int], found: Results) -> None:
    whole = run_whole(hybrid(), sum(lengths))
    assert_same([process["models"][name] for process in found(lengths)], whole, DOUBLE)


@pytest.mark.parametrize("lengths", SIZES)
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_gradients_averaged_by_others(name: str, lengths: list[int], found: Results) -> None:
    model = hybrid()
    ids = tokens(2, sum(lengths))
    model(ids, labels=labels_of(ids)).loss.backward()
    whole = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    for process in found(lengths):
        torch.testing.assert_close(process["averaged"][name], whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", SIZES)
def test_targets_that_need_no_neighbour(lengths: list[int], found: Results) -> None:
    total = sum(lengths)
    loss = run_whole(hybrid(), total).loss.item()
    counted = 2 * (total - 3)  # of each row two labels are ignored and the last token has none
    for process in found(lengths):
        mean, divided = process["shifted"]
        assert mean == pytest.approx(loss, rel=1e-12)
        assert divided == pytest.approx(loss * counted / 7, rel=1e-12)


@pytest.mark.parametrize("lengths", SIZES)
def test_a_group_of_one_sends_nothing(lengths: list[int], found: Results) -> None:
    loss = run_whole(hybrid(), 16).loss.item()
    assert [process["alone"] for process in found(lengths)] == [(loss, {})] * len(lengths)


@pytest.mark.parametrize("lengths", SIZES)
def test_later_pieces_change_nothing(lengths: list[int], found: Results) -> None:
    first, *others = (process["causal"] for process in found(lengths))
    assert first == dict.fromkeys(WAYS, True)
    assert all(not unchanged for other in others for unchanged in other.values())


@pytest.mark.parametrize("lengths", SIZES)
def test_the_ring_multiplies_no_later_keys(lengths: list[int], found: Results) -> None:
    assert [process["blocks"] for process in found(lengths)] == list(range(1, len(lengths) + 1))


@pytest.mark.parametrize("lengths", SIZES)
def test_refused_by_all_when_one_cannot(lengths: list[int], found: Results) -> None:
    *others, last = (process["refusals"] for process in found(lengths))
    said = {
        "padding": "padding",
        "cache": "no cache",
        "documents": "cu_seqlens",
        "positions": "leave out position_ids",
        "empty": "no tokens",
        "rows": "piece of every row",
        "mixer": "gated_deltanet cannot run on a piece",
        "generation": "no cache and no generation",
        "step": "outside sequence_parallel",
        "lengths": f"must be {len(lengths)} numbers",
    }
    assert last.keys() == said.keys()
    for name, words in said.items():
        assert words in last[name]
    for other in others:
        assert other.keys() == said.keys()
        for name in ("padding", "cache", "documents", "positions", "empty"):
            assert f"process {len(lengths) - 1} of the group" in other[name]


@pytest.mark.parametrize("lengths", SIZES)
def test_gathering_undoes_sharding(lengths: list[int], found: Results) -> None:
    size = len(lengths)
    for rank, process in enumerate(found(lengths)):
        same, gradient, piece = process["round trip"]
        assert same
        assert torch.equal(gradient, torch.full((3, lengths[rank]), size * (size + 1) / 2))
        default = {2: [[0, 1, 2, 3], [4, 5, 6]], 4: [[0, 1], [2, 3], [4, 5], [6]]}[size]
        assert piece.tolist() == default[rank]


def expected_elements(case: str, way: str, W: int, n: int) -> dict[str, float]:
    """What the formulas say that all W processes of one layer send together; width 32, two rows."""
    mixer, options = cases()[case]
    layer = tiny_model(case).model.layers[0].attn
    B = 2
    sent: dict[str, float] = {}

    def halo(tokens: int, channels: int) -> None:
        """Both ways; every token before a border that some later piece needs."""
        needed = sum(min(tokens, rank * n) for rank in range(W)) * B * channels
        for kind in ("halo", "halo gradient"):
            sent[kind] = sent.get(kind, 0) + needed

    if getattr(layer.options, "use_short_conv", False):
        channels = [c.weight.shape[0] for name, c in layer.named_children() if name.endswith("conv1d")]
        halo(layer.options.conv_size - 1, sum(channels))
    if mixer == "lizard":
        N, D, window = *layer.sizes[1:], layer.options.window
        if window:
            halo(window - 1, 2 * N * D)
    if mixer in ("attention", "mla"):
        H, N, D, V = (*layer.sizes, layer.sizes[2]) if mixer == "attention" else mla_sizes(layer)
        if options.get("window"):
            halo(options["window"] - 1, N * (D + V))
        elif way == "gather":
            sent["keys and values"] = sent["keys and values gradient"] = W * (W - 1) * B * n * N * (D + V)
        elif way == "ring":
            sent["ring"] = W * (W - 1) * B * n * N * (D + V)
            sent["ring gradient"] = W * ((W - 1) * 2 + 1) * B * n * N * (D + V)
        else:
            N = N if N % W == 0 else W  # too few are repeated
            sent["heads"] = sent["heads gradient"] = W * (1 - 1 / W) * B * n * (H + N) * (D + V)
        return sent
    if mixer == "hgrn":
        state, transition = 32, 32
    elif mixer == "lizard":  # one value channel more holds the sum of the keys
        state, transition = layer.sizes[0] * layer.options.feature_dim * (layer.sizes[2] + 1), layer.sizes[0]
    else:
        heads = layer.heads
        state = heads.state_size
        decays = {"retnet": 0, "lightning": 0, "gla": heads.K, "hgrn2": heads.K}
        transition = heads.values * decays.get(mixer, heads.K**2)
    sent["states"] = W * (W - 1) * B * (state + transition)
    sent["states gradient"] = W * (W - 1) * B * state
    return sent


def mla_sizes(layer: Any) -> tuple[int, int, int, int]:
    """Heads of queries, of keys and values, and their widths; the ``(B, n, C)`` that are cached do not travel."""
    H, K, R, V, _ = layer.sizes
    return H, H, K + R, V


#: Mixers whose traffic ``expected_elements`` knows.
FORMULAS = ["attention", "mla", "lizard"] + (
    SENDING_STATES := ["retnet", "lightning", "gla", "hgrn", "hgrn2", "deltanet", "gated_deltanet", "kda"]
)


@pytest.mark.parametrize("lengths", SIZES)
@pytest.mark.parametrize("n", [6, 12])
def test_traffic_is_what_the_formulas_say(n: int, lengths: list[int], found: Results) -> None:
    W = len(lengths)
    results = [process["volumes"] for process in found(lengths)]
    for case, way, length in results[0]:
        if length != n or cases()[case][0] not in FORMULAS:
            continue
        sent: dict[str, int] = {}
        for process in results:
            for kind, traffic in process[case, way, n].items():
                assert traffic.bytes == traffic.elements * 8
                sent[kind] = sent.get(kind, 0) + traffic.elements
        for kind in ("lengths", "labels", "loss"):  # once a pass; the model's, not a layer's
            del sent[kind]
        assert sent == {kind: 2 * count for kind, count in expected_elements(case, way, W, n).items()}, (case, way)


@pytest.mark.parametrize("lengths", SIZES)
def test_recurrences_send_once_a_layer_whatever_the_length(lengths: list[int], found: Results) -> None:
    for process in found(lengths):
        for case in SENDING_STATES:
            short, long = (process["volumes"][case, "gather", n] for n in (6, 12))
            assert short == long
            assert short["states"].calls == short["states gradient"].calls == 2


def test_without_processes_the_mend_is_named() -> None:
    with pytest.raises(OptionError, match="torchrun"), sequence_parallel():
        pass


def test_an_unknown_way_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"attention='rings'.*'ring'"), sequence_parallel(attention="rings"):
        pass
