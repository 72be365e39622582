"""Discovery of the app in a folder, by parsing its Python files without running them."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_ASGI_CLASSES = {
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
_WSGI_CLASSES = {
    "flask.Flask",
    "flask.app.Flask",
    "django.core.wsgi.get_wsgi_application",
    "falcon.App",
    "bottle.Bottle",
}
_CLASSES = {**dict.fromkeys(_ASGI_CLASSES, "asgi"), **dict.fromkeys(_WSGI_CLASSES, "wsgi")}
_FACTORIES = {"create_app", "make_app", "build_app", "get_app", "app_factory"}
_FACTORIES |= {name.replace("app", "application") for name in _FACTORIES}
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
    interface: str = "asgi"  # or "wsgi"
    routes: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module's name."""
        return self.app.partition(":")[0]


@dataclass(frozen=True, slots=True)
class _Module:
    """What one file says about itself."""

    file: Path
    tree: ast.Module
    tops: frozenset[str]  # first names of its absolute imports, the standard library's left out
    level: int  # dots of its highest relative import


def find_apps(root: Path) -> list[App]:
    """Return every app below ``root``, the shallowest first; tests, examples and environments are skipped.

    An app that another one mounts is left out: it is served by that one. So is a function that makes an app
    where some module keeps what it returns.
    """
    modules = list(_modules(root))
    named = {module.file: _module_and_folder(module, root, modules) for module in modules}
    makers: dict[str, str] = {}
    for module in modules:
        makers |= _makers(module.tree, named[module.file][0])
    found: list[App] = []
    mounted: set[str] = set()
    for module in modules:
        name, folder = named[module.file]
        is_package = module.file.name == "__init__.py"
        found += apps_in(module.tree, name, folder, makers, is_package=is_package)
        mounted |= _mounted_apps(module.tree, name, is_package=is_package)
    outer = [app for app in found if app.app.replace(":", ".") not in mounted]
    return sorted(outer or found, key=lambda app: (app.factory, app.app.count("."), app.app))


def apps_in(
    tree: ast.Module,
    module: str,
    folder: PurePosixPath,
    makers: Mapping[str, str] | None = None,
    *,
    is_package: bool = False,
) -> list[App]:
    """Return the apps at a module's top level, or else the functions that make one.

    Args:
        tree: the module, parsed.
        module: its name.
        folder: that it is imported from.
        makers: functions that make an app, in any module: qualified name → interface.
        is_package: the module is a package's ``__init__``.
    """
    parts = module.split(".")
    names = _imported_names(tree, parts if is_package else parts[:-1])
    made = {**_CLASSES, **(makers or {})}
    own = {name.removeprefix(f"{module}."): name for name in made if name.rpartition(".")[0] == module}
    apps = [
        App(f"{module}:{name}", folder, interface=interface, routes=_routes(tree, name))
        for statement in tree.body
        for name, interface in _assigned_apps(statement, {**own, **names}, made)
    ]
    factories = [
        App(f"{module}:{statement.name}", folder, factory=True, interface=interface)
        for statement in tree.body
        if isinstance(statement, ast.FunctionDef)
        and not _needs_any(statement)
        and (interface := _made_by(statement, names))
    ]
    return apps or factories


def _modules(root: Path) -> Iterator[_Module]:
    for number, file in enumerate(python_files(root)):
        if number >= _MAX_FILES:
            return
        try:
            tree = ast.parse(file.read_bytes()) if file.stat().st_size < _MAX_BYTES else None
        except (OSError, SyntaxError, ValueError, RecursionError):  # init does not report broken files
            continue
        if tree is not None:
            yield _Module(file, tree, *_imports(tree))


