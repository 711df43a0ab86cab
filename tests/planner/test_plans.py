"""Shapes, devices, layer plans and their front: against the paper's figures, real models and hand-worked examples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plait import catalog
from plait.errors import DataError, OptionError
from plait.models import PlaitCache, PlaitForCausalLM, count_parameters
from plait.planner import devices
from plait.planner.candidates import Candidate, Grid, Load, Point, _config, candidates
from plait.planner.front import choose
from plait.planner.recall import Recall, of_study, published
from plait.planner.shapes import Shape, shape_for, transformer_parameters

SMALL = Shape(4, 256, 100, "small")
LOAD = Load(40, 3, torch.float32)
H100 = devices.device("h100")


def made(shape: Shape = SMALL, load: Load = LOAD, **grid: object) -> dict[str, Candidate]:
    grid = {"placements": ["period_r"], "windows": [None], "kv_heads": [4], "full": ["attention"], **grid}
    found = candidates(shape, load, H100, published(shape.layers, shape.hidden_size), Grid(**grid))
    return {one.key: one for one in found.found}


@pytest.mark.parametrize(("label", "width", "parameters"), [("340M", 1024, 373_867_520), ("1.3B", 2048, 1_364_297_728)])
def test_the_papers_labels_are_its_shapes(label: str, width: int, parameters: int) -> None:
    shape = shape_for(devices.parse_count(label))
    assert (shape.layers, shape.hidden_size) == (24, width)
    assert transformer_parameters(24, width) == parameters
    assert shape.is_papers


@pytest.mark.parametrize("label", ["30M", "125M", "700M", "3B", "7B"])
def test_other_numbers_are_met_within_three_percent(label: str) -> None:
    wanted = devices.parse_count(label)
    shape = shape_for(wanted)
    assert transformer_parameters(shape.layers, shape.hidden_size) == pytest.approx(wanted, rel=0.03)
    assert shape.hidden_size % 256 == 0


def test_no_shape_is_an_error() -> None:
    with pytest.raises(OptionError, match="the smallest has 19,"):
        shape_for(1000)


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("80GB", 80 * 10**9), ("1.5MiB", 3 * 2**19), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert devices.parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "four", "nan", "inf"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(OptionError, match="is not a size"):
        devices.parse_bytes(text)


def test_devices() -> None:
    assert (H100.peak, H100.bandwidth) == (989e12, 3.35e12)
    own = H100.with_figures(bandwidth=1e12)
    assert (own.peak, own.bandwidth) == (989e12, 1e12)
    assert "bandwidth as given" in own.source
    with pytest.raises(OptionError, match="Did you mean 'h100'"):
        devices.device("h10")
    with pytest.raises(OptionError, match="bandwidth = 0"):
        H100.with_figures(bandwidth=0)


@pytest.mark.parametrize(
    "grid",
    [
        {"mixers": ["gated_deltanet"], "ratios": ["3:1"]},
        {"mixers": ["hgrn"], "ratios": ["pure"]},
        {"mixers": ["gla"], "ratios": ["3:1"], "kv_heads": [2]},
        {"mixers": ["retnet"], "ratios": ["3:1"], "windows": [16]},
        {"mixers": ["lightning"], "ratios": ["3:1"], "full": ["mla"]},
        {"mixers": ["lizard"], "ratios": ["1:1"]},
    ],
)
def test_bytes_and_parameters_are_those_of_the_real_model(grid: dict) -> None:
    one = list(made(**grid).values())[-1]
    point = Point(one.mixer, one.ratio, one.placement, one.full, one.kv_heads, one.window)
    config = _config(SMALL, point, one.full_layers)
    model = PlaitForCausalLM(config).eval()
    cache = PlaitCache(config)
    with torch.no_grad():
        model(torch.zeros(3, 40, dtype=torch.long), past_key_values=cache)
    assert one.cache_bytes + one.window_bytes + one.state_bytes == cache.bytes()
    assert (one.window_bytes > 0) == (one.window is not None)
    assert one.memory == one.weight_bytes + one.cache_bytes + one.window_bytes + one.state_bytes + one.working_bytes
    assert one.parameters == count_parameters(config)
    assert one.weight_bytes == sum(p.nbytes for p in model.parameters())
    growing = sum(layer.state.bytes() for layer in cache.layers if layer.is_croppable)
    constant = cache.bytes() - growing
    weights = one.weight_bytes - 4 * 100 * 256 + 4 * 3 * 256  # of the embedding only the rows of the tokens
    before = cache.bytes()
    with torch.no_grad():
        model(torch.zeros(3, 1, dtype=torch.long), past_key_values=cache)
    assert one.decode_bytes == weights + growing + 2 * constant + (cache.bytes() - before)


def test_every_mixer_of_the_catalogue_is_considered() -> None:
    found = candidates(SMALL, Load(8, 1), H100, published(4, 256), Grid(ratios=["3:1"])).found
    assert {one.mixer for one in found} == set(catalog.names("mixer"))
    assert {one.full for one in found} == set(catalog.names("mixer", full=True))
    assert {"transformer full=mla", "gla 3:1 period_r full=mla"} <= {one.key for one in found}


def test_speed_and_flops_by_hand() -> None:
    one = made()["transformer kv=4"]
    d, table = 256, 100 * 256
    assert one.decode_flops == 3 * (2 * (one.parameters - table) + 4 * (4 * 41 * d))
    assert one.prefill_flops == 3 * (2 * (one.parameters - table) * 40 + 4 * (2 * 40**2 * d))
    assert one.bound == "bandwidth"
    assert one.tokens_per_second == pytest.approx(3 * 3.35e12 / one.decode_bytes)
    assert one.memory == one.weight_bytes + one.cache_bytes + one.working_bytes


def test_two_names_of_one_plan_are_one_and_others_are_refused_with_the_reason() -> None:
    grid = Grid(mixers=["hgrn"], full=["attention"], ratios=["3:1", "1:1", "9:1"], windows=[None], kv_heads=[4])
    found = candidates(SMALL, Load(8, 1), H100, published(4, 256), grid)
    assert [one.key for one in found.found] == [
        "transformer kv=4",
        "hgrn 3:1 block_r_plus_1 kv=4",
        "hgrn 3:1 period_r kv=4",
        "hgrn 1:1 block_r_plus_1 kv=4",
    ]
    assert sum(found.refused.values()) == 3
    assert any("needs 10 layers" in reason for reason in found.refused)


def test_published_recall_stands_for_the_papers_own_shape_and_plan() -> None:
    table = published(24, 2048)
    assert table.get("gated_deltanet", "3:1", "period_r") == Recall(0.436, "paper")
    assert table.get("attention", "full", None) == Recall(0.423, "paper")
    assert table.get("gated_deltanet", "3:1", "block_r_plus_1") is None
    assert table.get("hgrn", "3:1", "period_r") is None  # "near zero", not printed
    assert published(24, 1024).rows == {}
    grid = {"mixers": ["gla"], "ratios": ["3:1"], "kv_heads": [32, 8], "windows": [None, 64]}
    keys = {key for key, one in made(shape_for(1_300_000_000), Load(64, 1), **grid).items() if one.recall}
    assert keys == {"transformer kv=32", "gla 3:1 period_r kv=32"}


def plan_of(key: str, memory: int, speed: float, recall: float | None) -> Candidate:
    one = next(iter(made(ratios=["pure"], mixers=["hgrn"]).values()))
    found = None if recall is None else Recall(recall, "paper")
    sizes = {"weight_bytes": memory, "cache_bytes": 0, "window_bytes": 0, "state_bytes": 0, "working_bytes": 0}
    return replace(one, mixer=key, ratio="pure", tokens_per_second=speed, recall=found, **sizes)


def test_front_by_hand() -> None:
    plans = [
        plan_of("small", 10, 5.0, 0.1),
        plan_of("middle", 20, 5.0, 0.3),
        plan_of("worse", 20, 5.0, 0.2),
        plan_of("slow", 10, 4.0, 0.1),
        plan_of("fast", 30, 9.0, 0.1),
        plan_of("huge", 99, 9.0, 0.9),
        plan_of("unknown", 50, 1.0, None),
        plan_of("unknown and worse", 60, 1.0, None),
    ]
    choice = choose(plans, 60)
    assert [one.mixer for one in choice.front] == ["small", "middle", "fast", "unknown"]
    assert [one.mixer for one in choice.too_large] == ["huge"]
    assert len(choice.fits) == 7


def test_a_study_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*report.json"):
        of_study(tmp_path)
    (tmp_path / "report.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not the report.json of a study"):
        of_study(tmp_path)
