"""Options of a task or benchmark: a frozen dataclass, read strictly from a mapping."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from plait.errors import OptionError, PlaitError, nearest
from plait.files import quoted


class Options:
    """Base of a frozen dataclass whose fields are what a user may set, checked in ``__post_init__``.

    Attributes:
        presets: published settings by name; ``preset: NAME`` among the options takes one, other options change it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def parse(cls, name: str, values: Mapping[str, Any]) -> Self:
        """The options from a mapping, as it stands in a YAML file.

        Args:
            name: what messages call it.
            values: options by name, and ``preset``.

        Raises:
            OptionError: an unknown option or preset (with the nearest one) or a value of the wrong type.
            DataError: options that do not fit together.
        """
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        given = dict(values)
        preset = given.pop("preset", None)
        if preset is not None:
            if preset not in cls.presets:
                raise OptionError(f"{name!r} has no preset {preset!r}.{nearest(str(preset), list(cls.presets))}")
            given = {**cls.presets[preset], **given}
        for key in given:
            if key not in known:
                raise OptionError(f"{name!r} has no option {key!r}.{nearest(key, known)}")
        try:
            return TypeAdapter(cls).validate_json(json.dumps(given, default=str))  # strict, yet takes lists
        except ValidationError as error:
            first = error.errors()[0]
            reason = first.get("ctx", {}).get("error")
            if isinstance(reason, PlaitError):
                raise reason from None
            where = ".".join(str(part) for part in first["loc"]) or "options"
            raise OptionError(f"{name!r}, option {where}={quoted(first['input'])}: {first['msg']}.") from None
