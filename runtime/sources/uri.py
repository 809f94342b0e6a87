"""From a URI to an opened source."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl

from adedge.data.folders import is_picture
from adedge.errors import SourceError, UsageError
from adedge.runtime.sources.address import Address, resolve, shown
from adedge.runtime.sources.array import ArraySource
from adedge.runtime.sources.files import FolderSource, VideoSource
from adedge.runtime.sources.frame import FrameSource, Notify, ignore
from adedge.runtime.sources.live import (
    Connect,
    LiveSource,
    camera_connector,
    delivers_nv12,
    gstreamer_connector,
    stream_connector,
)

FORMS = (
    "a camera (0, /dev/video0, csi://0), a video or picture file, a folder of pictures, rtsp://HOST/PATH, "
    "gst:PIPELINE or synthetic:brick"
)


def open_source(
    uri: str | Address,
    *,
    name: str | None = None,
    strict: bool = False,
    reconnect_s: float = 0.0,
    notify: Notify | None = None,
) -> FrameSource:
    """Open the source that ``uri`` names.

    - ``0``, ``/dev/video0`` (``?width=1280&height=720&fps=30``): a camera
    - ``csi://0`` (also ``?format=nv12``): a Jetson's CSI camera, in BGR or NV12
    - ``rtsp://``, ``http://``: a network stream
    - ``gst:PIPELINE``: a GStreamer pipeline, in NV12 if its last caps are ``video/x-raw,format=NV12``, else in BGR
    - ``synthetic:brick?seed=0&frames=200`` (also size, speed): a photograph passing a camera, with defects drawn in
    - anything else: a video file, a picture file or a folder of pictures

    ``${NAME}`` in it is an environment variable, and ``@PATH`` a file that holds the address, see
    `adedge.runtime.sources.address.resolve`. ``name`` replaces the source's name, which never holds a password.
    ``strict`` makes an unreadable picture or a damaged video an error, ``reconnect_s`` is how long to wait for a camera
    that is not there or is lost, ``notify`` receives warnings, most of them in the thread that iterates. Raises
    `SourceError` if there is nothing to read, `UsageError` for an option that the source does not support.
    """
    address = uri if isinstance(uri, Address) else resolve(uri, notify or ignore)
    source = _source_at(address, name, strict=strict, reconnect_s=reconnect_s, notify=notify)
    source.name = name or source.name
    source.open()
    return source


def _source_at(
    where: Address, name: str | None, *, strict: bool, reconnect_s: float, notify: Notify | None
) -> FrameSource:
    uri = where.text
    address, _, query = uri.partition("?")

    def live(name: str, connect: Connect, *, nv12: bool = False) -> FrameSource:
        return LiveSource(name, connect, nv12=nv12, reconnect_s=reconnect_s, notify=notify)

    if address.isdigit() or re.fullmatch(r"/dev/video\d+", address):
        device = f"/dev/video{address}" if address.isdigit() else address
        return live(f"camera {device}", camera_connector(device, _numbers(uri, query, _CAMERA_OPTIONS)))
    if address.startswith("csi://"):
        pipeline = _csi_pipeline(uri, address, query)
        return live(f"camera {address}", gstreamer_connector(pipeline, address), nv12=delivers_nv12(pipeline))
    called = name or where.shown
    if uri.startswith("gst:"):
        pipeline = uri.removeprefix("gst:")
        return live(called, gstreamer_connector(pipeline, called), nv12=delivers_nv12(pipeline))
    if (scheme := re.match(r"(rtsp|rtsps|http|https)://", uri, re.IGNORECASE)) is not None:
        # FFmpeg knows its protocols in lower case only.
        return live(called, stream_connector(scheme[0].lower() + uri[scheme.end() :], called))
    if uri.startswith("synthetic:"):
        return _synthetic_source(uri, address.removeprefix("synthetic:"), query)
    if where.is_url:
        raise UsageError(f"unknown kind of source '{where.shown}': give {FORMS}")
    path = Path(uri)
    try:
        if path.is_dir() or (path.exists() and is_picture(path)):
            return FolderSource(path, strict=strict, notify=notify)
        if path.is_file():
            return VideoSource(path, strict=strict, notify=notify)
    except OSError as error:  # its message holds the whole path
        raise SourceError(f"{where.shown} cannot be read ({error.strerror}): give {FORMS}") from None
    raise SourceError(f"{where.shown} does not exist: give {FORMS}")


_CAMERA_OPTIONS: Mapping[str, int] = {"width": 0, "height": 0, "fps": 0}  # 0: the camera's default


def _numbers(uri: str, query: str, defaults: Mapping[str, int], *, besides: Sequence[str] = ()) -> dict[str, int]:
    """The numeric options after '?', over their defaults; ``besides`` names the options that are not numbers."""
    values = dict(defaults)
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key in besides:
            continue
        if key not in defaults:
            raise UsageError(
                f"'{shown(uri)}' has an unknown option '{key}': it takes {', '.join((*defaults, *besides))}"
            )
        if not text.isdigit():
            raise UsageError(f"'{shown(uri)}': {key} must be a whole number, not '{text}'")
        values[key] = int(text)
    return values


def _csi_pipeline(uri: str, address: str, query: str) -> str:
    sensor = address.removeprefix("csi://")
    if not sensor.isdigit():
        raise UsageError(f"'{shown(address)}' names no sensor: give csi://0 or csi://1")
    options = _numbers(uri, query, {"width": 1280, "height": 720, "fps": 30}, besides=("format",))
    pixel_format = dict(parse_qsl(query, keep_blank_values=True)).get("format", "bgr")
    if pixel_format not in ("bgr", "nv12"):
        raise UsageError(f"'{shown(uri)}': format must be bgr or nv12, not '{pixel_format}'")
    width, height = options["width"], options["height"]
    if pixel_format == "nv12" and (width % 2 or height % 2):
        raise UsageError(f"'{shown(uri)}': NV12 requires an even width and height, not {width} × {height}")
    # nvvidconv copies frames out of the camera's buffers: unchanged as NV12, or as BGRx, which the CPU then converts to
    # BGR.
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! "
        f"video/x-raw(memory:NVMM),width={width},height={height},framerate={options['fps']}/1 ! "
        f"nvvidconv ! video/x-raw,format={'NV12' if pixel_format == 'nv12' else 'BGRx'}"
    )


def _synthetic_source(uri: str, texture: str, query: str) -> FrameSource:
    from adedge.data.synthesis import SIZE, STRIP, moving_frames, photograph

    options = _numbers(uri, query, {"seed": 0, "frames": 240, "size": SIZE, "speed": 2})
    if not 32 <= options["size"] <= STRIP or options["speed"] < 1:
        raise UsageError(f"'{shown(uri)}': size must be 32 to {STRIP} pixels, speed at least 1 pixel per frame")
    photograph(texture)  # refuse an unknown texture now, not in the capture thread
    frames = (frame for frame, _ in moving_frames(texture, **options))
    return ArraySource(lambda: frames, name=f"synthetic:{texture}", total=options["frames"], fps=25.0)
