"""Views of a foreign rig: resampled pictures are those that the wanted camera would have taken itself."""

from __future__ import annotations

import numpy as np
import pytest
from carla_driver_interface.geometry import Pose
from carla_driver_interface.protocol import CameraSpec, OpenCVPinholeCameraParam, sensorsim_pb2
from carla_driver_interface.testing import FakeCamera, render_road
from PIL import Image

from dipole_vla.serving.cameras import views
from dipole_vla.serving.lenses import project, ray
from navsim_adapter.foundation.errors import InputError

NAVSIM = (-0.356123, 0.172545, -0.00213, 0.000464, -0.05231)  # k1, k2, p1, p2, k3
RAYS = np.array([(0.1, 0.2, 1.0), (-0.5, 0.3, 1.0), (0.55, -0.25, 1.2), (0.0, 0.0, 1.0)])
MIDDLE = {"principal_point_x": 960, "principal_point_y": 560, "focal_length_x": 1545, "focal_length_y": 1545}
PINHOLE = {"size": [320, 180], "focal": 200, "center": [160, 90]}


def pinhole(radial: tuple = (), tangential: tuple = (), prism: tuple = ()) -> CameraSpec:
    lens = OpenCVPinholeCameraParam(
        **MIDDLE, radial_coeffs=radial, tangential_coeffs=tangential, thin_prism_coeffs=prism
    )
    return CameraSpec(opencv_pinhole_param=lens, resolution_w=1920, resolution_h=1080)


@pytest.mark.parametrize(
    ("spec", "pixels"),  # the pixels are those of OpenCV 5.0's projectPoints and fisheye.projectPoints
    [
        (
            pinhole((NAVSIM[0], NAVSIM[1], NAVSIM[4]), NAVSIM[2:4]),
            [(1111.73313269, 863.23003489), (268.80495311, 973.74438265), (1612.56266323, 262.62906363), (960, 560)],
        ),
        (
            pinhole((-0.3, 0.17, -0.05, 0.02, -0.01, 0.005), (-0.002, 0.0005), (0.001, -0.002, 0.0015, 0.0007)),
            [(1112.09880548, 863.94538971), (258.48335086, 981.03080848), (1619.77060555, 260.15471778), (960, 560)],
        ),
        (
            CameraSpec(
                opencv_fisheye_param=sensorsim_pb2.OpenCVFisheyeCameraParam(
                    **MIDDLE, radial_coeffs=(0.05, -0.02, 0.003, -0.0007)
                )
            ),
            [(1112.36032426, 864.72064852), (251.92729973, 984.84362016), (1622.54982255, 258.84098975), (960, 560)],
        ),
    ],
)
def test_lenses_are_those_of_opencv(spec: CameraSpec, pixels: list) -> None:
    found, is_seen = project(RAYS, spec)
    assert is_seen.all()
    np.testing.assert_allclose(found, pixels, atol=1e-6)


def test_an_f_theta_lens_of_one_term_is_a_plain_fisheye() -> None:
    lens = sensorsim_pb2.FthetaCameraParam(
        principal_point_x=960, principal_point_y=560, angle_to_pixeldist_poly=[0, 1545]
    )
    plain = CameraSpec(opencv_fisheye_param=sensorsim_pb2.OpenCVFisheyeCameraParam(**MIDDLE))
    np.testing.assert_allclose(project(RAYS, CameraSpec(ftheta_param=lens))[0], project(RAYS, plain)[0], atol=1e-9)


def test_what_a_lens_cannot_see_is_not_seen() -> None:
    behind_or_folded = np.array([(0.1, 0.0, -1.0), (0.0, 0.0, -1.0), (2.5, 1.0, 1.0)])
    assert not project(behind_or_folded, pinhole((-0.3, 0.0, 0.0)))[1].any()


def test_distortion_is_undone() -> None:
    flat = np.stack(np.meshgrid(np.linspace(-0.62, 0.62, 21), np.linspace(-0.36, 0.34, 21)), axis=-1)
    pixels, is_seen = project(ray(flat, NAVSIM), pinhole((NAVSIM[0], NAVSIM[1], NAVSIM[4]), NAVSIM[2:4]))
    assert is_seen.all()
    np.testing.assert_allclose(pixels, flat * 1545 + (960, 560), atol=0.01)


