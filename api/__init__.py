"""mlxir: MLX's array API on a tracing JIT compiler."""
