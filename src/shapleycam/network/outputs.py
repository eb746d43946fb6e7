"""What networks put out that are no classifiers, as logits (b, c): segmentation, detection, embeddings.

Each is an `output=` of `explain`: the class scores of a region, of a box, of a likeness.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from .inputs import Output


def segmentation(region: Tensor | Sequence[Sequence[bool]] | None = None, key: str = "out") -> Output:
    """Each class's mean logit over a region, (b, c), of a network that puts out (b, c, h, w), or a mapping with that at `key`.

    `region` is a mask (H, W) or (b, H, W), of any size; None is the whole picture. For "why are these pixels of class k?" it is
    `scores.argmax(1) == k` of the network's scores for the picture: settled once, or each change of the picture would be asked
    about pixels of its own. With a mask an image, explain the batch whole, by methods that do not change the images; ScoreCAM,
    RISE and KernelSHAP take one image with one mask.

    Raises
    ------
    ValueError
        For a region without pixels.
    """
    mask = None if region is None else torch.as_tensor(region)
    if mask is not None and (mask.ndim not in (2, 3) or not mask.flatten(-2).any(-1).all()):
        raise ValueError(f"region has shape {tuple(mask.shape)}, expected a mask (H, W) or (b, H, W) with pixels in it")

    def logits(output: Any) -> Tensor:
        scores = _entry(output, key)
        if not isinstance(scores, Tensor) or scores.ndim != 4:
            raise ValueError(f"the network puts out {_shape(scores)}, expected the scores of each pixel, (b, c, h, w)")
        if mask is None:
            return scores.mean((2, 3))
        shares = _shares(scores, mask).to(scores.dtype)
        return (scores * shares).sum((2, 3)) / shares.sum((2, 3)).clamp(min=1e-7)

    return logits


def detection(
    box: Sequence[float] | None = None, classes: int | None = None, overlap: float = 0.5, least: float = 1e-9
) -> Output:
    """For each class the logit of the best detection's score, (b, c), of torchvision's detectors in eval mode.

    `box` (x1, y1, x2, y2) in pixels counts only detections that overlap it by so much (intersection over union). `classes` is
    their number; None for the highest label found. A class without a detection has the logit of `least`, and no gradient.

    Raises
    ------
    ValueError
        When an image has no detection, or none that overlaps the box.
    """
    if box is not None and (len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]):
        raise ValueError(f"box is {box!r}, expected (x1, y1, x2, y2) in pixels with x1 < x2 and y1 < y2")

    def logits(output: Any) -> Tensor:
        found = list(output)
        if not all(isinstance(each, Mapping) and {"boxes", "labels", "scores"} <= each.keys() for each in found):
            raise ValueError("the network puts out no detections, expected a list of dicts of boxes, labels and scores")
        near = [_near(each["boxes"], box, overlap) for each in found]
        empty = [i for i, each in enumerate(near) if not each.any()]
        if empty:
            where = f" that overlaps {tuple(box)} by {overlap}" if box is not None else ""
            raise ValueError(
                f"images {empty} have no detection{where}, so there is nothing to explain; lower the detector's score threshold "
                "(box_score_thresh, score_thresh), or name a box where it has one"
            )
        labels = [each["labels"][keep] for each, keep in zip(found, near, strict=True)]
        count = classes or int(max(each.max() for each in labels)) + 1
        rows = []
        for each, keep, label in zip(found, near, labels, strict=True):
            scores = each["scores"][keep].clamp(least, 1 - 1e-6)
            blank = scores.new_full((count,), least)
            rows.append(blank.scatter_reduce(0, label, scores, "amax"))
        best = torch.stack(rows)
        return best.log() - (-best).log1p()

    return logits


def similarity(references: Float[Tensor, "c d"], key: str = "image_embeds", scale: float = 1.0) -> Output:
    """The cosine similarity of each image's embedding with each reference, (b, c), times `scale` (CLIP: 100).

    For networks that put out embeddings (b, d), or an object or mapping with them at `key`. References are embeddings of texts or
    of other images; as `utility`, "pre-softmax" explains the likeness itself, "rest" what sets one reference apart.
    """
    wanted = normalize(references.detach(), dim=1)

    def logits(output: Any) -> Tensor:
        embeddings = _entry(output, key)
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or embeddings.shape[1] != wanted.shape[1]:
            raise ValueError(
                f"the network puts out {_shape(embeddings)}, expected embeddings (b, {wanted.shape[1]}) as the references have"
            )
        return scale * normalize(embeddings, dim=1) @ wanted.to(embeddings).mT

    return logits


def _entry(output: Any, key: str) -> Any:
    if isinstance(output, Mapping):
        return output.get(key, output.get("logits"))
    if not isinstance(output, Tensor):
        return getattr(output, key, getattr(output, "logits", output))
    return output


def _shares(scores: Tensor, mask: Tensor) -> Tensor:
    """How much of each pixel's is in the region, (b, 1, h, w)."""
    wide = interpolate(
        mask.to(scores.device, torch.float32).view(-1, 1, *mask.shape[-2:]), scores.shape[-2:], mode="area"
    )
    if len(scores) % len(wide):
        raise ValueError(
            f"region has {len(wide)} masks, expected one, or one for each of {len(scores)} images; with a mask an image name "
            "the layer (layer=), which is looked for on the first image alone, and explain the batch whole"
        )
    return wide.repeat(len(scores) // len(wide), 1, 1, 1)  # the rows of a coalition are the whole batch


def _near(boxes: Tensor, box: Sequence[float] | None, overlap: float) -> Tensor:
    """Which boxes overlap the one asked for enough, (k,)."""
    if box is None:
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    given = boxes.detach()
    wanted = given.new_tensor([*box])
    low, high = torch.maximum(given[:, :2], wanted[:2]), torch.minimum(given[:, 2:], wanted[2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = (given[:, 2:] - given[:, :2]).prod(1) + (wanted[2:] - wanted[:2]).prod() - shared
    return shared >= overlap * areas


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
