"""The primitives of the `mx` dialect, in family files. Importing this package fills `RECORDS`."""

from . import contract, control, elementwise, fast, indexing, random, reduce, scan_sort, shape
from .record import RECORDS, Aval, OpBuilder, Operators, Primitive

__all__ = ["RECORDS", "Aval", "OpBuilder", "Operators", "Primitive", "contract", "control", "elementwise", "fast",
           "indexing", "random", "reduce", "scan_sort", "shape"]  # fmt: skip
