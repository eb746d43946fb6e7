"""Where the positions lie in what a layer puts out: maps first or last, tokens on a grid, signals, volumes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log2, prod
from typing import Any, Literal

import torch
from torch import Tensor

from ..theory.axes import Maps
from .facts import Facts, Told

Axes = Literal["bnhw", "bhwn", "bnt", "btn", "bndhw", "bdhwn"]
AXES: tuple[Axes, ...] = ("bnhw", "bhwn", "bnt", "btn", "bndhw", "bdhwn")
PREFIXES = range(9)
"""How many class, distillation and register tokens are looked for in front of the tokens of positions."""
PADDED = 8
"""How many more positions than the input's own a signal's maps may have: kernels of even size pad too much."""


class AmbiguousError(ValueError):
    """A layer's output that can be read in several ways."""

    def __init__(self, said: str, candidates: "tuple[TargetLayer, ...]" = ()) -> None:
        super().__init__(said)
        self.candidates = candidates


@dataclass(frozen=True)
class Layout:
    """How to read a layer's output, where that cannot be found out: `Layout("btn", positions=(14, 14), prefix=1)`."""

    axes: Axes
    """Order of the axes: b images, n maps, h w positions (d h w of a volume); t for a signal's positions, or for tokens."""
    positions: tuple[int, ...] | None = None
    """The grid on which tokens lie; None finds out."""
    prefix: int | None = None
    """Tokens in front of the grid's, which are no players; None finds out."""


@dataclass(frozen=True)
class TargetLayer:
    """Where a network was cut."""

    name: str
    layout: Axes
    """Order of the axes of what the layer puts out: b images, n maps, h w positions; t tokens or times, d h w a volume."""
    maps: int
    positions: tuple[int, ...]
    prefix: int = 0
    """Tokens in front of those of the positions, class token and registers: they are no players, and stay as they are."""
    reason: str = ""
    """Why this layer, where it was chosen by itself."""

    def __str__(self) -> str:
        grid, prefix = " x ".join(map(str, self.positions)), f", {self.prefix} prefix" if self.prefix else ""
        return f"{self.name} ({self.maps} maps of {grid}, {self.layout}{prefix})"

    @property
    def as_layout(self) -> Layout:
        """How this layer was read."""
        return Layout(self.layout, self.positions, self.prefix)

    def maps_of(self, output: Tensor) -> Maps:
        """The activation maps in what the layer puts out, (b, n, *positions)."""
        maps = output.movedim(-1, 1) if self.layout.endswith("n") else output
        return maps if maps.shape[2:] == self.positions else maps[:, :, self.prefix :].unflatten(2, self.positions)

    def put_back(self, maps: Maps, output: Tensor) -> Tensor:
        """What the layer would put out with other maps, for as many rows as they have; the prefix is that of `output`."""
        if len(self.layout) == 3:  # tokens, on a grid or in a row
            maps = maps.flatten(2)
        if not self.layout.endswith("n"):
            return torch.cat([_rows(output[:, :, : self.prefix], maps), maps], 2) if self.prefix else maps
        maps = maps.movedim(1, -1)
        return torch.cat([_rows(output[:, : self.prefix], maps), maps], 1) if self.prefix else maps.contiguous()


