"""A drive as a short film: the three cameras above the road seen from above, five pictures a second."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from navsim_adapter.closed_loop.course import START, Course
from navsim_adapter.closed_loop.drive import Drive, Manner, play
from navsim_adapter.nuplan.boxes import box_corners, ego_corners
from navsim_adapter.synthetic.cameras import COLOURS, LAMPS, PAINTS
from navsim_adapter.synthetic.cameras import HEIGHT as CAMERA_HEIGHT
from navsim_adapter.synthetic.cameras import WIDTH as CAMERA_WIDTH
from navsim_adapter.synthetic.ground import PALETTE, lamp_places
from navsim_adapter.synthetic.world import Instant

Array = np.ndarray
EVERY = 2  # steps between pictures
SHOWN = ("CAM_L0", "CAM_F0", "CAM_R0")
WIDTH, HEIGHT = 3 * CAMERA_WIDTH, 240
SCALE = 4.0  # pixels a metre, from above
EGO_AT = (WIDTH // 2, HEIGHT * 3 // 4)  # pixel of the rear axle; the car heads up
CAPTION = 14
EGO, PATH, TRAIL, INK, PAPER = (20, 90, 220), (255, 190, 40), (120, 190, 255), (20, 22, 26), (246, 245, 241)


def film(course: Course, manner: Manner, drives: Sequence[tuple[str, Drive]]) -> bytes:
    """An animated WebP of drives of one course, one below the other. drives: (caption, drive)."""
    strips = [_strip(course, manner, drive, caption) for caption, drive in drives]
    longest = max(map(len, strips))
    frames = [_stacked([strip[min(at, len(strip) - 1)] for strip in strips]) for at in range(longest)]
    out = io.BytesIO()
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=100 * EVERY, loop=0, quality=60, method=1
    )
    return out.getvalue()


def _strip(course: Course, manner: Manner, drive: Drive, caption: str) -> list[Image.Image]:
    instants = play(course, manner.traffic, drive.states)[START:]
    shown = []
    for step in range(0, len(instants), EVERY):
        path = drive.paths[min(step // manner.replan, len(drive.paths) - 1)] if len(drive.paths) else None
        now = instants[step]
        picture = Image.new("RGB", (WIDTH, CAPTION + CAMERA_HEIGHT + HEIGHT), PAPER)
        text = f"{caption}   {0.1 * step:.1f} s   {now.ego.velocity[0]:.1f} m/s"
        ImageDraw.Draw(picture).text((3, 1), text, fill=INK)
        for place, content in enumerate(_cameras(course, now)):
            picture.paste(content, (place * CAMERA_WIDTH, CAPTION))
        picture.paste(_from_above(course, now, path, drive.states[: step + 1]), (0, CAPTION + CAMERA_HEIGHT))
        shown.append(picture)
    return shown


def _cameras(course: Course, now: Instant) -> list[Image.Image]:
    pictures = course.pictures(now)
    return [Image.open(io.BytesIO(pictures[name])) for name in SHOWN]


def _stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (WIDTH, sum(picture.height for picture in pictures)))
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _from_above(course: Course, now: Instant, path: Array | None, driven: Array) -> Image.Image:
    ego = np.array([now.ego.x, now.ego.y, now.ego.heading])
    right, up = np.meshgrid(np.arange(WIDTH) - EGO_AT[0], EGO_AT[1] - np.arange(HEIGHT))
    ahead, aside = np.array([np.cos(ego[2]), np.sin(ego[2])]), np.array([np.sin(ego[2]), -np.cos(ego[2])])
    x, y = (ego[i] + (up * ahead[i] + right * aside[i]) / SCALE for i in (0, 1))
    picture = Image.fromarray(PALETTE[course.log.ground.at(x, y)].astype(np.uint8))
    draw = ImageDraw.Draw(picture)

    def pixels(points: Array) -> list[tuple[float, float]]:
        apart = (points - ego[:2]) * SCALE
        return [(EGO_AT[0] + float(d @ aside), EGO_AT[1] - float(d @ ahead)) for d in apart]

    if now.lights is not None:
        for group, foot, _ in lamp_places(course.log.recording.setting.site.net):
            ((u, v),) = pixels(foot[None])
            draw.ellipse([u - 4, v - 4, u + 4, v + 4], fill=LAMPS[now.lights[group]], outline=INK)
    for o in now.objects:
        corners = box_corners(np.array([o.x, o.y]), np.array(o.heading), np.array(o.size[:2]) / 2)
        paint = COLOURS.get(o.name) or PAINTS[course.log.look.paints[o.id % len(PAINTS)]]
        draw.polygon(pixels(corners), fill=paint, outline=INK)
    draw.line(pixels(driven[:, :2]) + pixels(ego[None, :2]), fill=TRAIL, width=2)
    draw.polygon(pixels(ego_corners(ego)), fill=EGO, outline=INK)
    if path is not None:
        draw.line(pixels(path[:, :2]), fill=PATH, width=2)
    return picture
