"""The contract of a policy: a way to run a pretrained transformer with less attention work or less cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from plait.errors import CacheError
from plait.mixers.state import LayerState
from plait.options import Options
from plait.runtime.artefact import Artefact
from plait.runtime.call import Call, LayerInfo, ModelInfo
from plait.runtime.products import attend_band
from plait.runtime.store import Keys, Store


@dataclass(frozen=True)
class CalibrationRow:
    """One text.

    Args:
        ids: ``(T,)``.
        labelled: ``(T,)`` bool: where the model's hidden states must stay as they are.
    """

    ids: Tensor
    labelled: Tensor


class Policy(ABC):
    """A policy: what a layer keeps of the tokens it has seen, and which of them a query is scored against.

    A subclass sets :attr:`Options` and writes some of :meth:`new_state`, :meth:`write`, :meth:`prefill`,
    :meth:`decode` and :meth:`trim`; as they stand they are dense attention. It never sees padding: rows are
    left-aligned, token t of a row stands at position ``past + t``. It may hold no per-sequence data on itself: all
    memory is in ``call.state``, which beams, copies and crops handle. ``tests/contracts/test_policies.py`` holds every
    policy of the catalogue to this.

    Args:
        options: the policy's own options.
    """

    Options: ClassVar[type[Options]] = Options
    #: Phases whose work the policy reduces: for combining one policy's prefill with another's decoding.
    reduces: ClassVar[tuple[str, ...]] = ()
    #: Whether later tokens of one call may influence what earlier ones see: such a policy must not measure perplexity.
    looks_ahead: bool = False
    #: Whether a text may be split into calls in any way, and its last tokens taken back, without changing anything.
    any_split: bool = False

    #: Options of :meth:`calibrate`; None for a policy that needs no calibration.
    Calibration: ClassVar[type[Any] | None] = None
    #: Which of its options takes the file that a calibration leaves.
    calibrated: ClassVar[str] = ""

    def __init__(self, options: Any = None) -> None:
        self.options = type(self).Options() if options is None else options

    @classmethod
    @abstractmethod
    def with_budget(cls, budget: int, length: int) -> dict[str, Any]:
        """Options that spend about ``budget`` keys per query on texts of ``length`` tokens.

        With ``budget >= length`` the policy is dense attention.
        """

    @classmethod
    def calibrate(
        cls, model: Any, rows: Iterable[CalibrationRow], options: Any, announce: Callable[[str], None]
    ) -> Artefact:
        """Learn from texts what the policy needs to know of a model.

        Args:
            model: the model; its weights and settings stay as they are.
            rows: texts, without end.
            options: of :attr:`Calibration`.
            announce: told of progress, a line at a time.
        """
        raise NotImplementedError(f"{cls.__name__} names a Calibration and does not say how it calibrates.")

    def bind(self, model: ModelInfo) -> None:  # noqa: B027 (most have no tables)
        """Check that the policy's tables fit the model.

        Raises:
            OptionError: they do not.
        """

    def serves(self, layer: LayerInfo) -> bool:
        """Whether the policy serves a layer. Layers with a window of their own run densely within it by default."""
        return layer.window is None

    def of(self, layer: LayerInfo) -> Policy:
        """What acts in a layer: the policy itself, or one of those that it is made of."""
        return self

    @property
    def keeps_own(self) -> bool:
        """Whether it remembers something else than a ``kv`` store of all new tokens, so that none can be lent to it."""
        kind = type(self)
        return any(getattr(kind, name) is not getattr(Policy, name) for name in ("attend", "write", "new_state"))

    @property
    def lends(self) -> bool:
        """Whether another policy may attend between :meth:`write` and :meth:`trim`, over the ``kv`` store kept here."""
        return type(self).attend is Policy.attend

    def new_state(self, layer: LayerInfo) -> LayerState:
        """Empty memory of one layer."""
        return LayerState({"kv": Store()})

    def attend(self, call: Call) -> Tensor:
        """``(B, H, T, Dv)``, and the layer's memory brought up to date."""
        self.write(call)
        o = self.decode(call) if call.phase == "decode" else self.prefill(call)
        self.trim(call)
        return o

    def write(self, call: Call) -> None:
        """Add the new tokens to the memory, before anything is scored."""
        self.store(call).add(call.k, call.v, call.positions, call.lengths)

    def prefill(self, call: Call) -> Tensor:
        """Attention of several new tokens."""
        return attend_band(call, self.store(call).stored())

    def decode(self, call: Call) -> Tensor:
        """Attention of one new token."""
        return attend_band(call, self.store(call).stored())

    def trim(self, call: Call) -> None:  # noqa: B027 (most forget nothing)
        """Forget what later calls will not read."""

    def watch(self, call: Call) -> None:  # noqa: B027 (most learn nothing from attention)
        """Learn what :meth:`prefill` learns from a call that another policy attends; the new tokens are written."""

    def observe(self, call: Call) -> None:
        """Bring the memory up to date with a call that another policy attends."""
        self.write(call)
        self.watch(call)
        self.trim(call)

    @staticmethod
    def store(call: Call, name: str = "kv") -> Store:
        """A store of the layer's memory."""
        store = call.state[name]
        assert isinstance(store, Store)
        return store

    @classmethod
    def keys(cls, call: Call, name: str = "kv") -> Keys:
        """What a store holds."""
        return cls.store(call, name).view()

    @classmethod
    def whole_keys(cls, call: Call) -> Keys:
        """Keys of every token seen, so that slot and position agree.

        Raises:
            CacheError: some were evicted, by a policy that this one is combined with.
        """
        keys = cls.keys(call)
        if keys.positions is not None:
            raise CacheError(
                "This prefill needs every earlier token, but some were evicted before it: give the prompt in one call, "
                "or combine it with a decoding policy that evicts nothing."
            )
        return keys
