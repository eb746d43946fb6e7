"""Where the published code looked: it let a layer behind the target write into the target's output."""

from typing import Any

import torch
from torch import Tensor, nn

from ..network.ends import named_layers
from ..network.twin import twin
from ..theory.axes import Images


def overwriting_layer(module: nn.Module, layer: str, images: Images) -> str:
    """The last layer that writes into what `layer` puts out, VGG's in-place ReLU say; `layer` itself if none does.

    The published ShapleyCAM keeps the output's tensor and differentiates with respect to it at the end of the pass. By then
    the tensor is that last layer's output, so maps, U' and HX are those at that layer: explaining it is the same.
    """
    names = named_layers(module)
    outputs: list[tuple[str, Tensor]] = []  # keeps all tensors, so that no memory is used a second time

    def record(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and (name == layer or outputs):
                outputs.append((name, output))

        return hook

    with torch.no_grad():
        twin(module, {m: record(name) for name, m in names.items()})(images.clone())
    written = [name for name, output in outputs if output.data_ptr() == outputs[0][1].data_ptr() and name not in layer]
    return written[-1] if written else layer
