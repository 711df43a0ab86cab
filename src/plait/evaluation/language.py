"""How well any causal model predicts text: the loss of every token, by sample, on AR hits, by length of context.

Text is read in two ways. *Packed* rows are those of a run's held-out split, as in training
(:func:`packed_losses`). *Documents* are read in rolling windows, as lm-eval does (EleutherAI,
``get_rolling_token_windows``): every token is predicted exactly once, the first from the end-of-text token
(:func:`document_losses`).
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from plait.data.bigrams import BigramCounts
from plait.data.packing import IGNORED, collate
from plait.data.tokenizers import encode
from plait.errors import DataError, OptionError
from plait.evaluation.ar_hits import ar_hits
from plait.models.cache import CACHE_NAME

#: Logits of one forward pass: at most so many numbers.
MOST_LOGITS = 1 << 26

#: Tokens on which a model shows that it can go on from its cache.
_TRIED = 16


class Losses:
    """Losses in nats, summed over the tokens of each of N samples: of all tokens, of AR hits, of the others.

    Args:
        samples: N.

    Attributes:
        sums, tokens: group -> what was added up and how many tokens these were, each ``(N,)``; the groups are ``all``,
            ``ar_hits`` and ``other``.
    """

    def __init__(self, samples: int) -> None:
        self.sums = {group: np.zeros(samples) for group in ("all", "ar_hits", "other")}
        self.tokens = {group: np.zeros(samples, np.int64) for group in self.sums}

    def add(self, samples: Sequence[int], losses: Tensor, counted: Tensor, hits: Tensor) -> None:
        """Add rows of tokens.

        Args:
            samples: the sample to which each row belongs.
            losses: ``(B, T)``.
            counted: ``(B, T)``, which tokens count.
            hits: ``(B, T)``, which are AR hits.
        """
        for group, chosen in (("all", counted), ("ar_hits", counted & hits), ("other", counted & ~hits)):
            kept = torch.where(chosen, losses, 0.0).double().sum(1)
            np.add.at(self.sums[group], samples, kept.numpy())
            np.add.at(self.tokens[group], samples, chosen.sum(1).numpy())

    def mean(self, group: str = "all") -> float | None:
        """Nats per token of a group; None where it has no token."""
        tokens = int(self.tokens[group].sum())
        return math.fsum(self.sums[group]) / tokens if tokens else None


@torch.no_grad()
def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Loss of every target in nats, ``(B, T)`` fp32; 0 where the target is ignored.

    Args:
        model: in evaluation mode.
        batch: ``input_ids`` and ``targets`` ``(B, T)``, and ``cu_seqlens`` where documents are apart.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items() if key != "targets"}
    return _cross_entropy(model(**inputs, use_cache=False).logits, batch["targets"])


def packed_losses(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int,
    vocab_size: int,
    counts: BigramCounts | None = None,
    rare_below: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Losses:
    """Losses of all targets of packed rows, each row a sample.

    Args:
        model: any causal language model that returns ``logits``, in evaluation mode.
        dataset: rows of :class:`plait.data.packing.TokenDataset`.
        batch_size: rows per forward pass; fewer where the logits would take much memory.
        vocab_size: width of the logits.
        counts, rare_below: count only rare bigrams as AR hits, see :func:`plait.evaluation.ar_hits.ar_hits`.
        advance: told how many rows have been read since the last call.
    """
    assert isinstance(dataset, Sized)
    losses, length = Losses(len(dataset)), len(dataset[0]["input_ids"])
    rows = max(1, min(batch_size, MOST_LOGITS // (length * vocab_size)))
    for first in range(0, len(dataset), rows):
        samples = list(range(first, min(first + rows, len(dataset))))
        batch = collate([dataset[index] for index in samples])
        hits = ar_hits(
            batch["input_ids"],
            batch["targets"],
            cu_seqlens=batch.get("cu_seqlens"),
            counts=counts,
            rare_below=rare_below,
        )
        shape = (len(samples), length)  # rows whose documents are apart come as a single one
        real = batch["targets"] != IGNORED
        losses.add(samples, token_losses(model, batch).view(shape), real.view(shape), hits.view(shape))
        advance(len(samples))
    return losses


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


def document_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    length: int,
    context: int = 1,
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda count: None,
) -> Losses:
    """Losses of all tokens of texts, each text a document of its own and a sample.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        tokenizer: of the model; its beginning-of-text token, or else its end-of-text token, stands before each text.
        texts: none of them empty.
        length, context: of :func:`rolling_windows`.
        batch_size: windows per forward pass; fewer where the logits would take much memory.
        advance: told how many windows have been read since the last call.

    Raises:
        OptionError: a context outside 1..length, or a tokenizer without these special tokens.
    """
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise OptionError("The tokenizer has neither a beginning-of-text nor an end-of-text token to begin texts with.")
    documents = [np.concatenate([[prefix], ids]) for ids in encode(tokenizer, list(texts))]
    windows = [
        (index, ids, window)
        for index, ids in enumerate(documents)
        for window in rolling_windows(len(ids) - 1, length, context)
    ]
    losses = Losses(len(documents))
    for samples, scored, inputs, targets, values in _window_losses(model, windows, batch_size):
        counted = torch.arange(inputs.shape[1]) >= inputs.shape[1] - scored[:, None]
        losses.add(samples, values, counted, ar_hits(inputs, targets))
        advance(len(inputs))
    return losses


def text_perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    length: int,
    context: int = 1,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Perplexities of a model on texts.

    Args:
        model, tokenizer, length, context, batch_size: of :func:`document_losses`.
        texts: each a document of its own; empty ones are skipped.

    Returns:
        See :func:`perplexities`.

    Raises:
        OptionError: as :func:`document_losses`.
        DataError: no text.
    """
    kept = [text for text in texts if text]
    losses = document_losses(model, tokenizer, kept, length=length, context=context, batch_size=batch_size)
    return perplexities(losses, kept)


