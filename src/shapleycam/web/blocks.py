"""The page as gradio's blocks: the picture, its classes, the tabs, the settings, and which event calls what."""

from pathlib import Path
from typing import Any

from ..network.zoo import Model
from ..theory.cams import METHODS
from ..theory.utility import UTILITIES
from . import drawings
from .board import board, play_tab
from .comparison import compare_tab
from .look import Look
from .page import CLOSED, Page, facts, said

HERE = Path(__file__).parent
EXAMPLES = {name: HERE.parent / "data" / f"{name}.jpg" for name in ("cat", "coffee")}
HEAD = """# shapleycam
What did the network look at, and can the answer be believed? Open a picture: **Explain** shows what spoke for a class,
**Compare** sets methods side by side, and under **Play** you take parts away and see what the network cannot do without."""


def build(page: Page) -> Any:
    """The page as gradio's blocks, not served yet."""
    import gradio as gr

    models = page.models
    first = next(iter(models))

    def shown(session: str, method: str, utility: str, opacity: float, colours: str) -> list[Any]:
        """All that follows from what a user looks at; nothing, where he has gone on before it is there."""
        seen = page.of(session)
        seen.turns += 1
        turn, seen.utility = seen.turns, utility
        found = [*page.shown(session, method, seen.target, utility, opacity, colours), board(seen, session)]
        return found if page.looks.get(session) is seen and seen.turns == turn else [gr.skip()] * len(found)

    def open_(request: gr.Request, picture: Any, model: str, layer: str | None, *drawn: Any) -> list[Any]:
        if not picture:
            raise said(CLOSED)
        session = str(request.session_hash)
        seen = page.open(picture, model, layer, session)
        if page.looks.get(session) is not seen:  # another was opened meanwhile
            return [gr.skip()] * 7
        return [_lit(gr, seen), None, None, *shown(session, *drawn)]

    def example(name: str) -> Any:
        def opened(request: gr.Request, *given: Any) -> list[Any]:
            return open_(request, EXAMPLES[name], *given)

        return opened

    def again(request: gr.Request, *given: Any) -> list[Any]:
        seen = page.looks.get(str(request.session_hash))
        return [gr.skip()] * 7 if seen is None else open_(request, seen.picture, *given)

    def remodel(request: gr.Request, model: str, *drawn: Any) -> list[Any]:
        known, classes = _layers(models[model]), gr.update(choices=_classes(models[model]), value=None)
        lit, _, _, *looks = again(request, model, known[0][1], *drawn)
        return [gr.update(choices=known, value=known[0][1]), lit, classes, classes, *looks]

    # What a browser says of the class may be of the picture before: what is looked at is known here.
    def choose(request: gr.Request, target: int | None, *drawn: Any) -> list[Any]:
        session = str(request.session_hash)
        seen = page.of(session)
        seen.target = target if target in seen.offered else seen.target
        return shown(session, *drawn)

    def search(request: gr.Request, searched: int | None, *drawn: Any) -> list[Any]:
        if searched is None:
            return [gr.skip()] * 6
        session = str(request.session_hash)
        seen = page.of(session)
        seen.target = searched
        seen.offered += [] if searched in seen.offered else [searched]
        return [_lit(gr, seen), None, *shown(session, *drawn)]

    def least(request: gr.Request, *drawn: Any) -> list[Any]:
        seen = page.of(str(request.session_hash))
        return search(request, int(seen.probabilities.argmin()), *drawn)

    def show(request: gr.Request, *drawn: Any) -> list[Any]:
        session = str(request.session_hash)
        return [gr.skip()] * 4 if page.looks.get(session) is None else shown(session, *drawn)

    def download(method: str, utility: str, opacity: float, colours: str, request: gr.Request) -> Any:
        session = str(request.session_hash)
        made = page.downloads(session, method, page.of(session).target, utility, opacity, colours)
        return [gr.update(value=each, visible=True) for each in made]

    def leave(request: gr.Request) -> None:
        page.leave(str(request.session_hash))

    def explained(picture: str, method: str, utility: str, model: str) -> dict[str, Any]:
        if method not in METHODS or utility not in UTILITIES or model not in models or not picture:
            raise said(
                f"expected a picture, a method of {', '.join(METHODS)}, a utility of {', '.join(UTILITIES)}, and a model of "
                f"{', '.join(models)}"
            )
        seen = page.read(picture, model)
        out = seen.explain([method], None, utility)
        maps = {"explanation": out.explanations[method][0], "heatmap": out.heatmaps[method][0]}
        return facts(seen, out) | {name: each.double().tolist() for name, each in maps.items()}

    with gr.Blocks(title="shapleycam", analytics_enabled=False, delete_cache=(60, 600)) as demo:
        gr.Markdown(HEAD, elem_id="head")
        # On a narrow window these three come one below the other; page.css sets the tabs beside the others on a wide one.
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="picture"):
                upload = gr.File(label="A picture: drop it, click, or paste", elem_id="upload", height=110)
                with gr.Row(elem_id="examples"):
                    buttons = {name: gr.Button(f"example: {name}", size="sm", elem_id=f"example-{name}")
                               for name in EXAMPLES}  # fmt: skip
                target = gr.Radio([], label="Which class is to be explained?", visible=False, elem_id="target")
            with gr.Column(elem_id="tabs"), gr.Tabs():
                with gr.Tab("Explain", id="explain"):
                    method = gr.Dropdown([*METHODS], value="ShapleyCAM", label="Method", elem_id="method")
                    with gr.Row():
                        heat, signed = (
                            drawings.frame(gr, *each) for each in (("Heatmap", "heat"), ("Signed map", "signed"))
                        )
                    words = gr.Markdown(CLOSED, elem_id="words")
                    save = gr.Button("Make files to download", size="sm", elem_id="save")
                    with gr.Row():
                        files = [gr.File(label=kind, interactive=False, height=80, visible=False)
                                 for kind in ("PNG", "NPZ", "JSON")]  # fmt: skip
                beside, playing = (gr.Tab(name, id=name.lower()) for name in ("Compare", "Play"))
            with gr.Column(elem_id="settings"):
                searched = gr.Dropdown(
                    _classes(models[first]), value=None, label="Any other class: type to search", elem_id="search"
                )
                unlikely = gr.Button("the least likely class", size="sm", elem_id="least")
                utility = gr.Dropdown([*UTILITIES], value="rest", label="Utility", elem_id="utility")
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="opacity")
                colours = gr.Dropdown([*drawings.COLOURS], value="inferno", label="Colours", elem_id="colours")
                layer = gr.Dropdown(_layers(models[first]), label="Target layer", elem_id="layer")
                model = gr.Dropdown([*models], value=first, label="Model", visible=len(models) > 1, elem_id="model")
        with beside:
            other, sheets = compare_tab(page, _classes(models[first]), utility, [opacity, colours])
        with playing:
            field, values = play_tab(page, utility)
        with gr.Row(visible=False):
            picture, ask, answer = gr.File(), gr.Button(), gr.JSON()
            asked = [gr.Textbox("ShapleyCAM"), gr.Textbox("rest"), gr.Textbox(first)]
        ask.click(explained, [picture, *asked], answer, api_name="explain")

        drawn, looks = [method, utility, opacity, colours], [heat, signed, words, field]
        fresh = [target, searched, other, *looks]
        quiet = {"show_progress": "minimal", "api_visibility": "private"}
        opening, raw = quiet | {"show_progress_on": upload}, quiet | {"show_progress_on": heat, "preprocess": False}
        opened = upload.upload(open_, [upload, model, layer, *drawn], fresh, **opening)
        opened.success(None, None, upload, js="() => null", **quiet)  # the next picture is dropped or pasted there
        for name, button in buttons.items():
            button.click(example(name), [model, layer, *drawn], fresh, **opening)
        layer.input(again, [model, layer, *drawn], fresh, **opening)
        model.input(remodel, [model, *drawn], [layer, *fresh], **opening)
        target.input(choose, [target, *drawn], looks, trigger_mode="always_last", **raw)
        searched.input(search, [searched, *drawn], [target, searched, *looks], **raw)
        unlikely.click(least, drawn, [target, searched, *looks], **raw)
        gr.on([each.input for each in drawn], show, drawn, looks, trigger_mode="always_last", **raw)
        save.click(download, drawn, files, api_visibility="private")

        # What was worked out for another picture or class goes at once, in the browser.
        other_game = [upload.upload, *(each.click for each in (*buttons.values(), unlikely)),
                      *(each.input for each in (layer, model, target, searched, utility))]  # fmt: skip
        other_files = [*other_game, *(each.input for each in (method, opacity, colours))]
        for events, stale in ((other_game, sheets | values), (other_files, dict.fromkeys(files, drawings.HIDDEN))):
            gr.on(events, None, None, [*stale], js=f"() => [{', '.join(stale.values())}]", api_visibility="private")
        demo.unload(leave)
        demo.load(None, None, None, js=(HERE / "page.js").read_text(encoding="utf-8"))
    demo.queue(max_size=64, default_concurrency_limit=2)
    return demo


def _lit(gr: Any, seen: Look) -> Any:
    offered = [(f"{name} {p:.1%}", i) for i, name, p in seen.named(seen.offered)]
    return gr.update(choices=offered, value=seen.target, visible=True)


def _classes(model: Model) -> list[tuple[str, int]]:
    return [(f"{name} ({i})", i) for i, name in enumerate(model.class_names)]


def _layers(model: Model) -> list[tuple[str, str]]:
    return [(name, name) for name in model.layers] or [("found by itself", "")]
