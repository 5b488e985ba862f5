"""Layer norm over rows that are wider than a SIMD-group can keep."""


def program(m, x, weight, bias):
    n = x.shape[1]
    mean = m.sum(x, axes=(1,)) * (1 / n)
    d = x - m.expanded(mean, [1])
    variance = m.sum(d * d, axes=(1,)) * (1 / n)
    return d * m.expanded(m.rsqrt(variance + 1e-5), [1]) * weight + bias
