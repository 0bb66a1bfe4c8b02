"""Small networks of many kinds, to derive permutations of and to match.

Widths are chosen different from one another where they can be, so that a permutation of the wrong
axis does not even fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer

# ---- multilayer perceptrons --------------------------------------------------------------------


def mlp(widths: tuple[int, ...] = (12, 9, 8, 7, 4)) -> nn.Sequential:
    """Linear layers with ReLU between them; ``widths`` from the inputs to the outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class TiedLayer(nn.Module):
    """One hidden layer applied twice, and a residual linear map on top."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.again = nn.Linear(8, 8)
        self.residual = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.again(x))
        x = F.relu(self.again(x))
        return self.last(x + self.residual(x))


class Functional(nn.Module):
    """Weights as bare parameters, everything called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(5, 7))
        self.b1 = nn.Parameter(torch.randn(7))
        self.w2 = nn.Parameter(torch.randn(6, 7))
        self.w3 = nn.Parameter(torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x @ self.w1 + self.b1)
        x = torch.einsum("ni,oi->no", x, self.w2).relu_()
        return x.mul(2.0).sub_(0.1) @ self.w3


class Gated(nn.Module):
    """A fused gate, one half times the other: ``chunk`` ties a row to the row half way on."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 14)
        self.fused = nn.Linear(7, 12)
        self.down = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, dim=-1)
        return self.down(F.glu(self.fused(F.silu(a) * b)))


class PartlyPooled(nn.Module):
    """The first half of the units feed a mean besides: they are no longer like the others."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.up(x))
        return self.down(h) + h[:, :4].mean(1, keepdim=True)


class PartlyActivated(nn.Module):
    """Half of the units go through another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        return self.down(torch.cat([h[:, ::2].tanh(), h[:, 1::2].relu()], dim=1))


class Indexed(nn.Module):
    """One unit picked out, some reordered, some written to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 9)
        self.down = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        h = h[:, torch.tensor([1, 0, 2, 5, 4, 3, 6, 8, 7])]
        h[:, 6:] *= 0.5
        return self.down(h) + h[:, 0, None]


class WeightNormed(nn.Module):
    """Linear layers under weight normalisation."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.layers = nn.Sequential(
            norm(nn.Linear(5, 8)), nn.ReLU(), norm(nn.Linear(8, 7)), nn.ReLU(), nn.Linear(7, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


# ---- convolutional networks --------------------------------------------------------------------


class VGG(nn.Module):
    """Convolutions, pooling to 2×2, and linear layers on the flattened channels."""

    def __init__(self, norm: bool = True, width: int = 6) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n = 3
        for out in (width, width + 1, width + 2):
            layers.append(nn.Conv2d(n, out, 3, padding=1))
            layers += [nn.BatchNorm2d(out)] if norm else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            n = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(4 * n, 10), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(10, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut; ``option`` "A" (strided slice, zero channels) or "B"."""

    def __init__(self, n_in: int, n_out: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.padding = (n_out - n_in) // 2
        self.shortcut = nn.Sequential()
        self.slices = stride != 1 and option == "A"
        if stride != 1 and option == "B":
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.slices:
            p = self.padding
            out += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, p, p))
        else:
            out += self.shortcut(x)
        return F.relu(out)


