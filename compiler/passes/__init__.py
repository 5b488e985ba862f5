"""Passes over the `mx` dialect, one per file: valid IR in, valid IR out."""
