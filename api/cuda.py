"""`mlxir.cuda`: there is no CUDA target."""

__all__ = ["is_available"]


def is_available() -> bool:
    """Whether arrays can be evaluated by CUDA."""
    return False
