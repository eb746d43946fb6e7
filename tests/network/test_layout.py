"""Where the positions lie in what a layer puts out, and that a layer's maps and what it puts out are each made of the other."""

from typing import Any

import pytest
import torch

from shapleycam.network.layout import Facts, Layout, TargetLayer, place

NOTHING = Facts()


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
    found = place("here", shape, size, NOTHING, lambda: last)
    assert (found.layout, found.maps, found.positions, found.prefix) == wanted


@pytest.mark.parametrize(("shape", "size"), [((2, 16, 32, 64), (64, 128)), ((1, 16, 5, 29), (32, 128))])
def test_a_convolutions_maps_come_first_whatever_their_proportions(
    shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    assert place("here", shape, size, Facts(first=True)).layout == "bnhw"
    with pytest.raises(ValueError, match="say which with layout="):
        place("here", shape, size, NOTHING, lambda: False)


def test_the_models_own_number_of_prefix_tokens_decides() -> None:
    assert place("here", (1, 10, 64), (48, 48), Facts(prefix=1), lambda: True).positions == (3, 3)
    assert place("here", (1, 10, 64), (48, 48), Facts(prefix=6), lambda: True).positions == (2, 2)


def test_ambiguous_tokens_are_refused_with_the_candidates() -> None:
    with pytest.raises(
        ValueError,
        match=r"'here' puts out \(1, 10, 64\), which for an input of 48 x 48 may be "
        r'Layout\("btn", positions=\(3, 3\), prefix=1\), or Layout\("btn", positions=\(2, 2\), prefix=6\); say which with '
        r"layout=sc.Layout",
    ):
        place("here", (1, 10, 64), (48, 48), NOTHING, lambda: True)
    asked = Layout("btn", positions=(2, 2), prefix=6)
    assert place("here", (1, 10, 64), (48, 48), NOTHING, lambda: True, asked).positions == (2, 2)


def test_a_signal_with_as_many_maps_as_times_is_refused() -> None:
    with pytest.raises(ValueError, match=r"may be Layout\(\"bnt\", positions=\(50,\)\), or Layout\(\"btn\""):
        place("here", (1, 50, 50), (100,), NOTHING)


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
