"""Where each equation of the paper lives: `python -m benchmarks.equations` writes docs/equations.md from the docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from shapleycam.theory.cams import METHODS

ROOT = Path(__file__).parents[1]
THEORY = ROOT / "src" / "shapleycam" / "theory"
PAGE = ROOT / "docs" / "equations.md"
EQUATION = re.compile(r"Eqs?\. \((\d+)\)(?! of [A-Z])")
"""A number of the paper; those of other papers are followed by their authors."""


def marks() -> Iterator[tuple[int, str, str]]:
    """Equation, name, and the first sentence of its docstring, for each function and method of floor 0 that is one."""
    for path in sorted(THEORY.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.FunctionDef)
                and (said := ast.get_docstring(node))
                and not node.name.startswith("_")
            ):
                line = said.splitlines()[0]
                for number in EQUATION.findall(line):
                    yield int(number), f"theory/{path.name}: `{node.name}`", line
    for method in METHODS.values():
        for number in EQUATION.findall(method.equation):
            if "source" not in method.equation:
                yield int(number), f"theory/cams.py: `METHODS[{method.name!r}]`", method.equation


def page() -> str:
    """The page as it is to be."""
    rows = "\n".join(f"| ({number}) | {where} | {line} |" for number, where, line in sorted(marks()))
    return f"""# The paper's equations, and where each lives

Cai 2025, [arXiv:2501.06261](https://arxiv.org/abs/2501.06261); numbers are the paper's. Made from the docstrings by
`python -m benchmarks.equations`; what the paper leaves open is in [decisions.md](decisions.md).

| equation | where | what it says there |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
