"""``plait bench``: plait against named peers, in the same run, beside the machine's ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plait.cli.output import print_json, print_table, say, size

if TYPE_CHECKING:
    from plait.timing.ratios import Ratio

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to run.")]
Repeats = Annotated[int, typer.Option(min=7, help="Repeats of each timing; the contenders take turns.")]
Settings = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Most settings to try when tuning a Triton kernel; by default all of them, which takes minutes.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Shapes = Annotated[
    list[str] | None, typer.Option("--shape", metavar="B-T-H-D", help="Shape, such as B1-T4096-H8-D64; repeatable.")
]
Operations = Annotated[
    list[str] | None,
    typer.Option("--operation", metavar="NAME", help="Only operations whose name contains NAME; repeatable."),
]


@app.callback()
def _bench() -> None:
    """Time plait against named peers."""


@app.command("ops")
def operations(
    sizes: Annotated[
        Literal["small", "full"], typer.Option(help="small: a few minutes; full: long contexts, hours.")
    ] = "small",
    shape: Shapes = None,
    operation: Operations = None,
    direction: Annotated[
        Literal["forward", "forward+backward"] | None, typer.Option(help="Only this direction; by default both.")
    ] = None,
    device: Device = "cpu",
    repeats: Repeats = 7,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Time the recurrences and softmax over lists against transformers, plain PyTorch, a loop and SDPA."""
    from plait.timing.machine import require_device
    from plait.timing.operations import DIRECTIONS, chosen_operations, time_operations
    from plait.timing.shapes import chosen_shapes
    from plait.timing.tuning import few_settings

    require_device(device)
    shapes, named = chosen_shapes(sizes, shape or []), chosen_operations(operation or [])
    directions = [direction] if direction else DIRECTIONS
    head = _heading(device)
    with few_settings(settings):
        timings = time_operations(shapes, device, repeats, named, directions, _announce)
    if as_json:
        print_json({**head, "timings": [asdict(timing) for timing in timings]})
        return
    _print_heading(head)
    say("ratio: the peer's time over plait's (median, and quartiles of the repeats); above 1, plait is faster")
    say("share: of the rate of the machine's matrix product, or of its copy for a scan, in the same repeats")
    say("softmax (SDPA) computes another function: it is what the recurrence would replace\n")
    header = ["operation", "shape", "direction", "backend", "plait ms", "rate", "share", "peer", "peer ms"]
    rows = [
        [t.operation, t.shape, t.direction, t.backend, f"{t.milliseconds:.2f}"]
        + [f"{t.rate:.1f} {t.ceiling.split()[1]}", f"{t.share:.0%}", t.peer, f"{t.peer_milliseconds:.2f}"]
        + _ratio_cells(t.ratio, t.ratio_low, t.ratio_high)
        for t in timings
    ]
    print_table([*header, "ratio", "spread"], rows, right=(4, 5, 6, 8, 9))


@app.command("decode")
def decode(
    heads: Annotated[int, typer.Option(min=1, help="Heads H.")] = 8,
    width: Annotated[int, typer.Option(min=1, help="Width D of the keys and values of a head.")] = 128,
    contexts: Annotated[
        str, typer.Option(help="Tokens of context before decoding, in increasing order.")
    ] = "1024,16384,131072,1048576",
    steps: Annotated[int, typer.Option(min=1, help="Tokens after which memory is compared.")] = 10000,
    device: Device = "cpu",
    repeats: Repeats = 7,
    as_json: Json = False,
) -> None:
    """Time one token through each recurrence: against transformers, by length of context, and what memory grows."""
    from plait.timing.decode import time_decoding
    from plait.timing.machine import require_device

    require_device(device)
    lengths = _numbers("--contexts", contexts)
    head = _heading(device)
    found = time_decoding(heads, width, lengths, steps, device, repeats, _announce)
    if as_json:
        print_json({**head, "decoding": [asdict(row) for row in found]})
        return
    _print_heading(head)
    say("ratio: the peer's time over plait's (median, and quartiles of the repeats); above 1, plait is faster\n")
    header = ["operation", "shape", "backend", "plait us/token", "peer", "peer us/token", "ratio", "spread"]
    rows = [
        [row.operation, row.shape, row.backend, f"{row.microseconds:.1f}", name, f"{peer.microseconds:.1f}"]
        + _ratio_cells(peer.ratio.median, peer.ratio.low, peer.ratio.high)
        for row in found
        for name, peer in row.peers.items()
    ]
    print_table(header, rows, right=(3, 5, 6))
    say("\nus/token of plait by length of the context; flatness: the slowest over the fastest")
    say("grown: memory that those further tokens added\n")
    header = ["operation", *(f"{length}" for length in lengths), "flatness", "state", "grown", "tokens"]
    rows = [
        [row.operation, *(f"{time:.1f}" for time in row.contexts.values()), f"{row.flatness:.2f}"]
        + [size(row.state_bytes), size(row.grown_bytes), str(row.steps)]
        for row in found
    ]
    print_table(header, rows, right=range(1, len(header)))


