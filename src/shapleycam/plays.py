"""Games played on pictures, into a folder: the true Shapley map beside every method, with its error, and who needs whom."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .faithfulness import Fidelity, fidelity
from .gallery import check_folder, find_target, folder_names
from .network.pictures import PictureError
from .network.zoo import Model
from .network_game import Game, interactions
from .render import blend, sheet
from .theory.heatmap import heatmap
from .theory.utility import shares

HEAD = ("method", "error", "+-", "pearson", "+-", "spearman", "+-", "sign", "+-", "gap")
STRONGEST = 12
"""Pairs of players that are drawn."""
NEED, REDUNDANT = (255, 196, 0), (0, 190, 255)


@dataclass(frozen=True)
class Played:
    """What became of one picture."""

    line: str
    """For a person: class, worth, reference; or why it failed."""
    rows: tuple[tuple[str, ...], ...] = ()
    """A row a method, under HEAD."""
    failed: bool = False


def play_pictures(
    model: Model,
    pictures: Sequence[Path],
    out: Path,
    *,
    methods: Sequence[str],
    layer: str | None = None,
    utility: str = "rest",
    target: str | None = None,
    players: int | None = None,
    tolerance: float = 0.02,
    budget: int = 20_000,
    nodes: int = 8,
    pairs: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Played]:
    """Compare every method with the Shapley values of each picture's game; yields as they are written, in their order.

    A folder a picture holds `shapley.png`, the true map and every method's with errors in the captions, and `shapley.npz`
    (values, errors, regions, map); with `pairs` also `interactions.png` and `interactions.npz`.

    Raises
    ------
    ValueError
        As `fidelity`, and for an unknown target.
    OSError
        When `out` cannot be written.
    """
    wanted = find_target(model, target)
    check_folder(out)
    for picture, name in zip(pictures, folder_names(pictures), strict=True):
        try:
            images = model.images(picture)
        except PictureError as error:
            yield Played(str(error), failed=True)
            continue
        found = fidelity(
            model, images, methods=methods, layer=layer, targets=wanted, utility=utility, players=players,
            tolerance=tolerance, budget=budget, nodes=nodes, seed=seed, progress=progress,
        )  # fmt: skip
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        yield _write(model, found, picture, folder, pairs)


def table_of(found: Fidelity, image: int = 0) -> tuple[tuple[str, ...], ...]:
    """A row for each method, the most faithful first: the four scores, each with its standard deviation, the efficiency gap."""
    gaps = found.out.efficiency_gap
    order = found.error[image].argsort().tolist()
    return tuple(
        (
            found.methods[i],
            *(
                f"{float(each[image, i]):.3f}"
                for name in ("error", "pearson", "spearman", "sign")
                for each in (getattr(found, name), found.uncertainty[name])
            ),
            "" if (gap := float(gaps[found.methods[i]][image])) != gap else f"{gap:.3f}",
        )
        for i in order
    )


def draw_interactions(game: Game, table: Tensor, view: Image.Image) -> Image.Image:
    """The strongest pairs of players as lines on the picture: amber where two need each other, blue where they are redundant."""
    h, w = game.regions.shape
    down, across = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    x_sums, y_sums, sizes = (game.of(each.to(game.regions.device)) for each in (across, down, torch.ones(h, w)))
    points = [
        (float(x) * view.width / w, float(y) * view.height / h)
        for x, y in zip(x_sums / sizes, y_sums / sizes, strict=True)
    ]
    rows, columns = torch.triu_indices(game.players, game.players, 1)
    pairs = table.cpu()[rows, columns]
    strongest = [place for place in pairs.abs().argsort(descending=True)[:STRONGEST].tolist() if pairs[place] != 0]
    grey = Image.blend(view.convert("L").convert("RGB"), Image.new("RGB", view.size, "black"), 0.35)
    draw = ImageDraw.Draw(grey)
    top = float(pairs.abs().max()) if strongest else 1.0
    for place in reversed(strongest):
        i, j, strength = int(rows[place]), int(columns[place]), float(pairs[place])
        colour, width = NEED if strength > 0 else REDUNDANT, 1 + round(5 * abs(strength) / top)
        draw.line([points[i], points[j]], fill=colour, width=width)
        for x, y in (points[i], points[j]):
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    return grey


def _write(model: Model, found: Fidelity, picture: Path, folder: Path, pairs: bool) -> Played:
    game, reference, out = found.games[0], found.values[0], found.out
    view = model.preprocess.crop(picture)
    size = (view.height, view.width)
    true_map = game.spread(reference.values.to(game.regions.device))
    tiles = [("picture", view), ("Shapley values", blend(view, heatmap(true_map[None].float(), size)[0]))]
    for i in found.error[0].argsort().tolist():
        name = found.methods[i]
        tiles.append((f"{name}: error {float(found.error[0, i]):.2f}", blend(view, out.heatmaps[name][0])))
    probability = float(shares(out.logits.cpu().double(), out.utility)[0, game.target])
    said = f"{picture.name}: {model.class_names[game.target]} ({game.target}), probability {probability:.4f}"
    worth = f"{out.utility} {float(game.full):.2f} with all {game.players} players, {float(game.empty):.2f} with none"
    how = "exact" if not reference.errors.any() else f"their own error {reference.noise:.3f}"
    told = f"{worth}; {reference.evaluations} coalitions played, {how}"
    sheet(tiles, f"{said}\n{model.name}, {out.layer}\n{told}").save(folder / "shapley.png")
    values, errors, regions, spread = (
        each.cpu().numpy() for each in (reference.values, reference.errors, game.regions, true_map)
    )
    np.savez_compressed(folder / "shapley.npz", values=values, errors=errors, regions=regions, map=spread)
    if pairs:
        _write_interactions(game, view, said, folder)
    line = "\n  warning: ".join([f"{said}, layer {out.layer.name} -> {folder}\n  {told}", *map(str, out.warnings)])
    return Played(line, table_of(found))


def _write_interactions(game: Game, view: Image.Image, said: str, folder: Path) -> None:
    table = interactions(game)
    np.savez_compressed(folder / "interactions.npz", interactions=table.cpu().numpy())
    tiles = [("picture", view), ("who needs whom", draw_interactions(game, table, view))]
    legend = (
        f"amber: two regions need each other; blue: they are redundant\nthe strongest of X_i^T H X_j, at most {STRONGEST}"
        if table.triu(1).any()
        else f"no two regions interact: {game.utility} is linear in the maps"
    )
    sheet(tiles, f"{said}\n{legend}").save(folder / "interactions.png")
