"""`python -m mlxir.dialects.mx`: the coverage table of all primitives."""

from . import RECORDS

COLUMNS = ("kind", "shape", "jvp", "vjp", "vmap", "cpu", "metal", "reference")


def table() -> str:
    """One line per primitive, one column per rule; a cell holds "yes", the form, or the reason why there is none."""
    rows: list[tuple[str, ...]] = [("primitive", *COLUMNS)]
    rows += [(name, *(record.coverage()[c] or "-" for c in COLUMNS)) for name, record in sorted(RECORDS.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    print(table())
