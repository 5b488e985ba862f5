"""Processes that tests start: none of them outlives its test, whatever it waits for."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

LONGEST = 280  # seconds; pytest ends a test after 300


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output is text, and its folder is none of the project's."""
    given = {"capture_output": True, "text": True, "cwd": "/", "timeout": LONGEST, **options}
    return subprocess.run(command, **given)
