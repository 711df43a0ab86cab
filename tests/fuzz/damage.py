"""Damage of every sort, by seed: bytes as disks and editors break them, values as people and programs mistake them."""

from __future__ import annotations

import codecs
import copy
import json
from random import Random
from typing import Any

_ODD_LINES = ["\tx: 1", "x: !!int a", "x: !!python/object:os.system {}", "x: !!binary é", "? [a]\n: 1"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1000\n"

#: Values that stand where another one belongs.
NUMBERS = [0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 0.5, 1.5, 1e-300, 1e308]
TEXTS = ["", " ", "x", "1e6", "1e-5", "3:1", "no", "2026-11-30", "007", "é中🎉", "../../x", "/abs", "a/b", "x" * 3000]
TEXTS += ["\u2028", "a\0b", "text:nowhere.txt", "hf:", "hf:no/where", "bpe:1", "gla"]
NESTED: list[Any] = [[], {}, [1], ["x"], [[]], [None], {"x": 1}, {"mixer": "gla"}, [[1, 2], [3]], [0.9, 1.5]]
NESTED += [{"a": {"b": {"c": [1]}}}]
VALUES: list[Any] = [None, True, False, *map(float, ("nan", "inf", "-inf")), *NUMBERS, *TEXTS, *NESTED]


def damaged_bytes(content: bytes, rng: Random) -> bytes:
    """The bytes of a file, damaged once."""
    place = rng.randrange(len(content)) if content else 0
    kind = rng.randrange(12)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return b""
    if kind == 2:
        return codecs.BOM_UTF8 + content
    if kind == 3:
        return POINTER
    if kind == 4:
        return content[:place] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40))) + content[place:]
    if kind == 5:
        return content[:place] + b"\0" * rng.randrange(1, 200) + content[place + 100 :]
    if kind == 6:
        return content[:place] + b"caf\xe9 gr\xfc\xdfe" + content[place:]
    if kind == 7 and len(content) < 1_000_000:
        return content.decode("utf-8", "replace").encode("utf-16")
    if kind == 8:
        return content[place:]
    if kind == 9:
        return b"[" * rng.choice([10, 2_000, 200_000])
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 20)):
        if changed:
            changed[rng.randrange(min(len(changed), 4096) if rng.random() < 0.5 else len(changed))] = rng.randrange(256)
    return bytes(changed)


def damaged_values(values: Any, rng: Random) -> Any:
    """Nested mappings and lists with one to three places changed."""
    values = copy.deepcopy(values)
    for _ in range(rng.randrange(1, 4)):
        holder = values
        while True:
            inner = list(holder.values()) if isinstance(holder, dict) else list(holder)
            inner = [one for one in inner if isinstance(one, dict | list) and one]
            if not inner or rng.random() < 0.3:
                break
            holder = rng.choice(inner)
        if not holder:
            continue
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        kind = rng.randrange(5)
        if kind == 0 and isinstance(holder, dict):
            holder[f"{key}{rng.choice('sxé')}"] = holder.pop(key)
        elif kind == 1:
            del holder[key]
        else:
            holder[key] = rng.choice(VALUES)
    return values


def damaged_json(values: Any, rng: Random) -> bytes:
    """A JSON file with wrong values, or damaged as bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(json.dumps(values, indent=1).encode(), rng)
    return json.dumps(damaged_values(values, rng)).encode()


def yaml_text(value: Any, rng: Random) -> str:
    """A value in YAML's flow style, as people write it: numbers and words without quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_text(one, rng)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(yaml_text(one, rng) for one in value) + "]"
    if isinstance(value, str):
        plain = value.replace("\0", "").replace("\u2028", "")
        safe = plain.isalnum() or rng.random() < 0.1
        return plain if safe and plain else json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)


def damaged_yaml(values: dict[str, Any], rng: Random) -> bytes:
    """A YAML file with wrong values, other structure or broken bytes."""
    changed = values if rng.random() < 0.1 else damaged_values(values, rng)
    lines = [f"{key}: {yaml_text(value, rng)}" for key, value in changed.items()] if isinstance(changed, dict) else []
    kind = rng.randrange(14)
    if kind == 0 and lines:
        lines.append(rng.choice(lines))
    elif kind == 1:
        lines.insert(0, "a: &a [*a]")
    elif kind == 2:
        lines += ["a0: &a0 [x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, rng.randrange(3, 12))]
    elif kind == 3:
        lines.append("---\nb: 1")
    elif kind == 4:
        lines.append(rng.choice(_ODD_LINES))
    elif kind == 5:
        lines.append("x: " + "[" * rng.choice([5, 500, 50_000]))
    elif kind == 6:
        lines.append("x: " + "9" * rng.choice([30, 5_000]))
    content = "\n".join(lines).encode()
    return damaged_bytes(content, rng) if kind in (7, 8, 9) else content
