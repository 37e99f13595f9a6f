"""The lens models that the contract declares: from a ray in camera axes to a pixel; and OpenCV's distortion undone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from carla_driver_interface.protocol import CameraSpec

from navsim_adapter.foundation.errors import InputError

UNDOING = 20  # steps of fixed point; NAVSIM's cameras need about ten for a hundredth of a pixel


def project(rays: np.ndarray, spec: CameraSpec) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (..., 2) where a camera sees rays (..., 3), and whether it can. InputError for another lens model."""
    model = spec.WhichOneof("camera_param")
    if model not in _LENSES or spec.WhichOneof("external_distortion"):
        lens = spec.WhichOneof("external_distortion") or model or "none"
        raise InputError(
            f"camera {spec.logical_id}: its lens model is {lens}, known are {', '.join(_LENSES)}; leave size, focal "
            "and center out to show its pictures as they are"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels, is_seen = _LENSES[model](rays, getattr(spec, model))
    return pixels, is_seen & (rays[..., 2] > 0) & np.isfinite(pixels).all(-1)


def ray(flat: np.ndarray, distortion: Sequence[float]) -> np.ndarray:
    """(..., 3), z = 1, whose distorted image is `flat` (..., 2), in focal lengths. distortion: k1, k2, p1, p2, k3."""
    k1, k2, p1, p2, k3 = distortion
    found = flat
    for _ in range(UNDOING if any(distortion) else 0):
        found = flat - (_distorted(found, (k1, k2, k3), (p1, p2), ())[0] - found)
    return np.concatenate([found, np.ones_like(found[..., :1])], axis=-1)


def _pinhole(rays: np.ndarray, lens: CameraSpec) -> tuple[np.ndarray, np.ndarray]:
    flat, is_seen = _distorted(
        rays[..., :2] / rays[..., 2:], lens.radial_coeffs, lens.tangential_coeffs, lens.thin_prism_coeffs
    )
    return flat * _focal(lens) + _center(lens), is_seen


def _fisheye(rays: np.ndarray, lens: CameraSpec) -> tuple[np.ndarray, np.ndarray]:
    angle, direction = _polar(rays)
    powers = angle[..., None] ** np.arange(3, 3 + 2 * len(lens.radial_coeffs), 2)
    bent = angle + powers @ np.array(lens.radial_coeffs, np.float64)
    return bent[..., None] * direction * _focal(lens) + _center(lens), angle <= (lens.max_angle or np.pi / 2)


def _ftheta(rays: np.ndarray, lens: CameraSpec) -> tuple[np.ndarray, np.ndarray]:
    """A polynomial from angle to pixels, then a linear map of the plane."""
    angle, direction = _polar(rays)
    offset = np.polynomial.polynomial.polyval(angle, list(lens.angle_to_pixeldist_poly) or [0.0])[..., None] * direction
    if lens.HasField("linear_cde"):
        cde = lens.linear_cde
        offset = offset @ np.array([[cde.linear_c, cde.linear_d], [cde.linear_e, 1.0]]).T
    return offset + _center(lens), angle <= (lens.max_angle or np.pi / 2)


_LENSES = {"opencv_pinhole_param": _pinhole, "opencv_fisheye_param": _fisheye, "ftheta_param": _ftheta}


def _distorted(
    flat: np.ndarray, radial: Sequence[float], tangential: Sequence[float], prism: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's model, and where it still grows outwards: beyond, a lens folds the world back into the picture."""
    k1, k2, k3, k4, k5, k6 = (*radial, *[0.0] * 6)[:6]
    p1, p2 = (*tangential, 0.0, 0.0)[:2]
    s1, s2, s3, s4 = (*prism, *[0.0] * 4)[:4]
    x, y = flat[..., 0], flat[..., 1]
    r2 = x * x + y * y
    over, under = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)), 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    slopes = (k1 + r2 * (2 * k2 + 3 * r2 * k3)) * under - over * (k4 + r2 * (2 * k5 + 3 * r2 * k6))
    scale = over / under
    grows = scale + 2 * r2 * slopes / under**2 > 0
    bent_x = x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + r2 * s2)
    bent_y = y * scale + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + r2 * s4)
    return np.stack([bent_x, bent_y], axis=-1), grows


def _polar(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle from the optical axis, and the unit direction in the picture."""
    aside = np.hypot(rays[..., 0], rays[..., 1])
    direction = np.divide(rays[..., :2], aside[..., None], out=np.zeros_like(rays[..., :2]), where=aside[..., None] > 0)
    return np.arctan2(aside, rays[..., 2]), direction


def _focal(lens: CameraSpec) -> np.ndarray:
    return np.array([lens.focal_length_x, lens.focal_length_y])


def _center(lens: CameraSpec) -> np.ndarray:
    return np.array([lens.principal_point_x, lens.principal_point_y])
