"""``plait generate``: continue a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def command(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a saved model, or a name on the hub.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; 0.8 by default.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from the most probable tokens of this mass.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the most probable token.")] = False,
) -> None:
    """Continue a prompt; the text streams to stdout."""
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {key: value for key, value in sampling.items() if value is not None}
    if greedy and given:
        raise OptionError(f"--greedy takes no --{next(iter(given)).replace('_', '-')}: drop one of the two.")
    if temperature is not None and temperature <= 0:
        raise OptionError(f"--temperature {temperature:g} must be above 0; use --greedy for the most probable token.")
    if top_p is not None and not 0 < top_p <= 1:
        raise OptionError(f"--top-p {top_p:g} must be above 0 and at most 1.")

    import torch

    from plait.evaluation.run import open_model
    from plait.training.folder import model_folder

    network, tokenizer = open_model(model_folder(model))
    options: dict[str, Any] = {"do_sample": not greedy}
    if not greedy:
        options |= {"temperature": 0.8, "top_k": 0, **given}
    torch.manual_seed(seed)
    continue_prompt(network, tokenizer, prompt, model, max_new_tokens=max_new_tokens, **options)


def continue_prompt(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, prompt: str, name: str, **options: Any
) -> None:
    """Stream a continuation to stdout.

    Args:
        network, tokenizer: the model.
        prompt: an empty one stands for the beginning of a document.
        name: of the model, for messages.
        options: of ``generate``.

    Raises:
        OptionError: no tokenizer.
    """
    import torch
    from transformers import TextStreamer

    if tokenizer is None:
        raise OptionError(f"{name} has no tokenizer (it was trained on a synthetic task), so it cannot continue text.")
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(torch.int64)
    if ids.shape[1] == 0:
        ids = torch.tensor([[tokenizer.eos_token_id]])
    network.generate(  # type: ignore[operator]
        ids.to(network.device),
        attention_mask=torch.ones_like(ids).to(network.device),
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        **options,
    )
