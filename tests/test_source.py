"""What no line of the source may do: run a stranger's code, unpickle, or leave an encoding to the machine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import plait
from plait import catalog

ROOT = Path(plait.__file__).parent

#: Classes that are plait's or PEFT's own: they never look for code in a folder.
OWN = {"PlaitForCausalLM", "PlaitModel", "PlaitConfig", "AutoencoderForCompression", "PeftModel", "AutoPeftModel"}
OWN |= {"PlaitForSequenceClassification", "PlaitForTokenClassification", "GenerationConfig"}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call with the name that is called and the name before the dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                before = called.value
                yield node, called.attr, before.id if isinstance(before, ast.Name) else ""
            elif isinstance(called, ast.Name):
                yield node, called.id, ""


def keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {one.arg: one.value for one in call.keywords if one.arg}


def text(node: ast.expr | None) -> str:
    return "" if node is None else ast.unparse(node)


def runs_strange_code(tree: ast.AST) -> list[int]:
    """Lines that load a model, tokenizer or data set without saying that no code of it runs."""
    lines = []
    for call, name, before in calls(tree):
        inner = [text(one) for one in call.args]
        loads = (
            (name in ("from_pretrained", "from_config") and before not in OWN)
            or name in ("load_dataset", "load_dataset_builder")
            or (name == "partial" and any(one.endswith("load_dataset") for one in inner))
        )
        given = keywords(call).get("trust_remote_code")
        says = isinstance(given, ast.Constant) and given.value is False
        if loads and not says and not text(given).startswith(("trusted(", "trust_remote_code")):
            lines.append(call.lineno)
    return lines


def unpickles(tree: ast.AST) -> list[int]:
    """Lines that unpickle what a file holds."""
    lines = []
    for call, name, before in calls(tree):
        whole = (name == "load" and before == "torch" and text(keywords(call).get("weights_only")) != "True") or (
            name in ("load", "loads", "Unpickler") and before in ("pickle", "dill", "cloudpickle", "joblib")
        )
        numpy = name == "load" and before == "np" and text(keywords(call).get("allow_pickle")) == "True"
        unsafe = name in ("unsafe_load", "full_load") or (
            name == "load" and before == "yaml" and "Loader" not in text(call)
        )
        if whole or numpy or unsafe:
            lines.append(call.lineno)
    return lines


def leaves_encoding(tree: ast.AST) -> list[int]:
    """Lines that open a text file in the encoding of the machine."""
    lines = []
    for call, name, before in calls(tree):
        if "encoding" in keywords(call):
            continue
        metadata = text(call).endswith("('direct_url.json')")  # of importlib.metadata, which knows its encoding
        if name in ("read_text", "write_text") and isinstance(call.func, ast.Attribute) and not metadata:
            lines.append(call.lineno)
        elif name == "open" and before not in ("os", "gzip", "PackedTokens", "webbrowser"):
            place = 0 if isinstance(call.func, ast.Attribute) else 1
            mode = keywords(call).get("mode") or (call.args[place] if len(call.args) > place else None)
            if not (isinstance(mode, ast.Constant) and "b" in str(mode.value)):
                lines.append(call.lineno)
        elif name == "fdopen" and not any("b" in text(one) for one in call.args[1:]):
            lines.append(call.lineno)
    return lines


CHECKS = {"strange code": runs_strange_code, "pickles": unpickles, "encodings": leaves_encoding}


def test_no_line_does_it() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} ({name})"
        for path in sorted(ROOT.rglob("*.py"))
        for tree in [ast.parse(path.read_text(encoding="utf-8"))]
        for name, check in CHECKS.items()
        for line in check(tree)
    ]
    assert not found


def test_each_is_seen() -> None:
    source = """
AutoModel.from_pretrained(folder)
AutoConfig.from_pretrained(folder, trust_remote_code=True)
AutoConfig.from_pretrained(folder, trust_remote_code=False)
load_dataset(name)
partial(datasets.load_dataset)
torch.load(path)
torch.load(path, weights_only=True)
pickle.load(file)
path.read_text()
path.open()
open(path, "w")
open(path, "rb")
path.open("wb")
"""
    tree = ast.parse(source)
    assert runs_strange_code(tree) == [2, 3, 5, 6]
    assert unpickles(tree) == [7, 9]
    assert leaves_encoding(tree) == [10, 11, 12]


#: Files that list methods of the catalogue by name, and why.
LISTS = {
    "src/plait/claims/hybrid_study.py": "the mixers that the paper's sentences name",
    "src/plait/claims/window_sinks.py": "two series of one experiment",
    "src/plait/conversion/halo.py": "the mixers that the paper converts to",
}
#: Folders of formats of others, which know a fixed set of mixers.
FORMATS = ("src/plait/catalog/", "src/plait/models/checkpoints/")


def lists_methods(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines of literals with two or more names of one kind, and the kind."""
    names = {kind: set(catalog.names(kind)) for kind in {method.kind for method in catalog.methods()}}
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            entries: list[ast.expr | None] = [*node.elts]
        elif isinstance(node, ast.Dict):
            entries = node.keys
        else:
            continue
        words = {one.value for one in entries if isinstance(one, ast.Constant)}
        yield from ((node.lineno, kind) for kind, known in names.items() if len(words & known) > 1)


def test_methods_are_listed_in_the_catalogue_alone() -> None:
    repository = ROOT.parent.parent
    listed: dict[str, list[tuple[int, str]]] = {}
    for folder in ("src", "docs", "tests/contracts"):
        for path in sorted((repository / folder).rglob("*.py")):
            place, tree = path.relative_to(repository).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
            found = [] if place.startswith(FORMATS) else sorted(set(lists_methods(tree)))
            if found:
                listed[place] = found
    unexpected = {place: found for place, found in listed.items() if place not in LISTS}
    assert not unexpected, "choose by tags (plait.catalog.names), or give the reason in LISTS"
    assert set(LISTS) <= set(listed), "a reason that is not needed any more"


def test_lists_of_methods_are_seen() -> None:
    source = """
MIXERS = ("gla", "retnet")
ONE = ["gla", "another"]
SIZES = {"gla": 1, "hgrn": 2}
MIXED = {"gla", "mqar"}
POLICIES = {"quest", "h2o"}
"""
    assert sorted(lists_methods(ast.parse(source))) == [(2, "mixer"), (4, "mixer"), (6, "policy")]