def python_files(root: Path) -> Iterator[Path]:
    """Yield every Python file below a folder but those of tests, examples and environments."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED
            and not os.path.exists(Path(folder, name, "pyvenv.cfg"))
        )
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _imports(tree: ast.Module) -> tuple[frozenset[str], int]:
    tops: set[str] = set()
    level = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            level = max(level, node.level)
            if not node.level:
                tops.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
    return frozenset(tops - {""} - sys.stdlib_module_names), level


def _module_and_folder(module: _Module, root: Path, modules: Sequence[_Module]) -> tuple[str, PurePosixPath]:
    """Return the module's name, and the folder in which it is imported by that name.

    That folder is on the way from ``root`` to the file, and the one in which most imports of the code beside
    it are found: ``from app.models import Order`` in backend/app/main.py says ``backend``. Where the imports
    say nothing it is the one around the package, or ``src``.
    """
    *parents, name = module.file.relative_to(root).with_suffix("").parts
    if name == "__init__" and parents:
        name = parents.pop()
    below = root.joinpath(*parents[:1])
    near = [other for other in modules if other.file.is_relative_to(below)] if parents else [module]
    usual = _usual_cut(parents, root)

    def fits(cut: int) -> bool:
        return len(parents) - cut >= module.level and all(part.isidentifier() for part in parents[cut:])

    def score(cut: int) -> tuple[int, bool, int]:
        folder = root.joinpath(*parents[:cut])
        own = sum(_is_importable(top, folder) for top in module.tops)
        others = sum(_is_importable(top, folder) for other in near for top in other.tops)
        return 10 * own + others, cut == usual, cut

    cut = max((cut for cut in range(len(parents) + 1) if fits(cut)), key=score, default=usual)
    return ".".join([*parents[cut:], name]), PurePosixPath(*parents[:cut])


def _usual_cut(parents: Sequence[str], root: Path) -> int:
    """Return how many of the parents lead to the folder that a file of this place is imported from."""
    cut = 0
    for depth, parent in enumerate(parents, 1):
        if parent == "src" or not parent.isidentifier():
            cut = depth
    packages = 0
    while cut + packages < len(parents) and _is_package(root.joinpath(*parents[: len(parents) - packages])):
        packages += 1
    return len(parents) - packages if packages else cut


def _is_package(folder: Path) -> bool:
    return os.path.exists(folder / "__init__.py")


def _is_importable(top: str, folder: Path) -> bool:
    return os.path.isfile(folder / f"{top}.py") or os.path.isdir(folder / top)


def _imported_names(tree: ast.Module, package: Sequence[str] = ()) -> dict[str, str]:
    """Return local name → qualified name; relative imports where the module's package is given."""
    names = {}
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                full = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or full] = full
        elif isinstance(statement, ast.ImportFrom) and (package or not statement.level):
            base = package[: len(package) - statement.level + 1] if statement.level else ()
            for alias in statement.names:
                full = ".".join([*base, *filter(None, [statement.module]), alias.name])
                names[alias.asname or alias.name] = full
    return names


def _mounted_apps(tree: ast.Module, module: str, *, is_package: bool) -> set[str]:
    """Return the qualified names of what this module mounts: ``app.mount("/admin", admin.app)``."""
    parts = module.split(".")
    names = _imported_names(tree, parts if is_package else parts[:-1])
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="mount"), args=[_, inner, *_]):
                pass
            case ast.Call(func=ast.Name(id="Mount"), keywords=keywords):
                inner = next((one.value for one in keywords if one.arg == "app"), ast.Constant(None))
            case _:
                continue
        name = _qualified_name(inner, names)
        found.add(name or (f"{module}.{inner.id}" if isinstance(inner, ast.Name) else ""))
    return found


def _assigned_apps(
    statement: ast.stmt, names: Mapping[str, str], made: Mapping[str, str]
) -> list[tuple[str, str]]:
    match statement:
        case ast.Assign(targets=targets, value=ast.Call() as call):
            pass
        case ast.AnnAssign(target=target, value=ast.Call() as call):
            targets = [target]
        case _:
            return []
    interface = made.get(_qualified_name(call.func, names), "")
    return [(target.id, interface) for target in targets if interface and isinstance(target, ast.Name)]


def _qualified_name(node: ast.expr, names: Mapping[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_qualified_name(node.value, names)}.{node.attr}"
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def _makers(tree: ast.Module, module: str) -> dict[str, str]:
    """Return the functions of a module that make an app: qualified name → interface."""
    names = _imported_names(tree)
    functions = (statement for statement in tree.body if isinstance(statement, ast.FunctionDef))
    return {
        f"{module}.{function.name}": interface
        for function in functions
        if (interface := _made_by(function, names))
    }


def _needs_any(function: ast.FunctionDef) -> bool:
    """Return whether a function cannot be called without arguments."""
    arguments = function.args
    needed = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return needed > 0 or any(default is None for default in arguments.kw_defaults)


def _made_by(function: ast.FunctionDef, names: Mapping[str, str]) -> str:
    """Return the interface of the apps that a function makes; empty if it makes none."""
    if function.returns is not None:
        returned = _qualified_name(function.returns, names)
        if returned in _CLASSES:
            return _CLASSES[returned]
    if function.name not in _FACTORIES:
        return ""
    calls = (_qualified_name(node.func, names) for node in ast.walk(function) if isinstance(node, ast.Call))
    return next((_CLASSES[call] for call in calls if call in _CLASSES), "")


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


def choose_app(apps: Sequence[App], started_as: str) -> App | None:
    """Return the app to measure; None when several are as likely.

    Args:
        apps: the candidates, none of them mounted by another.
        started_as: as deployment files start it: ``shop.wsgi:application``, the attribute may be missing.
    """
    module, _, attribute = started_as.partition(":")
    named = [app for app in apps if app.module == module and attribute in {"", app.app.partition(":")[2]}]
    candidates = named or list(apps)
    instances = [app for app in candidates if not app.factory] or candidates
    if _is_django(instances):  # its project makes both; most are served by WSGI
        instances = [app for app in instances if app.interface == "wsgi"]
    return instances[0] if len(instances) == 1 else None


def _is_django(apps: Sequence[App]) -> bool:
    packages = {app.module.rpartition(".")[0] for app in apps}
    return len(packages) == 1 and {app.app.rpartition(".")[2] for app in apps} == {
        "asgi:application",
        "wsgi:application",
    }