def perplexities(losses: Losses, texts: Sequence[str]) -> dict[str, Any]:
    """What the losses of whole texts mean by token, word and byte.

    Args:
        losses: of all texts.
        texts: that were read.

    Returns:
        ``loss`` (nats per token), ``token_perplexity``, ``word_perplexity`` (``exp`` of the loss of all tokens divided
        by the number of words, which are what stands between blanks), ``bits_per_byte`` (of UTF-8), the counts
        ``tokens``, ``words`` and ``bytes``, and for the tokens that complete a bigram already seen in their window
        (:func:`~plait.evaluation.ar_hits.ar_hits`) and for the others ``ar_hits`` and ``other``: ``loss`` (None
        without tokens), ``share``, ``tokens``.

    Raises:
        DataError: no text.
    """
    total, tokens = math.fsum(losses.sums["all"]), int(losses.tokens["all"].sum())
    words, size = sum(len(text.split()) for text in texts), sum(len(text.encode("utf-8")) for text in texts)
    if not words:
        raise DataError("There is no text to measure: all texts are empty or blank.")
    groups = {
        group: {"loss": losses.mean(group), "share": count / tokens, "tokens": count}
        for group, count in ((group, int(losses.tokens[group].sum())) for group in ("ar_hits", "other"))
    }
    return {
        "loss": total / tokens,
        "token_perplexity": math.exp(total / tokens),
        "word_perplexity": math.exp(total / words),
        "bits_per_byte": total / math.log(2) / size,
        "tokens": tokens,
        "words": words,
        "bytes": size,
        **groups,
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
        model, tokenizer, batch_size, advance: as for :func:`document_losses`.
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
        (index, ids, Window(start, start + length, length))
        for index, ids in enumerate(documents)
        for start in range(0, len(ids) - length, stride)
    ]
    if not windows:
        longest = max(map(len, documents), default=0)
        raise DataError(
            f"No text is longer than a window: the longest has {longest} tokens; use a smaller length or longer texts."
        )
    sums = torch.zeros(length, dtype=torch.float64)
    for _, _, _, _, losses in _window_losses(model, windows, batch_size):
        sums += losses.double().sum(0)
        advance(len(losses))
    groups = []
    for first, after in zip(edges, [*edges[1:], length + 1], strict=True):
        tokens = (after - first) * len(windows)
        loss = sums[first - 1 : after - 1].sum().item() / tokens
        groups.append({"from": first, "to": after - 1, "loss": loss, "tokens": tokens})
    return groups


def _window_losses(
    model: nn.Module, windows: Sequence[tuple[int, np.ndarray, Window]], batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor, Tensor]]:
    """Batches of windows of one length: their documents, how many tokens are scored, inputs, targets, losses."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    vocab_size = embedding.weight.shape[0]
    by_length: dict[int, list[tuple[int, np.ndarray, Window]]] = defaultdict(list)
    for index, ids, window in windows:
        by_length[window.end - window.start].append((index, ids, window))
    for length, group in by_length.items():
        rows = max(1, min(batch_size, MOST_LOGITS // (length * vocab_size)))
        for first in range(0, len(group), rows):
            part = group[first : first + rows]
            tokens = torch.from_numpy(np.stack([ids[window.start : window.end + 1] for _, ids, window in part])).long()
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            scored = torch.tensor([window.scored for _, _, window in part])
            if length * vocab_size > MOST_LOGITS and _goes_on(model, inputs[:, :_TRIED]):
                piece = max(1, MOST_LOGITS // vocab_size)
                pieces = zip(_in_pieces(model, inputs, piece), targets.split(piece, dim=1), strict=True)
                losses = torch.cat([_cross_entropy(logits, wanted) for logits, wanted in pieces], dim=1)
            else:
                losses = token_losses(model, {"input_ids": inputs, "targets": targets})
            yield [index for index, _, _ in part], scored, inputs, targets, losses


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
        logits.flatten(0, 1).float(),
        targets.to(logits.device).flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.view(targets.shape).cpu()
