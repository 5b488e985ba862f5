"""What the tests of `compile` share: counting how often Python runs a function."""

import numpy as np


class Counter:
    """Wraps a function and counts how often Python runs it."""

    def __init__(self, fun):
        self.fun, self.runs = fun, 0

    def __call__(self, *args, **kwargs):
        self.runs += 1
        return self.fun(*args, **kwargs)


def value(x):
    return np.array(x).tolist()
