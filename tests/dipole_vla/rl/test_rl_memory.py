"""Memory that is kept: once warm, an update's arrays cost no new pages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource
import torch
from dipole_vla.rl.memory import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [torch.ones(80, 256, 256) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
print([new_pages() for _ in range(20)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc only")
def test_freed_arrays_are_allocated_again_without_new_pages():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # 30,000 pages in the arrays
