"""Names for the shapes that travel through the library: b images, n maps, p positions, H W pixels, c classes.

And the precision that these have at least.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Images = Float[Tensor, "b channels *size"]
"""(b, channels, H, W); of signals (b, channels, t), of volumes (b, channels, D, H, W)."""
Logits = Float[Tensor, "b c"]
Targets = Int64[Tensor, " b"]
Utilities = Float[Tensor, " b"]
Maps = Float[Tensor, "b n *p"]
Weights = Float[Tensor, "b n *#p"]
"""As `Maps`, or one number for all positions of a map, (b, n, 1, ...)."""
ExplanationMaps = Float[Tensor, "b *p"]
Heatmaps = Float[Tensor, "b *size"]
"""(b, H, W), or whatever the spatial axes of the images are."""


def wide(tensor: Tensor) -> Tensor:
    """A tensor in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
