"""The primitives of the `mx` dialect, in family files. Importing this package imports them all: that fills RECORDS."""

from importlib import import_module
from pkgutil import iter_modules

from .record import RECORDS, Aval, OpBuilder, Operators, Primitive

for _family in iter_modules(__path__):
    if not _family.name.startswith("_"):
        import_module(f"{__name__}.{_family.name}")

__all__ = ["RECORDS", "Aval", "OpBuilder", "Operators", "Primitive"]
