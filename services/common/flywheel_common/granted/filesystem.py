"""The object store of an attempt as a file system of pyarrow; paths are `bucket/key`."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
from pyarrow import fs

from flywheel_common.granted.requests import SignedRequests
from flywheel_common.granted.streams import Reader, Uploads, Writer, size_of
from flywheel_protos.types.v1 import object_access_pb2 as pb


class GrantedFiles(fs.FileSystemHandler):
    """`FileSystemHandler` over signed requests. Folders are the beginnings of names."""

    def __init__(self, requests: SignedRequests) -> None:
        self._requests = requests
        self._uploads = Uploads(requests)

    def put(self, path: str, data: bytes, *, sha256: str = "") -> None:
        """Write a whole object; below the prefix of artifacts its digest is needed."""
        self._requests.send(
            pb.ObjectRequest(method=pb.OBJECT_METHOD_PUT, uri=_uri(path), sha256=sha256), data
        )

    def get_type_name(self) -> str:
        return "granted"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._info(path.rstrip("/")) for path in paths]

    def _info(self, path: str) -> fs.FileInfo:
        with contextlib.suppress(FileNotFoundError):
            return fs.FileInfo(path, fs.FileType.File, size=size_of(self._requests, _uri(path)))
        if next(self._listed(path), None) is not None:
            return fs.FileInfo(path, fs.FileType.Directory)
        return fs.FileInfo(path, fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        base = selector.base_dir.rstrip("/")
        files = list(self._listed(base))
        if not files and not selector.allow_not_found:
            raise FileNotFoundError(f"There is nothing below {base}.")
        folders: dict[str, fs.FileInfo] = {}
        for file in files:
            parts = file.path.removeprefix(f"{base}/").split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                folder = "/".join((base, *parts[:depth]))
                folders[folder] = fs.FileInfo(folder, fs.FileType.Directory)
        found = [*files, *folders.values()]
        if selector.recursive:
            return found
        return [one for one in found if "/" not in one.path.removeprefix(f"{base}/")]

    def _listed(self, folder: str) -> Iterator[fs.FileInfo]:
        """All files below a folder."""
        bucket, token = folder.partition("/")[0], ""
        while True:
            answer = self._requests.send(
                pb.ObjectRequest(
                    method=pb.OBJECT_METHOD_LIST, uri=_uri(f"{folder}/"), continuation_token=token
                )
            )
            page = _without_namespaces(ET.fromstring(answer.body))  # noqa: S314 - of our own store
            encoded = page.findtext("EncodingType") == "url"
            for entry in page.iter("Contents"):
                key = entry.findtext("Key", "")
                key = unquote_plus(key) if encoded else key
                size = int(entry.findtext("Size", "0"))
                yield fs.FileInfo(f"{bucket}/{key}", fs.FileType.File, size=size)
            token = page.findtext("NextContinuationToken", "")
            if page.findtext("IsTruncated") != "true" or not token:
                return

    def create_dir(self, path: str, recursive: bool) -> None:
        """Does nothing: a folder begins to exist with its first file."""

    def delete_dir(self, path: str) -> None:
        self.delete_dir_contents(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        for file in list(self._listed(path.rstrip("/"))):
            self.delete_file(file.path)

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("An attempt cannot delete a whole store.")

    def delete_file(self, path: str) -> None:
        """An absent file is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._requests.send(pb.ObjectRequest(method=pb.OBJECT_METHOD_DELETE, uri=_uri(path)))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        self._requests.send(
            pb.ObjectRequest(method=pb.OBJECT_METHOD_COPY, uri=_uri(dest), source_uri=_uri(src))
        )

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.reader(path), mode="r")

    def reader(self, path: str) -> Reader:
        """A reader of a file. Raises FileNotFoundError."""
        return Reader.open(self._requests, _uri(path))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(Writer(self._requests, self._uploads, _uri(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("An object cannot be appended to.")


def _uri(path: str) -> str:
    return f"s3://{path}"


def _without_namespaces(root: ET.Element) -> ET.Element:
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root
