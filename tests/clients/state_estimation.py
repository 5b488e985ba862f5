"""Estimation: Kalman filter and smoother, extended Kalman filter by jacobians, particle filter, HMM, AR model."""

import json
import math

import mlx.core as mx

mx.set_default_device(mx.cpu)
mx.random.seed(11)
out = {}
dt = 0.1
F = mx.array([[1, dt, 0, 0], [0, 1, 0, 0], [0, 0, 1, dt], [0, 0, 0, 1.0]])
H = mx.array([[1.0, 0, 0, 0], [0, 0, 1, 0]])
Q = 0.01 * mx.eye(4)
R = 0.25 * mx.eye(2)
zs = mx.stack([mx.array([math.cos(t * dt), math.sin(t * dt)]) + 0.1 * mx.random.normal((2,)) for t in range(25)])


def kf(zs):
    x, P = mx.zeros((4,)), mx.eye(4)
    xs, Ps, pxs, pPs, ll = [], [], [], [], mx.array(0.0)
    for z in zs:
        xp, Pp = F @ x, F @ P @ F.T + Q
        S = H @ Pp @ H.T + R
        r = z - H @ xp
        K = mx.linalg.solve(S, H @ Pp).T
        x, P = xp + K @ r, (mx.eye(4) - K @ H) @ Pp
        L = mx.linalg.cholesky(S)
        w = mx.linalg.solve_triangular(L, r[:, None])[:, 0]
        ll = ll - 0.5 * (w @ w) - mx.log(mx.diag(L)).sum() - math.log(2 * math.pi)
        xs.append(x)
        Ps.append(P)
        pxs.append(xp)
        pPs.append(Pp)
    return mx.stack(xs), mx.stack(Ps), mx.stack(pxs), mx.stack(pPs), ll


xs, Ps, pxs, pPs, ll = kf(zs)
s = [xs[-1]]
for t in range(len(xs) - 2, -1, -1):
    C = Ps[t] @ F.T @ mx.linalg.inv(pPs[t + 1])
    s.insert(0, xs[t] + C @ (s[0] - pxs[t + 1]))
out["kf"], out["rts"], out["ll"] = xs[::6].tolist(), mx.stack(s)[::6].tolist(), ll.item()


def g(x):
    return mx.stack([mx.sqrt(x[0] ** 2 + x[2] ** 2 + 1e-6), mx.arctan2(x[2], x[0])])


def jac(f, x):
    return mx.stack([mx.vjp(f, [x], [c])[1][0] for c in mx.eye(2)])


x = mx.array([1.0, 0.1, 0.2, 1.0])
P = mx.eye(4)
for z in zs[:8]:
    x, P = F @ x, F @ P @ F.T + Q
    J = jac(g, x)
    S = J @ P @ J.T + R
    K = mx.linalg.solve(S, J @ P).T
    x, P = x + K @ (g(mx.array([z[0].item(), 0.0, z[1].item(), 0.0])) - g(x)), (mx.eye(4) - K @ J) @ P
out["ekf"], out["J"] = x.tolist(), J.tolist()
N = 200
p = mx.random.normal((N, 2))
w = mx.full((N,), 1.0 / N)
est = []
for z in zs[:12]:
    p = p + 0.1 * mx.random.normal(p.shape)
    lw = mx.log(w) - ((p - z) ** 2).sum(1) / 0.5
    w = mx.softmax(lw)
    est.append((w[:, None] * p).sum(0))
    if (1 / (w * w).sum()).item() < N / 2:
        u = (mx.arange(N) + mx.random.uniform()) / N
        idx = (
            mx.minimum(mx.searchsorted(mx.cumsum(w), u), N - 1)
            if hasattr(mx, "searchsorted")
            else mx.clip((mx.cumsum(w)[None] < u[:, None]).sum(1), 0, N - 1)
        )
        p, w = p[idx], mx.full((N,), 1.0 / N)
out["pf"] = mx.stack(est).tolist()
A = mx.softmax(mx.sin(mx.arange(9.0).reshape(3, 3)), 1)
Bm = mx.softmax(mx.cos(mx.arange(12.0).reshape(3, 4) * 2), 1)
obs = [0, 1, 3, 2, 2, 0, 1, 3]
a = mx.log(mx.ones(3) / 3) + mx.log(Bm[:, obs[0]])
v = a
back = []
for o in obs[1:]:
    a = mx.logsumexp(a[:, None] + mx.log(A), axis=0) + mx.log(Bm[:, o])
    sc = v[:, None] + mx.log(A)
    back.append(mx.argmax(sc, axis=0))
    v = mx.max(sc, axis=0) + mx.log(Bm[:, o])
path = [mx.argmax(v).item()]
for b in back[::-1]:
    path.append(b[path[-1]].item())
out["hmm"] = [mx.logsumexp(a).item(), path[::-1]]
y = mx.cumsum(mx.random.normal((60,))) * 0.1
lag = mx.stack([y[2 - k : 58 - k] for k in range(3)], 1)
coef = mx.linalg.solve(lag.T @ lag + 1e-3 * mx.eye(3), lag.T @ y[3:59])
out["ar"] = coef.tolist()
out["acf"] = [((y[k:] - y.mean()) * (y[: 60 - k] - y.mean())).mean().item() for k in range(4)]
i = mx.array([0.0, 0, 1])
theta = mx.grad(lambda q: kf(zs[:5] * q)[4])(mx.array(1.0))
out["dll"] = theta.item()
U, S_, Vt = mx.linalg.svd(lag)
out["sv"] = S_.tolist()
q, r = mx.linalg.qr(lag)
out["qr"] = [mx.abs(r).tolist(), mx.allclose(q @ r, lag, atol=1e-5).item()]
e, V = mx.linalg.eigh(lag.T @ lag)
out["eig"] = e.tolist()
print(json.dumps(out))
