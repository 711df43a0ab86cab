"""A row of the catalogue: where a method stands, and the tags by which tests, tables and commands choose methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class PaperSizes:
    """A mixer's options in the models of 2507.06457, section 3, which grow by more heads of the same size.

    Args:
        options: those that are the same at every width.
        head_size: the width of one head, where ``num_heads`` is the model's width over it.
        hidden_ratio: width of the feed-forward layer over the model's, before the 2/3 of SwiGLU.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    head_size: int | None = None
    hidden_ratio: int = 4

    def at(self, hidden_size: int) -> dict[str, Any]:
        """The options at a width."""
        heads = {} if self.head_size is None else {"num_heads": hidden_size // self.head_size}
        return {**heads, **self.options}


@dataclass(frozen=True)
class Peer:
    """The layer of flash-linear-attention that computes the same.

    Args:
        name: its class in ``fla.layers``.
        options: plait's options that mean the defaults of that class, where plait's own are others.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One method of the catalogue. A tag that is not claimed for it is False, empty or None.

    Args:
        name: the name users write in configurations.
        kind: ``mixer``, ``policy``, ``recipe``, ``task`` (of token ids), ``benchmark`` (of prompts), ``probe`` or
            ``claim``.
        target: ``module:Class``, imported on first use.
        title: the method's name in the literature.
        paper: arXiv number.
        state: how its memory grows with the context T while decoding: ``constant``, ``bounded`` (until a window is
            full), ``log``, or ``grows`` (in proportion).
        notes: what the method cannot do, for readers.
        full: each token sees every earlier one exactly; a layer of it whose options set no window is a *full layer*.
        recurrent: it folds the past into a state.
        sparse: it scores some pairs of a query and a key and skips others.
        whole_block: it is the whole block, with its own residual and norm.
        bidirectional: it sees later tokens too, so it cannot be a language model's layer.
        shards_sequence: processes can share a sequence.
        compiles: ``torch.compile`` takes it as one graph.
        effective_weights: there is a matrix of T x T that it applies to its values.
        combines: it runs other methods of its kind, which its options name.
        work: products of a forward pass over T tokens.
        paper_sizes: options in the models of 2507.06457, or None where that paper has no such model.
        peer: the layer of flash-linear-attention, or None.
        suites: of a task or a benchmark: the suites that measure it.
    """

    name: str
    kind: str
    target: str
    title: str
    paper: str
    state: Literal["", "constant", "bounded", "log", "grows"] = ""
    notes: str = ""
    full: bool = field(default=False, kw_only=True)
    recurrent: bool = field(default=False, kw_only=True)
    sparse: bool = field(default=False, kw_only=True)
    whole_block: bool = field(default=False, kw_only=True)
    bidirectional: bool = field(default=False, kw_only=True)
    shards_sequence: bool = field(default=False, kw_only=True)
    compiles: bool = field(default=False, kw_only=True)
    effective_weights: bool = field(default=False, kw_only=True)
    combines: bool = field(default=False, kw_only=True)
    work: Literal["", "T", "T log T", "T^1.5", "T^2"] = field(default="", kw_only=True)
    paper_sizes: PaperSizes | None = field(default=None, kw_only=True)
    peer: Peer | None = field(default=None, kw_only=True)
    suites: tuple[str, ...] = field(default=(), kw_only=True)

    def load(self) -> Any:
        """Import and return the class."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)

    @property
    def tags(self) -> list[str]:
        """The tags that hold, of those that are true or false."""
        return [tag.name for tag in fields(self) if tag.type == "bool" and getattr(self, tag.name)]

    def has(self, **tags: Any) -> bool:
        """Whether each of these tags has this value; ``...`` stands for any but none."""
        return all(
            getattr(self, tag) not in (None, "", False) if value is ... else getattr(self, tag) == value
            for tag, value in tags.items()
        )
