"""What every test of several processes needs."""

from __future__ import annotations

import socket
from pathlib import Path

LIMIT = 1800  # s, bounds hangs only
ROOT = Path(__file__).resolve().parents[2]


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])
