"""Options of a method, of any kind: a frozen dataclass, read strictly from a mapping."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from plait.errors import OptionError, PlaitError, nearest
from plait.files import quoted
from plait.sections import LARGEST


@dataclass(frozen=True)
class Options:
    """Base of a frozen dataclass whose fields are what a user may set, checked in ``__post_init__``.

    Attributes:
        method: the method's name in the catalogue, for messages of ``__post_init__``.
        knobs: options of a mixer that may change between steps, by :meth:`plait.mixers.Mixer.set`.
        presets: published settings by name; ``preset: NAME`` among the options takes one, other options change it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    method: ClassVar[str] = "method"
    knobs: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def parse(cls, name: str, values: Mapping[str, Any]) -> Self:
        """The options from a mapping, as it stands in a YAML file.

        Args:
            name: what messages call it.
            values: options by name, and ``preset``.

        Raises:
            OptionError: an unknown option or preset (with the nearest one) or a value of the wrong type or range.
            DataError: options of a task that do not fit together.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        given = dict(values)
        preset = given.pop("preset", None)
        if preset is not None:
            if preset not in cls.presets:
                raise OptionError(f"{name!r} has no preset {preset!r}.{nearest(str(preset), list(cls.presets))}")
            given = {**cls.presets[preset], **given}
        for key, value in given.items():
            if key not in known:
                raise OptionError(f"{name!r} has no option {key!r}.{nearest(key, known)}")
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise OptionError(
                    f"{name!r}, option {key}={quoted(value)} must be a finite number of at most {LARGEST:,}."
                )
        try:
            return _reader(cls).validate_json(json.dumps(given, default=str))  # type: ignore[arg-type]  # strict, takes lists
        except ValidationError as error:
            first = error.errors()[0]
            reason = first.get("ctx", {}).get("error")
            if isinstance(reason, PlaitError):
                raise reason from None
            where = ".".join(str(part) for part in first["loc"]) or "options"
            raise OptionError(f"{name!r}, option {where}={quoted(first['input'])}: {first['msg']}.") from None

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        """Settings at which the method's mechanism really acts on 64 to 300 tokens, for tests.

        Blocks are small, windows and budgets narrower than the text. The defaults serve a method without such sizes.

        Args:
            dims: sizes of the model (:class:`plait.mixers.Dims`), for a mixer.
        """
        return cls()

    def require(self, condition: bool, field: str, fix: str) -> None:
        """Raise :class:`~plait.errors.OptionError` with the option's name and value unless ``condition`` holds."""
        if not condition:
            raise OptionError(f"{self.method!r}, option {field}={getattr(self, field)!r}: {fix}.")

    def require_positive(self, *fields: str) -> None:
        """Each of these options is above zero, or None."""
        for field in fields:
            value = getattr(self, field)
            self.require(value is None or value > 0, field, "must be above 0")

    def require_at_least(self, least: int, *fields: str) -> None:
        """Each of these options is at least ``least``."""
        for field in fields:
            self.require(getattr(self, field) >= least, field, f"must be {least} or more")


@cache
def _reader(options: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(options)