class ResNet20(nn.Module):
    """ResNet-20 as for CIFAR; ``width`` 16 is the usual one."""

    def __init__(self, option: str = "B", width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages, n = [], width
        for i in range(3):
            out = width * 2**i
            for j in range(3):
                stages.append(BasicBlock(n, out, 2 if i and not j else 1, option))
                n = out
        self.blocks = nn.Sequential(*stages)
        self.linear = nn.Linear(n, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


class UNet(nn.Module):
    """Down and up again, with concatenated skips; transposed and dilated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 5, 3, padding=1)
        self.down2 = nn.Conv2d(5, 7, 3, padding=2, dilation=2)
        self.middle = nn.Conv2d(7, 9, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(9, 6, 2, stride=2)
        self.fuse2 = nn.Conv2d(13, 8, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.fuse1 = nn.Conv2d(9, 11, 3, padding=1)
        self.out = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        c = F.relu(self.middle(F.avg_pool2d(b, 2)))
        d = F.relu(self.fuse2(torch.cat([self.up2(c), b], dim=1)))
        e = F.relu(self.fuse1(torch.cat([a, self.up1(d)], dim=1)))
        return self.out(e)


class Decoder(nn.Module):
    """A linear layer viewed as C×3×3 and upsampled by transposed convolutions, as in a VAE."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.grid = nn.Linear(8, 54)
        self.up = nn.ConvTranspose2d(6, 7, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.last = nn.ConvTranspose2d(7, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.grid(F.relu(self.first(x)))).view(-1, 6, 3, 3)
        return torch.sigmoid(self.last(F.relu(self.norm(self.up(x)))))


class Grouped(nn.Module):
    """Grouped, depthwise and transposed grouped convolutions, some with a multiplier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(12)
        self.between = nn.Conv2d(12, 5, 1)
        self.depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.multiplied = nn.Conv2d(5, 10, 3, padding=1, groups=5)
        self.mixing = nn.Conv2d(10, 6, 1)
        self.turned = nn.ConvTranspose2d(6, 9, 2, stride=2, groups=3)
        self.last = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.between(F.relu(self.norm(self.grouped(F.relu(self.first(x)))))))
        x = F.relu(self.mixing(F.relu(self.multiplied(F.relu(self.depthwise(x))))))
        return self.last(F.relu(self.turned(x)))


class Norms(nn.Module):
    """Group, instance and layer norms, over channels first and last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.group = nn.GroupNorm(4, 8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.instance = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.conv3 = nn.Conv2d(6, 7, 3, padding=1)
        self.layer = nn.LayerNorm(7)
        self.conv4 = nn.Conv2d(7, 9, 3, padding=1)
        self.whole = nn.GroupNorm(1, 9)
        self.each = nn.GroupNorm(9, 9)
        self.conv5 = nn.Conv2d(9, 5, 3, padding=1)
        self.over_all = nn.LayerNorm((5, 4, 4))
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(self.conv1(x)))
        x = F.relu(self.instance(self.conv2(x)))
        x = self.layer(self.conv3(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.each(self.whole(self.conv4(F.gelu(x))))
        return self.last(self.over_all(self.conv5(x.relu_())).mean((2, 3)))


class Shuffled(nn.Module):
    """ShuffleNet's split, shuffle and concatenation, without weights between two shuffles."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for _ in range(2):
            a, b = x.chunk(2, dim=1)
            x = torch.cat([a, F.relu(self.branch(b))], dim=1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(x)


class PixelShuffled(nn.Module):
    """Sub-pixel upsampling and its inverse: a unit has a channel for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 20, 3, padding=1)
        self.middle = nn.Conv2d(5, 6, 3, padding=1)
        self.last = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.middle(F.pixel_shuffle(self.first(x), 2)))
        return self.last(F.pixel_unshuffle(x, 2))


# ---- sequences ---------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Causal attention with q, k and v from one map, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, s, c = x.shape
        q, k, v = (
            t.view(n, s, self.heads, c // self.heads).transpose(1, 2)
            for t in self.qkv(x).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(n, s, c))


class GPT(nn.Module):
    """A decoder with tied embeddings; takes token numbers ``(n, s)``."""

    def __init__(
        self, layers: int = 2, width: int = 12, heads: int = 3, vocabulary: int = 11
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(6, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "attention": SelfAttention(width, heads),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 2 * width + 1),
                    "down": nn.Linear(2 * width + 1, width),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["attention"](block["norm1"](x))
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x))


class GroupedQueries(nn.Module):
    """Attention in which several query heads share one head of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.q, self.k = nn.Linear(12, 24), nn.Linear(12, 12)
        self.v, self.out = nn.Linear(12, 12), nn.Linear(24, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, s, _ = x.shape
        q = self.q(x).view(n, s, 6, 4).transpose(1, 2)
        k, v = (
            part(x).view(n, s, 3, 4).transpose(1, 2)[:, :, None].expand(n, 3, 2, s, 4)
            for part in (self.k, self.v)
        )
        k, v = k.reshape(n, 6, s, 4), v.reshape(n, 6, s, 4)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        return self.last(x + self.out((weights @ v).transpose(1, 2).reshape(n, s, 24)))


class Rotary(nn.Module):
    """Rotary positions and normed queries and keys: what is left are heads, and values in them."""

    def __init__(self, rotate: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 10)
        self.qkv = nn.Linear(10, 36)
        self.norm_q = nn.LayerNorm(4) if norm else nn.Identity()
        self.norm_k = nn.LayerNorm(4) if norm else nn.Identity()
        self.rotate = rotate
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, s, _ = x.shape
        qkv = self.qkv(torch.relu(self.embed(x))).view(n, s, 3, 3, 4)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.norm_q(q), self.norm_k(k)
        if self.rotate:
            angle = torch.arange(s)[:, None] / torch.tensor([1.0, 7.0])
            cos, sin = (f(angle).repeat(1, 2).to(x.dtype) for f in (torch.cos, torch.sin))
            q, k = (t * cos + torch.cat([-t[..., 2:], t[..., :2]], dim=-1) * sin for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    """An embedding, an LSTM (two layers, both directions) or GRU, and a classifier."""

    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn: nn.Module
        if kind == "LSTM":
            self.rnn = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        else:
            self.rnn = nn.GRU(6, 10, batch_first=True)
        self.last = nn.Linear(10, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.rnn(self.embed(tokens))
        return self.last(x.mean(1))


class Encoder(nn.Module):
    """torch's own transformer encoder, with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.places = nn.Parameter(torch.randn(1, 7, 12))
        layer = nn.TransformerEncoderLayer(12, 3, 17, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1)
        return self.last(self.encoder(x + self.places)[:, 0])


def small_vit() -> nn.Module:
    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=3, hidden_dim=12, mlp_dim=17,
        num_classes=4,
    )  # fmt: skip


def small_swin() -> nn.Module:
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 2], num_heads=[2, 4], window_size=[2, 2],
        num_classes=4,
    )  # fmt: skip


