"""An object store in memory at s3://…: an object appears when its file is closed, and listings are remembered."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class ObjectStore:
    """The objects by bucket and key. The only bucket is `lake`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.is_readable = True

    def find_info(self, name: str) -> dict[str, Any]:
        if not self.is_readable:
            raise PermissionError("Forbidden")
        if name not in self.objects:
            raise FileNotFoundError(name)
        return {"name": name, "size": len(self.objects[name]), "type": "file", "ETag": hash(self.objects[name])}


class _Upload(AbstractBufferedFile):  # type: ignore[misc]  # fsspec has no types
    def _upload_chunk(self, final: bool = False) -> bool:
        if final:
            if not self.path.startswith("lake/"):
                raise FileNotFoundError("The specified bucket does not exist.")
            self.fs.store.objects[self.path] = self.buffer.getvalue()
        return False


class _FileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    protocol = "s3"
    store: ObjectStore

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        if (found := self._ls_from_cache(path)) is None:
            names = sorted(name for name in self.store.objects if name.startswith(f"{path}/"))
            found = self.dircache[path] = [self.store.find_info(name) for name in names]
        return list(found) if detail else [each["name"] for each in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        listed = self._ls_from_cache(self._parent(name)) or []
        return next((each for each in listed if each["name"] == name), None) or self.store.find_info(name)

    def exists(self, path: str, **_: Any) -> bool:
        try:
            return bool(self.info(path))
        except FileNotFoundError:
            return False

    def invalidate_cache(self, path: str | None = None) -> None:  # noqa: ARG002 (the name is fsspec's)
        self.dircache.clear()

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if "w" in mode:
            return _Upload(self, path, mode)
        self.store.find_info(path)
        return io.BytesIO(self.store.objects[path])

    def rm_file(self, path: str) -> None:
        del self.store.objects[self._strip_protocol(path)]


@pytest.fixture
def object_store() -> Iterator[ObjectStore]:
    store = ObjectStore()
    fsspec.register_implementation("s3", type("ObjectStoreFileSystem", (_FileSystem,), {"store": store}), clobber=True)
    try:
        yield store
    finally:
        _registry.pop("s3", None)
