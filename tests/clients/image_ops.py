"""Array programs without modules: image filters, sorting, strings of indexing, in-place updates, printing, NumPy."""

import json

import mlx.core as mx
import numpy as np

report = {}
mx.random.seed(28)
image = mx.random.uniform(shape=(8, 10))

kernel = mx.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
edges = mx.conv2d(image[None, :, :, None], kernel[None, :, :, None], padding=1)[0, :, :, 0]
gaussian = mx.exp(-0.5 * mx.square(mx.arange(-2, 3)))
blurred = mx.conv_general(image[None, :, :, None], (gaussian / gaussian.sum())[None, :, None, None], padding=(2, 0))
report["edges"], report["blurred"] = edges.tolist(), blurred.squeeze().tolist()
windows = mx.as_strided(image, (3, 4, 4, 4), (20, 2, 10, 1))
report["pooled"] = windows.max(axis=(2, 3)).tolist()
integral = mx.cumsum(mx.cumsum(image, axis=0), axis=1)
report["box"] = (integral[4:, 4:] - integral[:-4, 4:] - integral[4:, :-4] + integral[:-4, :-4]).tolist()
levels = (image * 255).astype(mx.uint8)
histogram = mx.zeros((4,), mx.int32).at[(levels >> 6).astype(mx.int32).flatten()].add(1)
report["levels"], report["histogram"] = levels.tolist(), histogram.tolist()
packed = (levels[::2].astype(mx.uint16) << 8) | levels[1::2]
assert mx.array_equal(packed.view(mx.uint8).reshape(4, 10, 2)[..., 1], levels[::2])

x = mx.arange(24).reshape(2, 3, 4)
x[0, 1] = -1
x[:, :, -1] += 100
x[..., mx.array([0, 2])] *= 2
x[1, ::2, 1:3] = mx.array([[7, 8], [9, 10]])
alias = x
alias[0] = 0
report["updated"] = x.tolist()
y = mx.zeros((4, 4))
y[mx.array([0, 1]), mx.array([2, 3])] = mx.array([5.0, 6.0])
y[y > 5] = -1
y = mx.where(y == 0, mx.tri(4), y)
report["masked"], report["gathered"] = y.tolist(), x[mx.array([1, 0]), :, mx.array([3, 0])].tolist()
report["taken"] = mx.take_along_axis(y, mx.argsort(y, axis=1), axis=1).tolist()
report["slices"] = [v.tolist() for v in (x[::-1, None, 1, ::2], x[..., 0], x[-1, -2:, :-1])]
report["split"] = [p.shape[1] for p in mx.split(image, [3, 7], axis=1)]
report["mesh"] = [g.tolist() for g in mx.meshgrid(mx.arange(2), mx.arange(3), indexing="ij")]
report["einsum"] = mx.einsum("ij,kj,k->i", image, image[:3], mx.arange(3).astype(mx.float32)).tolist()
report["stats"] = [image.mean().item(), mx.var(image, ddof=1).item(), mx.std(image, axis=0).tolist(),
                   mx.median(image).item(), mx.topk(image.flatten(), 3).tolist()]  # fmt: skip
report["tensors"] = [mx.tensordot(image, image, axes=[[0], [0]]).shape[0], mx.kron(mx.eye(2), mx.ones((1, 2))).tolist(),
                     mx.outer(mx.arange(2), mx.arange(3)).tolist(), mx.inner(image[0], image[1]).item()]  # fmt: skip
report["text"] = [str(mx.arange(3)), repr(mx.array([[1.5, 2.0]])), f"{mx.array(3.14159):.3f}", str(mx.array([True]))]
back = np.array(image * 2)
report["numpy"] = [str(back.dtype), bool(np.allclose(back, np.asarray(image) * 2)), mx.array(back[::2, ::3]).shape[1]]
report["types"] = [
    str((mx.array(1, d) + 1.5).dtype).rpartition(".")[2] for d in (mx.int8, mx.uint32, mx.float16, mx.bool_)
]
report["divided"] = [(x[1] // 3).tolist(), (x[1] % 5).tolist(), (-x[1] // 4).tolist(), mx.divmod(x[1], 7)[1].tolist()]
report["scalars"] = [int(x.sum()), float(image[0, 0]), bool(mx.array(True)), len(image), x.size, x.ndim]
report["loop"] = [row.sum().item() for row in image]
print(json.dumps(report))
