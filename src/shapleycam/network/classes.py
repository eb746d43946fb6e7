"""What logits are called."""

from torch import nn


def classes_of(module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """A name for each logit, and where there are as many as ImageNet has classes also their WordNet identifiers."""
    from timm.data.imagenet_info import ImageNetInfo

    count = getattr(module, "num_classes", None)
    if not isinstance(count, int):
        count = [m.out_features for m in module.modules() if isinstance(m, nn.Linear)][-1]
    if count != 1000:
        return tuple(f"class {index}" for index in range(count)), None
    imagenet = ImageNetInfo()
    return (
        tuple(imagenet.index_to_description(index).split(",")[0] for index in range(1000)),
        tuple(imagenet.label_names()),
    )
