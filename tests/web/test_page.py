"""The page in a real browser: what a visitor clicks, what he reads, and that it is what the library says."""

import json
import shutil
import socket
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shapleycam as sc
from shapleycam.web import drawings
from shapleycam.web.look import Look

pytest.importorskip("gradio", reason="the page is in the extra web")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine (Debian: apt install chromium)", allow_module_level=True)

pytestmark = [pytest.mark.large, pytest.mark.filterwarnings("ignore")]  # what gradio's own libraries warn of
DATA = Path(sc.__file__).parent / "data"
CAT = DATA / "cat.jpg"


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def model() -> sc.Model:
    torch.set_num_threads(1)
    return sc.load_model("efficientnet_lite0")


@pytest.fixture(scope="module")
def served(model: sc.Model) -> Iterator[Any]:
    page = sc.serve(model, port=free_port(), max_upload="2mb", wait=False)
    yield page
    folder = page.page.folder
    page.close()
    assert not folder.exists()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    try:
        driver = playwright.sync_playwright().start()
    except playwright.Error:  # seen once ("Argument list too long", of 2 KB), and it would fail every test here
        sleep(5)
        driver = playwright.sync_playwright().start()
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()
    driver.stop()


class Visitor:
    """A browser window of its own, whose requests and complaints are kept."""

    def __init__(self, chromium: Any, url: str, width: int = 1280) -> None:
        self.window = chromium.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.page, self.requests, self.errors = self.window.new_page(), [], []
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#example-cat")

    def wait(self, script: str) -> Any:
        """What the script gives, as soon as that is true; what is away while the page redraws is not yet."""
        return self.page.wait_for_function(
            f"() => {{ try {{ return {script}; }} catch (e) {{ if (e instanceof TypeError) return false; throw e; }} }}"
        ).json_value()

    def words(self) -> str:
        return str(self.page.inner_text("#words"))

    def open(self, path: Path) -> None:
        self.page.set_input_files("#upload input[type=file]", str(path))

    def choose(self, dropdown: str, value: str) -> None:
        self.page.click(f"#{dropdown} input")
        self.page.get_by_role("option", name=value, exact=True).click()

    def search(self, dropdown: str, text: str) -> None:
        self.page.click(f"#{dropdown} input")
        self.page.keyboard.type(text, delay=20)
        self.page.get_by_role("option").filter(has_text=text).first.click()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def said(self, name: str) -> str:
        return str(self.page.inner_text(f"#board .said [data-name={name}]"))

    def toast(self) -> str:
        self.page.wait_for_selector(".toast-body")
        return str(self.page.inner_text(".toast-body"))


@pytest.fixture
def visitor(chromium: Any, served: Any) -> Iterator[Visitor]:
    each = Visitor(chromium, served.url)
    yield each
    outside = [url for url in each.requests if not url.startswith((served.url, "data:", "blob:"))]
    each.window.close()
    assert outside == []


def at_the_cat(visitor: Visitor, model: sc.Model) -> Visitor:
    visitor.page.click("#example-cat")
    visitor.wait("document.querySelector('#words').innerText.includes('tiger cat')")
    return visitor


