"""Sections of files that people write: YAML read without its traps, values checked before any work begins.

YAML 1.1, which PyYAML reads, takes ``1e-3`` for text, ``3:1`` for 181, ``007`` for 7, ``no`` for false and a date for
an object, keeps the last of two equal keys without a word, and lets ten lines stand for a billion values. Here numbers
are those of YAML 1.2, everything else that is not ``true``, ``false`` or ``null`` is text, equal keys are refused, and
what a file stands for is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from plait.errors import OptionError, nearest
from plait.files import quoted, read_text, reason

M = TypeVar("M", bound=BaseModel)

#: Largest count of anything: no size, step or length that a machine can hold is above it.
LARGEST = 2**40
#: Deepest model; 1,000 layers is the deepest that was ever published (2203.00555).
DEEPEST = 4096
#: Widest model, about fifty times the widest published one.
WIDEST = 2**20

Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Natural = Annotated[int, Field(ge=0, le=LARGEST)]
Depth = Annotated[int, Field(gt=0, le=DEEPEST)]
Width = Annotated[int, Field(gt=0, le=WIDEST)]
#: numpy takes no others, and every generator here follows the same seed.
Seed = Annotated[int, Field(ge=0, lt=2**32)]

#: Linear layers per full one, as :func:`plait.models.layer_plan` takes it.
Ratio = Annotated[str, AfterValidator(lambda text: parse_ratio(text))]

#: A file of settings has at most so many bytes, and stands for at most so many values once its aliases are read.
_MOST_BYTES, _MOST_VALUES = 1_000_000, 100_000


class Strict(BaseModel):
    """Unknown keys are errors; values are not coerced silently, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        """``training:`` with nothing below it is a section without keys."""
        if not isinstance(values, dict):
            return values
        empty = [key for key, value in values.items() if value is None and _is_model(_annotation(cls, key))]
        return {**values, **{key: {} for key in empty}} if empty else values

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """``true`` counts as 1 in Python."""
        values = value if isinstance(value, list | tuple) else [value]
        if info.field_name and any(isinstance(one, bool) for one in values):
            kinds = _scalars(cls.model_fields[info.field_name].annotation)
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise ValueError("write a number, not true or false")
        return value


