"""How well any causal model predicts texts: perplexity by token, word and byte, and the loss by length of context.

Documents that are longer than a window are read in rolling windows, as lm-eval does (EleutherAI,
``get_rolling_token_windows``): every token is predicted exactly once, the first from the end-of-text token.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from plait.data.tokenizers import encode
from plait.errors import DataError, OptionError
from plait.evaluation.ar_hits import ar_hits
from plait.evaluation.perplexity import MOST_LOGITS, token_losses
from plait.models.cache import CACHE_NAME

#: Tokens on which a model shows that it can go on from its cache.
_TRIED = 16


class Window(NamedTuple):
    """Part of a document, whose token 0 is the end-of-text token that stands before it.

    Args:
        start, end: tokens ``start .. end - 1`` are read, each of which predicts the next one.
        scored: of these predictions the last so many count.
    """

    start: int
    end: int
    scored: int


def rolling_windows(tokens: int, length: int, context: int = 1) -> list[Window]:
    """Windows that predict each token of a document exactly once.

    Args:
        tokens: of the document, without the end-of-text token before it.
        length: tokens that the model reads at once.
        context: tokens read before the first that is predicted, in every window but the first; more than 1 costs more
            windows and is kinder to tokens at their start. The last window is as long as the others and begins earlier.

    Raises:
        OptionError: a context outside 1..length.
    """
    if not 1 <= context <= length:
        raise OptionError(f"context={context} must be at least 1 and at most length={length}.")
    done = min(tokens, length)
    windows = [Window(0, done, done)] if tokens else []
    while done < tokens:
        scored = min(tokens - done, length - context + 1)
        done += scored
        windows.append(Window(done - length, done, scored))
    return windows


def text_perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    length: int,
    context: int = 1,
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Perplexities of a model on texts, each a document of its own.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        tokenizer: of the model; its beginning-of-text token, or else its end-of-text token, stands before each text.
        texts: empty ones are skipped.
        length, context: of :func:`rolling_windows`.
        batch_size: windows per forward pass; fewer where the logits would take much memory.
        advance: told how many windows have been read since the last call.

    Returns:
        ``loss`` (nats per token), ``token_perplexity``, ``word_perplexity`` (``exp`` of the loss of all tokens divided
        by the number of words, which are what stands between blanks), ``bits_per_byte`` (of UTF-8), the counts
        ``tokens``, ``words`` and ``bytes``, and for the tokens that complete a bigram already seen in their window
        (:func:`~plait.evaluation.ar_hits.ar_hits`) and for the others ``ar_hits`` and ``other``: ``loss`` (None
        without tokens), ``share``, ``tokens``.

    Raises:
        OptionError: a context outside 1..length, or a tokenizer without these special tokens.
        DataError: no text.
    """
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise OptionError("The tokenizer has neither a beginning-of-text nor an end-of-text token to begin texts with.")
    kept = [text for text in texts if text]
    documents = [np.concatenate([[prefix], ids]) for ids in encode(tokenizer, kept)]
    windows = [(ids, window) for ids in documents for window in rolling_windows(len(ids) - 1, length, context)]
    sums: dict[bool, float] = defaultdict(float)
    counts: dict[bool, int] = defaultdict(int)
    for scored, inputs, targets, losses in _losses(model, windows, batch_size):
        counted = torch.arange(inputs.shape[1]) >= inputs.shape[1] - scored[:, None]
        hits = ar_hits(inputs, targets)
        for kind in (True, False):
            chosen = losses[counted & (hits == kind)]
            sums[kind] += chosen.double().sum().item()
            counts[kind] += chosen.numel()
        advance(len(inputs))
    total, tokens = sum(sums.values()), sum(counts.values())
    words, size = sum(len(text.split()) for text in kept), sum(len(text.encode("utf-8")) for text in kept)
    if not words:
        raise DataError("There is no text to measure: all texts are empty or blank.")
    return {
        "loss": total / tokens,
        "token_perplexity": math.exp(total / tokens),
        "word_perplexity": math.exp(total / words),
        "bits_per_byte": total / math.log(2) / size,
        "tokens": tokens,
        "words": words,
        "bytes": size,
        **{
            name: {
                "loss": sums[kind] / counts[kind] if counts[kind] else None,
                "share": counts[kind] / tokens,
                "tokens": counts[kind],
            }
            for name, kind in (("ar_hits", True), ("other", False))
        },
    }