def camera(name: str = "front", **changes: float) -> FakeCamera:
    return FakeCamera(name, **{"width": 960, "height": 540, "fov_deg": 120.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("yaw", "pitch"), [(None, None), (0.0, 0.0), (12.0, 0.0), (-8.0, 5.0)])
def test_a_resampled_picture_is_what_the_wanted_camera_renders(yaw: float | None, pitch: float | None) -> None:
    source, ego = camera(), Pose.from_xyz_yaw(3.0, 0.4, 0.0, 0.05)
    wanted = FakeCamera(
        "CAM_F0", 320, 180, np.degrees(2 * np.arctan(0.8)), yaw_left_deg=yaw or 0, pitch_down_deg=pitch or 0
    )
    given = {**PINHOLE, "source": "front", **({} if yaw is None else {"yaw": yaw, "pitch": pitch})}
    [view] = views(("CAM_F0",), {"CAM_F0": given})
    shown = np.asarray(view.show(Image.fromarray(render_road(source, ego)), source.available_camera()), float)
    truth = render_road(wanted, ego).astype(float)
    assert shown.shape == truth.shape
    apart = np.abs(shown - truth).max(-1)
    assert np.mean(apart > 40) < 0.05  # edges of the markings: one renders them sharp, the other between two pixels
    moved = np.abs(np.roll(truth, 6, axis=1) - truth).max(-1)
    assert np.mean(apart) < 0.5 * np.mean(moved)


def test_beyond_the_rigs_picture_is_black() -> None:
    source = camera(fov_deg=40.0)
    [view] = views(("CAM_F0",), {"CAM_F0": {**PINHOLE, "source": "front"}})
    shown = np.asarray(view.show(Image.new("RGB", (960, 540), "white"), source.available_camera()))
    assert (shown[:, 0] == 0).all()
    assert (shown[90, 160] == 255).all()


def test_a_mapping_of_names_takes_pictures_as_they_are() -> None:
    picture = Image.new("RGB", (64, 36), "red")
    [view] = views(("CAM_F0",), {"CAM_F0": "front"})
    assert view.source == "front"
    assert view.show(picture, camera().available_camera()) is picture


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"CAM_F1": "x"}, r"cameras\.CAM_F1: the policy does not see it \(did you mean 'CAM_F0'"),
        ({"CAM_F0": 3}, r"cameras\.CAM_F0: must be"),
        ({"CAM_F0": {"sice": [1, 2]}}, r"cameras\.CAM_F0\.sice: no such key \(did you mean 'size'"),
        ({"CAM_F0": {"size": [320, 180]}}, r"cameras\.CAM_F0\.focal: is missing"),
        ({"CAM_F0": {**PINHOLE, "size": [0, 180]}}, "size must be whole"),
        ({"CAM_F0": {**PINHOLE, "size": [10**9, 180]}}, "size must be whole"),
        ({"CAM_F0": {**PINHOLE, "focal": float("nan")}}, r"focal: must be 2 finite"),
        ({"CAM_F0": {**PINHOLE, "distortion": [1, 2]}}, r"distortion: must be 5"),
        ({"CAM_F0": {**PINHOLE, "yaw": "left"}}, r"yaw: must be degrees"),
        ({"CAM_F0": {**PINHOLE, "source": 7}}, r"source: must be"),
    ],
)
def test_a_bad_mapping_is_refused(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        views(("CAM_F0",), given)


def test_a_rig_that_cannot_show_a_camera_is_refused() -> None:
    plain, resampled = (views(("CAM_F0",), {"CAM_F0": given})[0] for given in ("front", {**PINHOLE, "source": "front"}))
    with pytest.raises(InputError, match=r"no camera 'front' \(did you mean 'front_'\?\), only front_"):
        plain.check({"front_": camera().available_camera()})
    unknown = camera().available_camera()
    unknown.intrinsics.ClearField("camera_param")
    plain.check({"front": unknown})
    with pytest.raises(InputError, match="its lens model is none"):
        resampled.check({"front": unknown})
