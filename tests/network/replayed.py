"""Small networks with all that a replayed tail can stumble over; each is cut at its layer "body"."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapleycam.network.weights import randomise


class Both(nn.Module):
    """A tuple of tensors in a dict, and a number."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"pair": (x.sin(), x.cos()), "half": x.shape[2] // 2}


class Net(nn.Module):
    """Parts that a forward pass, the given function of the network and the images, may use or leave."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.after = nn.Conv2d(4, 4, 3, padding=1)
        self.list = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.GELU())
        self.narrow = nn.Conv2d(12, 4, 1)
        self.linear = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.both = Both()
        self.head = nn.Linear(4, 3)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def end(self, maps: Tensor) -> Tensor:
        return self.head(F.gelu(self.after(maps)).mean((2, 3)))


NETWORKS: dict[str, Callable[[Any, Tensor], Tensor]] = {}


def network(name: str) -> Net:
    net = Net(NETWORKS[name])
    randomise(net, 0)
    return net.double().eval()


def patched(net: nn.Module, x: Tensor, maps: Tensor, layer: str = "body") -> Tensor:
    """The oracle: every row's image through the whole network, on a deep copy whose target puts the maps out."""
    whole = copy.deepcopy(net).eval()
    whole.get_submodule(layer).register_forward_hook(lambda module, given, output: maps.clone())
    return whole(x.repeat(len(maps) // len(x), 1, 1, 1))


def known(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    NETWORKS[forward.__name__] = forward
    return forward


def with_skip(change: Callable[[Tensor, Tensor], Tensor | None]) -> Callable[[Any, Tensor], Tensor]:
    """What becomes of the target's output and of a recorded tensor that skips it; None if it is the latter, written into."""

    def forward(net: Any, x: Tensor) -> Tensor:
        skip = net.stem(x)
        out = net.body(skip)
        found = change(out, skip)
        return net.end(skip if found is None else found)

    return forward


def _to_the_skip(out: Tensor, skip: Tensor) -> None:
    skip += out


def _twice(out: Tensor, skip: Tensor) -> None:
    skip.add_(out)
    skip.mul_(2)


def _slices(out: Tensor, skip: Tensor) -> None:
    skip[:, :2] = out[:, :2]
    skip[..., 0] *= 2


def _views(out: Tensor, skip: Tensor) -> None:
    skip.flatten(2)[..., 3].zero_()
    skip[:, 1:3].mT.mul_(2)
    view = skip[:, :2]
    view += out[:, :2]


def _batch(out: Tensor, skip: Tensor) -> Tensor:
    b, n, h, w = skip.shape
    tokens = out.permute(0, 2, 3, 1).reshape(b, h * w, n)
    return (tokens + skip.view(b, n, -1).mT).mT.view(b, n, h, w)


def _mean_of_tokens(out: Tensor, skip: Tensor) -> Tensor:
    """Never an error: with a single image the tokens of all rows become one row's."""
    return skip * out.permute(0, 2, 3, 1).reshape(len(skip), -1, 4).mean(1)[..., None, None]


def _assertion(out: Tensor, skip: Tensor) -> Tensor:
    assert len(out) == len(skip)
    return out * skip


def _into_the_target(out: Tensor, skip: Tensor) -> Tensor:
    out[:, :2] += skip[:, 2:]
    out += skip
    return out.relu_()


NETWORKS |= {
    "added": with_skip(lambda out, skip: out + skip),
    "added in place": with_skip(lambda out, skip: out.__iadd__(skip)),
    "added to the skip": with_skip(_to_the_skip),
    "added without rebinding": with_skip(_twice),
    "rectified in place": with_skip(lambda out, skip: out + F.relu(skip, inplace=True) - skip),
    "gelu between": with_skip(lambda out, skip: F.gelu(out) * skip.sigmoid().mean((2, 3), keepdim=True)),
    "slices": with_skip(_slices),
    "views": with_skip(_views),
    "into the target": with_skip(_into_the_target),
    "where": with_skip(lambda out, skip: torch.where(skip > 0, out, skip)),
    "stacked": with_skip(lambda out, skip: torch.stack([skip, out, skip * out], 1).prod(1)),
    "batch size": with_skip(_batch),
    "mean of tokens": with_skip(_mean_of_tokens),
    "assertion": with_skip(_assertion),
    "row by row": with_skip(lambda out, skip: torch.stack([o * s for o, s in zip(out, skip, strict=False)])),
    "batched product": with_skip(lambda out, skip: torch.bmm(out.flatten(0, 0)[:, 0], skip[:, 1])[:, None] + out),
    "resized": with_skip(lambda out, skip: F.interpolate(out[..., ::2, :], skip.shape[2:]) + skip),
    "new tensor": with_skip(lambda out, skip: torch.cat([skip.new_ones(len(skip), 1, *skip.shape[2:]), out], 1)[:, :4]),
}


@known
def module_writes_in_place_behind(net: Any, x: Tensor) -> Tensor:
    skip = net.stem(x)
    out = net.relu(net.body(skip))
    net.relu(skip)
    return net.end(out + skip)


@known
def code_writes_in_place_before(net: Any, x: Tensor) -> Tensor:
    skip = net.stem(x)
    F.relu(skip, inplace=True)
    return net.end(net.body(skip) + skip)


@known
def dense(net: Any, x: Tensor) -> Tensor:
    features = [net.stem(x)]
    features.append(net.list[0](features[0]))
    features.append(net.body(net.narrow(torch.cat([*features, features[0]], 1))))
    return net.end(net.narrow(torch.cat(features, 1)))


@known
def inception(net: Any, x: Tensor) -> Tensor:
    stem = net.stem(x)
    return net.end(net.narrow(torch.cat([net.list[0](stem), net.body(stem), net.block(stem)], 1)))


@known
def module_list(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    for place, each in enumerate(net.list):
        y = y + each(y)
        y = net.body(y) + y if place == 1 else y
    return net.end(y)


@known
def shared_modules(net: Any, x: Tensor) -> Tensor:
    y = net.block(net.stem(x))
    y = net.after(net.block(y))
    return net.end(net.block(net.after(net.body(y) + y)))


@known
def tuples(net: Any, x: Tensor) -> Tensor:
    given = net.both(net.stem(x))
    left, right = given["pair"]
    left += net.body(right)
    more = net.both(left)
    return net.end(more["pair"][0][:, :, given["half"] :] + right[:, :, more["half"] :])


@known
def class_token(net: Any, x: Tensor) -> Tensor:
    y = net.body(net.stem(x))
    tokens = torch.cat([net.token.expand(x.shape[0], -1, -1), y.flatten(2).mT], 1)
    attended = F.scaled_dot_product_attention(*(net.linear(tokens)[:, None] for _ in range(3)))
    return net.head(attended[:, 0, 0])


@known
def images_again(net: Any, x: Tensor) -> Tensor:
    x -= 0.5
    y = net.body(net.stem(x))
    return net.end(y + x.mean(1, keepdim=True))


# What a replay gets wrong, as of now, without a word: see test_tail.py.


@known
def module_writes_in_place_before(net: Any, x: Tensor) -> Tensor:
    skip = net.stem(x)
    y = net.relu(skip)
    return net.end(net.body(y) + skip)


@known
def module_hands_its_input_through(net: Any, x: Tensor) -> Tensor:
    skip = net.stem(x)
    same = net.drop(skip)
    skip.add_(net.body(skip))
    return net.end(same)


def _each_image(out: Tensor, skip: Tensor) -> None:
    for image in range(len(skip)):
        out[image] *= skip[image].mean()


def _scattered(out: Tensor, skip: Tensor) -> Tensor:
    strongest = skip.flatten(2).topk(5, -1).indices
    return out.flatten(2).scatter(2, strongest, 0.0).view_as(out)


def _normalised(out: Tensor, skip: Tensor) -> Tensor:
    groups = out.reshape(len(skip), 2, -1)
    return (groups / groups.norm(dim=2, keepdim=True)).view_as(out)


NETWORKS |= {
    "image by image": with_skip(lambda out, skip: _each_image(out, skip) or out),
    "scattered": with_skip(_scattered),
    "normalised": with_skip(_normalised),
}
