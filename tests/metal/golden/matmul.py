"""A product with what follows it: one kernel. Shapes that fill no tile."""


def program(m, x, w, b):
    product = m.matmul(x, w, ta=False, tb=False)
    return m.tanh(product + b)
