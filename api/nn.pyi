"""Layers, losses, initialisers and `Module`: Python code of an installed MLX wheel on mlxir (wheel.py).

Its annotations name the arrays of MLX itself, so that type checkers are told nothing.
"""

from typing import Any

def __getattr__(name: str) -> Any: ...
