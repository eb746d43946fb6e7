"""The Play tab: the board on which players leave, the true Shapley values, and what each method's order costs."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ..theory.cams import SETS
from . import drawings
from .look import Look
from .page import Page


def board(seen: Look, session: str) -> str:
    """What the board in the browser is told, and tells again with each of its questions."""
    h, w = seen.positions
    whole = {
        "full": float(seen.game(seen.target, seen.utility).full),
        "probability": float(seen.probabilities[seen.target]),
    }
    told = {"session": session, "look": seen.number, "target": seen.target, "utility": seen.utility, "best": seen.best}
    view = drawings.as_url(drawings.enlarged(seen.view))
    return json.dumps({"view": view, "h": h, "w": w, "name": seen.model.class_names[seen.target], **whole, **told})


def valued(page: Page, session: str, utility: str, progress: Any) -> tuple[Image.Image, Image.Image, str, str]:
    """The Shapley values, the curves of the utility in each method's order, the values' errors in words, and the board."""
    seen = page.of(session)
    target, seen.utility = seen.target, utility

    def told(done: int, all_: int) -> None:
        page.stay(session, seen, target, utility)
        progress((done, all_))

    found = seen.values(target, utility, told)
    values = seen.game(target, utility).spread(found.values)
    picture = drawings.signed(seen.view, values, utility, f"Shapley values for {seen.model.class_names[target]}")
    out = seen.explain(SETS["paper"], target, utility)
    orders = {"Shapley values": found.values, **{m: e[0].flatten() for m, e in out.explanations.items()}}
    curves = {m: seen.curve(each.argsort(descending=True).tolist(), target, utility) for m, each in orders.items()}
    best = int(found.values.argmax())
    h, w = seen.positions
    errors = "exact" if found.noise == 0 else f"standard errors up to {float(found.errors.max()):.3g}"
    words = (
        f"The network can least do without **row {best // w + 1}, column {best % w + 1}** of {h} x {w}: it is framed above. "
        f"{found.evaluations} coalitions played, {errors}. The values add up to {float(found.values.sum()):.4f}, the utility "
        "of all less that of none."
    )
    page.stay(session, seen, target, utility)
    return picture, drawings.curves(curves, utility), words, board(seen, session)


def play_tab(page: Page, utility: Any) -> tuple[Any, dict[Any, str]]:
    """The tab's blocks: the board; and what another picture or class makes stale, with what empties it in JavaScript."""
    import gradio as gr

    def asked(question: dict[str, Any]) -> tuple[Look, int, str] | None:
        seen = page.looks.get(str(question["session"]))
        if seen is None or seen.number != question["look"]:
            return None
        return seen, int(question["target"]), str(question["utility"])

    # Each gives None where the picture is no longer open: an error would end in the terminal.
    def without(question: dict[str, Any]) -> dict[str, Any] | None:
        if (found := asked(question)) is None:
            return None
        seen, target, utility = found
        worth, sure, top, best = seen.without([int(each) for each in question["gone"]], target, utility)
        return {"utility": worth, "probability": sure, "top": seen.model.class_names[top], "sure": best}

    def needs(question: dict[str, Any]) -> list[float] | None:
        if (found := asked(question)) is None:
            return None
        seen, target, utility = found
        return [float(each) for each in seen.needs(int(question["player"]), target, utility).flatten()]

    def order(question: dict[str, Any]) -> list[int] | None:
        if (found := asked(question)) is None:
            return None
        seen, target, utility = found
        return [int(each) for each in seen.values(target, utility).values.argsort(descending=bool(question["best"]))]

    def values(
        utility: str, request: gr.Request, progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:  # fmt: skip
        *drawn, words, told = valued(page, str(request.session_hash), utility, progress)
        return [*(gr.update(value=each, visible=True) for each in drawn), words, told]

    field = gr.HTML(
        value="", html_template=_read("html"), css_template=_read("css"), js_on_load=_read("js"),
        server_functions=[without, needs, order], elem_id="board",
    )  # fmt: skip
    worths = gr.Button("Work out the true Shapley values", variant="primary", elem_id="values-button")
    told = gr.Markdown("", elem_id="told")
    with gr.Row():
        truth = drawings.frame(gr, "Shapley values", "truth", visible=False)
        curves = drawings.frame(gr, "Utility while players leave", "curves", visible=False)
    worths.click(values, [utility], [truth, curves, told, field], show_progress_on=told, api_visibility="private")
    return field, {truth: drawings.HIDDEN, curves: drawings.HIDDEN, told: "''"}


def _read(kind: str) -> str:
    return Path(__file__).with_suffix(f".{kind}").read_text(encoding="utf-8")
