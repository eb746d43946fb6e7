"""The Compare tab: all methods of a set in a sheet, a second class beside the first, and what each method scores."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ..measurement import Measurements
from ..render import blend, sheet
from ..theory.cams import SETS
from . import drawings
from .look import Look
from .page import Page

METRICS = {
    "ADCC": ("adcc", -1),
    "AD": ("average_drop", 1),
    "Coh": ("coherency", -1),
    "Com": ("complexity", 1),
    "IC": ("increase_in_confidence", -1),
    "ADD": ("average_drop_in_deletion", -1),
}
"""The paper's six, of `Measurements`: the sign brings the best first."""


def compared(
    seen: Look, which: str, targets: Sequence[int], utility: str, sort: str, opacity: float, colours: str
) -> list[Image.Image]:
    """A sheet for each class with all methods of a set, sorted as the first class is, and by a metric where that was measured."""
    return [_sheet(seen, _order(seen, which, targets[0], utility, sort), target, utility, sort, opacity, colours,
                   columns=2 if len(targets) > 1 else 4) for target in targets]  # fmt: skip


def _order(seen: Look, which: str, target: int, utility: str, sort: str) -> list[str]:
    rows = seen.measured.get((target, utility), {})
    if sort not in METRICS or any(name not in rows for name in SETS[which]):
        return [*SETS[which]]
    place, sign = [*METRICS].index(sort), METRICS[sort][1]
    return sorted(SETS[which], key=lambda name: sign * rows[name][place])


def _sheet(
    seen: Look, order: Sequence[str], target: int, utility: str, sort: str, opacity: float, colours: str, columns: int
) -> Image.Image:
    out, rows = seen.explain(order, target, utility), seen.measured.get((target, utility), {})

    def caption(name: str) -> str:
        blank = " (blank)" if not out.heatmaps[name].any() else ""
        score = f" {rows[name][[*METRICS].index(sort)]}" if sort in METRICS and name in rows else ""
        return name + score + blank

    tiles = [(caption(name), blend(seen.view, out.heatmaps[name][0], opacity, colours)) for name in order]
    return sheet([("picture", seen.view), *tiles], f"{seen.model.class_names[target]}, {out.layer.name}", columns)


def measured(
    seen: Look, which: str, target: int, utility: str, sort: str, progress: Callable[[int, int, str], object]
) -> list[list[str | float]]:
    """A row of metrics for each method, in percent, sorted; measured once for a class and utility. Told of each method."""
    rows = seen.measured.setdefault((target, utility), {})
    missing = [name for name in SETS[which] if name not in rows]
    for place, name in enumerate(missing):
        progress(place, len(missing), name)
        found: Measurements = seen.measure([name], target, utility)
        scores = (getattr(found, metric).flatten()[0] for metric, _ in METRICS.values())
        rows[name] = [round(100 * float(score), 2) for score in scores]
    return [[name, *rows[name]] for name in _order(seen, which, target, utility, sort)]


def compare_tab(
    page: Page, classes: Sequence[tuple[str, int]], utility: Any, drawn: Sequence[Any]
) -> tuple[Any, dict[Any, str]]:
    """The tab's blocks: the second class; and what another picture or class makes stale, with what empties it in JavaScript."""
    import gradio as gr

    def compare(
        which: str, other: int | None, sort: str, utility: str, opacity: float, colours: str, request: gr.Request
    ) -> list[Any]:
        seen = page.of(str(request.session_hash))
        targets = [seen.target, *([] if other is None else [other])]
        found = compared(seen, which, targets, utility, sort, opacity, colours)
        return [gr.update(value=each, visible=each is not None) for each in (found[0], found[1] if found[1:] else None)]

    def measure(
        which: str, other: int | None, sort: str, utility: str, opacity: float, colours: str, request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        session = str(request.session_hash)
        seen = page.of(session)
        target, seen.utility = seen.target, utility

        def told(done: int, all_: int, name: str) -> None:
            page.stay(session, seen, target, utility)
            progress((done, all_), desc=name)

        rows = measured(seen, which, target, utility, sort, told)
        page.stay(session, seen, target, utility)
        return [rows, *compare(which, other, sort, utility, opacity, colours, request)]

    def least(request: gr.Request) -> int:
        seen = page.of(str(request.session_hash))
        return seen.opposite(seen.target)

    with gr.Row():
        which = gr.Dropdown([*SETS], value="paper", label="Methods", elem_id="which")
        other = gr.Dropdown([*classes], value=None, label="A second class beside it", elem_id="other")
        sorts = [
            (f"{name}: {metric.replace('_', ' ')}", name) for name, (metric, _) in METRICS.items() if name != "ADCC"
        ]
        sort = gr.Dropdown(["method", "ADCC", *sorts], value="ADCC", label="Sort by (measured first)", elem_id="sort")
    with gr.Row():
        beside = gr.Button("Compare", variant="primary", elem_id="compare-button")
        unlikely = gr.Button("... with the least likely class", elem_id="compare-least")
        score = gr.Button("Measure each method", elem_id="measure-button")
    heads = ["method", *(f"{name} {'↓' if sign > 0 else '↑'}" for name, (_, sign) in METRICS.items())]
    table = gr.Dataframe(
        headers=heads, label="In percent, of this picture alone; ↓ less is better, ↑ more is", interactive=False,
        wrap=True, elem_id="metrics",
    )  # fmt: skip
    with gr.Row():
        sheets = [
            drawings.frame(gr, "All methods", "sheet", visible=False),
            drawings.frame(gr, "All methods for the second class", "second", visible=False),
        ]
    given = [which, other, sort, utility, *drawn]
    private = {"api_visibility": "private"}
    beside.click(compare, given, sheets, show_progress_on=beside, **private)
    unlikely.click(least, None, other, **private).success(compare, given, sheets, show_progress_on=beside, **private)
    gr.on([score.click, sort.input], measure, given, [table, *sheets], show_progress_on=table, **private)
    return other, dict.fromkeys(sheets, drawings.HIDDEN) | {table: json.dumps({"headers": heads, "data": []})}
