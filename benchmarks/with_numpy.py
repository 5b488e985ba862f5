"""NumPy: the referee's functions on float32."""

import numpy as np
from workloads import WORKLOADS

FUNCTIONS = {name: workload.reference for name, workload in WORKLOADS.items()}
VERSION = f"numpy {np.__version__}"


def prepare(name, inputs):
    return lambda: FUNCTIONS[name](*inputs)
