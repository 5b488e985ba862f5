"""Parts of Segment Anything: padded windows, relative positions by einsum, a mask decoder that upsamples."""

import json

import mlx.core as mx
import mlx.nn as nn


def window_partition(x, size):
    B, H, W, C = x.shape
    pad_h, pad_w = (size - H % size) % size, (size - W % size) % size
    if pad_h > 0 or pad_w > 0:
        x = mx.pad(x, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
    Hp, Wp = H + pad_h, W + pad_w
    x = x.reshape(B, Hp // size, size, Wp // size, size, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size, size, C), (Hp, Wp)


def window_unpartition(windows, size, padded, original):
    (Hp, Wp), (H, W) = padded, original
    B = windows.shape[0] // (Hp * Wp // size // size)
    x = windows.reshape(B, Hp // size, Wp // size, size, size, -1).transpose(0, 1, 3, 2, 4, 5).reshape(B, Hp, Wp, -1)
    return x[:, :H, :W, :]


def relative(size, table):
    coordinates = mx.arange(size)[:, None] - mx.arange(size)[None, :] + (size - 1)
    return table[coordinates.astype(mx.int64)]


class WindowAttention(nn.Module):
    def __init__(self, dim, heads, size):
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.rel_pos_h = mx.random.normal((2 * size - 1, dim // heads)) * 0.1
        self.rel_pos_w = mx.random.normal((2 * size - 1, dim // heads)) * 0.1

    def __call__(self, x):
        B, H, W, C = x.shape
        qkv = self.qkv(x).reshape(B, H * W, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, B * self.heads, H * W, -1)
        scores = (q * (C // self.heads) ** -0.5) @ k.transpose(0, 2, 1)
        r_q = q.reshape(B * self.heads, H, W, -1)
        rel_h = mx.einsum("bhwc,hkc->bhwk", r_q, relative(H, self.rel_pos_h))
        rel_w = mx.einsum("bhwc,wkc->bhwk", r_q, relative(W, self.rel_pos_w))
        scores = (
            scores.reshape(B * self.heads, H, W, H, W) + rel_h[:, :, :, :, None] + rel_w[:, :, :, None, :]
        ).reshape(B * self.heads, H * W, H * W)
        x = mx.softmax(scores, axis=-1) @ v
        x = x.reshape(B, self.heads, H, W, -1).transpose(0, 2, 3, 1, 4).reshape(B, H, W, -1)
        return self.proj(x)


class MaskDecoder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.up1, self.norm = nn.ConvTranspose2d(dim, dim // 2, 2, stride=2), nn.LayerNorm(dim // 2)
        self.up2, self.iou = nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2), nn.Linear(dim, 3)
        self.hyper = [nn.Linear(dim, dim // 4) for _ in range(3)]
        self.tokens = nn.Embedding(3, dim)
        self.resize = nn.Upsample(scale_factor=(2, 2), mode="linear", align_corners=False)

    def __call__(self, features, points):
        up = nn.gelu(self.norm(self.up1(features)))
        up = nn.gelu(self.up2(up))
        tokens = self.tokens.weight[None] + points[:, None]
        hyper = mx.stack([mlp(tokens[:, i]) for i, mlp in enumerate(self.hyper)], axis=1)
        B, H, W, C = up.shape
        masks = (hyper @ up.reshape(B, H * W, C).transpose(0, 2, 1)).reshape(B, -1, H, W)
        return self.resize(mx.moveaxis(masks, 1, -1)), self.iou(tokens.mean(axis=1))


def fourier_points(coords, matrix):
    coords = (2 * coords - 1) @ matrix * (2 * mx.pi)
    return mx.concatenate([mx.sin(coords), mx.cos(coords)], axis=-1)


mx.random.seed(13)
dim = 16
attention, decoder, matrix = WindowAttention(dim, 2, 3), MaskDecoder(dim), mx.random.normal((2, dim // 2))
features = mx.random.normal((1, 5, 4, dim))
windows, padded = window_partition(features, 3)
features = features + window_unpartition(attention(windows), 3, padded, (5, 4))
masks, iou = decoder(features, fourier_points(mx.array([[0.25, 0.75]]), matrix))
binary = masks > 0
area = binary.sum(axis=(1, 2))
rows = mx.any(binary, axis=2)
boxes = [[int(mx.argmax(rows[0, :, i])), masks.shape[1] - 1 - int(mx.argmax(rows[0, ::-1, i]))] for i in range(3)]
gradient = mx.grad(lambda f: decoder(f, mx.zeros((1, dim)))[0].square().mean())(features)
stability = (masks > 0.1).sum(axis=(1, 2)) / mx.maximum((masks > -0.1).sum(axis=(1, 2)), 1)
print(json.dumps({"masks": masks.tolist(), "iou": iou.tolist(), "area": area.tolist(), "boxes": boxes,
                  "gradient": gradient.tolist(), "stability": stability.tolist()}))  # fmt: skip
