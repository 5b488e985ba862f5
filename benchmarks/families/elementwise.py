"""Chains of elementwise operations, which a compiler should make one pass over memory."""

import math

import numpy as np
from scipy.special import erf
from suite import normal, workload

COUNT = 10**6
RATE, VOLATILITY = 0.02, 0.3


@workload(flops=14 * COUNT)
class gelu_chain:
    """GELU, scale, shift, GELU of 10^6 numbers."""

    def inputs(rng):
        return [normal(rng, COUNT)]

    def numpy(np, x):
        half, root = np.asarray(0.5, x.dtype), np.asarray(0.5**0.5, x.dtype)
        y = half * x * (1 + erf(x * root)) * np.asarray(1.1, x.dtype) + np.asarray(0.1, x.dtype)
        return half * y * (1 + erf(y * root))

    def mlx(mx, x):
        def gelu(x):
            return x * (1 + mx.erf(x / math.sqrt(2))) / 2

        return gelu(gelu(x) * 1.1 + 0.1)

    def jax(jax, x):
        gelu = jax.nn.gelu
        return gelu(gelu(x, approximate=False) * 1.1 + 0.1, approximate=False)

    def torch(torch, x):
        gelu = torch.nn.functional.gelu
        return gelu(gelu(x) * 1.1 + 0.1)

    def numba(nb):
        f = np.float32

        @nb.njit(fastmath=True)
        def gelu(x):
            return f(0.5) * x * (f(1) + math.erf(x * f(0.5**0.5)))

        @nb.njit(parallel=True, fastmath=True)
        def chain(x):
            out = np.empty_like(x)
            for i in nb.prange(x.size):
                out[i] = gelu(gelu(x[i]) * f(1.1) + f(0.1))
            return out

        return chain


@workload(flops=26 * COUNT, tolerance=3e-5)
class black_scholes:
    """The prices of 10^6 calls and puts."""

    def inputs(rng):
        ranges = ((50, 150), (50, 150), (0.1, 2))
        return [rng.uniform(low, high, COUNT).astype(np.float32) for low, high in ranges]

    def numpy(np, spot, strike, years):
        def cdf(x):
            return np.asarray(0.5, x.dtype) * (1 + erf(x * np.asarray(0.5**0.5, x.dtype)))

        spread = np.asarray(VOLATILITY, spot.dtype) * np.sqrt(years)
        drift = np.asarray(RATE + VOLATILITY**2 / 2, spot.dtype)
        d1 = (np.log(spot / strike) + drift * years) / spread
        d2 = d1 - spread
        discounted = strike * np.exp(np.asarray(-RATE, spot.dtype) * years)
        call = spot * cdf(d1) - discounted * cdf(d2)
        return call, call + discounted - spot

    def mlx(mx, spot, strike, years):
        def cdf(x):
            return 0.5 * (1 + mx.erf(x * 0.5**0.5))

        spread = VOLATILITY * mx.sqrt(years)
        d1 = (mx.log(spot / strike) + (RATE + VOLATILITY**2 / 2) * years) / spread
        d2 = d1 - spread
        discounted = strike * mx.exp(-RATE * years)
        call = spot * cdf(d1) - discounted * cdf(d2)
        return call, call + discounted - spot

    def jax(jax, spot, strike, years):
        jnp, cdf = jax.numpy, jax.scipy.stats.norm.cdf
        spread = VOLATILITY * jnp.sqrt(years)
        d1 = (jnp.log(spot / strike) + (RATE + VOLATILITY**2 / 2) * years) / spread
        d2 = d1 - spread
        discounted = strike * jnp.exp(-RATE * years)
        call = spot * cdf(d1) - discounted * cdf(d2)
        return call, call + discounted - spot

    def torch(torch, spot, strike, years):
        def cdf(x):
            return 0.5 * (1 + torch.erf(x * 0.5**0.5))

        spread = VOLATILITY * torch.sqrt(years)
        d1 = (torch.log(spot / strike) + (RATE + VOLATILITY**2 / 2) * years) / spread
        d2 = d1 - spread
        discounted = strike * torch.exp(-RATE * years)
        call = spot * cdf(d1) - discounted * cdf(d2)
        return call, call + discounted - spot

    def numba(nb):
        f = np.float32

        @nb.njit(fastmath=True)
        def cdf(x):
            return f(0.5) * (f(1) + math.erf(x * f(0.5**0.5)))

        @nb.njit(parallel=True, fastmath=True)
        def prices(spot, strike, years):
            calls, puts = np.empty_like(spot), np.empty_like(spot)
            for i in nb.prange(spot.size):
                spread = f(VOLATILITY) * math.sqrt(years[i])
                d1 = (math.log(spot[i] / strike[i]) + f(RATE + VOLATILITY**2 / 2) * years[i]) / spread
                d2 = d1 - spread
                discounted = strike[i] * math.exp(-f(RATE) * years[i])
                calls[i] = spot[i] * cdf(d1) - discounted * cdf(d2)
                puts[i] = calls[i] + discounted - spot[i]
            return calls, puts

        return prices
