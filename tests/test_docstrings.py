"""Every public name says what it does, with its shapes and units, and which errors it raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import llmfs

PACKAGE = Path(llmfs.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef

ERRORS = re.compile(r"\w*Error")
SAYS_SO = re.compile(r"\b[Rr]aises?\b|Error\b")
TENSORS = re.compile(r"\b(Tensor|Tokens|Positions|NDArray|ndarray)\b")
SHAPE = re.compile(r"\((?:\.\.\.|[A-Z]\w*'?|\d|[a-z_]+(?= *[,)]))[^()]*\)|\bscalar\b|\bshapes?\b|\bsame\b")  # (B, T, C)


def names(path: Path) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """The public classes and functions of a module, and the public methods of public classes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{path.stem}.{node.name}", node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, Function) and not method.name.startswith("_") and not is_stub(method):
                    yield f"{path.stem}.{node.name}.{method.name}", method


def is_stub(method: Function) -> bool:
    """Of a Protocol, whose class says what it is for."""
    return ast.unparse(method.body) == "..."


def is_setter(node: ast.AST) -> bool:
    return any(ast.unparse(d).endswith((".setter", ".deleter")) for d in getattr(node, "decorator_list", []))


def raised(node: ast.AST) -> set[str]:
    """The errors that the function itself raises, not those of functions in it or called by it."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            found.add(ast.unparse(child.exc.func).rpartition(".")[2])
        found |= raised(child)
    return {name for name in found if ERRORS.fullmatch(name) and name not in ("NotImplementedError", "AssertionError")}


PUBLIC = [(name, node) for path in MODULES for name, node in names(path) if not is_setter(node)]


def test_every_module_says_what_it_is_for() -> None:
    assert [path.name for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


def test_every_public_name_has_a_docstring() -> None:
    assert len(PUBLIC) > 300
    assert [name for name, node in PUBLIC if not ast.get_docstring(node)] == []


def test_a_docstring_ends_its_first_sentence() -> None:
    """The first line can be read alone."""
    bad = []
    for name, node in PUBLIC:
        first = (ast.get_docstring(node) or "").partition("\n\n")[0].strip()
        if not re.search(r"[.:?)`\w\]\"'⟩…]$", first) or len(first) < 8:
            bad.append(name)
    assert bad == []


def test_what_a_function_raises_is_in_its_docstring() -> None:
    """A class says it for its __init__ and __post_init__. A command's errors are what it prints."""
    silent = []
    for name, node in PUBLIC:
        text = ast.get_docstring(node) or ""
        if name.startswith("cli"):
            continue
        if isinstance(node, ast.ClassDef):
            own = [m for m in node.body if isinstance(m, Function) and m.name in ("__init__", "__post_init__")]
            errors = set().union(*map(raised, own)) if own else set()
            text += "".join(ast.get_docstring(method) or "" for method in own)
        else:
            errors = raised(node)
        if errors and not SAYS_SO.search(text):
            silent.append(f"{name}: {', '.join(sorted(errors))}")
    assert silent == []


def test_tensors_are_given_with_their_shapes() -> None:
    """Of what a function takes or of what it gives. The exercises' specimens share the shape that their task names."""
    silent = []
    for name, node in PUBLIC:
        if isinstance(node, Function) and not name.startswith(("cli", "viz.", "l06.")):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            annotations = [argument.annotation for argument in arguments] + [node.returns]
            has_tensors = any(a is not None and TENSORS.search(ast.unparse(a)) for a in annotations)
            if has_tensors and not SHAPE.search(ast.get_docstring(node) or ""):
                silent.append(name)
    assert silent == []
