"""Where the positions lie in what a layer puts out, and that a layer's maps and what it puts out are each made of the other."""

from typing import Any

import pytest
import torch
from torch import nn

from shapleycam.network.facts import Facts, Told, told
from shapleycam.network.layout import Layout, TargetLayer, place

NOTHING = Facts()


def tokens() -> Told:
    return Told(last=True)


@pytest.mark.parametrize(
    ("shape", "size", "last", "wanted"),
    [
        ((2, 197, 192), (224, 224), None, ("btn", 192, (14, 14), 1)),
        ((2, 198, 192), (224, 224), True, ("btn", 192, (14, 14), 2)),
        ((2, 196, 192), (224, 224), None, ("btn", 192, (14, 14), 0)),
        ((2, 201, 384), (224, 224), None, ("btn", 384, (14, 14), 5)),
        ((2, 99, 192), (224, 112), None, ("btn", 192, (14, 7), 1)),
        ((2, 1 + 15 * 20, 192), (240, 320), None, ("btn", 192, (15, 20), 1)),
        ((2, 192, 196), (224, 224), False, ("bnt", 192, (14, 14), 0)),
        ((2, 16, 92), (100,), False, ("bnt", 16, (92,), 0)),
        ((2, 92, 16), (100,), True, ("btn", 16, (92,), 0)),
        ((2, 128, 151), (150,), False, ("bnt", 128, (151,), 0)),
        ((2, 128, 97), (96,), False, ("bnt", 128, (97,), 0)),
        ((2, 512, 2, 7, 7), (16, 112, 112), None, ("bndhw", 512, (2, 7, 7), 0)),
        ((2, 4, 4, 4, 768), (8, 112, 112), None, ("bdhwn", 768, (4, 4, 4), 0)),
    ],
)
def test_layout_is_found_by_shapes_and_the_kind_of_layer(
    shape: tuple[int, ...], size: tuple[int, ...], last: bool | None, wanted: tuple[Any, ...]
) -> None:
    found = place("here", shape, size, NOTHING, lambda: None if last is None else Told(last))
    assert (found.layout, found.maps, found.positions, found.prefix) == wanted


@pytest.mark.parametrize(("shape", "size"), [((2, 16, 32, 64), (64, 128)), ((1, 16, 5, 29), (32, 128))])
def test_a_convolutions_maps_come_first_whatever_their_proportions(
    shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    assert place("here", shape, size, Facts(first=True)).layout == "bnhw"
    with pytest.raises(ValueError, match="say which with layout="):
        place("here", shape, size, NOTHING, lambda: None)


def test_the_models_own_number_of_prefix_tokens_decides() -> None:
    assert place("here", (1, 10, 64), (48, 48), Facts(prefix=1), tokens).positions == (3, 3)
    assert place("here", (1, 10, 64), (48, 48), Facts(prefix=6), tokens).positions == (2, 2)


def test_ambiguous_tokens_are_refused_with_the_candidates() -> None:
    with pytest.raises(
        ValueError,
        match=r"'here' puts out \(1, 10, 64\), which for an input of 48 x 48 may be "
        r'Layout\("btn", positions=\(3, 3\), prefix=1\), or Layout\("btn", positions=\(2, 2\), prefix=6\); say which with '
        r"layout=sc.Layout",
    ):
        place("here", (1, 10, 64), (48, 48), NOTHING, tokens)
    asked = Layout("btn", positions=(2, 2), prefix=6)
    assert place("here", (1, 10, 64), (48, 48), NOTHING, tokens, asked).positions == (2, 2)


def test_a_signal_with_as_many_maps_as_times_is_refused() -> None:
    with pytest.raises(ValueError, match=r"may be Layout\(\"bnt\", positions=\(50,\)\), or Layout\(\"btn\""):
        place("here", (1, 50, 50), (100,), NOTHING)


@pytest.mark.parametrize(
    ("layer", "shape", "size", "wanted"),
    [
        (nn.Conv2d(3, 16, 4), (2, 64, 16), (32, 32), "btn"),  # a patch embedding that moves its maps behind the tokens
        (nn.Conv1d(3, 8, 5), (2, 8, 96), (100,), "bnt"),
        (nn.Conv1d(3, 8, 5), (2, 96, 8), (100,), "btn"),
        (nn.GroupNorm(2, 8), (2, 8, 96), (100,), "bnt"),
        (nn.InstanceNorm1d(8), (2, 8, 96), (100,), "bnt"),
        (nn.MaxPool1d(2), (2, 8, 96), (100,), "bnt"),
        (nn.LayerNorm(8), (2, 96, 8), (100,), "btn"),
        (nn.Embedding(9, 8), (2, 96, 8), (96,), "btn"),
        (nn.Linear(5, 8), (2, 96, 8), (100,), "btn"),
        (nn.Linear(96, 96), (2, 96, 96), (96,), "btn"),
        (nn.LayerNorm(8), (2, 8, 8), (100,), "btn"),
        (nn.LSTM(3, 4, bidirectional=True), (2, 96, 8), (100,), "btn"),
        (nn.GRU(3, 8), (2, 96, 8), (100,), "btn"),
    ],
)
def test_maps_are_as_many_as_the_last_layer_that_tells_puts_out(
    layer: nn.Module, shape: tuple[int, ...], size: tuple[int, ...], wanted: str
) -> None:
    assert place("here", shape, size, NOTHING, lambda: told([nn.Linear(2, 3), layer, nn.ReLU()])).layout == wanted
    assert told([nn.ReLU()]) is None
    assert told([nn.Conv1d(3, 8, 5), nn.LayerNorm([8, 96])]) == Told(last=False, maps=8)  # a norm over the times too


def test_a_linear_layer_along_the_times_of_a_signal_tells_nothing() -> None:
    with pytest.raises(
        ValueError, match=r"may be Layout\(\"bnt\", positions=\(96,\)\), or Layout\(\"btn\", positions=\(8,\)\)"
    ):
        place("here", (2, 8, 96), (96,), NOTHING, lambda: told([nn.Linear(96, 96)]))
    with pytest.raises(ValueError, match="say which with layout="):
        place("here", (2, 8, 48), (96,), NOTHING, lambda: told([nn.Linear(96, 48)]))


def test_maps_that_nothing_says_are_maps_are_refused() -> None:
    for layer, shape in ((nn.LayerNorm(64), (1, 3, 197, 64)), (nn.LayerNorm(192), (1, 4, 196, 192))):  # attention's
        with pytest.raises(ValueError, match="say which with layout="):
            place("here", shape, (224, 224), Facts.of(layer, layer))
    block = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU())
    facts = Facts.of(block, block)
    for _ in range(2):  # of one cut every pass asks
        assert place("here", (1, 16, 5, 29), (32, 30), facts).layout == "bnhw"
    first = nn.Sequential(nn.Conv2d(3, 768, 1), nn.LayerNorm(768))  # timm's LayerNorm2d is one
    assert place("here", (1, 768, 4, 64), (128, 1024), Facts.of(first, first)).layout == "bnhw"
    assert (
        place("here", (1, 32, 64, 32), (64, 128), Facts(first=True)).layout == "bnhw"
    )  # filters by rows have the proportions


