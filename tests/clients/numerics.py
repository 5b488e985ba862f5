"""Small numerical programs: power iteration, k-means, a Kalman filter, an FFT filter, Newton's method, an ODE, PCA."""

import json
import math

import mlx.core as mx

report = {}
mx.random.seed(17)

# Power iteration, and PageRank.
a = mx.random.normal((6, 6))
a = a @ a.T
v = mx.ones((6,))
for _ in range(200):
    w = a @ v
    new = w / mx.linalg.norm(w)
    if mx.abs(new - v).max().item() < 1e-6:
        break
    v = new
report["eigenvalue"] = (v @ a @ v).item()
links = (mx.random.uniform(shape=(5, 5)) < 0.4).astype(mx.float32) + mx.eye(5)
rank = mx.full((5,), 1 / 5)
transition = links / links.sum(axis=0)
while True:
    new = 0.85 * transition @ rank + 0.15 / 5
    if mx.allclose(new, rank, atol=1e-7):
        break
    rank = new
report["pagerank"] = rank.tolist()

# k-means.
points = mx.concatenate([mx.random.normal((20, 2)) * 0.3 + mx.array(c) for c in ([0.0, 0.0], [3.0, 0.0], [0.0, 3.0])])
centres = points[mx.array([0, 25, 50])]
for _ in range(10):
    distances = mx.linalg.norm(points[:, None] - centres[None], axis=-1)
    nearest = mx.argmin(distances, axis=1)
    one_hot = (nearest[:, None] == mx.arange(3)).astype(mx.float32)
    centres = (one_hot.T @ points) / mx.maximum(one_hot.sum(axis=0)[:, None], 1)
report["centres"], report["counts"] = centres.tolist(), one_hot.sum(axis=0).tolist()

# A Kalman filter.
F, H = mx.array([[1.0, 0.1], [0.0, 1.0]]), mx.array([[1.0, 0.0]])
Q, R = mx.eye(2) * 1e-3, mx.array([[0.05]])
state, P, track = mx.zeros((2, 1)), mx.eye(2), []
for i in range(15):
    z = mx.array([[math.sin(i * 0.1)]])
    state, P = F @ state, F @ P @ F.T + Q
    S = H @ P @ H.T + R
    K = P @ H.T @ mx.linalg.inv(S, stream=mx.cpu)
    state = state + K @ (z - H @ state)
    P = (mx.eye(2) - K @ H) @ P
    track.append(state.squeeze().tolist())
report["track"], report["covariance"] = track, P.tolist()

# An FFT filter, convolution by FFT, and a power spectrum.
t = mx.arange(64) / 64
signal = mx.sin(2 * math.pi * 3 * t) + 0.5 * mx.cos(2 * math.pi * 20 * t)
spectrum = mx.fft.rfft(signal)
spectrum[10:] = 0
smooth = mx.fft.irfft(spectrum, n=64)
report["smooth"] = smooth.tolist()
assert mx.allclose(smooth, mx.sin(2 * math.pi * 3 * t), atol=1e-4)
kernel = mx.pad(mx.array([0.25, 0.5, 0.25]), (0, 61))
report["convolved"] = mx.fft.ifft(mx.fft.fft(signal) * mx.fft.fft(kernel)).real[:8].tolist()
report["peak"] = mx.argmax(mx.abs(mx.fft.fftshift(mx.fft.fft(signal)))).item() in (29, 35)
report["image"] = mx.abs(mx.fft.fft2(signal.reshape(8, 8))).tolist()


# Newton's method by second derivatives; a Runge-Kutta step; an implicit root.
def f(x):
    return (x**4 - 3 * x**3 + 2).sum()


x = mx.array([3.0, 4.0])
for _ in range(8):
    gradient = mx.grad(f)(x)
    curvature = mx.vmap(mx.grad(mx.grad(lambda s: s**4 - 3 * s**3)))(x)
    x = x - gradient / curvature
report["minimum"] = x.tolist()
y, h = mx.array([1.0, 0.0]), 0.1
for _ in range(20):
    rhs = lambda s: mx.stack([s[1], -s[0] - 0.1 * s[1]])  # noqa: E731
    k1 = rhs(y)
    k2 = rhs(y + h / 2 * k1)
    k3 = rhs(y + h / 2 * k2)
    k4 = rhs(y + h * k3)
    y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
report["oscillator"] = y.tolist()

# Principal components, a histogram, run lengths, a game of life.
centred = points - points.mean(axis=0, keepdims=True)
report["variances"] = mx.linalg.eigvalsh(centred.T @ centred / 59, stream=mx.cpu).tolist()
bins = mx.clip(((points[:, 0] + 1) * 2).astype(mx.int32), 0, 9)
report["histogram"] = mx.zeros((10,), mx.int32).at[bins].add(1).tolist()
board = mx.random.bernoulli(0.4, (6, 6)).astype(mx.int32)
for _ in range(5):
    around = sum(mx.roll(mx.roll(board, i, 0), j, 1) for i in (-1, 0, 1) for j in (-1, 0, 1)) - board
    board = ((around == 3) | ((board == 1) & (around == 2))).astype(mx.int32)
report["alive"] = board.tolist()
weights = mx.logaddexp(mx.cumsum(mx.log(mx.arange(1, 6))), 0.0)
report["scan"] = [weights.tolist(), mx.cummax(mx.array([1, 3, 2, 5, 4])).tolist(), mx.tri(3).tolist()]
print(json.dumps(report))
