"""The `mx` dialect: one record per primitive (mx/), and the one file that imports MLIR (mlir.py)."""
