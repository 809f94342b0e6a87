"""Frame sources: cameras, videos, folders of pictures, network streams. `open_source` opens the one that a URI names.

A source never invents a frame. If a camera is lost, the iteration ends with `SourceError`; a black picture in its place
would score as good.
"""

from adedge.runtime.sources.array import ArraySource
from adedge.runtime.sources.files import FolderSource, VideoSource
from adedge.runtime.sources.frame import Frame, FrameSource
from adedge.runtime.sources.live import LiveSource
from adedge.runtime.sources.uri import open_source

__all__ = ["ArraySource", "FolderSource", "Frame", "FrameSource", "LiveSource", "VideoSource", "open_source"]