@app.command("train")
def train(
    tokens: Annotated[str, typer.Option(help="Sequence lengths of the training step; 0 skips it.")] = "4096,8192",
    context: Annotated[int, typer.Option(min=0, help="Prompt length for generation; 0 skips it.")] = 32768,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after the prompt.")] = 256,
    layers: Annotated[int, typer.Option(min=4, help="Layers of both models.")] = 24,
    hidden_size: Annotated[int, typer.Option(min=1, help="Width d of both models.")] = 512,
    mixer: Annotated[str, typer.Option(help="The hybrid's linear mixer.")] = "gated_deltanet",
    ratio: Annotated[str, typer.Option(help="The hybrid's linear layers per full one.")] = "3:1",
    vocab_size: Annotated[int, typer.Option(min=2, help="Vocabulary of both models.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a training step.")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="Recompute blocks in the backward pass: less memory.")] = False,
    prefills: Annotated[int, typer.Option(min=2, help="Repeats of reading the prompt.")] = 2,
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(min=2, help="Repeats; use at least 7 for figures that you publish.")] = 7,
    as_json: Json = False,
) -> None:
    """Time a whole hybrid against the all-attention model of its size: training steps, and generation."""
    from plait.timing.machine import require_device
    from plait.timing.whole_model import Size, time_generation, time_training

    require_device(device)
    lengths = [] if tokens == "0" else _numbers("--tokens", tokens)
    model = Size(layers, hidden_size, mixer, ratio, vocab_size)
    head = _heading(device)
    timings = time_training(model, lengths, batch, checkpointing, device, repeats, _announce) if lengths else []
    if context:
        timings += time_generation(model, context, new_tokens, device, repeats, prefills, _announce)
    if as_json:
        print_json({**head, "model": asdict(model), "timings": [asdict(timing) for timing in timings]})
        return
    _print_heading(head)
    say(f"hybrid: {layers} layers of width {hidden_size}, {mixer} {ratio}; attention: the same, all softmax")
    say(
        "ratio: the attention model's time over the hybrid's (median, and quartiles of the repeats); above 1, the "
        "hybrid is faster"
    )
    say(f"generation: the whole prompt and {new_tokens} tokens after it, from the two measurements above it\n")
    header = ["what", "tokens", "backend", "hybrid tokens/s", "attention tokens/s", "ratio", "spread", "repeats"]
    rows = [
        [t.what, str(t.tokens), t.backend, f"{t.tokens_per_second:.1f}", f"{t.attention_tokens_per_second:.1f}"]
        + _ratio_cells(t.ratio, t.ratio_low, t.ratio_high)
        + [str(t.repeats)]
        for t in timings
    ]
    print_table(header, rows, right=(1, 3, 4, 5, 7))


