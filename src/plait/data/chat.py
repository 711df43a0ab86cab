"""Chats as text, written by the chat template of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from plait.data.order import stable_hash
from plait.files import foreign


class ChatText(str):
    """A chat that a template wrote: what spells a special token in it is one, as its model was taught."""


class ChatTemplate:
    """Writes the messages of a chat as the tokenizer's model was taught to read them.

    Args:
        tokenizer: has a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, messages: list[Mapping[str, Any]], where: str) -> ChatText:
        """The chat as one text.

        Args:
            messages: each with ``role`` and ``content``.
            where: their place, for messages.

        Raises:
            DataError: the template refuses them, for instance a role that it does not know.
        """
        with foreign(f"{where}: the chat template of the tokenizer cannot write these messages"):
            return ChatText(self.tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False))

    @property
    def fingerprint(self) -> str:
        """Changes with the template."""
        return f"{stable_hash(str(self.tokenizer.chat_template)):016x}"
