"""The RPCs: each method takes a request and returns its response, or yields them."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.modal_loopback.volumes import BLOCK_BYTES, Volume, Volumes

_CREATING = (
    api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
    api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
    api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL,
)


class VolumeCalls:
    """Everything behind `modal.Volume`. `url` is where blocks are sent to and fetched from."""

    def __init__(self, volumes: Volumes, url: str) -> None:
        self.volumes = volumes
        self._url = url

    def VolumeGetOrCreate(self, request: Any) -> Any:
        volume = self.volumes.named(request.deployment_name)
        kind = request.object_creation_type
        if volume and kind == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            raise GRPCError(Status.ALREADY_EXISTS, f"Volume '{volume.name}' already exists")
        if volume is None:
            if kind not in _CREATING:
                raise GRPCError(Status.NOT_FOUND, f"Volume '{request.deployment_name}' not found")
            volume = self.volumes.create(request.deployment_name, request.version or 1)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.volume_id, version=_version(volume), metadata=metadata_of(volume)
        )

    def VolumeGetById(self, request: Any) -> Any:
        volume = self.volumes.get(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=volume.volume_id, metadata=metadata_of(volume))

    def VolumeList(self, request: Any) -> Any:
        items = [
            api_pb2.VolumeListItem(label=v.name, volume_id=v.volume_id, metadata=metadata_of(v))
            for v in self.volumes.all()
        ]
        return api_pb2.VolumeListResponse(items=items)

    def VolumeDelete(self, request: Any) -> Any:
        self.volumes.delete(request.volume_id)
        return Empty()

    def VolumeRename(self, request: Any) -> Any:
        self.volumes.rename(request.volume_id, request.name)
        return Empty()

    def VolumeHeartbeat(self, request: Any) -> Any:
        return Empty()

    def VolumeCommit(self, request: Any) -> Any:
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    def VolumeReload(self, request: Any) -> Any:
        return Empty()

    def VolumeListFiles(self, request: Any) -> Iterator[Any]:
        yield api_pb2.VolumeListFilesResponse(entries=self._entries(request))

    def VolumeListFiles2(self, request: Any) -> Iterator[Any]:
        yield api_pb2.VolumeListFiles2Response(entries=self._entries(request))

    def VolumeGetFile2(self, request: Any) -> Any:
        volume = self.volumes.get(request.volume_id)
        path = volume.path(request.path)
        if not path.is_file():
            raise FileNotFoundError(request.path)
        key, size = self.volumes.open(path)
        urls = [f"{self._url}/files/{key}/{number}" for number in range(-(-size // BLOCK_BYTES))]
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=0, len=size)

    def VolumeRemoveFile(self, request: Any) -> Any:
        self.volumes.get(request.volume_id).remove(request.path, request.recursive)
        return Empty()

    VolumeRemoveFile2 = VolumeRemoveFile

    def VolumeCopyFiles(self, request: Any) -> Any:
        self.volumes.get(request.volume_id).copy(request.src_paths, request.dst_path, request.recursive)
        return Empty()

    VolumeCopyFiles2 = VolumeCopyFiles

    def MountPutFile(self, request: Any) -> Any:
        """Version 1, step one: is the content there, and if it came along, keep it."""
        if request.WhichOneof("data_oneof") == "data":
            self.volumes.add_block(request.data)
        return api_pb2.MountPutFileResponse(exists=self.volumes.has_block(request.sha256_hex))

    def BlobCreate(self, request: Any) -> Any:
        blob_id = f"bl-{uuid.uuid4().hex[:22]}"
        return api_pb2.BlobCreateResponse(
            blob_ids=[blob_id], upload_urls=api_pb2.UploadUrlList(items=[f"{self._url}/blobs/{blob_id}"])
        )

    def BlobGet(self, request: Any) -> Any:
        return api_pb2.BlobGetResponse(download_url=f"{self._url}/blobs/{request.blob_id}")

    def VolumePutFiles(self, request: Any) -> Any:
        """Version 1, step two: all the files at once."""
        volume = self.volumes.get(request.volume_id)
        self._refuse_taken(volume, [file.filename for file in request.files], request)
        for file in request.files:
            volume.write(file.filename, [self.volumes.block(file.sha256_hex)])
        return Empty()

    def VolumePutFiles2(self, request: Any) -> Any:
        """Version 2: say which blocks are missing, or write the files when none is."""
        volume = self.volumes.get(request.volume_id)
        self._refuse_taken(volume, [file.path for file in request.files], request)
        missing = [
            api_pb2.VolumePutFiles2Response.MissingBlock(
                file_index=file_index, block_index=index, put_url=f"{self._url}/blobs/{block.contents_sha256.hex()}"
            )
            for file_index, file in enumerate(request.files)
            for index, block in enumerate(file.blocks)
            if not self.volumes.has_block(block.contents_sha256.hex())
        ]
        if not missing:
            for file in request.files:
                volume.write(file.path, self._padded_blocks(file))
        return api_pb2.VolumePutFiles2Response(missing_blocks=missing)

    def _padded_blocks(self, file: Any) -> Iterator[bytes]:
        """A file's blocks, with the zeros at their ends that are never sent."""
        for number, block in enumerate(file.blocks):
            length = min(BLOCK_BYTES, file.size - number * BLOCK_BYTES)
            yield self.volumes.block(block.contents_sha256.hex()).ljust(length, b"\0")

    def _refuse_taken(self, volume: Volume, paths: list[str], request: Any) -> None:
        taken = [path for path in paths if volume.path(path).exists()]
        if taken and request.disallow_overwrite_existing_files:
            raise GRPCError(Status.ALREADY_EXISTS, f"{taken[0]}: already exists")

    def _entries(self, request: Any) -> list[Any]:
        volume = self.volumes.get(request.volume_id)
        return [_entry(volume, path) for path in volume.entries(request.path, request.recursive)]


