"""How long a program is: its lines of code, without blank lines, comments and docstrings."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TREE: Final = Path(__file__).resolve().parents[2]
_SILENT: Final = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


def of_file(path: Path) -> int:
    """Of one program, and of the functions that it takes over from an example."""
    text = path.read_text()
    return len(_lines(text)) + sum(_of_function(*taken) for taken in _taken_over(ast.parse(text)))


def _taken_over(tree: ast.Module) -> Iterator[tuple[Path, str]]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("examples."):
            path = TREE.joinpath(*str(node.module).split(".")).with_suffix(".py")
            yield from ((path, alias.name) for alias in node.names)


def _of_function(path: Path, name: str) -> int:
    """0 for a name that is none: a constant."""
    text = path.read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return len([line for line in _lines(text) if first <= line <= (node.end_lineno or first)])
    return 0


def _lines(text: str) -> set[int]:
    """The numbers of the lines that hold code."""
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _SILENT
        for line in range(token.start[0], token.end[0] + 1)
    }
    return code - _docstrings(ast.parse(text))


def _docstrings(tree: ast.Module) -> set[int]:
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            text = node.body[0]
            found.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return found
