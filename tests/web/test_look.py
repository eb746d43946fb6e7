"""What is behind the page: a picture expanded once, users kept apart, memory and folders that stay small."""

import gc
import math
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shapleycam as sc
from shapleycam.network.weights import randomise
from shapleycam.web import page as page_module
from shapleycam.web.look import BUDGET, SIDE, Look, Looks, look
from shapleycam.web.page import Page
from tiny import network


def picture(seed: int = 0, w: int = 24, h: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (h, w, 3), dtype=np.uint8))


@contextmanager
def heads(model: sc.Model) -> Iterator[list[int]]:
    """How many images run through the network's first layer."""
    seen: list[int] = []
    handle = model.module[0].register_forward_hook(lambda module, given, output: seen.append(len(output)))
    yield seen
    handle.remove()


@pytest.mark.parametrize("layer", [None, "conv"])
def test_every_class_utility_and_method_comes_from_one_pass(layer: str | None) -> None:
    model = network()
    images = model.preprocess([picture()])
    with heads(model) as seen:
        opened = look(model, picture(), layer)
        outs = {(t, u): opened.explain(sc.SETS["all"], t, u) for t in (None, 0, 3) for u in ("rest", "post-softmax")}
        played = opened.without([0, 5], 2, "rest")
        opened.curve(list(range(64)), 2, "rest")
        gaps = {key: out.efficiency_gap for key, out in outs.items()}
        assert (
            opened.explain(["HiResCAM"], 3, "rest").efficiency_gap["HiResCAM"].isfinite().all()
        )  # no path row knows U(0)
    assert seen == [1]
    for (target, utility), out in outs.items():
        alone = sc.explain(model, images, layer=layer, methods="all", targets=target, utility=utility)
        for name in alone.explanations:
            torch.testing.assert_close(out.explanations[name], alone.explanations[name], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(out.heatmaps[name], alone.heatmaps[name], rtol=0, atol=1e-5)
            gap = gaps[target, utility][name]
            torch.testing.assert_close(gap, alone.efficiency_gap[name], rtol=1e-3, atol=1e-4, equal_nan=True)
    game = sc.game(model, images, layer=layer, target=2)
    here = torch.ones(1, 64, dtype=torch.bool)
    here[0, [0, 5]] = False
    assert played[0] == pytest.approx(game.worth(here).item(), abs=1e-5)


def test_a_curve_is_the_worth_of_those_who_are_left() -> None:
    model = network()
    opened = look(model, picture())
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    found = opened.curve(order, 1, "rest")
    game = opened.game(1, "rest")
    for left in (0, 1, 7, 64):
        here = torch.ones(1, 64, dtype=torch.bool)
        here[0, order[:left]] = False
        assert found[left] == pytest.approx(game.worth(here).item(), abs=1e-5)


def test_players_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"players \[64\] are out of range; there are 0 to 63"):
        look(network(), picture()).without([64], 0, "rest")


def test_large_pictures_are_reduced_first() -> None:
    opened = look(network(), picture(0, SIDE + 500, 600))
    assert max(opened.picture.size) == SIDE


def test_looks_keep_the_newest_and_forget_those_who_leave() -> None:
    looks, opened = Looks(most=2), look(network(), picture())
    for session in ("a", "b"):
        looks.put(session, opened)
    assert isinstance(looks.get("a"), Look)  # so that b is the oldest
    looks.put("c", opened)
    assert (looks.get("b"), len(looks)) == (None, 2)
    looks.drop("a")
    assert looks.get("a") is None
    forgetful = Looks(idle=0.01)
    forgetful.put("a", opened)
    sleep(0.02)
    forgetful.put("b", opened)
    assert forgetful.sessions == {"b"}


def test_a_picture_is_not_kept_for_a_user_who_left_while_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Page({"tiny": network()}, tmp_path)

    def slow(*given: Any) -> Look:
        page.leave("a")
        return look(*given)

    monkeypatch.setattr(page_module, "look", slow)
    page.open(picture(), "tiny", None, "a")
    assert page.looks.get("a") is None
    monkeypatch.undo()
    page.open(picture(), "tiny", None, "a")  # a phone that was asleep comes back
    assert page.looks.get("a") is not None


def test_who_leaves_while_his_files_are_made_hears_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradio = pytest.importorskip("gradio", reason="the page is in the extra web")
    page, real = Page({"tiny": network()}, tmp_path), np.savez_compressed
    page.open(picture(), "tiny", None, "a")

    def slow(*given: Any, **arrays: Any) -> None:
        page.leave("a")
        real(*given, **arrays)

    monkeypatch.setattr(np, "savez_compressed", slow)
    with pytest.raises(gradio.Error, match="meanwhile") as told:
        page.downloads("a", "GradCAM", None, "rest", 0.5, "inferno")
    assert not told.value.print_exception


