"""The metric for torchmetrics against `measure` over all pictures at once."""

import pickle
import sys

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

import shapleycam as sc
import small
from shapleycam.compat.torchmetrics import COLUMNS, CAMMetrics

TARGETS = torch.tensor([1, 4, 0, 2, 3, 1, 0])


def images() -> Tensor:
    return torch.randn(7, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    return small.network()


def same(found: dict[str, Tensor], network: nn.Module, count: int = 7) -> None:
    """As `measure` gives for the first `count` images at once; ADCC is that of the means."""
    whole = sc.measure(network, images()[:count], methods="GradCAM", layer="3", targets=TARGETS[:count])
    assert set(found) == {*COLUMNS, "adcc"}
    for column in COLUMNS:
        assert float(found[column]) == pytest.approx(float(getattr(whole, column).mean()), abs=1e-5), column
    assert float(found["adcc"]) == pytest.approx(float(whole.adcc[0]), abs=1e-5)
    each = sc.metrics.adcc_per_image(whole.average_drop, whole.coherency, whole.complexity)
    assert abs(float(found["adcc"]) - float(each.mean())) > 1e-3


def test_batches_add_up_to_what_measure_gives_for_all_pictures_at_once(network: nn.Module) -> None:
    metric = CAMMetrics(network, "GradCAM", layer="3")
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        metric.update(images()[start:stop], TARGETS[start:stop])
    same(metric.compute(), network)


def test_two_processes_are_merged(network: nn.Module) -> None:
    one, other = (CAMMetrics(network, "GradCAM", layer="3") for _ in range(2))
    one.update(images()[:2], TARGETS[:2])
    other.update(images()[2:], TARGETS[2:])
    one.merge_state(other)
    same(one.compute(), network)


def test_states_of_processes_are_summed_when_they_are_synchronised(network: nn.Module) -> None:
    """Two processes of which this one sees the other's states: what torchmetrics gathers is what it reduces."""
    other = CAMMetrics(network, "GradCAM", layer="3")
    other.update(images()[2:], TARGETS[2:])
    theirs = iter([other.total, other.count])
    metric = CAMMetrics(
        network,
        "GradCAM",
        layer="3",
        dist_sync_fn=lambda mine, group: [mine, next(theirs)],
        distributed_available_fn=lambda: True,
    )
    metric.update(images()[:2], TARGETS[:2])
    same(metric.compute(), network)


def test_it_is_reset_pickled_and_collected_and_the_model_is_no_part_of_it(network: nn.Module) -> None:
    collected = MetricCollection({"GradCAM": CAMMetrics(network, "GradCAM", layer="3")})
    collected.update(images(), TARGETS)
    collected.reset()
    collected.update(images()[:3], TARGETS[:3])
    metric = pickle.loads(pickle.dumps(collected))["GradCAM"]
    same(metric.compute(), network, 3)
    assert list(metric.parameters()) == []
    assert metric.state_dict() == {}


def test_a_missing_torchmetrics_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "shapleycam.compat.torchmetrics")
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        import shapleycam.compat.torchmetrics  # noqa: F401


def test_a_set_is_no_method(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="method is 'paper', a set; expected the name of one"):
        CAMMetrics(network, "paper")
