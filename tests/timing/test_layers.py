"""Layers: the weights of fla's layer become plait's, differences are seen, and the table says what it compares."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints.layouts import MIXER_KEYS, OPTIONS
from plait import catalog
from plait.catalog import Peer
from plait.cli import app as front
from plait.errors import BackendUnavailable, OptionError, PlaitError
from plait.mixers import Context, Mixer
from plait.timing import layers
from plait.timing.layers import (
    SHAPES,
    LayerTiming,
    chosen_layers,
    difference,
    plait_layer,
    require_fla,
    time_layers,
)
from plait.timing.shapes import LayerShape

LAYERS = catalog.names("mixer", peer=...)
TINY = LayerShape(2, 12, 16)


class StandIn(nn.Module):
    """Stands for fla's layer: the same function of the same weights, called and answering as fla's layers do."""

    def __init__(self, mixer: Mixer, factor: float = 1.0) -> None:
        super().__init__()
        self.mixer, self.factor = mixer, factor

    def state_dict(self, *arguments: object, **named: object) -> dict[str, Tensor]:  # type: ignore[override]
        return self.mixer.state_dict()

    def forward(self, x: Tensor) -> tuple[Tensor, None, None]:
        return self.factor * self.mixer(x, Context.plain(x)), None, None


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers at the sizes of the hand-written layouts."""
    for method in catalog.methods("mixer", peer=...):
        assert method.peer is not None
        bounds = {"use_lower_bound": False} if "use_lower_bound" in method.peer.options else {}
        row = replace(method, peer=Peer(method.peer.name, {**OPTIONS[method.name], **bounds}))
        monkeypatch.setitem(catalog._all(), ("mixer", method.name), row)


def weights(name: str) -> dict[str, Tensor]:
    """By fla's names and in fla's shapes, as they were written by hand."""
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in MIXER_KEYS[name].items()}


def stand_in(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> None:
    def peer(name: str, hidden_size: int) -> StandIn:
        return StandIn(plait_layer(name, hidden_size, weights(name)), factor)

    monkeypatch.setattr(layers, "fla_layer", peer)


def test_a_shape_is_read_as_it_is_printed() -> None:
    assert LayerShape.parse("B4-T16384-D1024") == LayerShape(4, 16384, 1024)
    assert [str(shape) for shape in SHAPES] == [
        "B1-T4096-D1024",
        "B4-T4096-D1024",
        "B1-T16384-D1024",
        "B4-T16384-D1024",
    ]
    with pytest.raises(OptionError, match="B1-T4096-D1024"):
        LayerShape.parse("B1-T4096-H8-D64")


def test_layers_are_chosen_by_name() -> None:
    assert chosen_layers([]) == LAYERS
    assert chosen_layers(["gla", "hgrn"]) == ["hgrn", "gla"]
    with pytest.raises(OptionError, match="layer 'attention' has no counterpart"):
        chosen_layers(["attention"])


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_fla_become_plaits(name: str) -> None:
    given = weights(name)
    found = plait_layer(name, 16, given).state_dict()
    assert found.keys() == given.keys()
    assert all(torch.equal(found[key], given[key]) for key in given)


@pytest.mark.usefixtures("tiny")
def test_a_weight_that_is_missing_is_an_error() -> None:
    given = weights("gla")
    del given["gk_proj.1.bias"]
    with pytest.raises(RuntimeError, match=r"gk_proj\.1\.bias"):
        plait_layer("gla", 16, given)


def test_difference_is_that_of_outputs_and_of_gradients() -> None:
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    assert difference(lambda x: 1.02 * x, lambda x: x, x) == pytest.approx(0.02, rel=1e-3)
    assert difference(lambda x: x + (x - x.detach()), lambda x: x, x) == pytest.approx(1)  # the gradient alone


@pytest.mark.usefixtures("tiny")
def test_every_layer_is_timed_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    heard: list[str] = []
    timings = time_layers([TINY], "cpu", repeats=2, announce=heard.append)
    assert heard == [f"{name} at B2-T12-D16" for name in LAYERS]
    assert [(t.layer, t.direction, t.peer) for t in timings] == [
        (name, direction, peer)
        for name in LAYERS
        for direction in ("forward", "forward+backward")
        for peer in ("fla", "attention (SDPA)")
    ]
    for timing in timings:
        assert timing.ratio_low <= timing.ratio <= timing.ratio_high
        assert (timing.error is not None) is (timing.peer == "fla")
        assert timing.error is None or timing.error < 1e-6


@pytest.mark.usefixtures("tiny")
def test_backward_reaches_every_weight() -> None:
    mixer = plait_layer("gla", 16, weights("gla"))
    x = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    call = layers._contender(layers._function(mixer), mixer, x, torch.ones_like(x))
    gradients = call()
    assert [g.shape for g in gradients] == [x.shape, *(p.shape for p in mixer.parameters())]
    assert all(float(g.abs().sum()) > 0 for g in gradients)


@pytest.mark.usefixtures("tiny")
def test_a_layer_with_another_result_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, factor=1.1)
    with pytest.raises(PlaitError, match="gla at B2-T12-D16: plait and fla differ by 9"):
        time_layers([TINY], "cpu", repeats=2, layers=["gla"])


@pytest.mark.parametrize(("device", "reason"), [("cpu", "a CPU was asked for"), ("cuda", "sees none")])
def test_without_a_gpu_is_an_error_with_a_mend(
    device: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "layers", "--device", device])
    assert end.value.code == 1
    assert reason in (message := capsys.readouterr().err)
    assert "on a machine that has a GPU" in message


def test_without_fla_is_an_error_with_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install "):
        require_fla("cuda")


@pytest.mark.parametrize("as_json", [False, True])
def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    timing = LayerTiming("gla", "B1-T9-D8", "forward", "fla", 2.0, "fla", 3.0, 1.5, 1.25, 1.75, 0.003, 7)
    asked: list[object] = []
    monkeypatch.setattr(layers, "require_fla", lambda device: None)
    monkeypatch.setattr(layers, "time_layers", lambda *arguments: asked.extend(arguments) or [timing])
    monkeypatch.setattr("plait.cli.bench._heading", lambda device: {"machine": {}, "ceilings": {}})
    monkeypatch.setattr("plait.cli.bench._print_heading", lambda head: None)
    arguments = ["--layer", "gla", "--shape", "B1-T9-D8", "--direction", "forward"]
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "layers", *arguments, *(["--json"] if as_json else [])])
    assert end.value.code == 0
    assert asked[:5] == [[LayerShape(1, 9, 8)], "cuda", 7, ["gla"], ["forward"]]
    text = capsys.readouterr().out
    if as_json:
        assert json.loads(text)["timings"][0]["ratio"] == 1.5
    else:
        assert "above 1, plait is faster" in text
        assert (
            " ".join(text.splitlines()[-1].split())
            == "gla B1-T9-D8 forward fla 2.00 fla 3.00 3.0e-03 1.50 1.25 to 1.75"
        )


@pytest.mark.gpu
@pytest.mark.xdist_group("layers")
def test_on_a_gpu_fla_agrees_and_is_timed() -> None:
    pytest.importorskip("fla.layers")
    timings = time_layers([LayerShape(1, 256, 128)], "cuda", repeats=2, layers=["hgrn2"])
    assert {timing.peer for timing in timings} == {"fla", "attention (SDPA)"}
    assert {timing.backend for timing in timings} == {"fla"}
