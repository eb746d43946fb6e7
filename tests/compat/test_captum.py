"""The adapter to captum against captum's own LayerGradCam."""

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

import shapleycam as sc
import small
from shapleycam.compat.captum import LayerExplainer


def images() -> Tensor:
    return torch.randn(3, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return small.network()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("target", [2, [1, 4, 0], torch.tensor([1, 4, 0])])
def test_gradcam_is_captums_layer_gradcam(network: nn.Sequential, target: object, relu: bool) -> None:
    expected = LayerGradCam(network, network[2]).attribute(images(), target=target, relu_attributions=relu).detach()
    explainer = LayerExplainer(network, network[2], "GradCAM", utility="pre-softmax")
    found = explainer.attribute(images(), target=target, relu_attributions=relu)
    assert relu or float(expected.min()) < 0 < float(expected.max())
    torch.testing.assert_close(found, expected)
    resized, theirs = (each.interpolate(expected, (12, 16)) for each in (LayerExplainer, LayerAttribution))
    assert torch.equal(resized, theirs)


def test_without_a_target_it_explains_the_likeliest_class_by_shapleycam(network: nn.Sequential) -> None:
    likeliest = network(images()).argmax(1)
    expected = sc.explain(network, images(), layer="2", targets=likeliest).explanations["ShapleyCAM"]
    assert torch.equal(LayerExplainer(network, "2").attribute(images()), expected[:, None])
