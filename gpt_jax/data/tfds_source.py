"""Sources from TensorFlow Datasets, read as ArrayRecord through `tfds` without TensorFlow.

Only ArrayRecord: TFRecord needs TensorFlow, and TFDS's Parquet lost 300 of 500 rows without a word when it was tried.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt_jax.data.files import remembered
from gpt_jax.data.pieces import Piece, cut_document, is_held_out
from gpt_jax.disk import digest
from gpt_jax.errors import UserError
from gpt_jax.progress import byte_progress

_RECORDS_AT_ONCE = 64
_SCAN_VERSION = 1


class TfdsSource:
    """A data set of TFDS as a `gpt_jax.data.sources.Source`; each example's `text_field` is a document.

    Held out is the data set's own `validation` split; without one, examples chosen by a hash of their text.
    UserError: an unknown data set, one that cannot be prepared or is not ArrayRecord, no such field, no text.
    """

    def __init__(self, name: str, *, text_field: str, held_out: float, cache_dir: Path):
        self.address = f"tfds:{name}"
        self._text_field = text_field
        self._held_out = held_out
        builder = prepared(name)
        self._check_field(builder.info.features)
        if "train" not in builder.info.splits:
            raise UserError(f"data.source={self.address} has no split 'train', only {', '.join(builder.info.splits)}.")
        self._own_validation = held_out > 0 and "validation" in builder.info.splits
        self._data = {
            split: builder.as_data_source(split=split)
            for split in (("train", "validation") if self._own_validation else ("train",))
        }
        # Preparation writes a data set's files once, so they tell whether an earlier scan is still true of it.
        files = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in Path(builder.data_dir).iterdir()
        )
        key = digest(_SCAN_VERSION, str(builder.data_dir), files, text_field, held_out)
        self._scan = remembered(cache_dir / "scans" / f"{key}.json", self._read_once)

    def fingerprint(self, split: str) -> str:
        """Hex digest of the texts of `split`."""
        return digest("tfds", self._scan["sha256"][split])

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of text."""
        return self._scan["bytes"][split]

    def pieces(self, split: str) -> Iterator[Piece]:
        """The documents of `split`; see `cut_document`."""
        for text in self._texts(split):
            yield from cut_document([text])

    def _texts(self, split: str) -> Iterator[str]:
        if self._own_validation:
            yield from self._records({"train": "train", "valid": "validation"}[split])
        else:
            for text in self._records("train"):
                if is_held_out(text, self._held_out) == (split == "valid"):
                    yield text

    def _records(self, own_split: str) -> Iterator[str]:
        data = self._data[own_split]
        for start in range(0, len(data), _RECORDS_AT_ONCE):
            numbers = range(start, min(start + _RECORDS_AT_ONCE, len(data)))
            for number, record in zip(numbers, data.__getitems__(list(numbers)), strict=True):
                text = record[self._text_field]
                try:
                    yield text.decode() if isinstance(text, bytes) else text
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{self.address}, split {own_split}, example {number}: field {self._text_field!r} "
                        f"is not UTF-8 ({error.reason} at byte {error.start})."
                    ) from None

    def _read_once(self) -> dict:
        scan = {"sha256": {}, "bytes": {}}
        with byte_progress(f"Reading {self.address}", None) as advance:
            for split in ("train", "valid"):
                content = hashlib.sha256()
                scan["bytes"][split] = 0
                for text in self._texts(split):
                    data = text.encode()
                    content.update(len(data).to_bytes(8, "little") + data)
                    scan["bytes"][split] += len(data)
                    advance(len(data))
                scan["sha256"][split] = content.hexdigest()
        if not sum(scan["bytes"].values()):
            raise UserError(f"data.source={self.address} is empty: no example has text in {self._text_field!r}.")
        return scan

    def _check_field(self, features) -> None:
        fields = {field: feature.np_dtype for field, feature in features.items()} if hasattr(features, "items") else {}
        texts = [field for field, dtype in fields.items() if dtype in (np.object_, np.str_, np.bytes_)]
        if self._text_field not in texts:
            raise UserError(
                f"data.source={self.address} has no text in a field {self._text_field!r}. Its text fields: "
                f"{', '.join(texts) or 'none'}. Set data.text_field to one of them."
            )


def prepared(name: str):
    """The builder of `name` with its data on the disk (TFDS_DATA_DIR or ~/tensorflow_datasets), as ArrayRecord."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"data.source=tfds:{name} needs tensorflow-datasets, which cannot be imported ({error}). "
            "Install it: pip install tensorflow-datasets importlib_resources array_record"
        ) from None
    try:
        builder = tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"data.source=tfds:{name}: TFDS knows no such data set ({str(error).splitlines()[0]}). "
            "Expected tfds:NAME or tfds:NAME/CONFIG as in tensorflow.org/datasets/catalog."
        ) from None
    except (ValueError, AssertionError) as error:  # no such config or version, or prepared in another format
        raise UserError(
            f"data.source=tfds:{name}: TFDS cannot open it as ArrayRecord ({error}). Expected "
            "NAME[/CONFIG][:VERSION]; what was prepared in another format must be prepared again: "
            f"tfds build {name} --file_format=array_record"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever a data set's own code and the network raise
        raise UserError(
            f"data.source=tfds:{name}: TFDS could not prepare it in {builder.data_dir} ({error})."
        ) from error
    return builder
