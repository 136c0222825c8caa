"""The package has the public surface that was designed: ``surface/`` types it, as stub files.

Every name, base class, attribute, method and parameter of the stubs must be in the package. The
package may have more: further names, and further parameters as long as they may be left out.
Whether types fit is for ``test_programs``.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeAlias, get_overloads

import pytest

SURFACE: Final = Path(__file__).parent / "surface" / "clusterkit"

LATER: Final = frozenset(
    {
        "kit.ClusterKit.drain",
        "sync.ClusterKit.drain",
    }
)
"""What is designed and not built yet. It must be absent: take out of here what has been built."""

LATER_PARAMETERS: Final = frozenset(
    {
        ("_base.KitBase.request_stop", "drain"),
        ("kit.ClusterKit.stop", "drain"),
        ("sync.ClusterKit.stop", "drain"),
    }
)
"""The same for parameters."""

_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Item:
    """One thing of the surface: ``module.name`` or ``module.Class.name``, and how it is written."""

    path: str
    nodes: tuple[ast.stmt, ...]  # several for a function with overloads
    exported: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def _items(body: list[ast.stmt], where: str) -> Iterator[Item]:
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        for name in _names(node):
            if not name.startswith("_") or name.startswith("__"):
                found.setdefault(name, []).append(node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname == alias.name:  # how a stub file says that it hands a name on
                    yield Item(f"{where}.{alias.name}", (node,), exported=True)
    for name, nodes in found.items():
        yield Item(f"{where}.{name}", tuple(nodes))
        if isinstance(nodes[0], ast.ClassDef):
            yield from _items(nodes[0].body, f"{where}.{name}")


def _surface() -> list[Item]:
    files = sorted(SURFACE.glob("*.pyi"))
    return [item for f in files for item in _items(ast.parse(f.read_text()).body, f.stem)]


ITEMS: Final = _surface()


@cache
def _module(stem: str) -> ModuleType:
    return importlib.import_module("clusterkit" if stem == "__init__" else f"clusterkit.{stem}")


def _owner(item: Item) -> Any:
    stem, *classes = item.path.split(".")[:-1]
    owner: Any = _module(stem)
    for name in classes:
        owner = getattr(owner, name)
    return owner


def _has(owner: Any, name: str) -> bool:
    """Whether instances have the attribute, however the class comes by it."""
    if hasattr(owner, name):
        return True
    if not isinstance(owner, type):
        return False
    return (
        any(name in vars(c).get("__annotations__", {}) for c in owner.__mro__)
        or (dataclasses.is_dataclass(owner) and name in {f.name for f in dataclasses.fields(owner)})
        or name in inspect.signature(inspect.getattr_static(owner, "__init__")).parameters
    )


def _parameters(node: _Function, *, method: bool) -> list[Parameter]:
    a = node.args
    positional: list[tuple[ast.arg, Any]]
    positional = [(arg, Parameter.POSITIONAL_ONLY) for arg in a.posonlyargs]
    positional += [(arg, Parameter.POSITIONAL_OR_KEYWORD) for arg in a.args]
    first_default = len(positional) - len(a.defaults)
    found = [
        Parameter(arg.arg, kind, default=None if i >= first_default else Parameter.empty)
        for i, (arg, kind) in enumerate(positional)
    ]
    found += [
        Parameter(
            arg.arg, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is None else None
        )
        for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]
    if a.kwarg is not None:
        found.append(Parameter(a.kwarg.arg, Parameter.VAR_KEYWORD))
    assert a.vararg is None, "no function of the surface has *args"
    return found[1:] if method else found


def _misfit(wanted: list[Parameter], function: Callable[..., object], *, method: bool) -> str:
    """Why a call that the stub allows would not be taken; empty if it would."""
    has = list(inspect.signature(function).parameters.values())[1 if method else 0 :]
    by_name = {p.name: p for p in has}
    fitting = set()
    kinds: list[object]
    for i, want in enumerate(wanted):
        if want.kind is Parameter.VAR_KEYWORD:
            p = next((p for p in has if p.kind is Parameter.VAR_KEYWORD), None)
            kinds = [Parameter.VAR_KEYWORD]
        elif want.kind is Parameter.KEYWORD_ONLY:
            p = by_name.get(want.name)
            kinds = [Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD]
        else:
            p = has[i] if i < len(has) else None
            kinds = [Parameter.POSITIONAL_OR_KEYWORD]
            if want.kind is Parameter.POSITIONAL_ONLY:
                kinds.append(Parameter.POSITIONAL_ONLY)
            elif p is not None and p.name != want.name:
                return f"parameter {want.name} is named {p.name}"
        if p is None:
            return f"parameter {want.name} is missing"
        if p.kind not in kinds:
            return f"parameter {want.name} is {p.kind.description}"
        if want.default is not Parameter.empty and p.default is Parameter.empty:
            return f"parameter {want.name} has no default"
        fitting.add(p.name)
    for p in has:
        variable = p.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        if p.name not in fitting and p.default is Parameter.empty and not variable:
            return f"parameter {p.name} is demanded, and was not designed"
    return ""


def _check_function(item: Item, nodes: list[_Function]) -> None:
    owner = _owner(item)
    static = inspect.getattr_static(owner, item.name)
    if any(isinstance(d, ast.Name) and d.id == "property" for d in nodes[0].decorator_list):
        assert not inspect.isroutine(static), "it is a method, not a property"
        return
    function = static.__func__ if isinstance(static, classmethod | staticmethod) else static
    assert inspect.isroutine(function), f"it is a {type(function).__name__}, not a function"
    method = isinstance(owner, type) and not isinstance(static, staticmethod)
    for node in nodes:
        is_async = isinstance(node, ast.AsyncFunctionDef)
        assert inspect.iscoroutinefunction(function) == is_async, f"async should be {is_async}"
        wanted = [
            p
            for p in _parameters(node, method=method)
            if (item.path, p.name) not in LATER_PARAMETERS
        ]
        variants = get_overloads(function) or [function]
        misfits = [_misfit(wanted, variant, method=method) for variant in variants]
        assert "" in misfits, "; ".join(misfits)


def _check_class(item: Item, node: ast.ClassDef) -> None:
    cls = getattr(_owner(item), item.name)
    assert isinstance(cls, type)
    bases = {ast.unparse(base) for base in node.bases} - {"TypedDict"}  # which leaves no trace
    assert bases <= {c.__name__ for c in cls.__mro__}
    if any("frozen=True" in ast.unparse(d) for d in node.decorator_list):
        assert dataclasses.is_dataclass(cls)
        assert vars(cls)["__dataclass_params__"].frozen
        fields = [name for n in node.body if isinstance(n, ast.AnnAssign) for name in _names(n)]
        assert [f.name for f in dataclasses.fields(cls) if f.name in fields] == fields


@pytest.mark.parametrize("item", [i for i in ITEMS if i.path not in LATER], ids=lambda i: i.path)
def test_the_package_has(item: Item) -> None:
    assert _has(_owner(item), item.name), f"clusterkit has no {item.path}"
    if item.exported:
        assert item.name in _owner(item).__all__
        return
    functions = [n for n in item.nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    if functions:
        _check_function(item, functions)
    elif isinstance(item.nodes[0], ast.ClassDef):
        _check_class(item, item.nodes[0])


@pytest.mark.parametrize("path", sorted(LATER))
def test_what_belongs_to_later_is_designed_and_absent(path: str) -> None:
    item = next((i for i in ITEMS if i.path == path), None)
    assert item is not None, f"{path} is not in the surface"
    assert not _has(_owner(item), item.name), f"{path} exists: take it out of LATER"


@pytest.mark.parametrize("path, name", sorted(LATER_PARAMETERS))
def test_what_parameter_belongs_to_later_is_designed_and_absent(path: str, name: str) -> None:
    item = next((i for i in ITEMS if i.path == path), None)
    assert item is not None, f"{path} is not in the surface"
    assert isinstance(item.nodes[0], ast.FunctionDef | ast.AsyncFunctionDef)
    assert name in {p.name for p in _parameters(item.nodes[0], method=True)}
    function = getattr(_owner(item), item.name)
    assert name not in inspect.signature(function).parameters, f"{path} has {name} now"


def test_the_comparison_finds_what_is_wrong() -> None:
    def function(a: int, /, b: int, *, c: int = 0) -> None: ...

    def misfit(stub: str) -> str:
        node = ast.parse(f"def function({stub}): ...").body[0]
        assert isinstance(node, ast.FunctionDef)
        return _misfit(_parameters(node, method=False), function, method=False)

    assert misfit("a, /, b, *, c=...") == ""
    assert misfit("other_name, /, b") == ""
    assert misfit("a, b, *, c=...") == "parameter a is positional-only"
    assert misfit("a, /, x") == "parameter x is named b"
    assert misfit("a, /, b=..., *, c=...") == "parameter b has no default"
    assert misfit("a, /, b, *, d") == "parameter d is missing"
    assert misfit("a, /") == "parameter b is demanded, and was not designed"
    assert misfit("a, /, b, **options") == "parameter options is missing"


def test_the_surface_was_read() -> None:
    paths = {item.path for item in ITEMS}
    assert len(paths) == len(ITEMS) > 200
    assert {"__init__.ClusterKit", "sync.ClusterKit.stop", "hooks.Hooks.on_node_join"} <= paths
