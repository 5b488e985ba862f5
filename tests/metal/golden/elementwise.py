"""A chain of element operations with broadcasting, one of which Metal has no function for."""


def program(m, x, scale, bias):
    y = m.tanh(x * scale + bias)
    return y * 0.5 * (m.erf(x * 0.70710678) + 1.0)
