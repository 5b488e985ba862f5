"""Enough elements that a thread computes four neighbours; their number leaves a tail."""


def program(m, x, y, b):
    scaled = x * y
    return m.tanh(scaled) + b
