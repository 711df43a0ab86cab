"""How ``plait generate`` and ``plait run`` continue a prompt: the text on stdout, progress and speed on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from plait.errors import OptionError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Shown:
    """What a person sees while a model writes.

    Args:
        echo: repeat the prompt before its continuation.
        quiet: nothing on stderr.
        text: stream the text to stdout; False where the caller prints JSON.
    """

    echo: bool = False
    quiet: bool = False
    text: bool = True


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Args:
        text: the continuation, after the prompt where it is echoed.
        prompt_tokens, new_tokens: how many were read and written.
        prefill_seconds: from the call to the first new token.
        decode_seconds: from the first new token to the last.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float

    def sentence(self) -> str:
        """Speed of reading and of writing, for people."""
        said = f"prefill   {self.prompt_tokens:,} tokens in {self.prefill_seconds:.2f} s"
        later = self.new_tokens - 1  # the first one comes with the prefill
        rate = f" ({later / self.decode_seconds:,.0f} tokens/s)" if later > 0 and self.decode_seconds > 0 else ""
        return f"{said}\ndecode    {self.new_tokens:,} tokens in {self.decode_seconds:.2f} s{rate}"


def continue_prompt(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: str,
    name: str,
    shown: Shown,
    **options: Any,
) -> Continuation:
    """Continue a prompt.

    Args:
        network, tokenizer: the model.
        prompt: an empty one stands for the beginning of a document.
        name: of the model, for messages.
        shown: what goes to stdout and stderr meanwhile.
        options: of ``generate``.

    Raises:
        OptionError: no tokenizer.
    """
    import torch

    if tokenizer is None:
        raise OptionError(f"{name} has no tokenizer (it was trained on a synthetic task), so it cannot continue text.")
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(torch.int64)
    if ids.shape[1] == 0:
        ids = torch.tensor([[tokenizer.eos_token_id]])
    streamer = _streamer(tokenizer, shown)
    printed = shown.echo and shown.text  # then the line would be written over the prompt
    with _prefill_progress(network, ids.shape[1], not shown.quiet and not printed and sys.stderr.isatty()):
        network.generate(  # type: ignore[operator]
            ids.to(network.device),
            attention_mask=torch.ones_like(ids).to(network.device),
            streamer=streamer,
            **options,
        )
    times = streamer.times
    return Continuation(
        "".join(streamer.parts), ids.shape[1], len(times) - 1, times[1] - times[0], times[-1] - times[1]
    )


def _streamer(tokenizer: PreTrainedTokenizerBase, shown: Shown) -> Any:
    """Takes the tokens as they come: notes their times, keeps the text, and prints it where it is shown."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def __init__(self) -> None:
            super().__init__(tokenizer, skip_prompt=not shown.echo, skip_special_tokens=True)
            self.times: list[float] = []
            self.parts: list[str] = []

        def put(self, value: Any) -> None:  # first called with the prompt, then with each token
            self.times.append(time.perf_counter())
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.parts.append(text)
            if shown.text:
                super().on_finalized_text(text, stream_end)

    return Streamer()


@contextmanager
def _prefill_progress(network: PreTrainedModel, tokens: int, wanted: bool) -> Iterator[None]:
    """One line on stderr that counts the layers of the first pass; it is gone when the pass is over."""
    layers = _layers(network) if wanted else []
    if not layers:
        yield
        return

    def note(index: int) -> None:
        line = f"prefill of {tokens:,} tokens: layer {index + 1} of {len(layers)}"
        gone = "\r" + " " * len(line) + "\r"
        typer.echo(f"\r{line}" if index + 1 < len(layers) else gone, err=True, nl=False)
        handles[index].remove()  # the passes after this one are single tokens

    handles = [
        layer.register_forward_hook(lambda *_, index=index: note(index))  # type: ignore[misc]
        for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(network: PreTrainedModel) -> list[nn.Module]:
    """The decoder's blocks in order; none where the model does not hold them in one list."""
    from torch import nn

    count = getattr(network.config.get_text_config(), "num_hidden_layers", None)
    stacks = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return list(stacks[0]) if stacks else []
