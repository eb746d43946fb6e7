"""The page as gradio's blocks: three tabs, and which event calls what."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ..network.zoo import Model
from ..theory.cams import METHODS, SETS
from ..theory.utility import UTILITIES
from . import drawings
from .look import Look
from .page import CLOSED, SORTS, Page, facts, predicted, said

HERE = Path(__file__).parent
EXAMPLES = {name: HERE.parent / "data" / f"{name}.jpg" for name in ("cat", "coffee")}
SIZE = 448
"""Pixels of the board's picture."""


def build(page: Page) -> Any:
    """The page as gradio's blocks, not served yet."""
    import gradio as gr

    models = page.models
    first = next(iter(models))
    playing: dict[str, tuple[int, str]] = {}
    """The class and the utility of each user's board."""

    def open_(picture: Any, model: str, layer: str | None, request: gr.Request) -> Any:
        if not picture:
            raise said(CLOSED)
        seen = page.open(picture, model, layer, str(request.session_hash))
        likeliest = [(f"{name} {p:.1%}", i) for i, name, p in seen.likeliest()]
        classes = [(f"{name} ({i})", i) for i, name in enumerate(seen.model.class_names)]
        return (
            gr.update(choices=likeliest, value=likeliest[0][1]),
            gr.update(choices=classes, value=None),
            gr.update(choices=[*likeliest, *classes], value=None),
        )

    def example(name: str) -> Any:
        def opened(model: str, layer: str | None, request: gr.Request) -> Any:
            return open_(EXAMPLES[name], model, layer, request)

        return opened

    def again(model: str, layer: str | None, request: gr.Request) -> Any:
        return open_(page.of(str(request.session_hash)).picture, model, layer, request)

    def layers(model: str) -> Any:
        known = _layers(page.models[model])
        return gr.update(choices=known, value=known[0][1])

    def show(
        method: str, target: int, searched: int | None, utility: str, opacity: float, colours: str, request: gr.Request
    ) -> Any:
        return page.shown(str(request.session_hash), method, _either(searched, target), utility, opacity, colours)

    def download(
        method: str, target: int, searched: int | None, utility: str, opacity: float, colours: str, request: gr.Request
    ) -> Any:
        made = page.downloads(str(request.session_hash), method, _either(searched, target), utility, opacity, colours)
        return [gr.update(value=each, visible=True) for each in made]

    def compare(
        which: str, target: int, searched: int | None, other: int | None, utility: str, sort: str, opacity: float,
        colours: str, request: gr.Request,
    ) -> Image.Image:  # fmt: skip
        wanted = [_either(searched, target), *([] if other is None else [other])]
        return page.compared(str(request.session_hash), which, wanted, utility, sort, opacity, colours)

    def measure(
        which: str, target: int, searched: int | None, utility: str, sort: str, request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:  # fmt: skip
        return page.measured(str(request.session_hash), which, _either(searched, target), utility, sort, progress)

    def values(
        target: int, searched: int | None, utility: str, request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:  # fmt: skip
        return page.valued(str(request.session_hash), _either(searched, target), utility, progress)

    def board(target: int, searched: int | None, utility: str, request: gr.Request) -> str:
        session = str(request.session_hash)
        seen = page.of(session)
        playing[session] = predicted(seen, _either(searched, target)), utility
        return _board(seen, playing[session][0], session)

    def without(asked: dict[str, Any]) -> dict[str, Any]:
        session = str(asked["session"])
        page.of(session)
        return page.without(session, [int(each) for each in asked["gone"]], *playing[session])

    def needs(asked: dict[str, Any]) -> list[float]:
        session = str(asked["session"])
        return [float(each) for each in page.of(session).needs(int(asked["player"]), *playing[session]).flatten()]

    def order(asked: dict[str, Any]) -> list[int]:
        session = str(asked["session"])
        found = page.of(session).values(*playing[session]).values
        return [int(each) for each in found.argsort(descending=bool(asked["best"]))]

    def leave(request: gr.Request) -> None:
        page.leave(str(request.session_hash))
        playing.pop(str(request.session_hash), None)

    def explained(picture: str, method: str, utility: str, model: str, request: gr.Request) -> dict[str, Any]:
        if method not in METHODS or utility not in UTILITIES or model not in page.models or not picture:
            raise said(
                f"expected a picture, a method of {', '.join(METHODS)}, a utility of {', '.join(UTILITIES)}, and a model of "
                f"{', '.join(page.models)}"
            )
        session = f"api-{request.session_hash}"
        seen = page.open(picture, model, None, session)
        try:
            out = seen.explain([method], None, utility)
        finally:
            page.leave(session)
        maps = {"explanation": out.explanations[method][0], "heatmap": out.heatmaps[method][0]}
        return facts(seen, out) | {name: each.double().tolist() for name, each in maps.items()}

    with gr.Blocks(title="shapleycam", analytics_enabled=False, delete_cache=(60, 600)) as demo:
        gr.Markdown("# shapleycam\nWhat did the network look at, and can the answer be believed?")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(label="A picture: drop it, click, or paste", elem_id="upload", height=170)
                with gr.Row():
                    buttons = {
                        name: gr.Button(f"example: {name}", size="sm", elem_id=f"example-{name}") for name in EXAMPLES
                    }
                model = gr.Dropdown([*models], value=first, label="Model", visible=len(models) > 1, elem_id="model")
                layer = gr.Dropdown(_layers(models[first]), label="Target layer", elem_id="layer")
                target = gr.Radio([], label="The likeliest classes: which is to be explained?", elem_id="target")
                searched = gr.Dropdown([], value=None, label="... or any other class: type to search", elem_id="search")
                utility = gr.Dropdown([*UTILITIES], value="rest", label="Utility", elem_id="utility")
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="opacity")
                colours = gr.Dropdown([*drawings.COLOURS], value="inferno", label="Colours", elem_id="colours")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Explain", id="explain"):
                    method = gr.Dropdown([*METHODS], value="ShapleyCAM", label="Method", elem_id="method")
                    with gr.Row():
                        heat, signed = (
                            _image(gr, label, name) for label, name in (("Heatmap", "heat"), ("Signed map", "signed"))
                        )
                    words = gr.Markdown(CLOSED, elem_id="words")
                    save = gr.Button("Make files to download", size="sm", elem_id="save")
                    with gr.Row():
                        files = [
                            gr.File(label=kind, interactive=False, height=80, visible=False)
                            for kind in ("PNG", "NPZ", "JSON")
                        ]
                with gr.Tab("Compare", id="compare"):
                    with gr.Row():
                        which = gr.Dropdown([*SETS], value="paper", label="Methods", elem_id="which")
                        other = gr.Dropdown([], value=None, label="A second class beside it", elem_id="other")
                        sort = gr.Dropdown([*SORTS], value="ADCC", label="Sort by (measured first)", elem_id="sort")
                    with gr.Row():
                        beside = gr.Button("Compare", variant="primary", elem_id="compare-button")
                        score = gr.Button("Measure: 1 + 2 passes a method", elem_id="measure-button")
                    sheet = _image(gr, "All methods", "sheet")
                    heads = ["method", *(f"{name} in %" for name in (*SORTS,)[1:])]
                    table = gr.Dataframe(headers=heads, interactive=False, elem_id="metrics")
                with gr.Tab("Play", id="play"):
                    field = gr.HTML(
                        value="", html_template=_read("board.html"), css_template=_read("board.css"),
                        js_on_load=_read("board.js"), server_functions=[without, needs, order], elem_id="board",
                    )  # fmt: skip
                    worths = gr.Button("Work out the true Shapley values", variant="primary", elem_id="values-button")
                    told = gr.Markdown("", elem_id="told")
                    with gr.Row():
                        truth = _image(gr, "Shapley values", "truth")
                        bent = _image(gr, "Utility while players leave", "curves")
        with gr.Row(visible=False):
            picture, ask, answer = gr.File(), gr.Button(), gr.JSON()
            asked = [gr.Textbox("ShapleyCAM"), gr.Textbox("rest"), gr.Textbox(first)]
        ask.click(explained, [picture, *asked], answer, api_name="explain")

        what, who = [method, target, searched, utility, opacity, colours], [target, searched, utility]
        fresh = [target, searched, other]
        opening = [
            upload.upload(open_, [upload, model, layer], fresh, api_visibility="private"),
            *(b.click(example(n), [model, layer], fresh, api_visibility="private") for n, b in buttons.items()),
            layer.input(again, [model, layer], fresh, api_visibility="private"),
            model.input(layers, model, layer, api_visibility="private").success(
                again, [model, layer], fresh, api_visibility="private"
            ),
        ]
        quiet = {"show_progress": "minimal", "api_visibility": "private"}
        stale = [truth, bent, told, sheet, table, *files]

        def forget() -> list[Any]:
            return [None, None, "", None, None, *[gr.update(value=None, visible=False)] * 3]

        changed = [each.input(lambda: None, None, None, **quiet) for each in (searched, utility)]
        changed.append(target.input(lambda: None, None, searched, **quiet))
        for event in (*opening, *changed):
            event.success(forget, None, stale, **quiet)
            event.success(show, what, [heat, signed, words], **quiet).success(board, who, field, **quiet)
        for each in (method, opacity, colours):
            each.input(show, what, [heat, signed, words], trigger_mode="always_last", **quiet)
            each.input(lambda: [gr.update(value=None, visible=False)] * 3, None, files, **quiet)
        save.click(download, what, files, api_visibility="private")
        comparing = [which, target, searched, other, utility, sort, opacity, colours]
        beside.click(compare, comparing, sheet, api_visibility="private")
        for event in (
            score.click(measure, [which, *who, sort], table, api_visibility="private"),
            sort.input(measure, [which, *who, sort], table, api_visibility="private"),
        ):
            event.success(compare, comparing, sheet, **quiet)
        worths.click(values, who, [truth, bent, told], api_visibility="private")
        demo.unload(leave)
        demo.load(None, None, None, js=_read("paste.js"))
    demo.queue(max_size=64, default_concurrency_limit=2)
    return demo


def _either(searched: int | None, target: int | None) -> int | None:
    return target if searched is None else searched


def _board(seen: Look, target: int, session: str) -> str:
    h, w = seen.positions
    view = drawings.as_url(seen.view.resize((SIZE, SIZE)))
    return json.dumps({"view": view, "h": h, "w": w, "session": session, "name": seen.model.class_names[target]})


def _layers(model: Model) -> list[tuple[str, str]]:
    return [(name, name) for name in model.layers] or [("found by itself", "")]


def _image(gr: Any, label: str, name: str) -> Any:
    return gr.Image(
        label=label, show_label=False, interactive=False, format="png", elem_id=name, buttons=["fullscreen"]
    )


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