def test_patches_and_tokens_of_the_network_itself_decide() -> None:
    class Named(nn.Module):
        def __init__(self, patch_size: int | tuple[int, int], **tokens: int) -> None:
            super().__init__()
            self.patch_size = patch_size
            for name, count in tokens.items():
                self.register_parameter(name, nn.Parameter(torch.zeros(1, count, 8)))

    def read(module: nn.Module, tokens: int, *size: int) -> tuple[tuple[int, ...], int]:
        found = place("here", (1, tokens, 8), size, Facts.of(module, nn.LayerNorm(8)), lambda: told([nn.LayerNorm(8)]))
        return found.positions, found.prefix

    assert read(Named(16), 10, 48, 48) == ((3, 3), 1)
    assert read(Named((8, 8)), 10, 48, 48) == ((3, 3), 1)  # merged once
    assert read(Named(24), 10, 48, 48) == ((2, 2), 6)
    assert read(Named(0, class_token=1), 10, 48, 48) == ((3, 3), 1)
    assert read(Named(0, cls_token=1, register_tokens=5), 10, 48, 48) == ((2, 2), 6)
    assert read(Named(0, cls_token=1), 51, 1000) == ((50,), 1)  # of a signal, whose patches are whole
    assert read(Named(0, cls_token=1), 50, 1000) == ((50,), 0)  # before it is put in front
    assert read(Named(0), 51, 1000) == ((51,), 0)
    with pytest.raises(ValueError, match="say which with layout="):
        read(Named(0, cls_token=1), 97, 100)
    norm, asked = nn.LayerNorm(8), Layout("btn", positions=(12, 101), prefix=2)
    assert place("here", (1, 1214, 8), (128,), Facts.of(Named(16), norm), asked=asked).positions == (12, 101)


@pytest.mark.parametrize("layout", [Layout("btn", (3, 5)), Layout("btn", (14, 14), 2), Layout("bndhw")])
def test_a_layout_that_does_not_fit_is_refused(layout: Layout) -> None:
    with pytest.raises(
        ValueError, match=r"'here' puts out \(2, 197, 192\), which layout=Layout\(.*\) does not fit"
    ) as error:
        place("here", (2, 197, 192), (224, 224), NOTHING, asked=layout)
    assert f'"{layout.axes}"' in str(error.value)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (TargetLayer("a", "bnhw", 5, (3, 4)), (2, 5, 3, 4)),
        (TargetLayer("a", "bhwn", 5, (3, 4)), (2, 3, 4, 5)),
        (TargetLayer("a", "btn", 5, (3, 4), 2), (2, 14, 5)),
        (TargetLayer("a", "bnt", 5, (12,)), (2, 5, 12)),
        (TargetLayer("a", "btn", 5, (2, 3, 2), 1), (2, 13, 5)),
        (TargetLayer("a", "bdhwn", 5, (2, 3, 2)), (2, 2, 3, 2, 5)),
    ],
)
def test_what_a_layer_puts_out_is_made_of_its_maps_and_prefix(layer: TargetLayer, shape: tuple[int, ...]) -> None:
    output = torch.arange(float(torch.Size(shape).numel())).view(shape)
    maps = layer.maps_of(output)
    assert maps.shape == (2, 5, *layer.positions)
    assert torch.equal(layer.put_back(maps, output), output)
    more = layer.put_back(torch.cat([maps, maps + 1]), output)  # two rows an image
    assert torch.equal(layer.maps_of(more), torch.cat([maps, maps + 1]))
    if layer.prefix:
        assert torch.equal(more[:, : layer.prefix], output[:, : layer.prefix].repeat(2, 1, 1))


def test_tokens_lie_on_the_grid_in_row_major_order() -> None:
    output = torch.arange(7.0).view(1, 7, 1)
    assert TargetLayer("a", "btn", 1, (2, 3), 1).maps_of(output)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
