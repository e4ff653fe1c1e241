"""Small changes to a module's syntax tree, each of which some test should see.

Left out is what no test should hold: documentation, annotations, the words of error messages, imports and `__all__`.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.Pow: ast.Mult,
}  # fmt: skip
WORDS = {
    "refuse",
    "_refusal",
    "shown",
    "shown_path",
    "cast",
    "TypeVar",
    "dataclass",
    "Check",
}  # calls that take words for people
WORDY = {"ADVICE", "__all__", "__version__", "__slots__"}


@dataclass(frozen=True)
class Mutant:
    """One change: where, what, and the lines whose tests could see it."""

    number: int
    line: int
    lines: tuple[int, ...]
    what: str


def mutants(source: str) -> list[Mutant]:
    """All changes of a module, in the order of its text."""
    tree = ast.parse(source)
    return [
        Mutant(number, line, tuple(lines), what)
        for number, (line, lines, what, _) in enumerate(_changes(tree, _uses(tree)))
    ]


def mutated(source: str, number: int) -> ast.Module:
    """The module's tree with one change made."""
    tree = ast.parse(source)
    for index, (*_, change) in enumerate(_changes(tree, _uses(tree))):
        if index == number:
            change()
            return ast.fix_missing_locations(tree)
    raise IndexError(number)


Change = tuple[int, list[int], str, Callable[[], object]]


def _uses(tree: ast.Module) -> dict[str, list[int]]:
    """Lines that read each name: a module's constant is seen by the tests of those."""
    uses: dict[str, list[int]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses.setdefault(node.id, []).append(node.lineno)
    return uses


def _changes(tree: ast.Module, uses: dict[str, list[int]]) -> Iterator[Change]:
    for statement in tree.body:
        names = [
            t.id for t in getattr(statement, "targets", [getattr(statement, "target", None)]) if isinstance(t, ast.Name)
        ]
        words = _is_text(statement) or isinstance(statement, (ast.Import, ast.ImportFrom)) or WORDY & set(names)
        if words or _for_types(statement):
            continue
        lines = [line for name in names for line in uses.get(name, [])]
        yield from _walk(statement, lines)


def _for_types(node: ast.AST) -> bool:
    test = getattr(node, "test", None)
    return isinstance(node, ast.If) and isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _walk(node: ast.AST, lines: list[int]) -> Iterator[Change]:
    """Changes at this node and below."""
    yield from _of_node(node, lines)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "keywords_of_class", "type_params"):
            continue
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert)):
            continue
        if isinstance(node, ast.Call) and field in ("args", "keywords") and _name(node.func) in WORDS:
            continue
        if isinstance(node, ast.ClassDef) and field == "keywords":
            continue
        inner = lines
        if isinstance(node, ast.FunctionDef) and field == "args":
            inner = [node.body[-1].lineno, node.body[0].lineno, node.body[min(1, len(node.body) - 1)].lineno]
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or (index == 0 and field == "body" and _is_text(child)):
                continue
            if isinstance(value, list) and isinstance(child, ast.stmt):
                yield from _of_statement(value, index, child, [])
            yield from _walk(child, [] if isinstance(node, ast.FunctionDef) and field == "body" else inner)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _setter(node: Any, field: str, value: object) -> Callable[[], object]:
    return lambda: setattr(node, field, value)


def _of_statement(body: list[Any], index: int, node: ast.stmt, lines: list[int]) -> Iterator[Change]:
    """The statement removed, where it does something."""
    effect = isinstance(node, (ast.Raise, ast.AugAssign, ast.Continue, ast.Break, ast.Delete)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Yield, ast.YieldFrom))
    )
    if isinstance(node, ast.Assign):
        effect = any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
    if effect:
        yield (
            node.lineno,
            lines,
            "statement removed",
            lambda: body.__setitem__(index, ast.copy_location(ast.Pass(), node)),
        )


def _of_node(node: Any, lines: list[int]) -> Iterator[Change]:
    """Operators, constants, conditions, results and defaults."""
    line = getattr(node, "lineno", 0)
    for what, field, value in [*_operators(node), *_conditions(node)]:
        yield line, lines, what, _setter(node, field, value)
    if isinstance(node, ast.Constant):
        for value in _other_constants(node.value):
            yield line, lines, f"{node.value!r:.40} -> {value!r:.40}", _setter(node, "value", value)
    elif isinstance(node, ast.comprehension):
        for index, test in enumerate(node.ifs):
            rest = [*node.ifs[:index], *node.ifs[index + 1 :]]
            yield test.lineno, lines, "filter left out", _setter(node, "ifs", rest)


def _operators(node: Any) -> Iterator[tuple[str, str, object]]:
    """(what, field, value) of other operators and fewer operands."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            if other := COMPARED.get(type(operator)):
                ops = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                yield f"{type(operator).__name__} -> {other.__name__}", "ops", ops
    elif isinstance(node, ast.BoolOp):
        yield "and <-> or", "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()
        for index in range(len(node.values)):
            rest = node.values[:index] + node.values[index + 1 :]
            yield f"operand {index + 1} left out", "values", rest if len(rest) > 1 else rest * 2
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        if (computed := COMPUTED.get(type(node.op))) and not _is_string(node):
            yield f"{type(node.op).__name__} -> {computed.__name__}", "op", computed()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "minus left out", "op", ast.UAdd()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not left out", "operand", ast.UnaryOp(ast.Not(), node.operand)


def _conditions(node: Any) -> Iterator[tuple[str, str, object]]:
    if isinstance(node, (ast.If, ast.IfExp)):
        yield "condition True", "test", ast.Constant(True)
        yield "condition False", "test", ast.Constant(False)
    elif isinstance(node, ast.While):
        yield "loop left out", "test", ast.Constant(False)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "returns None", "value", ast.Constant(None)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_string(node: Any) -> bool:
    sides = (getattr(node, "left", None), getattr(node, "right", getattr(node, "value", None)))
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )


def _other_constants(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 1.5, value / 1.5]
    if isinstance(value, str) and value:
        return [value + "x"]
    return [value + b"x"] if isinstance(value, bytes) and value else []