def test_a_visitor_explains_compares_and_plays(visitor: Visitor, model: sc.Model) -> None:
    images = model.preprocess([CAT])
    out = sc.explain(model, images, methods="ShapleyCAM")
    visitor.open(CAT)
    visitor.wait("document.querySelector('#words').innerText.includes('tiger cat')")
    gap = out.efficiency_gap["ShapleyCAM"][0].item()
    assert f"an efficiency gap of {gap:.1%}" in visitor.words()
    # The second class, another method.
    second = int(out.logits[0].topk(2).indices[1])
    visitor.page.locator("#target label").nth(1).click()
    visitor.wait(f"document.querySelector('#words').innerText.includes({model.class_names[second]!r})")
    visitor.choose("method", "LayerCAM")
    visitor.wait("document.querySelector('#words').innerText.includes('LayerCAM at')")
    assert "does not claim that its shares add up" in visitor.words()
    # All methods beside each other, and what they score.
    visitor.tab("Compare")
    visitor.page.click("#compare-button")
    visitor.page.wait_for_selector("#sheet img")
    # Three players leave by a click; the utility is that of the game.
    visitor.tab("Play")
    visitor.page.wait_for_selector("#board .cell")
    for player in (10, 24, 30):
        visitor.page.locator("#board .cell").nth(player).click()
    visitor.wait("document.querySelector('#board .said [data-name=players]').innerText === '46 of 49'")
    played = sc.game(model, images, target=second)
    here = torch.ones(1, 49, dtype=torch.bool)
    here[0, [10, 24, 30]] = False
    wanted = played.worth(here).item()
    visitor.wait(
        f"Math.abs(Number(document.querySelector('#board .said [data-name=utility]').innerText) - {wanted}) < 2e-4"
    )
    # One of them comes back, with the keyboard alone.
    visitor.page.locator("#board .cell").nth(24).focus()
    visitor.page.keyboard.press("ArrowRight")
    visitor.page.keyboard.press("ArrowLeft")
    visitor.page.keyboard.press("Space")
    visitor.wait("document.querySelector('#board .said [data-name=players]').innerText === '47 of 49'")
    here[0, 24] = True
    wanted = played.worth(here).item()
    visitor.wait(
        f"Math.abs(Number(document.querySelector('#board .said [data-name=utility]').innerText) - {wanted}) < 2e-4"
    )
    assert visitor.errors == []


def test_dragging_paints_and_a_chosen_player_shows_who_needs_it(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model).tab("Play")
    cells = visitor.page.locator("#board .cell")
    cells.first.wait_for()
    boxes = [cells.nth(player).bounding_box() for player in (0, 1, 2, 3)]
    visitor.page.mouse.move(*middle(boxes[0]))
    visitor.page.mouse.down()
    for box in boxes[1:]:
        visitor.page.mouse.move(*middle(box), steps=4)
    visitor.page.mouse.up()
    visitor.wait("document.querySelectorAll('#board .cell.gone').length === 4")
    visitor.page.click("#board .back")
    visitor.wait("document.querySelectorAll('#board .cell.gone').length === 0")
    visitor.page.check("#board input[value=needs]")
    cells.nth(24).click()
    visitor.page.wait_for_selector("#board .cell.chosen[data-player='24']")
    images = model.preprocess([CAT])
    needs = sc.interactions(sc.game(model, images))[24]
    title = str(cells.nth(25).get_attribute("title"))
    assert float(title.rpartition(" ")[2]) == pytest.approx(needs[25].item(), rel=0.01)
    assert title.startswith("they need each other" if needs[25] > 0 else "redundant")
    assert visitor.errors == []


def middle(box: Any) -> tuple[float, float]:
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_values_are_worked_out_and_players_leave_by_themselves(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model).tab("Play")
    visitor.page.wait_for_selector("#board .cell")
    visitor.page.click("#values-button")
    visitor.page.wait_for_selector("#curves img")
    told = visitor.page.inner_text("#told")
    full, empty = (getattr(sc.game(model, model.preprocess([CAT])), each).item() for each in ("full", "empty"))
    assert f"The values add up to {full - empty:.4f}" in told
    visitor.page.click("#board .best")
    visitor.wait("document.querySelectorAll('#board .cell.gone').length >= 3")
    best = visitor.page.evaluate(
        "[...document.querySelectorAll('#board .cell.gone')].map(c => Number(c.dataset.player))"
    )
    place = told.split("row ")[1]
    player = (int(place.split(",")[0]) - 1) * 7 + int(place.split("column ")[1].split(" ")[0]) - 1
    assert player in best
    assert visitor.errors == []