def test_files_may_go_while_the_folder_is_tidied(tmp_path: Path) -> None:
    page, stop = Page({"tiny": network()}, tmp_path), Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for each in range(9):
                (tmp_path / str(each)).mkdir()
                (tmp_path / str(each) / "map.npz").write_bytes(b"x")
            for each in range(9):
                shutil.rmtree(tmp_path / str(each))

    coming = Thread(target=come_and_go)
    coming.start()
    try:
        for _ in range(2000):
            page._tidy()
    finally:
        stop.set()
        coming.join()


def test_a_thousand_requests_leave_memory_flat(tmp_path: Path) -> None:
    page, draw, seen = Page({"tiny": network()}, tmp_path), random.Random(0), []
    for request in range(1000):
        session = f"user {draw.randrange(50)}"
        if page.looks.get(session) is None or draw.random() < 0.2:
            page.open(picture(draw.randrange(9)), "tiny", draw.choice([None, "conv"]), session)
        target, utility = draw.choice([None, 0, 4]), draw.choice(["rest", "pre-softmax"])
        kind = draw.choice("eeeewwwwdll")
        if kind == "e":
            page.of(session).explain([draw.choice([*sc.METHODS])], target, utility)
        elif kind == "w":
            page.of(session).without(draw.sample(range(64), 9), target or 0, utility)
        elif kind == "d":  # takes a hundred times as long
            page.downloads(session, "GradCAM", target, utility, 0.5, "inferno")
        else:
            page.leave(session)
        if request % 300 == 99:
            gc.collect()
            seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    assert seen[-1] - seen[0] < 40  # MiB
    assert len(list(tmp_path.rglob("*.npz"))) <= 50


def test_the_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "HELD", 1000)
    page = Page({"tiny": network()}, tmp_path)
    old, new = tmp_path / "old.bin", tmp_path / "new.bin"
    for path in (old, new):
        path.write_bytes(b"x" * 900)
    import os

    os.utime(old, (1, 1))
    page.open(picture(), "tiny", None, "a")
    assert (old.exists(), new.exists()) == (False, True)


def test_names_that_look_like_paths_stay_in_the_folder(tmp_path: Path) -> None:
    page = Page({"tiny": network()}, tmp_path / "inner")
    page.open(picture(), "tiny", None, "../../evil")
    files = page.downloads("../../evil", "GradCAM", None, "rest", 0.5, "inferno")
    assert all(Path(each).resolve().is_relative_to((tmp_path / "inner").resolve()) for each in files)
    page.leave("../../evil")
    assert not any(Path(each).exists() for each in files)


def test_a_users_name_is_no_path(tmp_path: Path) -> None:
    page = Page({"tiny": network()}, tmp_path)
    others = tmp_path / "upload.png"
    others.write_bytes(b"another's")
    for session in ("..", "", "../..", "a/b"):
        page.open(picture(), "tiny", None, session)
        page.downloads(session, "GradCAM", None, "rest", 0.5, "inferno")
        page.leave(session)
    assert others.exists()
    assert not list(tmp_path.rglob("*.npz"))


def small(module: torch.nn.Module, classes: int) -> sc.Model:
    """A model of one's own, for images of 16 x 16."""
    names = tuple(f"class {i}" for i in range(classes))
    randomise(module, 0)
    return sc.Model("mine", module.eval(), network().preprocess, names, None, {}, "drawn")


class Own(torch.nn.Module):
    """Its layer with maps is called conv, as a target layer of the zoo's."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 4, 4), torch.nn.ReLU())
        self.head = torch.nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def test_a_layer_of_ones_own_may_be_called_as_the_zoos_are() -> None:
    model = small(Own(5), 5)
    opened = look(model, picture(), None)
    assert opened.forward.layer.name == "conv"
    assert opened.measure(["GradCAM"], None, "rest").kept.isfinite().all()
    assert sc.explain(model, model.images(picture()), samples=1).layer.name == "conv"


def test_a_yes_or_no_network_is_played() -> None:
    opened = look(small(Own(1), 1), picture(), None)
    utility, sure, top, best = opened.without([0], 0, "rest-sigmoid")
    assert 0 < sure == best < 1
    assert top == 0
    side = 1 if opened.forward.logits.item() > 0 else -1
    share = sure if side > 0 else 1 - sure
    assert utility == pytest.approx(math.log(share / (1 - share)) + math.log(share), abs=1e-4)


def test_values_of_sixteen_players_are_sampled_within_the_budget_and_can_be_ended() -> None:
    told: list[int] = []
    found = look(small(Own(5), 5), picture(), None).values(0, "rest", lambda done, most: told.append(most))
    assert found.evaluations <= BUDGET
    assert told


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_any_precision_are_opened(dtype: torch.dtype) -> None:
    model = small(Own(5).to(dtype), 5)
    assert look(model, picture(), None).images.dtype == dtype
