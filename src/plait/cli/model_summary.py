"""What ``plait import`` and ``plait export`` print of a model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from plait.cli.output import print_json, say

if TYPE_CHECKING:
    from plait.models import PlaitForCausalLM


def print_summary(model: PlaitForCausalLM, source: str, target: str, tokenizer_files: list[str], as_json: bool) -> None:
    """Print where a model came from and went to, its layers by kind and its parameters."""
    layers = Counter(model.config.layer_types)
    summary = {
        "source": source,
        "target": target,
        "layers": dict(layers),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokenizer_files": tokenizer_files,
    }
    if as_json:
        print_json(summary)
        return
    say(f"{source} -> {target}")
    kinds = ", ".join(f"{count} {name}" for name, count in layers.items())
    say(f"layers      {layers.total()}: {kinds}")
    say(f"parameters  {summary['parameters']:,} in {summary['dtype']}")
    say(f"tokenizer   {', '.join(tokenizer_files) or 'none'}")
