"""EigenCAM and EigenGradCAM against eigenvectors of the covariance and against grad-cam; RefineCAM against grad-cam's."""

from collections.abc import Callable

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

import shapleycam as sc
from playing import images, network
from shapleycam.theory.crg import Expansion
from shapleycam.theory.eigen import component, eigen_cam, eigen_grad_cam
from shapleycam.theory.fusion import refine
from shapleycam.theory.heatmap import heatmap

TARGETS = [4, 0, 1]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 30, 2, 3), (2, 4, 7), (2, 4, 2, 3, 2)])
def test_component_is_the_covariances_first_eigenvector_and_grows_with_the_sum_of_the_maps(
    shape: tuple[int, ...],
) -> None:
    maps = drawn(*shape)
    found = component(maps)
    assert found.shape == (shape[0], *shape[2:])
    for j in range(2):
        points = maps[j].flatten(1).numpy().T
        points = points - points.mean(0)
        values, vectors = np.linalg.eigh(points.T @ points)
        expected = points @ vectors[:, -1]
        if expected @ points.sum(1) < 0:
            expected = -expected
        assert found[j].flatten().tolist() == pytest.approx(expected.tolist(), abs=1e-9)
        assert float(found[j].square().sum()) == pytest.approx(values[-1])


def test_component_of_maps_that_follow_one_pattern_is_the_pattern_with_its_sign() -> None:
    pattern = drawn(1, 1, 4, 4)
    found = component(torch.cat([pattern, 2 * pattern, 2 * pattern], 1) + 5)
    torch.testing.assert_close(found, 3 * (pattern - pattern.mean())[:, 0])


def test_permuting_maps_leaves_the_component_and_permuting_positions_permutes_it() -> None:
    maps = drawn(2, 6, 12)
    order, places = (torch.randperm(k, generator=torch.Generator().manual_seed(k)) for k in (6, 12))
    torch.testing.assert_close(component(maps[:, order]), component(maps))
    torch.testing.assert_close(component(maps[..., places]), component(maps)[:, places])


def test_an_image_whose_maps_are_not_finite_spoils_no_other() -> None:
    maps = drawn(3, 4, 2, 5)
    expected = component(maps)
    maps[1, 0, 0, 0] = torch.nan
    found = component(maps)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().all()


@pytest.mark.parametrize("layer", [1, 3, 4])
@pytest.mark.parametrize(
    ("explain", "theirs"),
    [(eigen_cam, pytorch_grad_cam.EigenCAM), (eigen_grad_cam, pytorch_grad_cam.EigenGradCAM)],
)
def test_heatmaps_are_grad_cams_up_to_the_sign_which_it_leaves_to_chance(
    explain: Callable[[Expansion], Tensor], theirs: type, layer: int
) -> None:
    net, x = network(), images()
    maps = net[: layer + 1](x).detach().requires_grad_()
    logits = net[layer + 1 :](maps)
    (slope,) = torch.autograd.grad(sum(logits[j, t] for j, t in enumerate(TARGETS)), maps)
    found = explain(Expansion(maps.detach(), slope))
    with theirs(net, [net[layer]]) as rival:
        expected = torch.from_numpy(rival(x, [ClassifierOutputTarget(t) for t in TARGETS]))
    for j in range(3):
        either = [heatmap(sign * found[j : j + 1], (12, 16))[0] for sign in (1, -1)]
        assert float(expected[j].std()) > 0.05
        assert min(float((each - expected[j]).abs().max()) for each in either) < 1e-4


def test_eigengradcam_without_a_gradient_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="EigenGradCAM needs the gradient; expand with the ingredient 'gradient'"):
        eigen_grad_cam(Expansion(drawn(1, 2, 3, 3)))


def test_refinecam_is_grad_cams_product_over_layers() -> None:
    net, x = network(), images()
    rival = pytorch_grad_cam.refine_cam.RefineCAM(
        net, [net[4], net[2]], base_method=pytorch_grad_cam.GradCAMElementWise
    )
    expected = torch.from_numpy(rival(x, [ClassifierOutputTarget(t) for t in TARGETS]))
    layers = [
        sc.explain(net, x, layer=name, methods="GradCAM-E", targets=TARGETS, utility="pre-softmax", layout="bnhw")
        for name in ("4", "2")
    ]
    found = refine([out.heatmaps["GradCAM-E"] for out in layers])
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_pixel_counts_in_refinecam_if_it_does_at_every_layer_and_the_order_of_layers_does_not() -> None:
    one, other = torch.tensor([[[0.0, 1.0, 0.5, 0.25]]]), torch.tensor([[[1.0, 0.0, 0.5, 0.5]]])
    assert refine([one, other]).tolist() == [[[0, 0, pytest.approx(1, abs=1e-6), pytest.approx(0.5, abs=1e-6)]]]
    assert torch.equal(refine([one, other]), refine([other, one]))


@pytest.mark.parametrize("sizes", [[(4, 4)], [(4, 4), (5, 4)]])
def test_refinecam_refuses_one_layer_and_maps_of_different_sizes(sizes: list[tuple[int, int]]) -> None:
    with pytest.raises(
        ValueError, match=f"got {len(sizes)} layers' heatmaps of shapes .*, expected two or more of one shape"
    ):
        refine([torch.rand(1, *size) for size in sizes])
