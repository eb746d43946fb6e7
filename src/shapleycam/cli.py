"""The command line: each command calls one function. Nothing heavy is imported before a command runs."""

import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from . import __version__
from .cli_bench import bench, names_in, plan, report, settings, table
from .cli_lists import as_table, layers, methods, models

app = App(
    name="shapleycam",
    help="What did an image classifier look at, and can the answer be believed?",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main() says it
)


app.command(bench, config=settings)
app.command(plan, config=settings)
app.command(table)
app.command(report)
app.command(models)
app.command(methods)
app.command(layers)


@app.command
def explain(
    *pictures: Path,
    model: str = "efficientnet_lite0",
    weights: str | None = None,
    methods: str = "ShapleyCAM",
    layer: str | None = None,
    utility: str = "rest",
    target: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    top: int = 1,
    preprocess: Literal["own", "paper"] = "own",
    out: Path = Path("out"),
    samples: int = 0,
    budget: int | None = None,
    batch: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Write heatmaps of pictures: a sheet, overlays, arrays and facts, a folder a picture.

    Parameters
    ----------
    pictures
        Files of any format that Pillow reads.
    model
        A name that `shapleycam models` lists, any timm tag, or torchvision/NAME.
    weights
        A .safetensors or .pth file, or "random"; the published weights if not given.
    methods
        Names that `shapleycam methods` lists, with commas, or "paper", "path" or "all".
    layer
        "gap", "conv", or a name that `shapleycam layers MODEL` lists; "gap", or the best of these, if not given.
    utility
        rest, pre-softmax, post-softmax, log-softmax; rest-sigmoid for logits that stand each for itself.
    target
        The class to explain: an index, a wnid, a class name, or "least"; the predicted class if not given.
    top
        Explain this many of the likeliest classes, each in a folder of its own.
    preprocess
        The network's own preprocessing, or the paper's.
    out
        The folder to write to.
    samples
        Average over so many pictures with noise on them (SmoothGrad), 0 for none.
    budget
        Forward passes a picture that RISE and KernelSHAP may spend; 4,000 each if not given.
    batch
        Pictures that run through the network together.
    seed
        Of RandomCAM, and of random weights.
    device
        cpu, cuda, cuda:1, ...
    """
    from .bars import explaining
    from .gallery import write_explanations
    from .network.zoo import load_model
    from .theory.cams import METHODS, SETS

    if not pictures:
        raise ValueError("no picture was given; name one or more files: shapleycam explain cat.jpg")
    loaded = load_model(model, weights=weights, preprocess=preprocess, seed=seed, device=device)
    names, failed = tuple(name.strip() for name in methods.split(",")), 0
    with explaining(len(pictures) * top, bool(samples) or not METHODS.keys() >= {*names} - {*SETS}) as (done, slow):
        for one in write_explanations(
            loaded, pictures, out, methods=names, layer=layer, utility=utility, target=target, top=top, seed=seed,
            batch=batch, samples=samples, progress=slow, budget=budget,
        ):  # fmt: skip
            done()
            failed += one.failed
            (sys.stderr if one.failed else sys.stdout).write(f"{one.line}\n")
    return _unread(failed, pictures)


@app.command
def compare(
    *pictures: Path,
    out: Path = Path("compare.png"),
    model: str = "efficientnet_lite0",
    weights: str | None = None,
    methods: str = "paper",
    layer: str | None = None,
    targets: Annotated[str, Parameter(allow_leading_hyphen=True)] = "predicted",
    utilities: str = "rest",
    maps: bool = False,
    masking: Literal["normalised", "raw"] = "normalised",
    budget: int | None = None,
    preprocess: Literal["own", "paper"] = "own",
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Draw one figure: a row for each picture, target and utility, a column for each method, ADCC in the corners.

    Parameters
    ----------
    pictures
        Files of any format that Pillow reads.
    out
        The file to write: .png, .pdf or .svg.
    model, weights, layer, budget, preprocess, device
        As in `explain`.
    methods
        Names that `shapleycam methods` lists, FakeCAM or Gaussian, with commas; or "paper" or "all".
    targets
        The classes to explain, with commas: indices, wnids, class names, "least", "predicted".
    utilities
        rest, pre-softmax, post-softmax, log-softmax: one, or several with commas.
    maps
        Draw explanation map, overlay and anti-explanation map instead, a row for each method.
    masking
        What masked pixels become: the mean colour as in the paper ("normalised"), or black ("raw").
    seed
        Of RandomCAM, and of random weights.
    """
    from .bars import explaining
    from .figures import draw_pictures
    from .network.zoo import load_model
    from .searches import SEARCHES

    names, classes, several = names_in(methods), names_in(targets), names_in(utilities)
    loaded = load_model(model, weights=weights, preprocess=preprocess, seed=seed, device=device)
    rows = len(pictures) * len(classes) * len(several)
    with explaining(rows, not SEARCHES.keys().isdisjoint(names)) as (done, slow):
        failed = draw_pictures(
            loaded, pictures, out, methods=names, targets=classes, layer=layer, utilities=several, masking=masking, maps=maps,
            seed=seed, done=done, progress=slow, budget=budget,
        )  # fmt: skip
    sys.stdout.write(f"{out}\n")
    sys.stderr.write("".join(f"{each}\n" for each in failed))
    return int(bool(failed))


@app.command
def shapley(
    *pictures: Path,
    model: str = "efficientnet_lite0",
    weights: str | None = None,
    methods: str = "all",
    layer: str | None = None,
    utility: str = "rest",
    target: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    players: int | None = None,
    tolerance: float = 0.02,
    budget: int = 20_000,
    nodes: int = 8,
    interactions: bool = False,
    preprocess: Literal["own", "paper"] = "own",
    out: Path = Path("out"),
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Draw the true Shapley values of each picture's game beside every method, and print how far each method is from them.

    Parameters
    ----------
    pictures
        Files of any format that Pillow reads.
    model, weights, layer, utility, target, preprocess, device
        As in `explain`.
    methods
        Names that `shapleycam methods` lists, with commas, or "paper", "path" or "all".
    players
        Play a grid of so many groups a side instead of single positions; up to 4 is played exactly.
    tolerance
        Sample until the values' own error is this share of them.
    budget
        Coalitions to play at most of each picture.
    nodes
        Of the path row's quadrature.
    interactions
        Draw which regions need each other and which are redundant, too.
    out
        The folder to write to, a folder a picture.
    seed
        Of the samples, of RandomCAM, and of random weights.
    """
    from .bars import coalitions
    from .network.zoo import load_model
    from .plays import HEAD, play_pictures

    if not pictures:
        raise ValueError("no picture was given; name one or more files: shapleycam shapley cat.jpg")
    loaded = load_model(model, weights=weights, preprocess=preprocess, seed=seed, device=device)
    failed = 0
    with coalitions(budget) as watch:
        for one in play_pictures(
            loaded, pictures, out, methods=names_in(methods), layer=layer, utility=utility, target=target, players=players,
            tolerance=tolerance, budget=budget, nodes=nodes, pairs=interactions, seed=seed, progress=watch,
        ):  # fmt: skip
            failed += one.failed
            (sys.stderr if one.failed else sys.stdout).write(f"{one.line}\n")
            if one.rows:
                as_table(HEAD, one.rows)
    return _unread(failed, pictures)


@app.command
def serve(
    *,
    models: str = "efficientnet_lite0",
    weights: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: str = "20mb",
    device: str = "cpu",
) -> int:
    """Open the page: explain, compare and play in a browser.

    Parameters
    ----------
    models
        Names that `shapleycam models` lists, with commas.
    weights
        NAME=FILE, or NAME=random; once for each model that has no weights here.
    host
        Where to listen; other machines can reach anything but 127.0.0.1, and there is no password.
    port
        Of the page.
    max_upload
        The largest file that is taken.
    device
        cpu, cuda, cuda:1, ...
    """
    from .web.serving import serve as serve_page

    pairs = [each.partition("=") for each in weights]
    if wrong := [name for name, sign, file in pairs if not (name and sign and file)]:
        raise ValueError(f"weights are given as {wrong[0]!r}, expected NAME=FILE, or NAME=random")
    serve_page(
        names_in(models), weights={name: file for name, _, file in pairs}, host=host, port=port, max_upload=max_upload,
        device=device,
    )  # fmt: skip
    return 0


_EXTRAS = {
    "pyarrow": "bench",
    "jinja2": "bench",
    "shapiq": "games",
    "gradio": "web",
    "captum": "lift",
    "ray": "ray",
    "upath": "bench",
}


def main() -> None:
    """Run a command; what the user can mend ends in one line on stderr and exit code 1, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a name that is no text here is shown all the same
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(sys.argv[1:], result_action="return_value")
    except ModuleNotFoundError as error:
        if (extra := _EXTRAS.get(str(error.name))) is None:
            raise
        sys.stderr.write(f'shapleycam: this needs {error.name}: pip install "shapleycam[{extra}]"\n')
        code = 1
    except _mendable() as error:
        if type(error) is RuntimeError:  # a bug, ours or the network's
            raise
        sys.stderr.write(f"shapleycam: {error}\n")
        code = 1
    except KeyboardInterrupt:
        sys.stderr.write("shapleycam: interrupted\n")
        code = 130
    sys.exit(code)


def _mendable() -> tuple[type[Exception], ...]:
    """What is said in a line; what object stores raise too, if the command has met one."""
    places = sys.modules.get(f"{__package__}.bench.places")
    return (ValueError, TypeError, OSError, RuntimeError, *(places.store_errors() if places else ()))


def _unread(failed: int, pictures: Sequence[Path]) -> int:
    """The exit code of a command whose pictures are reported one by one."""
    if failed:
        sys.stderr.write(f"{failed} of {len(pictures)} pictures could not be read\n")
    return int(failed > 0)
