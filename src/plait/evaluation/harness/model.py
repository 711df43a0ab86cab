"""Any causal language model of transformers, ours or not, as a model of lm-eval."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from plait.errors import OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.harness.scoring import Request, Score, Scorer, request

#: Called with the kind of request (``loglikelihood``, ``loglikelihood_rolling``, ``generate_until``), the number that
#: is done and the number of all.
Progress = Callable[[str, int, int], None]


class HarnessModel(TemplateLM):
    """Scores and generates as lm-eval's own ``HFLM`` does, without padding and with contexts computed once.

    Tokens, special tokens and truncation are those of ``HFLM``; log probabilities are taken in fp32.

    Args:
        model: a causal language model; put into evaluation mode.
        tokenizer: its tokenizer.
        batch_size: rows per batch, or ``auto``.
        max_length: most tokens that the model reads at once; of its configuration by default.
        progress: called while requests are answered.

    Raises:
        OptionError: an option out of range, or a tokenizer without an end token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int | Literal["auto"] = "auto",
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        if max_length is not None and max_length < 1:
            raise OptionError(f"max_length = {max_length}: the model reads at least one token.")
        if tokenizer.eos_token_id is None:
            raise OptionError("The tokenizer has no eos token, which ends a generated text; set tokenizer.eos_token.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = max_length or resolve_max_length(model.config, tokenizer)
        self.batches = Batches(batch_size, model.device)
        self.scorer = Scorer(model, self.batches)
        self._device = model.device
        self._progress = progress
        self._prefix_text = tokenizer.decode(self.prefix_token_id)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: bos, or eos where there is no bos."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_gen_toks(self) -> int:
        """Tokens generated for a request that does not say how many."""
        return 256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; by default with the special tokens that the tokenizer adds, if it does not start with bos."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self._prefix_text)
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        """Log probability in nats, and whether it is the greedy one, of each ``(context, continuation)``."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log probability in nats of each whole ``(text,)``: windows of ``max_length``, every token scored once."""
        windows = [
            [
                self._request(*make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(*item.args),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for item in requests
        ]
        scores = iter(self._score("loglikelihood_rolling", [window for text in windows for window in text]))
        return [sum(next(scores).loglikelihood for _ in text) for text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The text that the model writes after each ``(context, options)``, up to a stop sequence.

        Options are those of lm-eval's tasks: ``until``, ``max_gen_toks``, ``do_sample``, ``temperature`` and what
        ``model.generate`` takes.

        Raises:
            OptionError: more tokens are asked for than ``max_length`` leaves room for.
        """
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        contexts = []
        for index, item in enumerate(requests):
            text, options = item.args
            room = self.max_length - normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if room < 1:
                raise OptionError(
                    f"{self.max_length - room} tokens are to be generated, but max_length = {self.max_length} leaves "
                    "no room for a context: give a larger max_length."
                )
            contexts.append((self.tok_encode(text) or [self.prefix_token_id])[-room:])
            groups[json.dumps(options, sort_keys=True), len(contexts[-1])].append(index)
        texts: dict[int, str] = {}
        for (options_text, length), group in sorted(groups.items(), key=lambda item: -item[0][1]):
            options = normalize_gen_kwargs(json.loads(options_text), self.max_gen_toks)
            written = self.batches.run(
                partial(self._generate, options), [contexts[i] for i in group], length + options["max_gen_toks"]
            )
            texts.update(zip(group, written, strict=True))
            self._report("generate_until", len(texts), len(requests))
        return [texts[index] for index in range(len(requests))]

    @torch.no_grad()
    def _generate(self, options: Mapping[str, Any], contexts: Sequence[list[int]]) -> list[str]:
        """Texts after contexts of equal length."""
        arguments = dict(options)
        stops = handle_stop_sequences(list(arguments.pop("until")), eos=self.tokenizer.decode(self.eot_token_id))
        length = len(contexts[0])
        new_tokens = arguments.pop("max_gen_toks")
        arguments.setdefault("max_length", length + new_tokens)
        if not arguments["do_sample"]:
            arguments.pop("temperature", None)
        ids = torch.tensor(contexts, device=self._device)
        pad = self.tokenizer.pad_token_id
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stops, length, len(contexts)),
            pad_token_id=self.eot_token_id if pad is None else pad,
            use_cache=True,
            **arguments,
        )
        texts = [self.tokenizer.decode(row[length:], skip_special_tokens=True) for row in written.tolist()]
        return [postprocess_generated_text(text, stops, think_end_token=None) for text in texts]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[Score]:
        return self._score("loglikelihood", [self._request(context, rest) for _, context, rest in requests])

    def _request(self, context: list[int], continuation: list[int]) -> Request:
        return request(context or [self.prefix_token_id], continuation, self.max_length)

    def _score(self, kind: str, requests: list[Request]) -> list[Score]:
        done = 0

        def scored(count: int) -> None:
            nonlocal done
            done += count
            self._report(kind, done, len(requests))

        return self.scorer(requests, scored)

    def _report(self, kind: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(kind, done, total)