@app.command("layers")
def layers(
    layer: Annotated[
        list[str] | None, typer.Option("--layer", metavar="NAME", help="Only this layer, such as gla; repeatable.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", metavar="B-T-D", help="Shape, such as B1-T4096-D1024; repeatable.")
    ] = None,
    direction: Annotated[
        Literal["forward", "forward+backward"] | None, typer.Option(help="Only this direction; by default both.")
    ] = None,
    device: Device = "cuda",
    repeats: Repeats = 7,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Time whole layers on a GPU against flash-linear-attention's, with the same weights, and softmax attention."""
    from plait.timing.layers import SHAPES, chosen_layers, require_fla, time_layers
    from plait.timing.operations import DIRECTIONS
    from plait.timing.shapes import LayerShape
    from plait.timing.tuning import few_settings

    shapes, named = [LayerShape.parse(text) for text in shape or []] or SHAPES, chosen_layers(layer or [])
    require_fla(device)
    directions = [direction] if direction else DIRECTIONS
    head = _heading(device)
    with few_settings(settings):
        timings = time_layers(shapes, device, repeats, named, directions, _announce)
    if as_json:
        print_json({**head, "timings": [asdict(timing) for timing in timings]})
        return
    _print_heading(head)
    say("ratio: the peer's time over plait's (median, and quartiles of the repeats); above 1, plait is faster")
    say("difference: of output or gradient from fla's layer with the same weights, relative")
    say("attention (SDPA) computes another function: it is what the layer would replace\n")
    header = ["layer", "shape", "direction", "backend", "plait ms", "peer", "peer ms", "difference", "ratio", "spread"]
    rows = [
        [t.layer, t.shape, t.direction, t.backend, f"{t.milliseconds:.2f}", t.peer, f"{t.peer_milliseconds:.2f}"]
        + ["" if t.error is None else f"{t.error:.1e}"]
        + _ratio_cells(t.ratio, t.ratio_low, t.ratio_high)
        for t in timings
    ]
    print_table(header, rows, right=(4, 6, 7, 8))


@app.command("memory")
def memory(
    shape: Shapes = None,
    operation: Operations = None,
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(min=2, help="Processes started for each contender, in turns.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure the peak memory of forward and backward beyond inputs and outputs, each in a fresh process."""
    from plait.timing.machine import require_device
    from plait.timing.memory import measure_memory
    from plait.timing.operations import chosen_operations
    from plait.timing.shapes import Shape

    require_device(device)
    shapes, named = [Shape.parse(text) for text in shape or ["B1-T4096-H8-D128"]], chosen_operations(operation or [])
    head = _heading(device)
    peaks = measure_memory(shapes, device, repeats, named, _announce)
    if as_json:
        print_json({**head, "memory": [asdict(peak) for peak in peaks]})
        return
    _print_heading(head)
    say("peak of forward and backward beyond inputs and outputs, each in fresh processes")
    say("ratio: the peer's over plait's (median, and quartiles of the processes); above 1, plait takes less\n")
    header = ["operation", "shape", "backend", "plait MB", "peer", "peer MB", "ratio", "spread"]
    rows = [
        [p.operation, p.shape, p.backend, f"{p.megabytes:.1f}", p.peer, f"{p.peer_megabytes:.1f}"]
        + _ratio_cells(p.ratio, p.ratio_low, p.ratio_high)
        for p in peaks
    ]
    print_table(header, rows, right=(3, 5, 6))


@app.command("policies")
def policies(
    policy: Annotated[
        list[str] | None, typer.Option("--policy", metavar="NAME", help="Only this policy; repeatable.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=2, help="Tokens read in one pass.")] = 16_384,
    context: Annotated[int, typer.Option(min=2, help="Tokens of context before the decoded one.")] = 32_768,
    repeats: Annotated[int, typer.Option(min=3, help="Repeats; each reads the whole prompt.")] = 5,
    as_json: Json = False,
) -> None:
    """Time policies at their default options against the same model with dense attention (SDPA)."""
    from plait.timing.policies import chosen_policies, time_policies

    head = _heading("cpu")
    timings = time_policies(chosen_policies(policy or []), prompt, context, repeats, _announce)
    if as_json:
        print_json({**head, "timings": [asdict(timing) for timing in timings]})
        return
    _print_heading(head)
    say("model: 4 layers, 8 query heads on 2 key-value heads of width 64, random weights; default options")
    say("ratio: dense attention's time over the policy's (median, and quartiles of the repeats), of the whole model")
    say("pairs, cache: as shares of dense attention's; error: of the last logits, relative\n")
    header = ["policy", "phase", "tokens", "ms", "dense ms", "ratio", "spread", "pairs", "cache", "error"]
    rows = [
        [t.policy, t.phase, f"{t.tokens:,}", f"{t.milliseconds:.1f}", f"{t.dense_milliseconds:.1f}"]
        + _cells_of(t.speed)
        + [f"{t.pairs:.1%}", f"{t.cache:.1%}", f"{t.error:.3f}"]
        for t in timings
    ]
    print_table(header, rows, right=(2, 3, 4, 5, 7, 8, 9))


@app.command("sequence")
def sequence(
    shape: Annotated[str, typer.Option(metavar="B-T-H-D", help="Sizes of the whole.")] = "B1-T8192-H8-D64",
    processes: Annotated[int, typer.Option(min=2, help="Processes of one thread that share the sequence.")] = 2,
    direction: Annotated[
        Literal["forward", "forward+backward"], typer.Option(help="What is timed.")
    ] = "forward+backward",
    repeats: Repeats = 7,
    as_json: Json = False,
) -> None:
    """Time softmax attention with the sequence in pieces on several processes of this machine, against one process."""
    from plait.timing.machine import description
    from plait.timing.sequence import time_sequence
    from plait.timing.shapes import Shape

    timings = time_sequence(Shape.parse(shape), processes, repeats, direction == "forward+backward", _announce)
    head = {**description("cpu"), "threads": 1, "shape": shape, "direction": direction}
    if as_json:
        print_json({"machine": head, "timings": [asdict(timing) for timing in timings]})
        return
    say(f"{shape}, {direction}, {head['dtype']}, gloo, 1 thread a process, torch {head['versions']['torch']}")
    say(
        "over ...: how many times longer one process takes (median, and quartiles of the repeats); above 1, it is "
        "slower"
    )
    say("MB sent: by one process in a call\n")
    header = ["way", "processes", "ms", "MB sent", "over fused", "spread", "over vanilla", "spread"]
    rows = [
        [t.way, str(t.processes), f"{t.milliseconds:.0f}", f"{t.megabytes:.1f}"]
        + [cell for r in (t.over_fused, t.over_vanilla) for cell in _cells_of(r)]
        for t in timings
    ]
    print_table(header, rows, right=(1, 2, 3, 4, 6))


def _heading(device: str) -> dict[str, Any]:
    """The machine and its ceilings, measured now."""
    from plait.timing import machine

    return {
        "machine": machine.description(device),
        "ceilings": machine.ceilings(device, machine.timed_dtype(device)),
    }


def _print_heading(head: dict[str, Any]) -> None:
    found, versions = head["machine"], head["machine"]["versions"]
    ceilings = ", ".join(f"{name} {rate:.1f}" for name, rate in head["ceilings"].items())
    say(
        f"{found['device']}, {found['dtype']}, {found['threads']} threads, torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {ceilings}"
    )
    say(f"plait's backend: {found['backend']} ({found['backend_reason']})")


def _ratio_cells(median: float, low: float, high: float) -> list[str]:
    return [f"{median:.2f}", f"{low:.2f} to {high:.2f}"]


def _cells_of(found: Ratio | None) -> list[str]:
    return ["", ""] if found is None else _ratio_cells(found.median, found.low, found.high)


def _numbers(option: str, text: str) -> Sequence[int]:
    """``"1024,4096"`` as numbers."""
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise typer.BadParameter(
            f"{option} {text!r} must be whole numbers of at least 1, separated by commas, such as 1024,4096."
        )
    return [int(number) for number in numbers]


def _announce(line: str) -> None:
    typer.echo(line, err=True)
