"""What several test files share: quiet, offline, one thread, and one small world with everything the loop makes."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole loop has run once, through the real command lines, as small as it gets."""
    from tests.small_loop import run_loop

    return run_loop(tmp_path_factory.mktemp("loop"))
