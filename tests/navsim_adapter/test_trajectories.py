"""Tables of trajectories as people save them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from navsim_adapter.foundation.errors import InputError
from navsim_adapter.trajectories import read_trajectories


def _save(path: Path, **changes: object) -> Path:
    content = {"token": np.array(["a", "b"]), "name": np.array(["p", "p"]), "poses": np.ones((2, 8, 3))}
    np.savez(path, **{**content, **changes})  # type: ignore[arg-type]
    return path


def test_tokens_and_names_may_be_bytes(tmp_path: Path) -> None:
    table = read_trajectories(_save(tmp_path / "t.npz", token=np.array([b"a", b"b"]), name=np.array([b"p", b"p"])))
    assert (table.tokens, table.names) == (("a", "b"), ("p", "p"))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name holds bytes that are no text"):
        read_trajectories(_save(tmp_path / "t.npz", name=np.array([b"\xff\xfe", b"p"])))


@pytest.mark.filterwarnings("error")
def test_poses_of_half_precision_are_read_without_a_warning(tmp_path: Path) -> None:
    table = read_trajectories(_save(tmp_path / "t.npz", poses=np.ones((2, 8, 3), np.float16)))
    assert all((poses == 1).all() for poses in table.poses)


@pytest.mark.parametrize("name", ["token", "name", "poses"])
def test_arrays_of_objects_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is saved as Python objects"):
        read_trajectories(_save(tmp_path / "t.npz", **{name: np.array(["a", "b"], object)}))
