"""What a call costs beside its arithmetic: microseconds per call, by form of call, with arrays of 8 floats.

    python calls.py [--rounds 15]

Prints a Markdown table of medians over interleaved rounds, garbage collection off, with twenty multiplications of
8 floats by NumPy in the same rounds to tell what the machine was like.
"""

import argparse
import gc
import statistics
import time

import numpy as np

import mlxir as mx
from mlxir import optimizers

FORMS = {}
WARM = 30  # calls before the first round: native code is made on the way
SECONDS = 0.01  # of one measurement


def form(name):
    """Register what makes a call, under the name of its row."""

    def add(make):
        FORMS[name] = make

    return add


def vector(seed=0):
    x = mx.array(np.random.default_rng(seed).normal(size=8).astype(np.float32))
    mx.eval(x)
    return x


@form("20 multiplications by NumPy")
def _():
    x = np.ones(8, np.float32)

    def call():
        y = x
        for _ in range(20):
            y = y * x
        return y

    return call


@form("compiled `x * 2 + 1`")
def _():
    f, x = mx.compile(lambda x: x * 2 + 1), vector()
    return lambda: f(x)


@form("the same and `mx.eval`")
def _():
    f, x = mx.compile(lambda x: x * 2 + 1), vector()
    return lambda: mx.eval(f(x))


@form("the same with a keyword argument")
def _():
    f, x, y = mx.compile(lambda x, y: x * 2 + y), vector(), vector(1)
    return lambda: f(x, y=y)


@form("compiled `x * rate`, a new rate each time")
def _():
    f, x, rates = mx.compile(lambda x, rate: x * rate), vector(), iter(range(1, 10**9))
    return lambda: f(x, next(rates) * 0.5)


@form("a dict of 50 arrays, in and out, and `mx.eval`")
def _():
    f = mx.compile(lambda tree: {k: v * 2 for k, v in tree.items()})
    tree = {f"p{i}": vector(i) for i in range(50)}
    return lambda: mx.eval(f(tree))


@form("a list of 25 dicts of 2 arrays, in and out, and `mx.eval`")
def _():
    f = mx.compile(lambda tree: [{k: v * 2 for k, v in d.items()} for d in tree])
    tree = [{"w": vector(i), "b": vector(-i - 1 + 100)} for i in range(25)]
    return lambda: mx.eval(f(tree))


@form("a step that updates 100 captured arrays")
def _():
    state = {f"p{i}": vector(i) for i in range(100)}

    def step():
        for k in state:
            state[k] = state[k] * 0.5

    f = mx.compile(step, inputs=state, outputs=state)
    return lambda: f()


@form("a training step (2 parameters, Adam) and `mx.eval` of its state")
def _():
    parameters, optimizer = {"w": vector(), "b": vector(1)}, optimizers.Adam(1e-3)
    optimizer.init(parameters)
    state = [parameters, optimizer.state]
    mx.eval(state)

    def step(x):
        loss, gradients = mx.value_and_grad(lambda p: ((p["w"] * x + p["b"]) ** 2).mean())(parameters)
        parameters.update(optimizer.apply_gradients(gradients, parameters))
        return loss

    f, x = mx.compile(step, inputs=state, outputs=state), vector(2)
    return lambda: mx.eval(f(x), state)


@form("20 operators and `mx.eval`, nothing compiled by the user")
def _():
    x = vector()

    def call():
        y = x
        for _ in range(20):
            y = y * x
        mx.eval(y)

    return call


@form("`value_and_grad` of a small function and `mx.eval`, likewise")
def _():
    f, x = mx.value_and_grad(lambda x: (mx.sin(x) * x).sum()), vector()
    return lambda: mx.eval(f(x))


def microseconds(call):
    """Of one call, by as many as take `SECONDS`."""
    count = 1
    while True:
        start = time.perf_counter()
        for _ in range(count):
            call()
        taken = time.perf_counter() - start
        if taken >= SECONDS:
            return taken / count * 1e6
        count = max(count * 2, int(count * SECONDS / max(taken, 1e-9)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    calls = {name: make() for name, make in FORMS.items()}
    for call in calls.values():
        for _ in range(WARM):
            call()
    gc.disable()
    taken = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(microseconds(call))
    print("| call | us | least |\n| --- | ---: | ---: |")
    for name, times in taken.items():
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} |")


if __name__ == "__main__":
    main()
