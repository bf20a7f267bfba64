"""Files of any file system that Apache Beam knows (gs://, s3://, hdfs://, local): what a pipeline reads and leaves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from gpt_jax.data.curation import reading
from gpt_jax.data.curation.reading import InputFile
from gpt_jax.data.curation.shards import Move
from gpt_jax.data.files import kind_of
from gpt_jax.errors import UserError
from gpt_jax.extras import require

filesystems = require("apache_beam.io.filesystems", "beam").FileSystems
UNCOMPRESSED = require("apache_beam.io.filesystem", "beam").CompressionTypes.UNCOMPRESSED  # we unpack by ourselves


def open_path(path: str) -> BinaryIO:
    """A file, opened for reading."""
    return filesystems.open(path, compression_type=UNCOMPRESSED)


def create(path: str) -> BinaryIO:
    """A file, opened for writing, its folder made."""
    make_folder_of(path)
    return filesystems.create(path, compression_type=UNCOMPRESSED)


def input_files(field: str, source: str, address: str, *, encoding: str = "utf-8") -> list[InputFile]:
    """As `reading.input_files`, on any file system that Beam knows: `file:gs://bucket/crawl/*.jsonl.zst`."""
    scheme, _, patterns = address.partition(":")
    if scheme != "file":
        return reading.input_files(field, source, address, encoding=encoding)
    files = {}
    for pattern in patterns.split(","):
        try:
            found = filesystems.match([pattern.strip()])[0].metadata_list
        except Exception as error:  # whatever the file system of a cloud raises
            raise UserError(f"{field}: {pattern}: cannot be looked up ({error}).") from error
        if not found:
            raise UserError(f"{field}: {pattern}: no such file.")
        for one in found:
            kind_of(Path(one.path))
            changed = int((one.last_updated_in_seconds or 0) * 1e9)
            files[one.path] = InputFile(source, one.path, encoding, one.size_in_bytes, changed)
    return sorted(files.values(), key=lambda file: file.path)


class BeamStore:
    """A folder of any file system that Beam knows, as `shards.Store`."""

    def __init__(self, root: str, *, is_workdir: bool):
        self.root, self.place = root.rstrip("/"), None if is_workdir else root

    def path(self, name: str) -> str:
        """The whole path of what is called `name` in here."""
        return f"{self.root}/{name}"

    def put(self, files: Mapping[str, bytes]) -> None:
        """Writes each file."""
        for name, content in files.items():
            with create(self.path(name)) as file:
                file.write(content)

    def publish(self, moves: Sequence[Move]) -> None:
        """Renames files."""
        for move in moves:
            made = self.path(f"{shard_name(move.shard)}/{move.name}")
            if filesystems.exists(made):
                make_folder_of(self.path(move.target))
                filesystems.rename([made], [self.path(move.target)])

    def clear(self) -> None:
        """Removes work/."""
        filesystems.delete([self.path("work")])


def make_folder_of(path: str) -> None:
    """Makes the folder that `path` is to stand in."""
    folder = path.rpartition("/")[0]
    if not filesystems.exists(folder):
        try:
            filesystems.mkdirs(folder)
        except OSError:
            if not filesystems.exists(folder):  # else another worker was quicker
                raise


def shard_name(number: int) -> str:
    """The folder of a shard in a store, until all is done."""
    return f"work/shards/{number:05}"