# ---- all of them, and what their groups are ----------------------------------------------------

Sizes = tuple[int, ...]  # (n,) for a group, (b, n) for one within b blocks


@dataclass(frozen=True)
class Example:
    """A network, inputs for it, and its groups as derived by hand."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    groups: list[Sizes]

    def network(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build()


def floats(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


def tokens(n: int = 11, shape: tuple[int, int] = (3, 6)) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.arange(math.prod(shape)).reshape(shape) * 7 % n,)


images, rows, steps = floats(3, 3, 8, 8), floats(3, 5), floats(3, 6, 5)

EXAMPLES: dict[str, Example] = {
    "mlp": Example(mlp, floats(3, 12), [(9,), (8,), (7,)]),
    "tied layer": Example(TiedLayer, rows, [(8,)]),
    "functional": Example(Functional, rows, [(7,), (6,)]),
    "gated": Example(Gated, rows, [(7,), (6,)]),
    "partly pooled": Example(PartlyPooled, rows, [(4,), (4,)]),
    "partly activated": Example(PartlyActivated, rows, [(4,), (4,)]),
    # unit 1 is picked out; 6 to 8 are halved
    "indexed": Example(Indexed, rows, [(5,), (3,)]),
    "weight norm": Example(WeightNormed, rows, [(8,), (7,)]),
    "vgg": Example(VGG, floats(3, 3, 16, 16), [(6,), (7,), (8,), (10,)]),
    "resnet20": Example(ResNet20, images, [(4,)] * 4 + [(8,)] * 4 + [(16,)] * 4),
    # Without a map in the shortcuts the channels of a stage are those of the last: the middle ones
    # are the stage before's, and the channels padded before and after them are like one another.
    "resnet20 A": Example(
        lambda: ResNet20("A"),
        images,
        [(4,)] * 4 + [(8,), (4,), (8,), (8,), (16,), (8,), (16,), (16,)],
    ),
    "unet": Example(UNet, images, [(5,), (7,), (9,), (6,), (8,), (4,), (11,)]),
    "decoder": Example(Decoder, rows, [(8,), (6,), (7,)]),
    "grouped": Example(
        Grouped,
        images,
        # blocks of the grouped convolution, its inputs and outputs; the depthwise channels, and
        # two outputs for each; the same for the transposed convolution
        [(4,), (4, 2), (4, 3), (5,), (5, 2), (3,), (3, 2), (3, 3)],
    ),
    "norms": Example(Norms, floats(3, 3, 4, 4), [(4,), (4, 2), (6,), (7,), (9,), (5,)]),
    # By following the 8 channels through both rounds: the shared branch takes the same four of
    # them at different places, and what is alike comes in pairs.
    "shuffled": Example(Shuffled, images, [(2,), (2,), (2,), (2,)]),
    "pixel shuffle": Example(PixelShuffled, images, [(5,), (6,)]),
    "gpt": Example(GPT, tokens(), [(12,)] + [(3,), (3, 4), (3, 4), (25,)] * 2),
    "grouped queries": Example(GroupedQueries, steps, [(12,), (3,), (3, 4), (3, 4)]),
    "rotary": Example(Rotary, steps, [(10,), (3,), (3, 4)]),
    "normed queries": Example(lambda: Rotary(False, True), steps, [(10,), (4,), (4,), (4,), (4,)]),
    "lstm": Example(Recurrent, tokens(), [(6,), (5,), (5,), (5,), (5,)]),
    "gru": Example(lambda: Recurrent("GRU"), tokens(), [(6,), (10,)]),
    "encoder": Example(Encoder, steps, [(12,)] + [(3,), (3, 4), (3, 4), (17,)] * 2),
    "vit": Example(small_vit, floats(3, 3, 16, 16), [(12,)] + [(3,), (3, 4), (3, 4), (17,)] * 2),
    "swin": Example(
        small_swin,
        floats(3, 3, 32, 32),
        [(8,), (2,), (2, 4), (2, 4), (32,), (16,)] + [(4,), (4, 4), (4, 4), (64,)] * 2,
    ),
}
