"""Grids of numbers as text, Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from types import MappingProxyType


@dataclass(frozen=True)
class Cell:
    """A number, NaN where there is none."""

    value: float
    interval: tuple[float, float] | None = None
    rank: int = 0
    """1 for the best of its column, 2 for the second, 0 for others."""
    mark: str = ""
    """Set behind the number; the grid's notes explain it."""
    signed: bool = False

    @property
    def short(self) -> str:
        """The number alone, with two decimals."""
        return "--" if self.value != self.value else f"{self.value:{'+' if self.signed else ''}.2f}"

    def __str__(self) -> str:
        return f"{self.short} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]" if self.interval else self.short


@dataclass(frozen=True)
class Grid:
    """One network's part of a table, say."""

    title: str
    """Grids with the same title are set as one table."""
    name: str
    """What this grid is about, above its columns."""
    head: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    notes: tuple[str, ...] = ()
    key: tuple[tuple[str, str | float | None], ...] = ()
    """Columns that a CSV needs in front, the same in each row."""


def text(grids: Sequence[Grid]) -> str:
    """Aligned columns for a terminal; the best of a column has a *, the second a +."""

    def cell(it: str | Cell) -> str:
        return it if isinstance(it, str) else f"{it}{it.mark}{('', '*', '+')[it.rank]}"

    lines: list[str] = []
    for title, some in _tables(grids):
        lines += [title, ""]
        for grid in some:
            table = [grid.head, *(tuple(cell(it) for it in row) for row in grid.rows)]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            words = [isinstance(it, str) for it in grid.rows[0]] if grid.rows else [True] * len(widths)
            lines.append(grid.name)
            for row in table:
                aligned = zip(row, widths, words, strict=True)
                lines.append("  ".join(f"{it:<{w}}" if left else f"{it:>{w}}" for it, w, left in aligned).rstrip())
            lines += [*(f"  {note}" for note in grid.notes), ""]
    if any(isinstance(it, Cell) and it.rank for grid in grids for row in grid.rows for it in row):
        lines.append("* best, + second best")
    return "\n".join(lines).rstrip() + "\n"


def markdown(grids: Sequence[Grid]) -> str:
    """Tables for a README; the best of a column is bold, the second underlined."""

    def cell(it: str | Cell) -> str:
        before, after = ("", "") if isinstance(it, str) else (("", ""), ("**", "**"), ("<ins>", "</ins>"))[it.rank]
        mark = "" if isinstance(it, str) else it.mark
        return _markdown(f"{before}{it}{after}{mark}") if isinstance(it, str) else f"{before}{it}{after}{mark}"

    lines: list[str] = []
    for title, some in _tables(grids):
        lines += [f"### {_markdown(title)}", ""]
        for grid in some:
            words = [isinstance(it, str) for it in grid.rows[0]] if grid.rows else [True] * len(grid.head)
            lines += [f"**{_markdown(grid.name)}**", "", _bars(map(_markdown, grid.head))]
            lines += [_bars("---" if left else "--:" for left in words)]
            lines += [_bars(map(cell, row)) for row in grid.rows]
            lines += ["", *(f"- {_markdown(note)}" for note in grid.notes), *([""] if grid.notes else [])]
    return "\n".join(lines).rstrip() + "\n"


def latex(grids: Sequence[Grid]) -> str:
    """Floats for a paper, two grids side by side where they have the same head; best bold, second underlined."""
    lines = ["% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."]
    for title, some in _tables(grids):
        lines += ["\\begin{table*}", "\\centering", f"\\caption{{{_latex(title)}}}"]
        for pair in _pairs(list(some)):
            lines += ["\\par\\medskip", "\\resizebox{\\linewidth}{!}{%" if _wide(pair) else "{%", *_tabular(pair), "}"]
            lines += ["\\par\\smallskip"]
            lines += [f"\\par{{\\footnotesize {_latex(note)}}}" for note in _notes(pair)]
        lines += ["\\end{table*}", ""]
    return "\n".join(lines).rstrip() + "\n"


def comma_separated(grids: Sequence[Grid]) -> str:
    """One table with six significant digits, its grids told apart by their keys; ranks, marks and notes are left out."""
    bounded = {
        place
        for grid in grids
        for row in grid.rows
        for place, it in enumerate(row)
        if isinstance(it, Cell) and it.interval
    }
    written = io.StringIO()
    out = csv.writer(written, lineterminator="\n")
    head = [name for name, _ in grids[0].key]
    for place, name in enumerate(grids[0].head):
        head += [
            name.rstrip(" ↓↑"),
            *((f"{name.rstrip(' ↓↑')} {end}" for end in ("low", "high")) if place in bounded else ()),
        ]
    out.writerow(head)
    for grid in grids:
        for row in grid.rows:
            line = [_digits(value) for _, value in grid.key]
            for place, it in enumerate(row):
                line.append(it if isinstance(it, str) else _digits(it.value))
                if place in bounded:
                    ends = it.interval if isinstance(it, Cell) else None
                    line += [_digits(end) for end in ends or (None, None)]
            out.writerow(line)
    return written.getvalue()


