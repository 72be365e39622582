"""Discovery of the ASGI app in a folder, by parsing its Python files without running them."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_APP_CLASSES = {
    "fastapi.FastAPI",
    "fastapi.applications.FastAPI",
    "starlette.applications.Starlette",
    "litestar.Litestar",
    "litestar.app.Litestar",
    "quart.Quart",
    "blacksheep.Application",
    "blacksheep.server.Application",
    "falcon.asgi.App",
    "robyn.Robyn",
    "sanic.Sanic",
    "django.core.asgi.get_asgi_application",
    "channels.routing.ProtocolTypeRouter",
}
_FACTORIES = {"create_app", "make_app", "build_app", "get_app", "app_factory"}
_SKIPPED = {
    "tests",
    "test",
    "docs",
    "examples",
    "benchmarks",
    "node_modules",
    "site-packages",
    "migrations",
    "venv",
}
_MAX_FILES = 5000
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class App:
    """An app's import path for ``[service]``, and its GET routes that need no parameters."""

    app: str  # "package.module:attribute"
    folder: PurePosixPath  # that it is imported from, relative to the searched folder
    factory: bool = False
    routes: tuple[str, ...] = ()


def find_apps(root: Path) -> list[App]:
    """Return every app below ``root``, the shallowest first; tests, examples and environments are skipped."""
    found = []
    for number, file in enumerate(_python_files(root)):
        if number >= _MAX_FILES:
            break
        try:
            tree = ast.parse(file.read_bytes()) if file.stat().st_size < _MAX_BYTES else None
        except (OSError, SyntaxError, ValueError, RecursionError):  # init does not report broken files
            continue
        if tree is not None:
            found += apps_in(tree, *_module_and_folder(file, root, tree))
    return sorted(found, key=lambda app: (app.factory, app.app.count("."), app.app))


def apps_in(tree: ast.Module, module: str, folder: PurePosixPath) -> list[App]:
    """Return the apps at a module's top level, or else the functions that create one."""
    names = _imported_names(tree)
    apps = [
        App(f"{module}:{name}", folder, routes=_routes(tree, name))
        for statement in tree.body
        for name in _assigned_apps(statement, names)
    ]
    factories = [
        App(f"{module}:{statement.name}", folder, factory=True)
        for statement in tree.body
        if isinstance(statement, ast.FunctionDef) and _is_factory(statement, names)
    ]
    return apps or factories


def _python_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not os.path.exists(Path(folder, name, "pyvenv.cfg"))
        )
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _module_and_folder(file: Path, root: Path, tree: ast.Module) -> tuple[str, PurePosixPath]:
    """Return the module's name, and the folder in which it is imported by that name."""
    *parents, name = file.relative_to(root).with_suffix("").parts
    if name == "__init__" and parents:
        name = parents.pop()
    cut = 0
    for depth, parent in enumerate(parents, 1):
        if parent == "src" or not parent.isidentifier():
            cut = depth
    if _imports_a_neighbour(tree, file.parent) and not os.path.exists(Path(file.parent, "__init__.py")):
        cut = len(parents)
    return ".".join([*parents[cut:], name]), PurePosixPath(*parents[:cut])


def _imports_a_neighbour(tree: ast.Module, folder: Path) -> bool:
    """True for ``from models import X`` beside models.py: the file is run from its own folder."""
    modules = {
        (statement.module or "").partition(".")[0]
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and not statement.level
    } | {
        alias.name.partition(".")[0]
        for statement in tree.body
        if isinstance(statement, ast.Import)
        for alias in statement.names
    }
    return any(
        os.path.isfile(Path(folder, f"{module}.py")) or os.path.isdir(Path(folder, module))
        for module in modules - {""}
    )


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Return local name → qualified name."""
    names = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                full = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or full] = full
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            for alias in statement.names:
                names[alias.asname or alias.name] = f"{statement.module}.{alias.name}"
    return names


def _assigned_apps(statement: ast.stmt, names: Mapping[str, str]) -> list[str]:
    match statement:
        case ast.Assign(targets=targets, value=ast.Call() as call):
            pass
        case ast.AnnAssign(target=target, value=ast.Call() as call):
            targets = [target]
        case _:
            return []
    is_app = _creates_app(call, names)
    return [target.id for target in targets if is_app and isinstance(target, ast.Name)]


def _creates_app(call: ast.Call, names: Mapping[str, str]) -> bool:
    return _qualified_name(call.func, names) in _APP_CLASSES


def _qualified_name(node: ast.expr, names: Mapping[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_qualified_name(node.value, names)}.{node.attr}"
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def _is_factory(function: ast.FunctionDef, names: Mapping[str, str]) -> bool:
    arguments = function.args
    needed = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    if needed > 0 or any(default is None for default in arguments.kw_defaults):
        return False
    if function.returns is not None and _qualified_name(function.returns, names) in _APP_CLASSES:
        return True
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    return function.name in _FACTORIES and any(_creates_app(call, names) for call in calls)


def _routes(tree: ast.Module, app: str) -> tuple[str, ...]:
    """Return the paths of ``@app.get("/…")`` functions without required arguments, for a first scenario."""
    found = []
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or _needs_arguments(function):
            continue
        for decorator in function.decorator_list:
            match decorator:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=name), attr="get"),
                    args=[ast.Constant(value=str(path)), *_],
                ) if name == app and path.startswith("/") and not set(path) & set("{}<>"):
                    found.append(path)
    return tuple(dict.fromkeys(found))


def _needs_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    plain = [*arguments.posonlyargs, *arguments.args]
    needed = plain[: len(plain) - len(arguments.defaults)]
    needed += [
        argument
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    return any(_simple_name(argument.annotation) not in {"Request", "Response"} for argument in needed)


def _simple_name(annotation: ast.expr | None) -> str:
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    return annotation.id if isinstance(annotation, ast.Name) else ""
