"""Commands that list what there is: models, methods, layers."""

from collections.abc import Sequence


def models() -> int:
    """List the zoo: name, parameters, input, the two target layers, where the weights come from."""
    from .network.zoo import ZOO

    rows = [
        (name, f"{e.parameters / 1e6:.1f} M", f"{e.size} x {e.size}", e.gap, e.conv, e.origin)
        for name, e in ZOO.items()
    ]
    return as_table(("model", "parameters", "input", "gap", "conv", "weights"), rows)


def methods() -> int:
    """List the methods: name, equation, order, source, and what each costs beside one forward pass."""
    from .searches import SEARCHES
    from .theory.cams import METHODS

    costs = {
        "none": "nothing",
        "first": "a backward pass over the tail",
        "second": "two backward passes over the tail",
        "path": "9 passes over the tail, and back",
    }
    rows = [(m.name, m.equation, str(m.order), m.source, costs[m.order]) for m in METHODS.values()]
    more = [(m.name, m.equation, "", m.source, m.cost) for m in SEARCHES.values()]
    return as_table(("method", "equation", "order", "source", "cost"), [*rows, *more])


def layers(model: str, *, weights: str | None = "random") -> int:
    """List the layers of a model that can be a target, best first: name, shape, how they are read, and why they rank so.

    Parameters
    ----------
    model
        A name that `shapleycam models` lists, any timm tag, or torchvision/NAME.
    weights
        As in `explain`; random by default, since they hardly matter here.
    """
    import torch

    from .layered import suggest_layers
    from .network.zoo import load_model

    loaded = load_model(model, weights=weights)
    marks = {name: mark for mark, name in loaded.layers.items()}
    images = torch.randn(1, 3, *loaded.input_size, generator=torch.Generator().manual_seed(0))
    rows = [
        (t.name, f"{t.maps} x {' x '.join(map(str, t.positions))}", t.layout, marks.get(t.name, ""), each.why)
        for each in suggest_layers(loaded, images)
        for t in (each.layer,)
    ]
    return as_table(("layer", "maps x positions", "layout", "known as", "why"), rows)


def as_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> int:
    """Print rows under a head; 0, the exit code."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a pipe has no width: nothing is to be folded there
        console.width = 200
    console.print(table)
    return 0
