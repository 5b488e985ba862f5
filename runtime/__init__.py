"""What exists without a compiler: dtypes, trees, buffers, launching executables, the cache store, knobs, errors."""
