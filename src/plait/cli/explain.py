"""``plait explain``: a model layer by layer, from its configuration alone; no weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plait.cli.output import print_json, print_table, quantity, say, size
from plait.errors import OptionError

if TYPE_CHECKING:
    from plait.models import PlaitConfig
    from plait.runs.config import RunConfig


def command(
    model: Annotated[str, typer.Argument(help="A run's folder, a saved model, or a run file (YAML).")],
    length: Annotated[int, typer.Option(min=1, help="Tokens in the context, for state and cost.")] = 4096,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the run file, such as model.ratio=pure."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Device whose code path is shown; default: this machine's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a model layer by layer: code path, parameters, state, cost."""
    config = read_config(model, overrides or [])  # before torch is loaded: a typo is told at once

    import torch

    device_type = device or ("cuda" if torch.cuda.is_available() else "cpu")
    explanation = {"model": model, **explain(config, length, device_type)}
    if as_json:
        print_json(explanation)
    else:
        _print(explanation)


def read_config(model: str, overrides: Sequence[str] = ()) -> PlaitConfig:
    """The configuration of a run's folder, a saved model, a hub name or a run file.

    Args:
        model: what the user named.
        overrides: ``KEY=VALUE`` for a run file.

    Raises:
        OptionError: there is no such model, or it is not one of plait's.
    """
    from plait.runs.folder import MODEL_FOLDER, model_folder, read_run_file

    path = Path(model)
    if path.suffix in (".yaml", ".yml"):
        return _planned(_read_run(path, overrides))
    if overrides:
        raise OptionError("--set changes a run file (YAML); a saved model stays as it is.")
    path = Path(model_folder(model)) if model.startswith("fixture:") else path
    if path.is_dir():
        for folder in (path / MODEL_FOLDER, path):
            if (folder / "config.json").is_file():
                path = folder
                break
        else:
            run = read_run_file(path)
            if run is None:
                raise OptionError(f"{path} is neither a run's folder (run.json) nor a saved model (config.json).")
            return _planned(run)

    from plait.models import PlaitConfig
    from plait.models.loading import open_config

    config = open_config(path if path.is_dir() else model)
    if not isinstance(config, PlaitConfig):
        raise OptionError(f"{model} is a {config.model_type!r} model of transformers; plait explain reads plait's own.")
    return config


def _read_run(path: Path, overrides: Sequence[str]) -> RunConfig:
    from plait.cli.train import with_overrides
    from plait.runs.config import RunConfig
    from plait.sections import read_yaml, validated

    return validated(RunConfig, with_overrides(read_yaml(path), list(overrides)), str(path))


def _planned(run: RunConfig) -> PlaitConfig:
    """The configuration that a run will build."""
    from plait.data.tasks import build_task
    from plait.data.tokenizers import build_tokenizer, vocabulary_size
    from plait.models.architecture import build_model_config

    data = run.data
    if data.task is not None:
        vocabulary = build_task(data.task, {"length": data.length, **data.options}).vocab_size
    elif data.tokenizer.startswith("bpe:"):
        vocabulary = int(data.tokenizer.removeprefix("bpe:"))
    else:
        vocabulary = vocabulary_size(build_tokenizer(data.tokenizer, None))
    return build_model_config(run, vocabulary)


def explain(config: PlaitConfig, length: int, device_type: str) -> dict[str, Any]:
    """Layers and totals as plain data; builds no tensor.

    Args:
        config: the model.
        length: tokens in the context of one sequence.
        device_type: ``cpu`` or ``cuda``, for the code path.
    """
    from plait.models import count_parameters, layer_costs, plan_cost

    rows = layer_costs(config, length)
    layers = []
    for row, spec in zip(rows, config.layers(), strict=True):
        name, reason = spec.type.code_path(device_type)
        layers.append(
            {
                "index": row.index,
                "name": row.name,
                "mixer": row.mixer,
                "options": _changed(spec.options),
                "code_path": {"name": name, "reason": reason},
                "state": row.state,
                "parameters": row.parameters,
                **dataclasses.asdict(row.cost),
            }
        )
    full = [row.index for row in rows if row.full]
    return {
        "length": length,
        "device": device_type,
        "cache_dtype": "bfloat16",
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "ratio": {
            "labels": ratio_labels(full, len(rows)),
            "linear": len(rows) - len(full),
            "full": len(full),
            "full_layers": full,
        },
        "layers": layers,
        "totals": {"parameters": count_parameters(config), **dataclasses.asdict(plan_cost(config, length))},
    }


def ratio_labels(full: list[int], layers: int) -> list[str]:
    """What papers call a plan with full attention at the indices ``full``: each convention has its own word for it.

    Returns:
        ``["pure"]``, ``["full"]``, labels such as ``"3:1 (block_r_plus_1)"``, or nothing for an irregular plan.
    """
    from plait.models import full_layers
    from plait.models.plan import PLACEMENTS

    if not full or len(full) == layers:
        return ["full" if full else "pure"]
    labels = []
    for placement in PLACEMENTS:
        first = full[0] if placement == "block_r_plus_1" else full[0] + 1  # linear layers before the first full one
        if first > (placement == "period_r") and full_layers(f"{first}:1", layers, placement) == full:
            labels.append(f"{first}:1 ({placement})")
    return labels


def _changed(options: Any) -> dict[str, Any]:
    """Options that are not at their defaults."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    defaults = type(options)()
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


def _print(explanation: dict[str, Any]) -> None:
    ratio, totals, layers = explanation["ratio"], explanation["totals"], explanation["layers"]
    say(f"{explanation['model']}: {len(layers)} layers of width {explanation['hidden_size']}")
    label = " or ".join(ratio["labels"]) or "an irregular plan"
    where = f" (layers {', '.join(map(str, ratio['full_layers']))})" if ratio["full"] else ""
    say(f"ratio {label}: {ratio['linear']} linear, {ratio['full']} full{where}\n")
    header = ["layer", "mixer", "path", "parameters", "state", "prefill", "a token", "options"]
    rows = [
        [str(layer["index"]), _title(layer), layer["code_path"]["name"], f"{layer['parameters']:,}"]
        + [size(layer["state_bytes"]), quantity(layer["flops_prefill"], "FLOP")]
        + [quantity(layer["flops_decode"], "FLOP")]
        + [", ".join(f"{key}={value}" for key, value in layer["options"].items()) or "defaults"]
        for layer in layers
    ]
    rest = totals["parameters"] - sum(layer["parameters"] for layer in layers)
    rows.append(["", "embedding, head, last norm, shared", "", f"{rest:,}", "", "", "", ""])
    rows.append(["", "total", "", f"{totals['parameters']:,}", size(totals["state_bytes"])])
    rows[-1] += [quantity(totals["flops_prefill"], "FLOP"), quantity(totals["flops_decode"], "FLOP"), ""]
    print_table(header, rows, right=(0, 3, 4, 5, 6))
    say(
        f"\nState and FLOPs are those of one sequence of {explanation['length']} tokens: keys and values in "
        f"{explanation['cache_dtype']}, recurrent states in fp32; FLOPs count token mixing, not projections."
    )
    reasons = {layer["code_path"]["name"]: layer["code_path"]["reason"] for layer in layers}
    for name, reason in reasons.items():
        say(f"{name}: {reason}")


def _title(layer: dict[str, Any]) -> str:
    return layer["mixer"] if layer["name"] == layer["mixer"] else f"{layer['name']} ({layer['mixer']})"