def place(
    name: str,
    shape: tuple[int, ...],
    size: tuple[int, ...],
    facts: Facts,
    tells: Callable[[], Told | None] = lambda: None,
    asked: Layout | None = None,
) -> TargetLayer:
    """The target layer that puts out `shape` for inputs with the spatial axes `size`.

    `tells` is asked where there are several readings: see `told`.

    Raises
    ------
    ValueError
        When no reading makes maps of it.
    AmbiguousError
        When several do that nothing tells apart.
    """
    if len(shape) == 4 and len(size) == 2 and asked is None:
        return _read(name, shape, find_layout(shape, (size[0], size[1]), facts, name))
    signal, even = len(size) == 1, shape[1] == shape[-1]
    prefix = facts.counted() if signal and facts.prefix is None else facts.prefix
    found = list(dict.fromkeys(_readings(name, shape, size, asked, prefix)))
    if not found and asked is not None:
        raise ValueError(
            f"layer {name!r} puts out {shape}, which {_asked(asked)} does not fit; leave layout out, and it is found"
        )
    if not found:
        raise ValueError(_no_maps(name, shape, size))
    kind = tells() if len(found) > 1 else None
    prefix = facts.counted() if prefix is None and len(found) > 1 else prefix
    if kind is not None and signal and size[0] in kind.along and size[0] != shape[1]:
        kind = None  # a linear layer as wide as the signal is long may run along it
    if kind is not None and not signal and even and len(shape) == 3 and not facts.first:
        kind = None  # a convolution's maps may have moved behind its positions
    for better in (
        lambda t: kind is None or t.maps == kind.maps,
        lambda t: kind is None or t.layout.endswith("n") == kind.last,
        lambda t: prod(t.positions) > 1,
        lambda t: _exact(t, size),
        lambda t: signal or t.layout != "bnt",  # tokens come first, but for layers that say otherwise
        lambda t: facts.patch is None or _of_patches(t.positions, size, facts.patch),
        lambda t: signal or prefix is None or t.prefix == prefix,
        lambda t: all(side % n == 0 for side, n in zip(size, t.positions, strict=False)),  # patches are whole pixels
    ):
        found = [target for target in found if better(target)] or found
    if len(found) > 1:
        raise AmbiguousError(
            f"layer {name!r} puts out {shape}, which for an input of {' x '.join(map(str, size))} may be "
            f"{', or '.join(map(_named, found))}; say which with layout=sc.Layout(...)",
            tuple(found),
        )
    grid = asked is not None and asked.positions
    if found[0].layout == "btn" and not grid and prod(found[0].positions) in facts.rolled():
        raise ValueError(
            f"layer {name!r} puts out {shape}, as many tokens as lie window by window, not row by row, in this network; name a "
            "layer of its last stage, or give the grid with layout=sc.Layout(...) if these do lie row by row"
        )
    return found[0]


def find_layout(shape: tuple[int, ...], size: tuple[int, int], facts: Facts, name: str) -> Axes:
    """Which axes of a layer's output (b, ., ., .) are the positions, given the image's (H, W).

    A convolution's maps come first. Of other layers the positions have the image's proportions, give or take one row or column.
    Where both readings or neither do, timm's `output_fmt` decides; without it, maps first, unless the last axis looks like the
    channels, or the layer's kind says otherwise.

    Raises
    ------
    AmbiguousError
        When that does not settle it.
    """
    if facts.first and facts.width in (None, shape[1]):  # else a subclass or a hook has moved them
        return "bnhw"
    front, back = _proportionate(shape[2:], size), _proportionate(shape[1:3], size)
    if front != back:
        return "bnhw" if front else "bhwn"
    if facts.output_fmt in ("NHWC", "NCHW"):
        return "bhwn" if facts.output_fmt == "NHWC" else "bnhw"
    wide = shape[3] > max(shape[1], shape[2]) or (front and back and shape[1] == shape[2] == shape[3])
    if not (front or back) and (kind := facts.own()) is not None:
        wide = kind.maps != shape[1] if kind.last else kind.maps not in (None, shape[1])
    if wide:
        raise AmbiguousError(
            f"layer {name!r} puts out {shape}, which for an image of {size[0]} x {size[1]} may be (b, n, h, w) or "
            '(b, h, w, n); say which with layout="bnhw" or layout="bhwn"'
        )
    return "bnhw"


