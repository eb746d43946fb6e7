"""The adapter to Quantus, by running metrics of Quantus's with it."""

import numpy as np
import pytest
import quantus
import torch
from torch import Tensor, nn

import shapleycam as sc
import small
from shapleycam.compat.quantus import explain_func

TARGETS = np.array([1, 4, 0])


def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return small.network()


def test_it_gives_the_heatmaps_of_explain(network: nn.Sequential) -> None:
    expected = sc.explain(network, images(), methods="LayerCAM", layer="3", targets=torch.from_numpy(TARGETS))
    for inputs in (images(), images().numpy(), images().double().numpy()):
        found = explain_func(network, inputs, TARGETS, method="LayerCAM", layer="3")
        np.testing.assert_array_equal(found[:, 0], expected.heatmaps["LayerCAM"].numpy())


def test_a_metric_of_quantus_scores_its_heatmaps_as_it_does_those_handed_over(network: nn.Sequential) -> None:
    def scores(**options: object) -> list[float]:
        metric = quantus.PixelFlipping(features_in_step=32, normalise=False, disable_warnings=True)
        given = {"x_batch": images().numpy(), "y_batch": TARGETS, "device": "cpu", "channel_first": True}
        return metric(network, **given, **options)

    options = {"method": "HiResCAM", "layer": "3"}
    handed = scores(a_batch=explain_func(network, images(), TARGETS, **options))
    asked = scores(explain_func=explain_func, explain_func_kwargs=options)
    np.testing.assert_allclose(asked, handed, rtol=0, atol=1e-6)
    assert np.ptp(handed) > 0.01


def test_a_metric_that_explains_again_runs_with_it(network: nn.Sequential) -> None:
    """RandomLogit explains a second class; Quantus compares both, and ours are not alike."""
    metric = quantus.RandomLogit(num_classes=5, normalise=False, disable_warnings=True, seed=0)
    found = metric(
        network,
        x_batch=images().numpy(),
        y_batch=TARGETS,
        explain_func=explain_func,
        explain_func_kwargs={"method": "GradCAM", "layer": "3"},
        device="cpu",
    )
    assert np.isfinite(found).all()
    assert max(found) < 0.999


def test_a_misspelt_option_is_refused(network: nn.Sequential) -> None:
    with pytest.raises(TypeError, match="methods"):
        explain_func(network, images(), TARGETS, methods="GradCAM")
