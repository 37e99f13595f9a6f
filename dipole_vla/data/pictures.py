"""Pictures of scenes: how a file is read, and a checksum of some of them, so that a folder knows whose it holds.

The checksum reads `SAMPLED` scenes of a table, a few hundred files whatever the table's size: pictures that moved are
the same, pictures of another kind or another root are others. A single picture edited in place may lie outside the
sample of a large table, and goes unseen there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from dipole_vla.progress import console
from navsim_adapter.foundation.errors import InputError
from navsim_adapter.foundation.files import STARTED, read_json

SAMPLED = 100  # scenes: of three cameras 300 files, a second or two from a cold network file system
FORMATS = ("JPEG", "PNG")  # others run programs, EPS one
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes it upright


def decoded(source: Path | BinaryIO) -> Image.Image:
    """A JPEG or PNG as it is meant to be seen: 8 bits RGB, upright. Raises one of `UNREADABLE`."""
    with Image.open(source, formats=FORMATS) as picture:
        return _upright(_rgb(picture), _orientation(picture))


def check_header(source: BinaryIO, most: int = 2**23) -> None:
    """Raises one of `UNREADABLE` for what is no JPEG or PNG, or has more pixels than `most`; decodes nothing."""
    with Image.open(source, formats=FORMATS) as picture:
        width, height = picture.size
    if width * height > most:
        raise ValueError(f"it has {width} x {height} pixels, more than {most}")


def read_picture(path: Path, what: str = "picture") -> Image.Image:
    """A JPEG or PNG file as it is meant to be seen: 8 bits RGB, upright.

    Raises InputError that names the file and `what` it is, where it is missing, cannot be decoded, or has pixels that
    show what lies behind them.
    """
    try:
        return decoded(path)
    except UNREADABLE as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(
            f"{path}: {what} cannot be read ({reason}); fetch the file again or leave the token out"
        ) from problem


def checksums(
    root: Path, tokens: Sequence[str], cameras: Callable[[list[int]], Sequence[Mapping[str, str | None] | None]]
) -> dict[str, str | None]:
    """Camera -> short checksum of its pictures of the sampled scenes; None where none of these is there.

    root: of the paths. cameras: positions of scenes -> their {camera: path relative to the root}.
    """
    chosen = sample(tokens)
    digests: dict[str, Any] = {}
    is_there: dict[str, bool] = {}
    for position, paths in zip(chosen, cameras(chosen)):
        for camera, relative in (paths or {}).items():
            content = _content(root / relative) if relative else None
            digest = digests.setdefault(camera, hashlib.sha256())
            digest.update(f"{tokens[position]} {'-' if content is None else content} ".encode())
            is_there[camera] = is_there.get(camera, False) or content is not None
    return {name: digests[name].hexdigest()[:16] if is_there[name] else None for name in sorted(digests)}


def sample(tokens: Sequence[str], count: int = SAMPLED) -> list[int]:
    """Positions of the first, the last and others spread by the hash of their token, in order."""
    order = sorted(range(len(tokens)), key=lambda i: hashlib.sha256(tokens[i].encode()).digest())
    return sorted({0, len(tokens) - 1, *order[: count - 2]})


def began(folder: str | Path) -> dict[str, Any] | None:
    """What an output folder was begun by (`files.begin`); None where nothing has begun it."""
    path = Path(folder) / STARTED
    return dict(read_json(path)) if path.is_file() else None


def refuse_other_cameras(where: str | Path, about: Mapping[str, Any], processor: Callable[[], Any]) -> None:
    """InputError where what lies at `where` was made of other cameras' pictures than the backbone is shown, or of the
    same in another order: weights do not tell.

    about: what is recorded there; what was made before cameras were recorded says nothing. processor: the backbone's.
    """
    made = about.get("cameras")
    if made is None:
        return
    now = list(processor().cameras)
    if list(made) != now:
        raise InputError(
            f"{where}: cameras: was made with {', '.join(made)}, the backbone is shown {', '.join(now)}; give the "
            "backbone's config.json the cameras it was trained with, in their order"
        )


def pictures_entry(now: Mapping[str, str | None], before: Mapping[str, Any] | None, where: Path) -> dict[str, Any]:
    """{"pictures": checksums} for what makes the folder or file `where`, to be compared with what is recorded there.

    now: of `checksums`. before: what is recorded, if anything. Cameras whose pictures were not there then, or are not
    now, keep what is recorded: what has been made of them stays what it is. So does all that was recorded before
    pictures were.
    """
    if before is None:
        return {"pictures": dict(now)}
    if "pictures" not in before:
        console.print(f"{where}: does not say of which pictures it is; they are not compared", markup=False)
        return {}
    gone = [name for name, known in before["pictures"].items() if known and not now.get(name)]
    if gone:
        names = ", ".join(gone)
        console.print(f"{where}: the pictures of {names} are not there; they are not compared", markup=False)
    return {"pictures": {name: known and (now.get(name) or known) for name, known in before["pictures"].items()}}


def _content(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey: the high byte, as the decoder takes it of 16-bit colour
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if np.asarray(picture)[..., 3].min() < 255:
            raise ValueError("it has transparent pixels")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a reader of EXIF makes of rubbish: it says nothing about the picture
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