def fits(positions: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether positions have the proportions of an input, give or take one row or column, and are no more than its own."""
    more = PADDED if len(size) == 1 else 0
    smaller = all(n <= side + more for n, side in zip(positions, size, strict=False))
    return smaller and (len(size) < 2 or len(positions) < 2 or _proportionate(positions[-2:], size[-2:]))


def as_layout(layout: Any) -> Layout | None:
    """What a caller's `layout` means: None, the order of the axes by name, or a `Layout`.

    Raises
    ------
    ValueError
        For axes that are none of `AXES`.
    """
    axes = layout.axes if isinstance(layout, Layout) else layout
    if axes is not None and axes not in AXES:
        raise ValueError(
            f'layout is {axes!r}, expected "bnhw" (maps first), "bhwn" (channels last), "btn" (tokens), "bnt" (signals), '
            '"bndhw" or "bdhwn" (volumes), or None'
        )
    return layout if layout is None or isinstance(layout, Layout) else Layout(layout)


def _readings(
    name: str, shape: tuple[int, ...], size: tuple[int, ...], asked: Layout | None, known: int | None
) -> Iterator[TargetLayer]:
    """Every way to read an output as maps of an input; with `asked`, those that agree with it."""
    for axes in AXES if asked is None else (asked.axes,):
        if len(axes) != len(shape):
            continue
        if len(axes) > 3:
            target = _read(name, shape, axes)
            if asked is not None or (len(axes) == len(size) + 2 and fits(target.positions, size)):
                yield target
            continue
        tokens, maps = (shape[1], shape[2]) if axes == "btn" else (shape[2], shape[1])
        if asked is not None and asked.positions is not None:
            prefix = tokens - prod(asked.positions)
            if prefix in PREFIXES and asked.prefix in (None, prefix):
                yield TargetLayer(name, axes, maps, asked.positions, prefix)
            continue
        for prefix in PREFIXES if asked is None or asked.prefix is None else (asked.prefix,):
            # A signal's tokens may be as many as they like, so that only the network itself can tell of a prefix.
            if prefix == 0 or asked is not None or (axes == "btn" and (len(size) > 1 or prefix == known)):
                yield from (TargetLayer(name, axes, maps, grid, prefix) for grid in _grids(tokens - prefix, size))


def _read(name: str, shape: tuple[int, ...], axes: Axes) -> TargetLayer:
    maps, positions = (shape[-1], shape[1:-1]) if axes.endswith("n") else (shape[1], shape[2:])
    return TargetLayer(name, axes, maps, tuple(positions))


def _grids(tokens: int, size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The grids with the input's proportions on which so many tokens lie."""
    if tokens < 1 or len(size) < 2:
        yield from [(tokens,)] if 1 <= tokens <= size[0] + PADDED else []
        return
    if len(size) == 3:
        for d in (d for d in range(1, min(tokens, size[0]) + 1) if tokens % d == 0):
            yield from ((d, *grid) for grid in _grids(tokens // d, size[1:]))
        return
    for h in (h for h in range(1, tokens + 1) if tokens % h == 0 and fits((h, tokens // h), size)):
        yield h, tokens // h


def _proportionate(positions: tuple[int, ...], size: tuple[int, ...]) -> bool:
    return abs(positions[0] * size[1] - positions[1] * size[0]) < max(size)


def _exact(target: TargetLayer, size: tuple[int, ...]) -> bool:
    if len(size) < 2 or len(target.positions) < 2:
        return True
    (h, w), (height, width) = target.positions[-2:], size[-2:]
    return h * width == w * height


def _named(target: TargetLayer) -> str:
    prefix = f", prefix={target.prefix}" if target.prefix else ""
    return f'Layout("{target.layout}", positions={target.positions}{prefix})'


def _asked(layout: Layout) -> str:
    positions = f", positions={layout.positions}" if layout.positions else ""
    return f'layout=Layout("{layout.axes}"{positions}{"" if layout.prefix is None else f", prefix={layout.prefix}"})'


def _of_patches(positions: tuple[int, ...], size: tuple[int, ...], patch: int) -> bool:
    """Whether a position is as wide as a patch, or as several that were merged two by two."""
    ratios = [side / (n * patch) for side, n in zip(size[-2:], positions[-2:], strict=False)]
    return (
        len(positions) < 2 or len(size) < 2 or all(ratio >= 1 and ratio == 2 ** round(log2(ratio)) for ratio in ratios)
    )


def _no_maps(name: str, shape: tuple[int, ...], size: tuple[int, ...]) -> str:
    maps = {1: "(b, n, t) or (b, t, n)", 3: "(b, n, d, h, w) or (b, d, h, w, n)"}.get(
        len(size), "(b, n, h, w) or (b, h, w, n), or tokens (b, t, n) on a grid of the image's proportions"
    )
    return f"layer {name!r} puts out a tensor of shape {shape}, expected activation maps {maps}"


def _rows(prefix: Tensor, maps: Tensor) -> Tensor:
    """The prefix of b images for k b rows of maps."""
    return prefix.repeat(len(maps) // len(prefix), *[1] * (prefix.ndim - 1))
