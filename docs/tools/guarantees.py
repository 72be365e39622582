"""The table of guarantees, read from the markers on the tests.

A test that proves a guarantee, and the test that shows that it could fail (its negative control), say so::

    @pytest.mark.guarantee("logout wins over every late write", pattern="sessions", under="late writes")
    def test_logout_wins_over_late_writes(): ...

    @pytest.mark.control("logout wins over every late write", "without tombstones")
    def test_late_write_wins_without_tombstones(): ...

The sentence is the key. ``pattern`` (the section) and ``under`` (the fault) are given by one of the tests
of a guarantee; a test that is its own control says how with ``control=``. Markers may stand on a test, on a
class, in ``pytestmark`` or in a ``pytest.param``. The syntax tree is read and nothing imported: arguments
are literals.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from docs.tools.reference import table

# Sections of the page, in this order.
PATTERNS = {
    "stack": "The stack",
    "measure": "The measurement",
    "evidence": "The evidence",
    "checks": "The checks",
    "balancing": "Balancing",
    "edge": "Edge",
    "overload": "Overload",
    "hashing": "Hashing",
    "sessions": "Sessions",
    "stores": "Session stores",
    "signing": "Signed and sealed values",
    "replicas": "Replicas",
    "caching": "Caching",
    "pools": "Pools",
    "sharding": "Shards",
    "tasks": "Tasks",
    "autoscaling": "Autoscaling",
    "monitoring": "Monitoring",
    "docs": "The documentation",
}
_MARKERS = ("guarantee", "control")


@dataclass(slots=True)
class Guarantee:
    """One sentence, its section, the fault under which it holds, and the tests that show it."""

    sentence: str
    pattern: str = ""
    under: str = ""
    proofs: list[str] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """What is missing; empty when nothing is."""
        if not self.proofs:
            return f"no test is marked with the guarantee {self.sentence!r}, only controls"
        if not self.controls:
            return f"no test is marked as the control of {self.sentence!r}"
        if self.pattern not in PATTERNS:
            return f"the pattern {self.pattern!r} of {self.sentence!r} is none of {', '.join(PATTERNS)}"
        return ""


def collect(tests: Path) -> list[Guarantee]:
    """The guarantees that the tests below a folder are marked with, in the order of files and lines."""
    found: dict[str, Guarantee] = {}
    for file in sorted(tests.rglob("test_*.py")):
        module = ast.parse(file.read_text())
        constants = _constants(module)
        for test, call in _calls(module):
            place = "::".join(filter(None, (str(file.relative_to(tests)), test)))
            sentence, *notes = [_text(one, constants) for one in call.args]
            options = {str(one.arg): _text(one.value, constants) for one in call.keywords}
            _add(found.setdefault(sentence, Guarantee(sentence)), _marker(call), place, notes, **options)
    return list(found.values())


def _add(
    guarantee: Guarantee,
    kind: str,
    place: str,
    notes: list[str],
    *,
    pattern: str = "",
    under: str = "",
    control: str = "",
) -> None:
    if kind == "control":
        guarantee.controls.append(": ".join([f"`{place}`", *notes]))
        return
    guarantee.proofs.append(f"`{place}`")
    guarantee.pattern = guarantee.pattern or pattern
    guarantee.under = guarantee.under or under
    if control:
        guarantee.controls.append(control)


def _calls(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """(test, marker) for every marker of a file; the test is empty for a marker of the whole file."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from ((node.name, call) for one in node.decorator_list for call in _markers(one))
    for statement in module.body:
        if isinstance(statement, ast.Assign) and _names(statement) == ["pytestmark"]:
            yield from (("", call) for call in _markers(statement.value))


def _constants(module: ast.Module) -> dict[str, str]:
    """The texts that a module gives names to, for a sentence that several markers share."""
    return {
        name: str(ast.literal_eval(statement.value))
        for statement in module.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for name in _names(statement)
    }


def _text(node: ast.expr, constants: dict[str, str]) -> str:
    name = node.id if isinstance(node, ast.Name) else ""
    return constants[name] if name in constants else str(ast.literal_eval(node))


def _names(assignment: ast.Assign) -> list[str]:
    return [target.id for target in assignment.targets if isinstance(target, ast.Name)]


def _markers(node: ast.expr) -> Iterator[ast.Call]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and _marker(inner):
            yield inner


def _marker(call: ast.Call) -> str:
    """``guarantee`` or ``control`` for a call of ``pytest.mark.…``, else nothing."""
    name = ast.unparse(call.func).removeprefix("pytest.mark.")
    return name if name in _MARKERS else ""


def guarantees_page(guarantees: Iterable[Guarantee]) -> str:
    """The full table, one section a pattern."""
    parts = [
        "# Every guarantee\n\nEach with the fault under which it holds, the tests that prove it and their "
        "negative controls: the guard is switched off or absent, and the test finds the damage. Tests are "
        'named below `tests/`; run one with `make test ARGS="-k NAME"`.\n'
    ]
    known = list(guarantees)
    for pattern, title in PATTERNS.items():
        rows = [
            (one.sentence, one.under or "–", "<br>".join(one.proofs), "<br>".join(one.controls))
            for one in known
            if one.pattern == pattern
        ]
        if rows:
            header = ("guarantee", "fault", "test", "negative control")
            parts.append(f"## {title}\n\n{table(header, rows)}")
    return "\n".join(parts)