def loss_by_context(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    length: int,
    stride: int | None = None,
    edges: Sequence[int] | None = None,
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Mean loss by the number of tokens read before: does it keep falling as the context grows?

    A window slides over each text; its k-th prediction has k tokens of context. All groups average over the same
    windows.

    Args:
        model, tokenizer, batch_size, advance: as for :func:`text_perplexity`.
        texts: those of at most ``length`` tokens are skipped.
        length: tokens of a window.
        stride: tokens from one window to the next; ``length`` (the default) means that windows do not overlap.
        edges: the lowest context of each group, ascending, the first at least 1; by default 1, 2, 4, 8, ...

    Returns:
        per group ``from`` and ``to`` (tokens of context, both inclusive), ``loss`` (nats per token), ``tokens``.

    Raises:
        OptionError: a stride below 1, or edges that do not ascend within 1..length.
        DataError: no text is longer than a window.
    """
    stride = length if stride is None else stride
    edges = [2**power for power in range(length.bit_length())] if edges is None else list(edges)
    if stride < 1:
        raise OptionError(f"stride={stride} must be at least 1.")
    if edges != sorted(set(edges)) or not edges or edges[0] < 1 or edges[-1] > length:
        raise OptionError(f"edges={edges} must ascend and lie in 1..{length}.")
    documents = encode(tokenizer, list(texts))
    windows = [
        (ids, Window(start, start + length, length))
        for ids in documents
        for start in range(0, len(ids) - length, stride)
    ]
    if not windows:
        longest = max(map(len, documents), default=0)
        raise DataError(
            f"No text is longer than a window: the longest has {longest} tokens; use a smaller length or longer texts."
        )
    sums = torch.zeros(length, dtype=torch.float64)
    for _, _, _, losses in _losses(model, windows, batch_size):
        sums += losses.double().sum(0)
        advance(len(losses))
    groups = []
    for first, after in zip(edges, [*edges[1:], length + 1], strict=True):
        tokens = (after - first) * len(windows)
        loss = sums[first - 1 : after - 1].sum().item() / tokens
        groups.append({"from": first, "to": after - 1, "loss": loss, "tokens": tokens})
    return groups


def _losses(
    model: nn.Module, windows: Sequence[tuple[np.ndarray, Window]], batch_size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches of windows of one length: how many are scored ``(B,)``, inputs, targets and losses ``(B, T)``."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    vocab_size = embedding.weight.shape[0]
    by_length: dict[int, list[tuple[np.ndarray, Window]]] = defaultdict(list)
    for ids, window in windows:
        by_length[window.end - window.start].append((ids, window))
    for length, group in by_length.items():
        rows = max(1, min(batch_size, MOST_LOGITS // (length * vocab_size)))
        for first in range(0, len(group), rows):
            part = group[first : first + rows]
            tokens = torch.from_numpy(np.stack([ids[window.start : window.end + 1] for ids, window in part])).long()
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            scored = torch.tensor([window.scored for _, window in part])
            if length * vocab_size > MOST_LOGITS and _goes_on(model, inputs[:, :_TRIED]):
                piece = max(1, MOST_LOGITS // vocab_size)
                pieces = zip(_in_pieces(model, inputs, piece), targets.split(piece, dim=1), strict=True)
                losses = torch.cat([_cross_entropy(logits, wanted) for logits, wanted in pieces], dim=1)
            else:
                losses = token_losses(model, {"input_ids": inputs, "targets": targets})
            yield scored, inputs, targets, losses


@torch.no_grad()
def _in_pieces(model: nn.Module, inputs: Tensor, piece: int) -> Iterator[Tensor]:
    """Logits of so many tokens at a time, read with a cache: those of a long window at once may not fit into memory."""
    name = CACHE_NAME if CACHE_NAME in inspect.signature(model.forward).parameters else "past_key_values"
    device = next(model.parameters()).device
    cache: Any = None
    for ids in inputs.split(piece, dim=1):
        output = model(input_ids=ids.to(device), use_cache=True, **{name: cache})
        cache = getattr(output, name, None)
        yield output.logits


@torch.no_grad()
def _goes_on(model: nn.Module, inputs: Tensor) -> bool:
    """Whether pieces give what one pass gives; some models of transformers forget their state between pieces."""
    whole = model(input_ids=inputs.to(next(model.parameters()).device), use_cache=False).logits.float()
    pieces = torch.cat([logits.float() for logits in _in_pieces(model, inputs, inputs.shape[1] // 2)], dim=1)
    return bool((whole - pieces).abs().max() <= 0.02 * whole.abs().max())  # as near as half precision comes


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.to(logits.device).flatten(), reduction="none"
    )
    return losses.view(targets.shape).cpu()
