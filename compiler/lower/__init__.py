"""Lowering: kernels of mx operations become parallel loops over memrefs, once for both targets."""
