"""Lines: arcs, offsets, connections."""

from __future__ import annotations

import numpy as np

from navsim_adapter.synthetic.geometry import arc_length, box_corners, connect, headings, offset, resample, sections


def test_a_section_of_constant_curvature_is_a_circle():
    line = sections((0, 0, 0), [(np.pi * 20, 1 / 20)])
    assert np.allclose(np.hypot(line[:, 0], line[:, 1] - 20), 20)
    assert np.allclose(line[-1], (0, 40))


def test_a_quarter_turn_is_connected_by_an_arc():
    line = connect(np.array([0.0, 0.0]), 0.0, np.array([12.0, 12.0]), np.pi / 2)
    assert np.abs(np.hypot(line[:, 0], line[:, 1] - 12) - 12).max() < 0.12
    assert np.allclose(headings(line)[[0, -1]], (0, np.pi / 2), atol=0.06)


def test_offset_is_to_the_left_and_undone_by_its_opposite_on_a_straight():
    line = np.stack([np.arange(5.0), np.zeros(5)], axis=1)
    assert np.allclose(offset(line, 2.0)[:, 1], 2.0)
    assert np.allclose(offset(line[::-1], -2.0)[:, 1], 2.0)


def test_resampling_keeps_ends_and_spaces_evenly():
    line = resample(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 7.2]]), 1.0)
    assert np.allclose(line[0], (0, 0))
    assert np.allclose(line[-1], (3, 7.2))
    assert np.ptp(np.diff(arc_length(line))[4:]) < 1e-9


def test_box_corners_start_front_left_and_go_round_anticlockwise():
    corners = box_corners(np.array([1.0, 2.0]), np.array(np.pi / 2), np.array(4.0), np.array(2.0))
    assert np.allclose(corners, [(0, 4), (0, 0), (2, 0), (2, 4)])
