"""``plait show``: one method in full, read from its own docstrings."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any

import typer

from plait import catalog
from plait.catalog import Method
from plait.cli.docstrings import argument_texts, sections
from plait.cli.output import print_json, quantity, say, size
from plait.errors import CatalogError, nearest

ARXIV = re.compile(r"\d{4}\.\d{4,5}")


def command(
    name: Annotated[str, typer.Argument(help="Name of the method; see plait list.")],
    kind: Annotated[str | None, typer.Option(help="Its kind, where two kinds share the name.")] = None,
    hidden_size: Annotated[int, typer.Option(min=1, help="Width at which cost and state are evaluated.")] = 2048,
    length: Annotated[int, typer.Option(min=1, help="Tokens at which cost and state are evaluated.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a method: paper, options with defaults, cost, state."""
    method = _find(name, kind)
    description = describe(method, hidden_size, length)
    if as_json:
        print_json(description)
    else:
        _print(description)


def _find(name: str, kind: str | None) -> Method:
    if kind is not None:
        kinds = {method.kind for method in catalog.methods()}
        if kind not in kinds:
            raise CatalogError(f"The catalogue has no kind {kind!r}.{nearest(kind, kinds)}")
        return catalog.get(name, kind)
    matches = [method for method in catalog.methods() if method.name == name]
    if not matches:
        known = {method.name for method in catalog.methods()}
        raise CatalogError(f"There is no method named {name!r}.{nearest(name, known)}")
    if len(matches) > 1:
        choices = " or ".join(f"--kind {method.kind}" for method in matches)
        raise CatalogError(f"Several methods are named {name!r}: add {choices}.")
    return matches[0]


def describe(method: Method, hidden_size: int, length: int) -> dict[str, Any]:
    """Everything that is known about a method, as plain data.

    Args:
        method: a line of the catalogue.
        hidden_size, length: sizes at which a mixer's cost and state are evaluated.
    """
    target = method.load()
    options = getattr(target, "Options", target)
    description: dict[str, Any] = {
        "name": method.name,
        "kind": method.kind,
        "title": method.title,
        "paper": f"https://arxiv.org/abs/{method.paper}" if ARXIV.fullmatch(method.paper) else method.paper,
        "code": method.target,
        "notes": method.notes,
        "documentation": sections(target.__doc__)[""],
        "options": _options(options) if dataclasses.is_dataclass(options) else [],
    }
    if method.kind == "mixer":
        description |= _cost(method, target, hidden_size, length)
    return description


def _options(options: Any) -> list[dict[str, Any]]:
    texts: dict[str, str] = {}
    for base in reversed(options.__mro__):  # what a base class says of its fields holds until it is said anew
        texts |= argument_texts(base.__doc__)
    described = []
    for field in dataclasses.fields(options):
        made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if made else field.default  # type: ignore[misc,operator]
        required = default is dataclasses.MISSING
        described.append(
            {
                "name": field.name,
                "type": field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type)),
                "required": required,
                "default": None if required else default,
                "description": texts.get(field.name, ""),
            }
        )
    return described


def _cost(method: Method, mixer: Any, hidden_size: int, length: int) -> dict[str, Any]:
    import torch

    from plait.mixers.base import Dims

    dims, options = Dims(hidden_size), mixer.Options()
    cost = mixer.cost(dims, length, options)
    with torch.device("meta"):
        state = mixer(dims, options, 0).new_state()
    return {
        "formula": _formula(mixer, dims, options),
        "cost": {"hidden_size": hidden_size, "length": length, **dataclasses.asdict(cost)},
        "state": {
            "growth": method.state,
            "segments": {name: type(segment).__name__ for name, segment in state.segments.items()},
        },
    }


def _formula(mixer: Any, dims: Any, options: Any) -> str:
    """What the docstring of the mixer's ``cost`` says, with its constants filled in."""
    text = " ".join(sections(mixer.cost.__doc__)[""].split()).removeprefix("See :meth:`Mixer.cost`. ")
    if hasattr(mixer, "flops_per_element"):
        text += f" Here c = {mixer.flops_per_element} and S = {options.heads(dims).state_size:,}."
    return text


def _print(description: dict[str, Any]) -> None:
    say(f"{description['name']}: {description['title']} ({description['kind']})")
    source = description["paper"] or "none, it is plait's own"
    say(f"paper  {source}")
    say(f"code   {description['code']}")
    if description["notes"]:
        say(f"notes  {description['notes']}")
    say("\n" + _plain(description["documentation"]))
    if "cost" in description:
        cost, state = description["cost"], description["state"]
        say("\nCost of one layer and sequence: " + _plain(description["formula"]))
        say(f"At hidden size {cost['hidden_size']} and {cost['length']} tokens:")
        say(f"  prefill  {quantity(cost['flops_prefill'], 'FLOP')}")
        say(f"  decode   {quantity(cost['flops_decode'], 'FLOP')} a token")
        say(f"  state    {size(cost['state_bytes'])}, {state['growth']} with the context")
        say(", ".join(f"{name} ({kind})" for name, kind in state["segments"].items()), label="  held in  ")
    if description["options"]:
        say("\nOptions:")
        for option in description["options"]:
            default = "required" if option["required"] else f"default {option['default']!r}"
            say(f"  {option['name']}: {option['type']}, {default}")
            say(_plain(option["description"]), label="    ")


def _plain(text: str) -> str:
    """A docstring without its markup; the lines of a paragraph are joined, indented ones stay."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")
    paragraphs = [
        part if any(line.startswith((" ", "-", "*")) for line in part.split("\n")) else " ".join(part.split("\n"))
        for part in text.split("\n\n")
    ]
    return "\n\n".join(paragraphs)
