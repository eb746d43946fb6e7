"""The six metrics of Section 4 as a `Metric` of torchmetrics, which adds up over batches and processes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..measurement import measure
from ..network.layout import Axes, Layout
from ..network.zoo import Model
from ..scoring import Masking
from ..theory import metrics
from ..theory.axes import Images
from ..theory.cams import SETS
from ..theory.utility import Utility

try:
    from torchmetrics import Metric
except ImportError as missing:
    raise ImportError("shapleycam.compat.torchmetrics needs torchmetrics: pip install torchmetrics") from missing

COLUMNS = ("average_drop", "coherency", "complexity", "increase_in_confidence", "average_drop_in_deletion")


class CAMMetrics(Metric):
    """Means over all images of a method's scores, as the paper's tables print them, in [0, 1]; ADCC is that of the means.

    Examples
    --------
    >>> import torch, shapleycam as sc
    >>> from shapleycam.compat.torchmetrics import CAMMetrics
    >>> metric = CAMMetrics(sc.load_model("resnet18", weights="random"), "GradCAM")
    >>> metric.update(torch.rand(2, 3, 64, 64))
    >>> sorted(metric.compute())
    ['adcc', 'average_drop', 'average_drop_in_deletion', 'coherency', 'complexity', 'increase_in_confidence']
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(
        self,
        model: Model | nn.Module,
        method: str = "ShapleyCAM",
        *,
        layer: str | nn.Module | None = None,
        layout: Axes | Layout | None = None,
        utility: str | Utility = "rest",
        masking: Masking = "normalised",
        **kwargs: Any,
    ) -> None:
        """`kwargs` are those of torchmetrics' `Metric`; everything else is as in `measure`."""
        super().__init__(**kwargs)
        if method in SETS:
            raise ValueError(
                f"method is {method!r}, a set; expected the name of one, for each method is a metric of its own"
            )
        # Inside a partial it is no submodule: no state, and not moved along with the metric.
        self._measure = partial(
            measure, model, methods=[method], layer=layer, layout=layout, utility=utility, masking=masking
        )
        self.add_state("total", torch.zeros(len(COLUMNS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Images, targets: int | str | Sequence[int] | Tensor | None = None) -> None:
        """Measure a batch; `targets` are the classes explained, as in `explain`."""
        found = self._measure(images, targets=targets)
        scores = torch.stack([getattr(found, column)[:, 0].to(torch.float64) for column in COLUMNS])
        self.total += scores.sum(1).to(self.total.device)
        self.count += len(images)

    def compute(self) -> dict[str, Tensor]:
        """The six scores; NaN before the first batch."""
        means = dict(zip(COLUMNS, self.total / self.count, strict=True))
        drop, coherency, complexity = (means[column][None] for column in COLUMNS[:3])
        return means | {"adcc": metrics.adcc(drop, coherency, complexity)}