def test_measured_methods_are_sorted(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model).page.locator("#target label").nth(2).click()
    visitor.wait("document.querySelector('#words').innerText.includes('tabby')")
    visitor.tab("Compare")
    visitor.choose("which", "path")
    visitor.page.click("#measure-button")
    visitor.wait("document.querySelector('#metrics').innerText.includes('AumannCAM-E')")
    visitor.page.wait_for_selector("#sheet img")
    found = sc.measure(model, model.preprocess([CAT]), methods="path", targets=281)
    said = visitor.page.inner_text("#metrics").split()
    wanted = [found.adcc, found.average_drop[0], found.coherency[0], found.complexity[0],
              found.increase_in_confidence[0], found.average_drop_in_deletion[0]]  # fmt: skip
    for place, name in enumerate(found.methods):
        row = [float(each) for each in said[said.index(name) + 1 :][:6]]
        assert row == pytest.approx([100 * each[place].item() for each in wanted], abs=0.006)
    assert said[said.index("ADD") + 2] == found.methods[int(found.adcc.argmax())]
    visitor.choose("sort", "Coh: coherency")
    worst = found.methods[int(found.coherency[0].argmin())]
    visitor.wait(f"document.querySelector('#metrics').innerText.trim().split(/\\s+/).at(-7) === '{worst}'")
    assert visitor.errors == []


