"""Random calls of every operation: right ones must equal the reference in fp64, wrong ones be refused by name.

    python tests/ops/fuzz.py FIRST LAST [--level AVX2]     the calls with these seeds, in child processes that may die

A call depends on its seed alone, so ``fuzz.py 17 18`` repeats call 17. Prints what died and what was wrong; exit status
0 if nothing. Runs under sanitizers as well (``make sanitize``).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plait import ops
from plait.errors import BackendUnavailable, PlaitError
from plait.ops import norm
from plait.ops.native import absent, softmax

BACKENDS = ("reference", "torch", "native", "auto")
DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 3e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
LENGTHS = (1, 1, 2, 3, 9, 15, 16, 17, 31, 40)
CHUNKS = (1, 7, 16, 33, 64, 1000, 2**31, 2**40, 2**62, 2**63, 10**30)

Arguments = dict[str, Any]
Function = Callable[..., Any]


@dataclass
class Call:
    """One call: the operation, its arguments, and what is wrong with them."""

    op: str
    arguments: Arguments
    faults: list[str] = field(default_factory=list)
    backends: tuple[str, ...] = BACKENDS
    differentiable: list[str] = field(default_factory=list)


class Maker:
    """Random tensors in random layouts."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.random.choice(DTYPES)
        self.mixed = self.random.random() < 0.15

    def size(self, largest: int) -> int:
        return 0 if self.random.random() < 0.04 else self.random.randint(1, largest)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def tensor(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """These values in a dtype of the call and in some layout."""
        if dtype is None:
            dtype = self.random.choice(DTYPES) if self.mixed else self.dtype
        return self.lay_out(values.to(dtype))

    def lay_out(self, x: Tensor) -> Tensor:
        kind = self.random.choice(("plain", "plain", "permuted", "strided", "shifted", "expanded", "negative"))
        if kind == "permuted" and x.dim() > 1:
            order = list(range(x.dim()))
            self.random.shuffle(order)
            back = [order.index(i) for i in range(x.dim())]
            return x.permute(order).contiguous().permute(back)
        if kind == "strided" and x.dim():
            axis = self.random.randrange(x.dim())
            return x.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
        if kind == "shifted":
            flat = torch.cat([x.new_zeros(3), x.flatten()])
            return flat[3:].view(x.shape)
        if kind == "expanded" and x.dim() and all(x.shape):
            axis = self.random.randrange(x.dim())
            return x.narrow(axis, 0, 1).expand(x.shape)
        if kind == "negative" and x.dtype in (torch.float32, torch.float64):
            return torch.complex(torch.zeros_like(x), -x).conj().imag
        return x.contiguous()

    def borders(self, length: int) -> Tensor:
        inner = sorted(self.random.sample(range(1, length), min(max(length - 1, 0), self.random.randint(0, 4))))
        borders = torch.tensor(
            [0, *inner, length] if length else [0], dtype=self.random.choice((torch.int32, torch.int64))
        )
        return borders.repeat_interleave(2)[::2] if self.random.random() < 0.3 else borders


def recurrence(make: Maker, delta: bool) -> Call:
    r = make.random
    length = 0 if r.random() < 0.04 else r.choice(LENGTHS)
    packed = r.random() < 0.25
    batch = 1 if packed else make.size(3)
    heads, keys, values = make.size(2), make.size(20), make.size(20)
    value_heads = heads * r.randint(1, 3)
    borders = make.borders(length) if packed else None
    rows = batch if borders is None else len(borders) - 1
    k = torch.nn.functional.normalize(make.normal(batch, length, heads, keys), dim=-1)
    shapes = [None, (value_heads,), (batch, length, value_heads), (batch, length, value_heads, keys)]
    shape = r.choice(shapes)
    decay = None
    if shape is not None:
        decay = -make.normal(*shape).abs()
        if decay.numel() and r.random() < 0.2:
            decay.flatten()[0] = -torch.inf
    arguments: Arguments = {
        "q": make.tensor(make.normal(batch, length, heads, keys)),
        "k": make.tensor(k),
        "v": make.tensor(make.normal(batch, length, value_heads, values)),
        "log_decay": None if decay is None else make.tensor(decay),
    }
    if delta:
        arguments["beta"] = make.tensor(make.normal(batch, length, value_heads).sigmoid())
    if r.random() < 0.5:
        dtype = r.choice((torch.float32, torch.float32, None))
        arguments["state"] = make.tensor(make.normal(rows, value_heads, keys, values), dtype)
    if borders is not None:
        arguments["cu_seqlens"] = borders
    if r.random() < 0.5:
        arguments["chunk_size"] = r.choice(CHUNKS)
    if r.random() < 0.3:
        arguments["scale"] = r.choice((0, 1, 0.5, -2.0))
    call = Call("delta_rule" if delta else "linear_attention", arguments)
    call.differentiable = ["q", "k", "v", "beta", "log_decay", "state"]
    if r.random() < 0.4:
        spoil_some(make, call, ["q", "k", "v", *(["beta"] if delta else [])], ["log_decay", "state"])
        if r.random() < 0.3:
            name, value = r.choice(
                (("chunk_size", 0), ("chunk_size", -3), ("chunk_size", 2.5), ("chunk_size", True), ("chunk_size", "64"),
                 ("scale", float("nan")), ("scale", float("inf")), ("scale", 10**400), ("scale", "1"), ("scale", True))
            )  # fmt: skip
            arguments[name] = value
            call.faults.append(name)
    return call


def scan(make: Maker) -> Call:
    r = make.random
    length = 0 if r.random() < 0.04 else r.choice(LENGTHS)
    packed = r.random() < 0.25
    batch, width = 1 if packed else make.size(3), make.size(40)
    borders = make.borders(length) if packed else None
    rows = batch if borders is None else len(borders) - 1
    arguments: Arguments = {
        "log_a": make.tensor(-make.normal(batch, length, width).abs()),
        "u": make.tensor(make.normal(batch, length, width)),
    }
    if r.random() < 0.5:
        arguments["state"] = make.tensor(make.normal(rows, width))
    if borders is not None:
        arguments["cu_seqlens"] = borders
    call = Call("linear_scan", arguments, differentiable=["log_a", "u", "state"])
    if r.random() < 0.4:
        spoil_some(make, call, ["log_a", "u"], ["state"])
    return call


def convolution(make: Maker) -> Call:
    r = make.random
    length = 0 if r.random() < 0.06 else r.choice(LENGTHS)
    kind = r.choice(("plain", "plain", "packed", "padded"))
    batch, width, taps = 1 if kind == "packed" else make.size(3), make.size(40), r.randint(1, 5)
    borders = make.borders(length) if kind == "packed" else None
    rows = batch if borders is None else len(borders) - 1
    arguments: Arguments = {
        "x": make.tensor(make.normal(batch, length, width)),
        "weight": make.tensor(make.normal(width, taps)),
        "silu": r.random() < 0.5,
    }
    if r.random() < 0.5:
        arguments["bias"] = make.tensor(make.normal(width))
    if r.random() < 0.5:
        arguments["tail"] = make.tensor(make.normal(rows, taps - 1, width))
    if borders is not None:
        arguments["cu_seqlens"] = borders
    if kind == "padded":
        arguments["padding"] = torch.randint(0, length + 1, (batch,), generator=make.generator)
    call = Call("causal_convolution", arguments, differentiable=["x", "weight", "bias", "tail"])
    if r.random() < 0.4:
        spoil_some(make, call, ["x", "weight"], ["bias", "tail"])
    return call


def chosen_softmax(make: Maker) -> Call:
    r = make.random
    batch, kv_heads, length, width, values = (make.size(n) for n in (2, 2, 20, 20, 20))
    group = r.randint(1, 3)
    first = r.choice((0, 0, 1, 13))
    slots = first + length + r.choice((0, 0, 5))
    block, page = r.choice((1, 5, 16, 64)), r.choice((1, 3, 8))
    arguments: Arguments = {
        "q": make.normal(batch, kv_heads * group, length, width).float(),
        "k": make.normal(batch, kv_heads, slots, width).float(),
        "v": make.normal(batch, kv_heads, slots, values).float(),
        "scale": 0.3,
        "first": first,
        "block": block,
        "page": page,
    }
    for name in "qkv":
        if r.random() < 0.4:
            arguments[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
    blocks, pages = -(-length // block), -(-slots // page)
    if r.random() < 0.6:
        owners = r.choice((kv_heads, kv_heads * group))
        chosen = r.randint(0, pages)
        lists = [sorted(r.sample(range(pages), chosen)) for _ in range(batch * owners * blocks)]
        arguments["index"] = torch.tensor(lists, dtype=torch.int64).view(batch, owners, blocks, chosen)
        if r.random() < 0.5:
            counts = torch.randint(0, chosen + 1, (batch, owners, blocks), generator=make.generator)
            arguments["counts"] = counts
            if r.random() < 0.5 and chosen:
                arguments["index"] = arguments["index"][torch.arange(chosen) < counts[..., None]]
    else:
        arguments["sums"] = r.random() < 0.5
    call = Call("softmax", arguments, backends=("native",))
    if r.random() < 0.4:
        spoil_some(make, call, ["q", "k", "v"], [])
        if "index" in arguments and arguments["index"].numel() and r.random() < 0.7:
            wrong = arguments["index"].clone()
            wrong.view(-1)[0] = r.choice((-1, -(2**40), pages, 2**31, 2**62))
            counts = arguments.get("counts")
            if counts is None or wrong.dim() == 1 or int(counts.view(-1)[0]):  # else nobody would read it
                arguments["index"] = wrong
                call.faults.append("index")
        elif r.random() < 0.5:
            name, value = r.choice((("block", 0), ("page", 0), ("page", -1), ("first", -1), ("first", 2**31), ("scale", float("nan")), ("block", 2**40)))  # noqa: E501  # fmt: skip
            arguments[name] = value
            call.faults.append(name)
    return call


def norms(make: Maker) -> Call:
    r = make.random
    shape = [make.size(5) for _ in range(r.randint(0, 3))] + [make.size(30)]
    op = r.choice(("l2_norm", "rms_norm", "gated_rms_norm"))
    arguments: Arguments = {"x": make.tensor(make.normal(*shape)), "eps": 1e-6}
    if op != "l2_norm":
        arguments["weight"] = make.tensor(make.normal(shape[-1]))
    if op == "gated_rms_norm":
        arguments["gate"] = make.tensor(make.normal(*shape))
    call = Call(op, arguments, backends=("auto",))
    if r.random() < 0.4:
        wrong = [name for name in ("x", "weight", "gate") if name in arguments]
        spoil_some(make, call, wrong if op != "l2_norm" else [], [], shapes=op != "l2_norm")
        if op == "l2_norm":
            spoil(make, call, "x", required=True, shapes=False)
    return call


def spoil_some(make: Maker, call: Call, required: list[str], optional: list[str], shapes: bool = True) -> None:
    """Make one argument wrong for certain."""
    given = [name for name in optional if call.arguments.get(name) is not None]
    if "cu_seqlens" in call.arguments and make.random.random() < 0.5:
        spoil_borders(make, call)
    elif "padding" in call.arguments and make.random.random() < 0.5:
        spoil_padding(make, call)
    elif required or given:
        name = make.random.choice([*required, *given])
        spoil(make, call, name, name in required, shapes)


def spoil(make: Maker, call: Call, name: str, required: bool, shapes: bool) -> None:
    x: Tensor = call.arguments[name]
    kinds = ["integer", "complex", "list", "meta", "sparse"] if required or x is not None else []
    if required:
        kinds.append("none")
    if shapes and name != "v":
        kinds += ["dropped", "added", "larger", "larger", "larger"]
    if shapes and name == "v":
        kinds += ["dropped", "added", "longer"]
    kind = make.random.choice(kinds)
    wrong: Any
    if kind == "integer":
        wrong = x.new_zeros(x.shape, dtype=make.random.choice((torch.int64, torch.bool, torch.uint8)))
    elif kind == "complex":
        wrong = torch.zeros(x.shape, dtype=torch.complex64)
    elif kind == "list":
        wrong = make.random.choice(("text", 3, [1.0, 2.0]))
    elif kind == "meta":
        wrong = x.to("meta")
        if sum(isinstance(y, Tensor) and y.is_floating_point() for y in call.arguments.values()) < 2:
            wrong = None  # alone it would be right
    elif kind == "sparse":
        wrong = x.contiguous().to_sparse() if x.dim() else "text"
    elif kind == "none":
        wrong = None
    elif kind == "dropped":
        wrong = x.sum(0) if name != "x" or call.op == "causal_convolution" else x.sum(-1)
    elif kind == "added":
        wrong = x[None]
    else:
        axis = make.random.randrange(2 if kind == "longer" else x.dim())
        wrong = torch.cat([x, x.new_zeros([1 if i == axis else n for i, n in enumerate(x.shape)])], axis)
        if name == "weight" and call.op == "causal_convolution" and axis == 1:
            return  # one more tap is right, and it is the tail that does not fit
        if name == "x" and call.op == "causal_convolution" and axis != 2:
            return
        if name == "q" and call.op == "softmax" and axis in (1, 2):
            return  # more queries or heads may be right
        if name == "x" and call.op in ("rms_norm", "gated_rms_norm") and (axis != x.dim() - 1):
            return
    if kind in ("dropped", "added") and name == "x" and call.op in ("rms_norm", "gated_rms_norm"):
        return
    call.arguments[name] = wrong
    call.faults.append(name)


def spoil_borders(make: Maker, call: Call) -> None:
    x: Tensor = call.arguments["cu_seqlens"]
    kind = make.random.choice(("first", "last", "same", "back", "float", "square", "none", "huge", "list"))
    wrong: Any = x.clone()
    if kind == "first":
        wrong[0] = make.random.choice((-1, 1, -(2**30)))
    elif kind == "last" or kind == "huge":
        wrong[-1] = int(x[-1]) + 1 if kind == "last" else 2**31 - 1
    elif kind == "same":
        wrong = torch.cat([x, x[-1:]])
    elif kind == "back":
        wrong = torch.cat([x, x[:1]])
    elif kind == "float":
        wrong = x.double()
    elif kind == "square":
        wrong = x[None]
    elif kind == "none":
        wrong = x[:0]
    else:
        wrong = x.tolist()
    call.arguments["cu_seqlens"] = wrong
    call.faults.append("cu_seqlens")


def spoil_padding(make: Maker, call: Call) -> None:
    x: Tensor = call.arguments["padding"]
    wrong: Any = make.random.choice(
        (torch.cat([x, x.new_zeros(1)]), x.double(), x[None], x.tolist(), x - 1000, x + 1000)
    )
    if isinstance(wrong, Tensor) and wrong.shape == x.shape and not len(x) and not wrong.is_floating_point():
        return
    call.arguments["padding"] = wrong
    call.faults.append("padding")


def make_call(seed: int) -> Call:
    make = Maker(seed)
    kind = make.random.choice(("attention", "attention", "delta", "delta", "scan", "convolution", "softmax", "norms"))
    if kind in ("attention", "delta"):
        return recurrence(make, kind == "delta")
    return {"scan": scan, "convolution": convolution, "softmax": chosen_softmax, "norms": norms}[kind](make)


def function_of(call: Call) -> Function:
    if call.op == "softmax":
        return softmax.attend
    return getattr(ops, call.op, None) or getattr(norm, call.op)


def outputs(call: Call, arguments: Arguments, backend: str, gradients: bool) -> list[Tensor | None]:
    """What the call gives, and the gradients of its arguments for a fixed cotangent."""
    arguments = dict(arguments)
    names = [n for n in call.differentiable if gradients and isinstance(arguments.get(n), Tensor)]
    for name in names:
        arguments[name] = arguments[name].detach().requires_grad_()
    if call.op in ("linear_scan", "linear_attention", "delta_rule"):
        found = function_of(call)(**arguments, backend=backend)
    else:
        with ops.backend(backend if backend != "auto" else "auto"):
            found = function_of(call)(**arguments)
    found = [found] if isinstance(found, Tensor) else list(found)
    result: list[Tensor | None] = [None if x is None else x.detach() for x in found]
    if names:
        loss = sum((y.double() * torch.arange(y.numel()).view_as(y).cos()).sum() for y in found if y.requires_grad)
        if isinstance(loss, Tensor):
            wanted = [arguments[n] for n in names]
            result += torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return result


def exact_softmax(a: Arguments) -> list[Tensor | None]:
    q, k, v = (a[name].double() for name in "qkv")
    batch, heads, length, _ = q.shape
    slots, group = k.shape[2], heads // max(k.shape[1], 1)
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    seen = (torch.arange(slots) <= a["first"] + torch.arange(length)[:, None]).expand(batch, heads, -1, -1)
    index, counts = a.get("index"), a.get("counts")
    if index is not None:
        block, page = a["block"], a["page"]
        owners, blocks = (index if index.dim() == 4 else counts).shape[1:3]
        wanted = torch.zeros(batch, heads, length, slots, dtype=torch.bool)
        rows = iter(index.tolist()) if index.dim() == 1 else None
        for b in range(batch):
            for x in range(owners):
                for m in range(blocks):
                    count = index.shape[-1] if counts is None else int(counts[b, x, m])
                    some = [next(rows) for _ in range(count)] if rows else index[b, x, m, :count].tolist()
                    share = heads // owners
                    for p in some:
                        wanted[
                            b, x * share : (x + 1) * share, m * block : (m + 1) * block, p * page : (p + 1) * page
                        ] = True
        seen = seen & wanted
    weights = (a["scale"] * q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    return [weights @ v, weights.sum(2) if a.get("sums") else None]


def exact(call: Call, gradients: bool) -> list[Tensor | None]:
    if call.op == "softmax":
        return exact_softmax(call.arguments)
    doubled = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in call.arguments.items()
    }
    return outputs(call, doubled, "reference" if len(call.backends) > 1 else "auto", gradients)


def expected_dtypes(call: Call) -> list[torch.dtype]:
    a = call.arguments
    if call.op in ("linear_attention", "delta_rule"):
        wide = torch.float64 in (a["q"].dtype, a["k"].dtype, a["v"].dtype)
        return [a["v"].dtype, torch.float64 if wide else torch.float32]
    if call.op == "linear_scan":
        wide = torch.float64 in (a["u"].dtype, a["log_a"].dtype)
        return [a["u"].dtype, torch.float64 if wide else torch.float32]
    if call.op == "causal_convolution":
        return [a["x"].dtype] * 2
    return [torch.float32] * 2 if call.op == "softmax" else [a["x"].dtype]


def compare(call: Call, found: list[Tensor | None], wanted: list[Tensor | None]) -> str | None:
    """What differs, or None."""
    dtypes = expected_dtypes(call)
    coarsest = max(
        (TOLERANCES[x.dtype] for x in call.arguments.values() if isinstance(x, Tensor) and x.dtype in TOLERANCES),
        default=1e-9,
    )
    if len(found) != len(wanted):
        return f"{len(found)} results, not {len(wanted)}"
    for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
        if x is None or y is None:
            if x is not y:
                return f"result {i} is missing"
            continue
        if x.shape != y.shape:
            return f"result {i} has shape {tuple(x.shape)}, not {tuple(y.shape)}"
        if i < len(dtypes) and x.dtype != dtypes[i]:
            return f"result {i} is {x.dtype}, not {dtypes[i]}"
        if not x.numel():
            continue
        tolerance = coarsest if i < len(dtypes) else 10 * coarsest
        error = float((x.double() - y).abs().max() / y.abs().max().clamp(min=1))
        if not error <= tolerance:
            return f"result {i} is off by {error:.2e}"
    return None


def try_call(seed: int) -> list[str]:
    """What is wrong with this call."""
    call = make_call(seed)
    gradients = not call.faults and bool(call.differentiable) and seed % 3 == 0
    torch.set_num_threads(1 + seed % 2)
    wanted = None if call.faults else exact(call, gradients)
    wrong = []
    for backend in call.backends:
        if backend == "native" and absent() is not None:
            continue
        note = f"seed {seed}, {call.op} on {backend}"
        try:
            found = outputs(call, call.arguments, backend, gradients)
        except BackendUnavailable:
            doubles = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in call.arguments.values())
            if not call.faults and not (backend == "native" and doubles):
                wrong.append(f"{note}: refused")
        except PlaitError as error:
            if not call.faults:
                wrong.append(f"{note}: refused: {error}")
            elif not any(name in str(error) for name in call.faults):
                wrong.append(f"{note}: {call.faults} are wrong, and the message names none: {error}")
            elif len(str(error)) > 2000:
                wrong.append(f"{note}: the message has {len(str(error))} characters")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            fault = f" ({call.faults} are wrong)" if call.faults else ""
            text = " ".join(str(error).split())[:200]
            wrong.append(f"{note}{fault}: {type(error).__name__} at {last.name}:{last.lineno}: {text}")
        else:
            if call.faults:
                wrong.append(f"{note}: {call.faults} are wrong and were accepted")
            elif wanted is not None:
                difference = compare(call, found, wanted)
                if difference:
                    wrong.append(f"{note}: {difference}")
    return wrong


def run_child(first: int, last: int, out: int) -> None:
    for seed in range(first, last):
        os.write(out, (json.dumps({"seed": seed}) + "\n").encode())
        found = try_call(seed)
        if found:
            os.write(out, (json.dumps({"wrong": found}) + "\n").encode())
    os.write(out, b'{"done": true}\n')


def run(first: int, last: int) -> tuple[list[str], list[str]]:
    """The calls with seeds ``[first, last)`` in child processes: what died, and what was wrong."""
    died, wrong = [], []
    while first < last:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            status = 1
            try:
                run_child(first, last, writer)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writer)
        seed, done = first, False
        with os.fdopen(reader) as lines:
            for line in lines:
                entry = json.loads(line)
                seed = entry.get("seed", seed)
                wrong += entry.get("wrong", [])
                done = done or "done" in entry
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status or not done:
            died.append(f"seed {seed}, {make_call(seed).op}: the process ended with {status}")
        first = last if done else seed + 1
    return died, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--level", help="instruction set of the kernels; the best by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills memory that nobody wrote with NaN
    if options.level:
        from plait.ops.native import build, library

        kernels = ctypes.CDLL(str(build.library(options.level)))
        library.load = lambda: (kernels, options.level)  # type: ignore[assignment]
    died, wrong = run(options.first, options.last)
    faults = sum(bool(make_call(seed).faults) for seed in range(options.first, options.last))
    print("\n".join([*died, *wrong]))
    calls = options.last - options.first
    print(f"{calls} calls, {faults} of them wrong on purpose: {len(died)} died, {len(wrong)} failed")
    return bool(died or wrong)


if __name__ == "__main__":
    sys.exit(main())
