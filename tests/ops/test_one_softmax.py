"""Softmax over scores is written in ``plait.ops.softmax`` alone: no other file of the source makes one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import plait

ROOT = Path(plait.__file__).parent
HOME = ("ops/softmax/", "ops/native/softmax.py")

#: Calls that make weights from scores.
WHOLE = {"softmax", "log_softmax", "softmin", "Softmax", "logsumexp", "logaddexp", "flex_attention"}
WHOLE |= {"scaled_dot_product_attention"}

#: Function -> what it makes in place of attention.
OTHERS = {
    "conversion/losses.py:divergence": "a loss over the vocabulary",
    "evaluation/harness/scoring.py:_scores": "probabilities of the vocabulary",
    "mixers/lizard.py:Lizard.scoring": "several sinks as one logit",
    "mixers/lizard.py:features": "a feature map over channels",
    "mixers/lower_bounds.py:log_bound": "shares of the layers of a model",
    "mixers/lower_bounds.py:log_forget_gate": "the same",
    "probes/logit_growth.py:LogitGrowth.show": "one weight from the log of a sum that ops gives",
    "study/scaling/laws.py:fit_power_law": "the fit of a curve",
    "timing/peers.py:softmax_attention.softmax": "PyTorch's own attention, which plait's is timed against",
    "timing/sequence.py:vanilla": "attention with all scores in memory, which rings are timed against",
}


def functions(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, ast.AST, list[ast.AST]]]:
    """Every function with the nodes that are its own, and what stands outside of all."""
    own: list[ast.AST] = []
    waiting = list(ast.iter_child_nodes(tree))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from functions(node, f"{outer}.{node.name}" if outer else node.name)
            continue
        own.append(node)
        waiting += ast.iter_child_nodes(node)
    yield outer, tree, own


def called(nodes: list[ast.AST]) -> set[str]:
    """Names of the functions that are called, without the objects before them."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Call):
            function = node.func
            names.add(function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", ""))
    return names


def softmaxes(tree: ast.AST) -> list[str]:
    """Functions that call a softmax, or make one by hand: exponentials of differences to the largest."""
    found = []
    for name, _, nodes in functions(tree):
        calls = called(nodes)
        whole = calls & WHOLE or any(call.startswith("_scaled_dot_product") for call in calls)
        largest = calls & {"amax", "max", "cummax"} and calls & {"exp", "exp_", "exp2"}
        if whole or (largest and calls & {"sum", "cumsum"}):
            found.append(name)
    return sorted(found)


@pytest.mark.parametrize(
    "source",
    [
        "def f(s):\n    return s.softmax(-1)",
        "def f(s):\n    return F.scaled_dot_product_attention(s, s, s)",
        "def f(s):\n    return torch.ops.aten._scaled_dot_product_flash_attention(s, s, s)",
        "def f(s):\n    return (s - torch.logsumexp(s, -1, keepdim=True)).exp()",
        "def f(s):\n    p = (s - s.amax(-1, keepdim=True)).exp()\n    return p / p.sum(-1, keepdim=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert softmaxes(ast.parse(source)) == ["f"]
    assert softmaxes(ast.parse("def f(s):\n    return s.exp() / s.sum()")) == []


def test_softmax_over_scores_is_written_once() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        if not file.startswith(HOME):
            found |= {f"{file}:{name}" for name in softmaxes(ast.parse(path.read_text(encoding="utf-8")))}
    assert found - set(OTHERS) == set(), "stand on plait.ops.softmax, or name here what is made in place of attention"
    assert set(OTHERS) - found == set(), "no softmax is made there any more"
