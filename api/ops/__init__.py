"""The public functions on arrays, in family files; each file's `__all__` says what it adds to `mlxir`."""
