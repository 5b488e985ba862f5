"""Softmax over rows."""


def program(m, x):
    e = m.exp(x - m.expanded(m.max(x, axes=(1,)), [1]))
    return e / m.expanded(m.sum(e, axes=(1,)), [1])
