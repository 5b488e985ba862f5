"""Escape times by a while loop on complex numbers, Julia sets under compile, and a text picture."""

import json

import mlx.core as mx

width, height, limit = 24, 12, 30
x, y = mx.linspace(-2.0, 0.6, width), mx.linspace(-1.2, 1.2, height)
c = x[None, :] + 1j * y[:, None]
z, count, i = mx.zeros_like(c), mx.zeros(c.shape, dtype=mx.int32), 0
alive = mx.ones(c.shape, dtype=mx.bool_)
while mx.any(alive).item() and i < limit:
    z = mx.where(alive, z * z + c, z)
    alive = alive & (mx.abs(z) <= 2)
    count += alive
    i += 1
    mx.eval(z, count, alive)


@mx.compile
def julia(z, steps: int):
    n = mx.zeros(z.shape, mx.uint8)
    for _ in range(steps):
        z = z * z + (-0.8 + 0.156j)
        n = n + (z.real**2 + z.imag**2 < 4.0)
    return n


steps = julia(c * 0.6, 9)
picture = ["".join(" .:-=+*#%@"[min(9, v // 3)] for v in row) for row in count.tolist()]
assert str(c.dtype).endswith("complex64") and steps.dtype == mx.uint8
print(json.dumps({"iterations": i, "picture": picture, "julia": steps.tolist(), "area": count.sum().item()}))
