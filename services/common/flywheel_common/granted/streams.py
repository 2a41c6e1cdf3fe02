"""Files of the attempt's store that are read in ranges and written in parts, both with bounded memory."""

from __future__ import annotations

import contextlib
import errno
import io
import re
import xml.etree.ElementTree as ET
from typing import Any, Self

from flywheel_common.granted.requests import SignedRequests
from flywheel_protos.types.v1 import object_access_pb2 as pb

PART_BYTES = 16 * 1024 * 1024
"""Size of the parts of an upload: at most one is in memory, and 10,000 make an object of 160 GiB."""


WINDOW_BYTES = 256 * 1024
"""Smallest range that is read at once, for formats that are read in many small pieces."""


_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def size_of(requests: SignedRequests, uri: str) -> int:
    """The size of an object in bytes. Raises FileNotFoundError."""
    answer = requests.send(pb.ObjectRequest(method=pb.OBJECT_METHOD_HEAD, uri=uri))
    return int(answer.headers["Content-Length"])


class Reader(io.RawIOBase):
    """Reads ranges of one object of a known size; the last small range stays in memory."""

    def __init__(self, requests: SignedRequests, uri: str, size: int) -> None:
        super().__init__()
        self._requests, self._size, self._at = requests, size, 0
        self._request = pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri=uri)
        self._window_start, self._window = 0, b""

    @classmethod
    def open(cls, requests: SignedRequests, uri: str) -> Self:
        """A reader of the object with its end in memory: the footer of a Parquet file, or a whole small file.

        One request returns the end and the size. Raises FileNotFoundError.
        """
        request = pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri=uri)
        try:
            answer = requests.send(request, headers={"Range": f"bytes=-{WINDOW_BYTES}"})
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            return cls(requests, uri, 0)
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None:
            return cls(requests, uri, size_of(requests, uri))
        reader = cls(requests, uri, int(found[2]))
        reader._window_start, reader._window = int(found[1]), answer.body
        return reader

    def again(self) -> Reader:
        """Another reader of the same object, at its beginning, with the same bytes in memory."""
        other = Reader(self._requests, self._request.uri, self._size)
        other._window_start, other._window = self._window_start, self._window
        return other

    @property
    def kept_bytes(self) -> int:
        """Bytes of the object that are in memory."""
        return len(self._window)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if end <= self._at:
            return b""
        start, self._at = self._at, end
        if end - start >= WINDOW_BYTES:
            return self._range(start, end)
        if not self._window_start <= start <= end <= self._window_start + len(self._window):
            self._window = self._range(start, min(start + WINDOW_BYTES, self._size))
            self._window_start = start
        return self._window[start - self._window_start : end - self._window_start]

    def _range(self, start: int, end: int) -> bytes:
        data = self._requests.send(self._request, headers={"Range": f"bytes={start}-{end - 1}"}).body
        if len(data) != end - start:
            raise OSError(f"{self._request.uri} has {len(data)} bytes instead of {end - start}.")
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


class Uploads:
    """Uploads in parts: the object appears as a whole, when the upload is complete."""

    def __init__(self, requests: SignedRequests) -> None:
        self._requests = requests

    def create(self, uri: str) -> str:
        """The id of a new upload."""
        answer = self._requests.send(pb.ObjectRequest(method=pb.OBJECT_METHOD_CREATE_UPLOAD, uri=uri))
        root = ET.fromstring(answer.body)  # noqa: S314 - of our own store
        return next(one.text or "" for one in root.iter() if one.tag.rpartition("}")[2] == "UploadId")

    def part(self, uri: str, upload: str, number: int, data: Any) -> str:
        """Write a part, and return its ETag."""
        request = pb.ObjectRequest(
            method=pb.OBJECT_METHOD_UPLOAD_PART, uri=uri, upload_id=upload, part_number=number
        )
        return str(self._requests.send(request, data).headers["ETag"])

    def complete(self, uri: str, upload: str, etags: list[str], size: int) -> None:
        root = ET.Element("CompleteMultipartUpload")
        for number, etag in enumerate(etags, start=1):
            part = ET.SubElement(root, "Part")
            ET.SubElement(part, "PartNumber").text = str(number)
            ET.SubElement(part, "ETag").text = etag
        request = pb.ObjectRequest(method=pb.OBJECT_METHOD_COMPLETE_UPLOAD, uri=uri, upload_id=upload)
        try:
            answer = self._requests.send(request, ET.tostring(root))
        except FileNotFoundError:
            # An earlier request whose answer was lost has completed the upload.
            if size_of(self._requests, uri) != size:
                raise
            return
        # The status is sent before the parts are joined, so an error can come in the body.
        if b"<Error>" in answer.body:
            raise OSError(f"The upload of {uri} was not completed: {answer.body[:300]!r}")

    def abort(self, uri: str, upload: str) -> None:
        self._requests.send(pb.ObjectRequest(method=pb.OBJECT_METHOD_ABORT_UPLOAD, uri=uri, upload_id=upload))


class Writer(io.RawIOBase):
    """Writes one object: at once when it is small, else in parts of PART_BYTES.

    The object appears when it is closed, and not at all after a write that failed or was interrupted, or if
    the writer is dropped without a close.
    """

    def __init__(self, requests: SignedRequests, uploads: Uploads, uri: str) -> None:
        super().__init__()
        self._requests, self._uploads, self._uri = requests, uploads, uri
        self._buffer = bytearray()
        self._upload = ""
        self._etags: list[str] = []
        self._size = 0
        self._failed = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        if self._failed:
            raise OSError(f"{self._uri} is not written: an earlier write failed.")
        # Until the end of this call. A signal can end it, and then Parquet's writer adds a footer and closes.
        self._failed = True
        view = memoryview(data).cast("B")
        written = len(view)
        while view:
            if not self._buffer and len(view) >= PART_BYTES:
                self._send_part(view[:PART_BYTES])
                view = view[PART_BYTES:]
                continue
            taken = min(len(view), PART_BYTES - len(self._buffer))
            self._buffer += view[:taken]
            view = view[taken:]
            if len(self._buffer) == PART_BYTES:
                self._send_part(self._buffer)
                self._buffer = bytearray()
        self._size += written
        self._failed = False
        return written

    def __del__(self) -> None:
        self._failed = True
        super().__del__()

    def _send_part(self, data: Any) -> None:
        try:
            if not self._upload:
                self._upload = self._uploads.create(self._uri)
            number = len(self._etags) + 1
            self._etags.append(self._uploads.part(self._uri, self._upload, number, data))
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Remove the parts that were sent."""
        upload, self._upload = self._upload, ""
        if upload:
            # ValueError: the process ends, and its channel to the service is closed.
            with contextlib.suppress(OSError, ValueError):
                self._uploads.abort(self._uri, upload)

    def close(self) -> None:
        if self.closed:
            return
        try:
            if self._failed:
                self._give_up()
                return
            if not self._upload:
                request = pb.ObjectRequest(method=pb.OBJECT_METHOD_PUT, uri=self._uri)
                self._requests.send(request, bytes(self._buffer))
                return
            if self._buffer:
                self._send_part(self._buffer)
            self._uploads.complete(self._uri, self._upload, self._etags, self._size)
        finally:
            self._buffer = bytearray()
            super().close()