class DictCalls:
    """What leases need of `modal.Dict`."""

    def __init__(self) -> None:
        self._dicts: dict[str, dict[bytes, bytes]] = {}

    def DictGetOrCreate(self, request: Any) -> Any:
        self._dicts.setdefault(request.deployment_name, {})
        return api_pb2.DictGetOrCreateResponse(
            dict_id=f"di-{request.deployment_name}", metadata=api_pb2.DictMetadata(name=request.deployment_name)
        )

    def DictUpdate(self, request: Any) -> Any:
        contents = self._contents(request)
        created = not any(_key(update.key) in contents for update in request.updates)
        if created or not request.if_not_exists:
            contents.update({_key(update.key): update.value for update in request.updates})
        return api_pb2.DictUpdateResponse(created=created)

    def DictGet(self, request: Any) -> Any:
        value = self._contents(request).get(_key(request.key))
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    def DictPop(self, request: Any) -> Any:
        value = self._contents(request).pop(_key(request.key), None)
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    def _contents(self, request: Any) -> dict[bytes, bytes]:
        return self._dicts[request.dict_id.removeprefix("di-")]


def _key(pickled: bytes) -> bytes:
    """Equal keys from processes of different versions may be pickled differently."""
    return repr(pickle.loads(pickled)).encode()


def _version(volume: Volume) -> Any:
    return api_pb2.VOLUME_FS_VERSION_V2 if volume.version == 2 else api_pb2.VOLUME_FS_VERSION_V1


def metadata_of(volume: Volume) -> Any:
    """What the client keeps about a Volume."""
    return api_pb2.VolumeMetadata(name=volume.name, version=_version(volume))


def _entry(volume: Volume, path: Path) -> Any:
    status = path.stat()
    kind = api_pb2.FileEntry.FileType.DIRECTORY if path.is_dir() else api_pb2.FileEntry.FileType.FILE
    return api_pb2.FileEntry(
        path=volume.name_of(path), type=kind, mtime=int(status.st_mtime), size=0 if path.is_dir() else status.st_size
    )