def test_files_are_those_of_the_library(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model).page.click("#save")
    out = sc.explain(model, model.preprocess([CAT]))
    with visitor.page.expect_download() as held:
        visitor.page.get_by_role("link", name="Download").or_(visitor.page.locator("a[download='map.npz']")).nth(
            0
        ).click()
    name = held.value.suggested_filename
    assert name in ("overlay.png", "map.npz", "explanation.json")
    with visitor.page.expect_download() as held:
        visitor.page.locator("a[download='map.npz']").first.click()
    arrays = np.load(BytesIO(Path(held.value.path()).read_bytes()))
    np.testing.assert_allclose(arrays["explanation"], out.explanations["ShapleyCAM"][0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"no picture", "no picture that pillow knows"),
        ("empty.png", b"", "empty"),
        (
            "drawing.svg",
            b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
            "no picture that pillow knows",
        ),
        ("polyglot.jpg", b"GIF89a/*<script>alert(1)</script>*/", "no picture that pillow knows"),
        ("large.bmp", b"BM" + b"0" * 3_000_000, "size"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(
    visitor: Visitor, served: Any, name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    visitor.open(tmp_path / name)
    said = visitor.toast()
    assert words in said.lower()
    assert str(served.page.folder) not in said


def test_a_decompression_bomb_is_refused(visitor: Visitor, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    visitor.open(bomb)
    assert "megapixel" in visitor.toast()


def test_two_visitors_never_see_each_others_picture(chromium: Any, served: Any, model: sc.Model) -> None:
    one, two = Visitor(chromium, served.url), Visitor(chromium, served.url)
    at_the_cat(one, model)
    two.page.click("#example-coffee")
    two.wait("document.querySelector('#words').innerText.includes('espresso')")
    one.choose("method", "HiResCAM")
    one.wait("document.querySelector('#words').innerText.includes('HiResCAM at')")
    assert "tiger cat" in one.words()
    two.choose("method", "HiResCAM")
    two.wait("document.querySelector('#words').innerText.includes('HiResCAM at')")
    assert "espresso" in two.words()
    for each in (one, two):
        each.window.close()


@pytest.mark.parametrize("width", [390, 1600])
def test_the_page_fits_narrow_and_wide_windows(chromium: Any, served: Any, model: sc.Model, width: int) -> None:
    visitor = Visitor(chromium, served.url, width)
    at_the_cat(visitor, model).tab("Play")
    visitor.page.wait_for_selector("#board .cell")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    box = visitor.page.locator("#board .board").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=2)
    assert visitor.errors == []
    visitor.window.close()


def test_the_http_api_gives_the_librarys_map(served: Any, model: sc.Model) -> None:
    from gradio_client import Client, handle_file

    client = Client(served.url, verbose=False, analytics_enabled=False)
    found = client.predict(handle_file(str(CAT)), "ShapleyCAM-H", "rest", model.name, api_name="/explain")
    out = sc.explain(model, model.preprocess([CAT]), methods="ShapleyCAM-H")
    torch.testing.assert_close(
        torch.tensor(found["explanation"]), out.explanations["ShapleyCAM-H"][0], rtol=0, atol=1e-6
    )
    torch.testing.assert_close(torch.tensor(found["heatmap"]), out.heatmaps["ShapleyCAM-H"][0], rtol=0, atol=1e-6)
    assert json.dumps(found["target"]) == json.dumps({"index": 282, "name": "tiger cat"})
    with pytest.raises(Exception, match="expected a picture, a method of"):
        client.predict(handle_file(str(CAT)), "NoCAM", "rest", model.name, api_name="/explain")


def test_eight_users_at_once_get_what_each_would_get_alone(served: Any, model: sc.Model) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from gradio_client import Client, handle_file

    pictures = [CAT, DATA / "coffee.jpg"] * 4
    methods = ["ShapleyCAM", "GradCAM", "LayerCAM", "AumannCAM"] * 2
    clients = [Client(served.url, verbose=False, analytics_enabled=False) for _ in pictures]

    def ask(client: Any, picture: Path, method: str) -> Any:
        return client.predict(handle_file(str(picture)), method, "rest", model.name, api_name="/explain")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, clients, pictures, methods))
    for picture, method, found in zip(pictures, methods, answers, strict=True):
        out = sc.explain(model, model.preprocess([picture]), methods=method)
        torch.testing.assert_close(torch.tensor(found["explanation"]), out.explanations[method][0], rtol=0, atol=1e-5)


def test_a_picture_is_pasted_and_another_after_it(visitor: Visitor, model: sc.Model) -> None:
    for name in ("cat.jpg", "coffee.jpg"):
        picture = Image.open(DATA / name).resize((300, 200))
        visitor.page.evaluate(
            """async (url) => {
                window.held = new DataTransfer();
                window.held.items.add(new File([await (await fetch(url)).blob()], 'pasted.png', { type: 'image/png' }));
            }""",
            drawings.as_url(picture),
        )
        visitor.wait(  # a page that has just come up does not listen yet
            "document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: window.held })) && "
            "document.querySelector('#upload input[type=file]')?.files.length > 0"
        )
        seen = model.class_names[sc.explain(model, model.preprocess([picture])).logits[0].argmax()]
        visitor.wait(f"document.querySelector('#words').innerText.includes({seen!r})")
        visitor.page.wait_for_selector("#upload input[type=file]", state="attached")
    assert visitor.errors == []


def test_any_class_is_found_by_typing_and_a_second_one_set_beside_it(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model)
    visitor.search("search", "bull mastiff (243)")
    visitor.wait("document.querySelector('#words').innerText.includes('bull mastiff')")
    out = sc.explain(model, model.preprocess([CAT]), targets=243)
    assert f"probability {out.logits.softmax(1)[0, 243].item():.2%}" in visitor.words()
    visitor.tab("Compare")
    visitor.search("other", "Egyptian cat (285)")
    visitor.page.click("#compare-button")
    visitor.page.wait_for_selector("#sheet img")
    visitor.page.wait_for_selector("#second img")
    assert visitor.errors == []


def test_the_class_before_is_a_click_away_after_a_search(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model)
    visitor.search("search", "coffee mug (504)")
    visitor.wait("document.querySelector('#words').innerText.includes('coffee mug')")
    visitor.page.locator("#target label").first.click()
    visitor.wait("document.querySelector('#words').innerText.includes('tiger cat')")
    # Behind the words the classes are drawn anew, and a click meanwhile may be lost.
    visitor.page.wait_for_timeout(1000)
    visitor.page.locator("#target label", has_text="coffee mug").click()
    visitor.wait("document.querySelector('#words').innerText.includes('coffee mug')")
    visitor.page.click("#least")
    least = model.class_names[sc.explain(model, model.preprocess([CAT])).logits[0].argmin()]
    visitor.wait(f"document.querySelector('#words').innerText.includes({least!r})")
    visitor.wait(f"document.querySelector('#target label:has(input:checked)').innerText.includes({least!r})")
    assert visitor.errors == []


def test_what_is_typed_takes_the_place_of_what_a_box_holds(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model).tab("Compare")
    visitor.search("other", "Egyptian cat (285)")
    visitor.page.locator("#which input").focus()
    visitor.search("other", "espresso (967)")
    visitor.wait("document.querySelector('#other input').value === 'espresso (967)'")
    assert visitor.errors == []


@pytest.mark.parametrize("width", [390, 1280])
def test_two_classes_stand_side_by_side_where_there_is_room(
    chromium: Any, served: Any, model: sc.Model, width: int
) -> None:
    visitor = Visitor(chromium, served.url, width)
    at_the_cat(visitor, model).tab("Compare")
    visitor.page.click("#compare-least")
    visitor.page.wait_for_selector("#sheet img")
    visitor.page.wait_for_selector("#second img")
    one, two = (visitor.page.locator(f"#{name} img").bounding_box() for name in ("sheet", "second"))
    assert (one["x"] + one["width"] <= two["x"] and one["y"] == two["y"]) == (width == 1280)
    assert (one["y"] + one["height"] <= two["y"] and one["x"] == two["x"]) == (width == 390)
    # Another class makes both go, and alone it has a sheet of its own.
    visitor.page.locator("#target label").nth(1).click()
    visitor.wait("!document.querySelector('#sheet img') && !document.querySelector('#second img')")
    assert visitor.errors == []
    visitor.window.close()


def test_a_narrow_window_shows_the_heatmap_on_its_first_screen(chromium: Any, served: Any, model: sc.Model) -> None:
    visitor = Visitor(chromium, served.url, 390)
    at_the_cat(visitor, model).page.wait_for_selector("#heat img")
    tops = visitor.wait(
        "['#upload', '#target', '#heat', '#settings'].map(s => document.querySelector(s).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)
    assert tops[2] < 0.75 * 900
    visitor.window.close()


def test_quick_clicks_end_at_the_last_picture_without_a_traceback(
    visitor: Visitor, model: sc.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    at_the_cat(visitor, model)
    clicks = [
        "#example-coffee",
        "#target label:nth-of-type(2)",
        "#example-cat",
        "#least",
        "#example-coffee",
        "#example-cat",
    ]
    for pause in (0, 50, 200):
        for each in clicks:
            visitor.page.click(each)
            visitor.page.wait_for_timeout(pause)
    visitor.page.wait_for_timeout(1000)
    visitor.page.click("#example-coffee")
    visitor.wait("document.querySelector('#words').innerText.includes('espresso')")
    visitor.wait("document.querySelector('#target label:has(input:checked)').innerText.includes('espresso')")
    visitor.tab("Play")
    visitor.wait("document.querySelector('#board .said').innerText.includes('probability of espresso')")
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    assert visitor.errors == []


def test_who_waits_sees_his_place_and_who_leaves_frees_it(
    chromium: Any, served: Any, model: sc.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, real, late = Event(), Look.measure, list[Look]()

    def gone(seen: Look) -> bool:
        looks = served.page.looks
        return all(looks.get(session) is not seen for session in looks.sessions)

    def slow(seen: Look, *given: Any) -> Any:
        late.extend([seen] if gone(seen) else [])
        while not held.is_set() and not gone(seen):
            sleep(0.05)
        return real(seen, *given)

    monkeypatch.setattr(Look, "measure", slow)
    visitors = [at_the_cat(Visitor(chromium, served.url), model) for _ in range(4)]
    first, second, third, fourth = visitors
    said = ["0\\/10 steps"] * 2 + ["queue: 1\\/1", "queue: 2\\/2"]  # two are served at a time
    for each, words in zip(visitors, said, strict=True):
        each.tab("Compare")
        each.page.click("#measure-button")
        each.wait(f"/{words}/.test(document.querySelector('#metrics').innerText)")
    first.window.close()
    third.wait("/0\\/10 steps/.test(document.querySelector('#metrics').innerText)")
    fourth.wait("/queue: 1\\/1/.test(document.querySelector('#metrics').innerText)")
    held.set()
    for each in (second, third, fourth):
        each.wait("document.querySelector('#metrics').innerText.includes('ShapleyCAM-E\\n')")
        assert each.errors == []
        each.window.close()
    assert late == []  # no method was measured for one who had left


def test_what_was_worked_out_does_not_outlive_its_picture_or_class(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model).tab("Play")
    visitor.page.wait_for_selector("#board .cell")
    visitor.page.click("#values-button")
    visitor.page.wait_for_selector("#curves img")
    visitor.page.click("#example-coffee")
    visitor.wait("!document.querySelector('#curves img') && document.querySelector('#told').innerText.trim() === ''")
    visitor.tab("Explain")
    visitor.page.click("#save")
    visitor.page.wait_for_selector("a[download='map.npz']")
    visitor.choose("method", "GradCAM")
    visitor.wait("!document.querySelector(\"a[download='map.npz']\")")
    assert visitor.errors == []


def test_a_blank_map_says_why(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model)
    images = model.preprocess([CAT])
    blank = next(
        c for c in range(1000) if sc.explain(model, images, targets=c, methods="GradCAM").heatmaps["GradCAM"].max() == 0
    )
    visitor.choose("method", "GradCAM")
    visitor.search("search", f"({blank})")
    visitor.wait("document.querySelector('#words').innerText.includes('the map is blank')")
    assert visitor.errors == []


def test_the_keyboard_alone_will_do(visitor: Visitor) -> None:
    visitor.page.focus("#example-coffee")
    visitor.page.keyboard.press("Enter")
    visitor.wait("document.querySelector('#words').innerText.includes('espresso')")
    visitor.page.get_by_role("tab", name="Play").focus()
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_selector("#board .cell")
    visitor.page.locator("#board .cell").first.focus()
    for key in ("ArrowDown", "Enter", "ArrowRight", "Space"):
        visitor.page.keyboard.press(key)
    visitor.wait("document.querySelector('#board .said [data-name=players]').innerText === '47 of 49'")
    gone = visitor.page.evaluate(
        "[...document.querySelectorAll('#board .cell.gone')].map(c => Number(c.dataset.player))"
    )
    assert gone == [7, 8]
    assert visitor.errors == []


def test_the_board_keeps_the_focus_and_the_players_when_the_class_changes(visitor: Visitor, model: sc.Model) -> None:
    at_the_cat(visitor, model).tab("Play")
    visitor.page.locator("#board .cell").nth(24).focus()
    visitor.page.keyboard.press("Space")
    visitor.wait("document.querySelector('#board .said [data-name=players]').innerText === '48 of 49'")
    visitor.wait("document.querySelectorAll('#target input')[1].click() === undefined")  # which moves no focus
    visitor.wait("document.querySelector('#board .said').innerText.includes('probability of Egyptian cat')")
    visitor.page.keyboard.press("ArrowRight")
    visitor.page.keyboard.press("Space")
    visitor.wait("document.querySelector('#board .said [data-name=players]').innerText === '47 of 49'")
    assert visitor.page.evaluate("[...document.querySelectorAll('#board .gone')].map(c => c.dataset.player)") == [
        "24",
        "25",
    ]
    visitor.page.evaluate("document.querySelector('#example-coffee').click()")
    visitor.wait("document.querySelector('#board .said [data-name=players]').innerText === '49 of 49'")
    visitor.page.keyboard.press("Space")
    visitor.wait("document.querySelector('#board .said [data-name=players]').innerText === '48 of 49'")
    assert visitor.page.evaluate("document.activeElement.dataset.player") == "25"
    assert visitor.errors == []


def test_a_visitor_who_leaves_is_forgotten(chromium: Any, served: Any, model: sc.Model) -> None:
    before = served.page.looks.sessions
    visitor = at_the_cat(Visitor(chromium, served.url), model)
    (mine,) = served.page.looks.sessions - before
    visitor.window.close()
    deadline = monotonic() + 60
    while mine in served.page.looks.sessions and monotonic() < deadline:
        sleep(0.2)
    assert mine not in served.page.looks.sessions