FORMATS: Mapping[str, Callable[[Sequence[Grid]], str]] = MappingProxyType(
    {"text": text, "markdown": markdown, "latex": latex, "csv": comma_separated}
)


def _tables(grids: Sequence[Grid]) -> Iterator[tuple[str, Iterator[Grid]]]:
    return groupby(grids, key=lambda grid: grid.title)


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(words: str) -> str:
    return "".join(f"\\{each}" if each in "\\`*_[]<>|#" else " " if each in "\r\n" else each for each in words)


def _pairs(grids: list[Grid]) -> Iterator[list[Grid]]:
    while grids:
        two = grids[:2]
        fit = len(two) == 2 and two[0].head == two[1].head and len(two[0].head) < 8 and not any(map(_bounded, two))
        yield two if fit else two[:1]
        del grids[: 2 if fit else 1]


def _notes(pair: Sequence[Grid]) -> Iterator[str]:
    """Notes of grids side by side, each once, behind the names of those that have it if not all do."""
    for note in dict.fromkeys(note for grid in pair for note in grid.notes):
        mine = [grid.name.partition(" (")[0] for grid in pair if note in grid.notes]
        yield note if len(mine) == len(pair) else f"{', '.join(mine)}: {note}"


def _bounded(grid: Grid) -> bool:
    return any(isinstance(it, Cell) and it.interval for row in grid.rows for it in row)


def _wide(pair: Sequence[Grid]) -> bool:
    return len(pair) > 1 or _bounded(pair[0]) or len(pair[0].head) > 8


def _tabular(pair: Sequence[Grid]) -> Iterator[str]:
    """Grids that share their first column; a row that one of them lacks is blank there."""
    columns = len(pair[0].head) - 1
    words = [isinstance(it, str) for it in pair[0].rows[0][1:]] if pair[0].rows else [True] * columns
    yield f"\\begin{{tabular}}{{l{' '.join([''] + [''.join('l' if left else 'r' for left in words)] * len(pair))}}}"
    yield "\\toprule"
    yield " & ".join(["", *(f"\\multicolumn{{{columns}}}{{c}}{{{_latex(grid.name)}}}" for grid in pair)]) + " \\\\"
    yield "".join(f"\\cmidrule(lr){{{2 + columns * i}-{1 + columns * (i + 1)}}}" for i in range(len(pair)))
    yield " & ".join(map(_latex, chain(pair[0].head[:1], *(grid.head[1:] for grid in pair)))) + " \\\\"
    yield "\\midrule"
    rows = [{str(row[0]): row[1:] for row in grid.rows} for grid in pair] if len(pair) > 1 else []
    for label in _merged([list(each) for each in rows]):
        cells = chain.from_iterable(each.get(label, ("",) * columns) for each in rows)
        yield " & ".join([_latex(label), *map(_latex_cell, cells)]) + " \\\\"
    for row in pair[0].rows if not rows else ():
        yield " & ".join(map(_latex_cell, row)) + " \\\\"
    yield "\\bottomrule"
    yield "\\end{tabular}"


def _merged(lists: Sequence[Sequence[str]]) -> list[str]:
    """The labels of all lists, each once, in the order of the first; what only a later one has follows its predecessor."""
    merged: list[str] = []
    for labels in lists:
        place = 0
        for label in labels:
            if label not in merged:
                merged.insert(place, label)
            place = merged.index(label) + 1
    return merged


def _latex_cell(it: str | Cell) -> str:
    if isinstance(it, str):
        return _latex(it)
    ranked = (it.short, f"\\textbf{{{it.short}}}", f"\\underline{{{it.short}}}")[it.rank] + _latex(it.mark)
    return ranked + (f" {{\\scriptsize [{it.interval[0]:.2f}, {it.interval[1]:.2f}]}}" if it.interval else "")


_ESCAPES = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "†": "\\dag{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "|": "\\textbar{}", "↓": "$\\downarrow$", "↑": "$\\uparrow$", "\n": " ", "\r": " ", '"': "''",
}  # fmt: skip


def _latex(words: str) -> str:
    """Words of which LaTeX takes nothing for a command; what its plain fonts lack becomes a question mark."""
    return "".join(
        _ESCAPES.get(each, each if " " <= each <= "~" or "\xa1" <= each <= "\xff" else "?") for each in words
    )


def _digits(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or value != value else f"{value:.6g}"