def validated(model: type[M], values: Any, source: str) -> M:
    """``values`` as ``model``, or an :class:`OptionError` naming the key, the value and the nearest valid key.

    Args:
        model: the pydantic model.
        values: what the file holds.
        source: file name, for the message.
    """
    if values is None:
        raise OptionError(f"{source} is empty; it needs the keys {', '.join(_required(model)) or 'of a file'}.")
    if not isinstance(values, dict | model):
        raise OptionError(f"{source} holds {quoted(values, 60)}; it must be a mapping, lines of 'key: value'.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    except RecursionError:
        raise OptionError(f"{source} is nested too deeply.") from None
    path = [str(part) for part in first["loc"]]
    where = ".".join(part[:60] for part in path[:8]) or "the file"
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        raise OptionError(
            f"{source}: unknown key {where!r} (value {quoted(first['input'])}).{nearest(path[-1], known)}"
        )
    if first["type"] == "missing":
        raise OptionError(f"{source}: {where} is missing; add it.")
    said = first["msg"].removeprefix("Value error, ")
    said += "" if said.endswith((".", "?")) else "."
    if isinstance(first["input"], dict | BaseModel):  # a check of several keys says which it means
        raise OptionError(f"{source}: {where if path else ''}{_joint(said) if path else ''}{said}")
    raise OptionError(f"{source}: {where} = {quoted(first['input'])}: {said}{_hint(first['type'], first['input'])}")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; see :func:`parse_yaml`.

    Raises:
        OptionError: no file, not UTF-8, too large, or as :func:`parse_yaml`.
    """
    text = read_text(path, OptionError)
    if len(text) > _MOST_BYTES:
        raise OptionError(
            f"{path} has {len(text):,} characters, a file of settings at most {_MOST_BYTES:,}. Is it the right file?"
        )
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text stands for.

    Args:
        text: the text.
        where: its file or option, for messages.

    Raises:
        OptionError: not YAML, a key twice, a list or mapping inside itself, or aliases that stand for too much; the
            message names line and column.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise OptionError(f"{where} is not valid YAML{place}: {said[:300]}.{_yaml_hint(error)}") from None
    except yaml.YAMLError as error:
        raise OptionError(f"{where} is not valid YAML: {reason(error)}.") from None
    except RecursionError:
        raise OptionError(f"{where} is nested too deeply.") from None
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:  # of a tag such as !!int
        raise OptionError(f"{where} is not valid YAML: {reason(error)}.") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the rules of this module."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)

    def compose_document(self) -> yaml.Node | None:
        node: yaml.Node | None = super().compose_document()
        if node is not None:
            _count(node, {}, set())
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name = (key.tag, key.value)
            if name in lines:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key.value[:80]!r} appears twice in one mapping, on line {lines[name].line + 1} and on "
                    f"line {key.start_mark.line + 1}; remove one of them",
                    key.start_mark,
                )
            lines[name] = key.start_mark
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> int | float:
        """``1e6`` is a whole number: where a count is wanted, 1000000.0 would be refused."""
        value: float = super().construct_yaml_float(node)
        whole = _WHOLE.fullmatch(node.value) and abs(value) < 2**53
        return int(value) if whole else value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)

_INTEGER = r"[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+"
_FLOAT = (
    r"[-+]?(?:0|[1-9][0-9_]*)(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_WHOLE = re.compile(r"[-+]?[0-9_]+[eE]\+?[0-9]{1,2}")


def _resolver(tag: str, pattern: str, first: Iterable[str]) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolver("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF")
_resolver("int", rf"(?:{_INTEGER})\Z", "-+0123456789")
_resolver("float", rf"(?:{_FLOAT})\Z", "-+0123456789.")
_resolver("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""])
_resolver("merge", r"(?:<<)\Z", "<")


def _count(node: yaml.Node, sizes: dict[int, int], open_: set[int]) -> int:
    """Values that a node stands for, aliases written out."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in open_:
        raise yaml.composer.ComposerError(
            None, None, "an alias (*name) refers to the value that contains it", node.start_mark
        )
    open_.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    total = 1 + sum(_count(child, sizes, open_) for child in children)
    if total > _MOST_VALUES:
        raise yaml.composer.ComposerError(
            None, None, f"its aliases expand to more than {_MOST_VALUES:,} values; write fewer", node.start_mark
        )
    open_.remove(id(node))
    sizes[id(node)] = total
    return total


def _yaml_hint(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in str(error.problem):
        return " Indent with spaces, not tabs."
    if "single document" in str(error.context):
        return " Remove the line '---' and what follows it."
    return ""


def check_key(model: type[BaseModel], key: str, where: str) -> None:
    """Raise unless a dotted key leads to a field, or into a mapping or list of free content.

    Args:
        model: of the whole file.
        key: such as ``training.steps``.
        where: it stands, for the message.

    Raises:
        OptionError: naming the nearest key, which may lie in another section.
    """
    place: type[BaseModel] = model
    parts = key.split(".")
    for depth, part in enumerate(parts):
        field = place.model_fields.get(part)
        if field is None:
            known = list(_dotted(model))
            same = [one for one in known if one.rpartition(".")[2] == parts[-1]]
            hint = f" Did you mean {same[0]!r}?" if same else nearest(key, known)
            hint = hint if hint.startswith(" Did") else nearest(part, place.model_fields)
            raise OptionError(f"{where}: there is no key {'.'.join(parts[: depth + 1])!r}.{hint}")
        if not _is_model(field.annotation):
            return
        place = field.annotation  # type: ignore[assignment]


def _dotted(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if _is_model(field.annotation):
            yield from _dotted(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]


def parse_ratio(text: str) -> str:
    """``text`` if it is ``pure``, ``full`` or ``R:1``.

    Raises:
        ValueError: it is not.
    """
    if not re.fullmatch(r"pure|full|[1-9][0-9]{0,8}:1", text):
        raise ValueError("write pure, full or R:1, such as 3:1")
    return text


def _joint(said: str) -> str:
    """``model`` and ``mixer = ...`` join to ``model.mixer = ...``; other sentences stand after a colon."""
    return "." if re.match(r"[a-z_]+(?:\[\d+\])? = ", said) else ": "


def _hint(kind: str, value: Any) -> str:
    """How to write what was meant."""
    if kind == "string_type" and isinstance(value, int | float):
        text = str(value).lower() if isinstance(value, bool) else str(value)[:40]
        return f" To write text, put it in quotes: '{text}'."
    return ""


def _scalars(annotation: Any) -> set[Any]:
    """The types at the leaves of an annotation."""
    parts = get_args(annotation)
    return {annotation} if not parts else {leaf for part in parts for leaf in _scalars(part)}


def _required(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.is_required()]


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Field names valid at ``path`` inside ``model``; places in lists and names of mappings are passed over."""
    for part in path:
        field = model.model_fields.get(part)
        inside = [kind for kind in _scalars(field.annotation) if _is_model(kind)] if field else []
        if inside:
            model = inside[0]
    return list(model.model_fields)


def _annotation(model: type[BaseModel], key: Any) -> Any:
    field = model.model_fields.get(key) if isinstance(key, str) else None
    return field.annotation if field else None


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
