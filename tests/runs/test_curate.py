"""Curation from the command line: what comes out, whoever makes it, whenever it is killed, whatever is wrong."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import zstandard
from small_crawl import WORDS, config_of, documents, kept, outputs, question, text, write, write_crawl
from small_models import byte_tokenizer

from gpt_jax.data.curation import local_runner, work_folder
from gpt_jax.data.sources import open_source
from gpt_jax.errors import UserError
from gpt_jax.main import main, parse_flags
from gpt_jax.runs import curate

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> Path:
    return write_crawl(tmp_path_factory.mktemp("crawl"))


@pytest.fixture(scope="module")
def curated(crawl, tmp_path_factory) -> Path:
    """The workdir of a curation that nothing happened to."""
    workdir = tmp_path_factory.mktemp("curated")
    curate.run(config_of(crawl), workdir)
    return workdir


def reasons(workdir: Path) -> dict[str, str]:
    """id -> "stage/reason" of every document that was dropped."""
    found = {}
    for path in sorted((workdir / "decisions").iterdir()):
        for line in zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).splitlines():
            row = json.loads(line)
            for decision in row["decisions"]:
                if not decision["kept"]:
                    found[row["id"]] = f"{decision['stage']}/{decision['reason']}"
    return found


def test_each_document_is_kept_or_dropped_for_the_reason_that_is_wrong_with_it(curated):
    dropped = reasons(curated)
    assert dropped == {
        "web:short": "quality_rules/min_words",
        "web:lorem": "cleanup/lorem_ipsum",
        "web:empty": "cleanup/empty",
        "web:scraps": "contamination/scraps",
        "web:good-20": "near_duplicates/near_duplicate",  # as good as fine:near, whose id is less
        **{f"web:near-{n}": "near_duplicates/near_duplicate" for n in range(8)},  # shorter
    }
    read = sum(map(len, documents().values()))
    assert len(kept(curated)) == read - len(dropped) - 1 + 1  # one copy, and one document in two pieces


def test_what_an_evaluation_set_holds_is_cut_out_of_the_middle(curated):
    texts = kept(curated)
    original = next(row["text"] for row in documents()["web"] if row["id"] == "tainted")
    pieces = [texts["web#1:tainted"], texts["web#2:tainted"]]
    assert original.startswith(pieces[0]) and original.endswith(pieces[1])
    start = original.index(" ".join(question().split()[3:25]))
    stop = start + len(" ".join(question().split()[3:25]))
    assert len(pieces[0]) == start - 200 and len(pieces[1]) == len(original) - stop - 200


def test_the_table_adds_up_and_says_where_everything_went(curated):
    text = (curated / "report.md").read_text()
    for line in ("| read | copy | -1 |", "| cleanup | lorem_ipsum | -1 |", "| quality_rules | min_words | -1 |",
                 "| contamination | scraps | -1 |", "| contamination | text cut from 1 that stay | 0 |"):  # fmt: skip
        assert line in text, text
    assert (curated / "web.png").read_bytes().startswith(b"\x89PNG") and "Lorem ipsum" in text
    manifest = json.loads((curated / "manifest.json").read_text())
    rows = [len([name for name in kept(curated) if name.startswith(source)]) for source in ("web", "fine")]
    assert [sum(shard["rows"] for shard in manifest["sources"][source]["shards"]) for source in ("web", "fine")] == rows
    for one in (*manifest["sources"]["web"]["shards"], *manifest["decisions"]):
        assert (curated / one["file"]).stat().st_size == one["bytes"]
    assert not (curated / "work").exists()


def test_the_training_text_is_an_address_that_runs_read(curated, tmp_path):
    source = open_source(f"file:{curated}/documents/web/*.jsonl.zst", validation_fraction=0.0, cache_dir=tmp_path)
    texts = {piece.text for piece in source.pieces("train")}
    assert texts == {text for name, text in kept(curated).items() if name.startswith("web")}


@pytest.mark.parametrize("document, words", [
    ("web:near-3", ("near_duplicates: DROPPED (near_duplicate): cluster web:good-3, documents 2, kept web:good-3",
                    "similarity 0.9", "not in the training set")),
    ("web:short", ("quality_rules: DROPPED (min_words): words 4,", "read from", "line ")),
    ("web:tainted", ("contamination: kept", "pieces 2", "written as web#1:tainted, web#2:tainted in documents/web/")),
    ("web#2:tainted", ("contamination: kept", "pieces 2")),  # by the name of a piece
    ("web:17", ("written as web:17",)),
])  # fmt: skip
def test_why_tells_what_was_decided_about_a_document(curated, capsys, monkeypatch, document, words):
    monkeypatch.chdir(ROOT)
    assert main(["main", f"--config=configs/curate.py:why,id={document}", f"--workdir={curated}"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in words), told


def test_why_takes_the_place_of_a_document_for_its_name(curated):
    assert curate.why(curated, "web/part1.jsonl.zst, line 1")["id"] == "web:good-1"
    assert curate.why(curated, "part0.jsonl.zst, line 18")["id"].startswith("web:")
    with pytest.raises(UserError):
        curate.why(curated, "art1.jsonl.zst, line 1")


@pytest.mark.parametrize("name", ["a,b=c, d", "x,id=y"])
def test_why_takes_an_id_with_commas(name):
    assert parse_flags(["main", f"--config={ROOT}/configs/curate.py:why,id=web:{name}"]).config.why == f"web:{name}"


def test_why_names_the_other_places_of_a_copied_text(curated, capsys):
    name = next(name for name in kept(curated) if len(name) == 36 and "the same text" in _told(curated, name, capsys))
    assert name.startswith("web:")


def _told(curated: Path, name: str, capsys) -> str:
    curate.why(curated, name)
    return capsys.readouterr().out


@pytest.mark.parametrize("runner", ["local", "beam"])
def test_a_source_may_have_the_name_of_a_file_of_ours(crawl, tmp_path, runner):
    curate.run(config_of(crawl, sources=json.dumps({"decisions": f"file:{crawl}/fine/*"}), runner=runner), tmp_path)
    assert set(kept(tmp_path).values()) == {row["text"] for row in documents()["fine"]}


def test_a_piece_is_not_called_as_another_document_is(tmp_path):
    crawl = write_crawl(tmp_path / "crawl")
    draw = random.Random(5)
    write(crawl / "web", "awkward", [{"id": f"tainted#{n}", "text": text(draw)} for n in (1, 2)])
    curate.run(config_of(crawl), tmp_path / "out")  # `kept` refuses equal ids
    assert {"web:tainted#1", "web:tainted#2", "web#1:tainted", "web#2:tainted"} < set(kept(tmp_path / "out"))


def test_evaluation_text_is_found_in_any_unicode_form(tmp_path):
    crawl, draw = write_crawl(tmp_path / "crawl"), random.Random(6)
    asked = " ".join(f"caf\u00e9{word} \u304c" for word in draw.sample(WORDS, 20))
    (crawl / "questions.jsonl").write_text(json.dumps({"question": unicodedata.normalize("NFD", asked)}))
    write(crawl / "web", "accents", [{"id": "accents", "text": f"{text(draw)} {asked} {text(draw)}"}])
    curate.run(config_of(crawl), tmp_path / "out")
    assert {"web#1:accents", "web#2:accents"} < set(kept(tmp_path / "out"))


@pytest.mark.parametrize("runner", ["local", "beam"])
def test_a_tokenizer_counts_what_is_kept(crawl, curated, tmp_path, runner):
    byte_tokenizer().save(tmp_path / "bytes")
    fields = {"tokenizer__path": str(tmp_path / "bytes"), "workers": 2, "runner": runner}
    curate.run(config_of(crawl, **fields), tmp_path / "out")
    assert kept(tmp_path / "out") == kept(curated)
    size = {source: 0 for source in ("web", "fine")}
    for name, one in kept(curated).items():
        size[name.partition(":")[0].partition("#")[0]] += len(one.encode())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {source: facts["tokens"] for source, facts in manifest["sources"].items()} == size
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"| {size['web']:,} | {size['web']:,} |\n" in report and "tokens out" in report
    assert "| tokens | not counted: name a tokenizer" in (curated / "report.md").read_text()


def test_the_training_of_the_classifier_shows_how_far_it_is(curated_by_every_stage, crawl, tmp_path, capsys):
    curate.run(config_of(crawl, **EVERY_STAGE), tmp_path)
    told = capsys.readouterr().err
    for words in ("Reading positives for", "Reading negatives for", "Hashing the words of texts", "Fitting"):
        assert words in told
    assert outputs(tmp_path) == outputs(curated_by_every_stage)


# --- the same, whoever makes it


EVERY_STAGE = {"trusted": ("fine",), "classifier__alpha": 0.3, "passages__on": True, "passages__words": 20}


@pytest.fixture(scope="module")
def curated_by_every_stage(crawl, tmp_path_factory) -> Path:
    """The same, by a classifier too, which it trains, and without repeated passages."""
    workdir = tmp_path_factory.mktemp("every_stage")
    curate.run(config_of(crawl, **EVERY_STAGE), workdir)
    assert "quality_classifier/pareto" in reasons(workdir).values()
    assert "| exact_substrings | text cut from" in (workdir / "report.md").read_text()
    return workdir


@pytest.mark.parametrize("stages, expected", [({}, "curated"), (EVERY_STAGE, "curated_by_every_stage")])
@pytest.mark.parametrize(
    "files, order, fields",
    [(1, 1, {}), (5, 2, {"chunk_bytes": 300}), (2, 3, {"chunk_bytes": 10**6, "workers": 2})],
    ids=["one file", "small chunks", "two workers"],
)
def test_neither_order_nor_files_nor_workers_nor_chunks_matter(
    request, tmp_path, files, order, fields, stages, expected
):
    crawl, undisturbed = write_crawl(tmp_path / "crawl", files=files, order=order), request.getfixturevalue(expected)
    curate.run(config_of(crawl, **fields, **stages), tmp_path / "out")
    ours, theirs = outputs(tmp_path / "out"), outputs(undisturbed)
    assert {name: data for name, data in ours.items() if name.startswith("documents/")} == {
        name: data for name, data in theirs.items() if name.startswith("documents/")
    }
    assert reasons(tmp_path / "out") == reasons(undisturbed)


def test_the_number_of_shards_changes_no_decision(crawl, curated, tmp_path):
    curate.run(config_of(crawl, output__shards=7), tmp_path)
    assert kept(tmp_path) == kept(curated) and reasons(tmp_path) == reasons(curated)


def test_beam_writes_the_same_bytes(crawl, curated, tmp_path):
    pytest.importorskip("apache_beam")
    curate.run(config_of(crawl, runner="beam"), tmp_path)
    assert outputs(tmp_path) == outputs(curated)


def test_beam_and_the_local_runner_agree_with_a_classifier_and_as_array_record(crawl, tmp_path):
    pytest.importorskip("apache_beam")
    fields = {"trusted": ("fine",), "classifier__alpha": 0.3, "output__format": "array_record", "output__shards": 2}
    for runner in ("local", "beam"):
        curate.run(config_of(crawl, runner=runner, **fields), tmp_path / runner)
    assert outputs(tmp_path / "local") == outputs(tmp_path / "beam")
    assert {"quality_classifier/pareto"} < set(reasons(tmp_path / "local").values())


@pytest.fixture(scope="module")
def repeating(tmp_path_factory) -> Path:
    """A crawl where two pages hold a passage of a third, one of them nothing else; and a question beside one."""
    crawl = write_crawl(tmp_path_factory.mktemp("repeating"))
    rows = documents()["fine"]
    passage = " ".join(rows[0]["text"].split()[20:110])
    page = rows[1]["text"].split("\n")
    rows.append({"id": "page-7", "text": "\n".join([*page[3:9][::-1], f"{passage}.", *page[12:18][::-1]])})
    rows.append({"id": "page-8", "text": "\n".join([*page[9:12][::-1], f"{passage}.", "Later:", *page[:3][::-1]])})
    write(crawl / "fine", "passages", rows[-2:])
    return crawl


@pytest.mark.parametrize("runner", ["local", "beam"])
def test_a_passage_of_several_documents_stays_in_the_first(repeating, tmp_path, runner):
    pytest.importorskip("apache_beam")
    config = config_of(repeating, runner=runner, passages__on=True, passages__words=30, rules__on=False)
    curate.run(config, tmp_path)
    texts = kept(tmp_path)
    passage = " ".join(documents()["fine"][0]["text"].split()[20:110])
    holders = [name for name, text in texts.items() if passage in " ".join(text.split())]
    assert holders == ["fine:page-0"] and {"fine:page-7", "fine:page-8"} < set(texts)
    assert "| exact_substrings | text cut from 2 that stay | 0 | 0.00% | 180 |" in (tmp_path / "report.md").read_text()


def test_array_record_is_a_data_set_that_tfds_reads(crawl, curated, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    curate.run(config_of(crawl, output__format="array_record"), tmp_path)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "documents"))
    source = open_source("tfds:web", validation_fraction=0.0, cache_dir=tmp_path / "cache")
    texts = {piece.text for piece in source.pieces("train")}
    assert texts == {text for name, text in kept(curated).items() if name.startswith("web")}


# --- killed at any moment


class Killed(BaseException):
    """Nothing catches it."""


def test_a_start_that_ends_at_any_write_is_made_good_by_the_next(crawl, curated, tmp_path, monkeypatch):
    real = {"rename": os.rename, "replace": os.replace, "save": np.save}
    left = [0]

    def dying(name):
        def act(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            real[name](*arguments, **options)

        return act

    config = config_of(crawl)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, dying(name))
    monkeypatch.setattr(np, "save", dying("save"))
    monkeypatch.setattr(work_folder.shutil, "rmtree", lambda *args, **options: None)  # the dead tidy nothing up
    for moment in range(1, 199, 3):
        left[0] = moment
        try:
            curate.run(config, tmp_path / "out")
            break
        except Killed:
            pass
    left[0] = 0
    curate.run(config, tmp_path / "out")
    assert moment > 11 and outputs(tmp_path / "out") == outputs(curated)


def start(crawl: Path, workdir: Path) -> subprocess.Popen:
    """The command line that users type, with two workers."""
    config = config_of(crawl)
    flags = [f"--config.{name}={config[name]}" for name in ("sources", "chunk_bytes")]
    flags += ["--config.output.shards=3", f"--config.contamination.sets={config.contamination.sets}"]
    flags += ["--config.contamination.fields=('question',)", "--config.workers=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "gpt_jax.main", "--config=configs/curate.py", f"--workdir={workdir}", *flags],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_ctrl_c_ends_it_with_its_workers_and_the_next_start_goes_on(crawl, curated, tmp_path):
    process = start(crawl, tmp_path)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("work/chunks/[0-9]*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    children = _children_of(process.pid)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 128 + signal.SIGINT and "Traceback" not in output, output
    _wait_until_gone(children)
    curate.run(config_of(crawl, workers=1), tmp_path)
    assert outputs(tmp_path) == outputs(curated)


def test_a_killed_curation_goes_on_and_writes_the_same(crawl, curated, tmp_path):
    draw, workdir = random.Random(), tmp_path / "out"
    for pattern in ("chunks/[0-9]*", "edges/*.npy", "shards/[0-9]*"):
        process = start(crawl, workdir)
        deadline = time.monotonic() + 240
        while not list((workdir / "work").glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        process.kill()
        process.communicate()
        if (workdir / "manifest.json").exists():
            break  # it was quicker
    process = start(crawl, workdir)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert outputs(workdir) == outputs(curated)


IDLE = """
import multiprocessing, os, signal
from gpt_jax.data.curation.workers import Workers
with Workers(2) as pool:
    print(list(pool.map(abs, [1, 2, 3])), *[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_that_wait_for_a_task_end_with_their_parent():
    process = subprocess.run([sys.executable, "-c", IDLE], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240)
    *_, one, other = process.stdout.split()
    deadline = time.monotonic() + 60
    while (alive := [pid for pid in (one, other) if _alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL and not alive


def _wait_until_gone(children) -> None:
    """The last of them may be a moment behind its parent."""
    deadline = time.monotonic() + 60
    while left := [pid for pid in children if _alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _children_of(pid: int) -> list[str]:
    children = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += path.read_text().split()
    return children


def test_started_again_it_says_that_it_is_done_and_refuses_another_config(crawl, curated, tmp_path, capsys):
    before = outputs(curated)
    curate.run(config_of(crawl, workers=2), curated)
    assert "done by an earlier start" in capsys.readouterr().err and outputs(curated) == before
    with pytest.raises(UserError, match="holds a run with another config(.|\n)*duplicates.similarity: 0.8 there, 0.9"):
        curate.run(config_of(crawl, duplicates__similarity=0.9), curated)
    other = write_crawl(tmp_path / "other")
    with pytest.raises(UserError, match="another config"):
        curate.run(config_of(other), curated)


def test_an_input_that_changed_is_refused(crawl, tmp_path):
    own = write_crawl(tmp_path / "crawl")
    config = config_of(own)
    curate.run(config, tmp_path / "out")
    write(own / "web", "part0", documents()["web"][:30])
    with pytest.raises(UserError, match="another input") as error:
        curate.run(config, tmp_path / "out")
    named = [line for line in str(error.value).splitlines() if "there," in line]
    assert len(named) == 1 and "part0.jsonl.zst" in named[0]  # and none of the files that are as they were
    write(own / "web", "more", [])
    with pytest.raises(UserError, match="number of files: 6 there, 7 here"):
        curate.run(config, tmp_path / "out")


# --- bad input: one message, exit code 2, nothing lost


def refused(config, workdir: Path, *words: str) -> str:
    with pytest.raises(UserError) as error:
        curate.run(config, workdir)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert not (workdir / "manifest.json").exists() and not (workdir / "documents").exists()
    return message


@pytest.mark.parametrize("runner", ["local", "beam"])
def test_two_documents_of_one_id_are_named_with_their_places(tmp_path, runner):
    crawl = write_crawl(tmp_path)
    write(crawl / "web", "late", [{"id": "good-3", "text": "something else"}])
    config = config_of(crawl, runner=runner)
    refused(config, tmp_path / "out", "'good-3' of source 'web'", "late.jsonl.zst, line 1", "part0.jsonl.zst, line 2")


def test_a_document_over_the_size_limit_is_counted_passed_over_and_named(tmp_path, capsys):
    crawl = write_crawl(tmp_path)
    write(crawl / "web", "large", [{"id": "large", "text": "x" * 50000}, {"id": "fine", "text": "y"}])
    curate.run(config_of(crawl, max_document_bytes=20000), tmp_path / "out")
    assert "| read | too_long | -1 |" in (tmp_path / "out" / "report.md").read_text()
    (skipped,) = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert skipped["place"].endswith("large.jsonl.zst, line 1") and skipped["message"] == "50,027 bytes"
    assert reasons(tmp_path / "out")["web:fine"] == "quality_rules/min_words"  # what stands behind is read
    told = _told(tmp_path / "out", "large.jsonl.zst, line 1", capsys)
    assert "read: DROPPED (too_long): 50,027 bytes" in told and "not in the training set" in told
    with pytest.raises(UserError, match="no document 'web:large'(.|\n)*1 could not be read.*skipped.json"):
        curate.why(tmp_path / "out", "web:large")


BROKEN = [b'{"id": "a", "text": "b"', b'{"text": 3}', b"[]", b'{"id": [1], "text": "b"}', b"\xff{}",
          b'{"text": "\\ud800"}']  # fmt: skip


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_stops_with_its_place_or_is_passed_over_if_asked(tmp_path, line):
    crawl = write_crawl(tmp_path)
    (crawl / "web" / "broken.jsonl").write_bytes(b'{"id": "before", "text": "t"}\n' + line + b'\n{"text": "after"}')
    config = config_of(crawl, rules__on=False)
    refused(config, tmp_path / "out", "broken.jsonl, line 2", "--config.on_error=skip, in the same --workdir")
    curate.run(config_of(crawl, on_error="skip", rules__on=False), tmp_path / "out")
    (skipped,) = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert skipped["place"].endswith("broken.jsonl, line 2") and skipped["reason"] == "broken"
    assert "web:before" in kept(tmp_path / "out") and "after" in kept(tmp_path / "out").values()
    with pytest.raises(UserError, match="on_error: 'skip' there, 'stop' here"):
        curate.run(config, tmp_path / "out")


@pytest.mark.parametrize("suffix, runner", [(".gz", "local"), (".xz", "local"), (".zst", "local"), (".zst", "beam")])
def test_a_damaged_shard_stops_with_its_place_or_gives_what_stands_before(tmp_path, suffix, runner):
    draw = random.Random(1)
    rows = [{"id": n, "text": draw.randbytes(2000).hex()} for n in range(100)]
    path = write(tmp_path / "web", "cut", rows, suffix)
    path.write_bytes(path.read_bytes()[:-50_000])
    fields = {"sources": json.dumps({"web": f"file:{path}"}), "contamination.sets": None, "runner": runner}
    fields |= {"rules.on": False, "output.shards": 1}
    config = config_of(tmp_path)
    config.update_from_flattened_dict(fields)
    refused(config, tmp_path / "out", str(path), "after line", "on_error=skip")
    config.on_error = "skip"
    curate.run(config, tmp_path / "out")
    assert 10 < len(kept(tmp_path / "out")) < 100
    (skipped,) = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert skipped["reason"] == "damaged" and str(path) in skipped["place"]


def test_a_source_of_which_nothing_is_left_is_named_with_what_took_it(tmp_path):
    crawl = write_crawl(tmp_path)
    poor = write(tmp_path / "poor", "poor", [{"id": n, "text": f"too short {n}"} for n in range(5)])
    sources = {"web": f"file:{crawl}/web/*", "poor": f"file:{poor}"}
    config = config_of(crawl, sources=json.dumps(sources))
    refused(config, tmp_path / "out", "source 'poor': none of its 5", "5 by quality_rules: min_words", "report.md")
    assert curate.why(tmp_path / "out", "poor:3")["decisions"][-1]["reason"] == "min_words"
    refused(config, tmp_path / "out", "source 'poor'")  # as often as it is started


def test_input_without_a_line_is_one_message(tmp_path):
    crawl = write_crawl(tmp_path)
    empty = write(tmp_path, "empty", [])
    config = config_of(crawl, sources=json.dumps({"web": f"file:{empty}"}), passages__on=True)
    refused(config, tmp_path / "out", "source 'web': there is no document in it")


@pytest.mark.parametrize("side", ["positives", "negatives"])
def test_a_classifier_with_one_class_is_refused(tmp_path, side):
    crawl = write_crawl(tmp_path)
    empty = write(tmp_path, "empty", [])
    other = {"positives": "negatives", "negatives": "positives"}[side]
    fields = {f"classifier__{side}": f"file:{empty}", f"classifier__{other}": f"file:{crawl}/fine/*"}
    refused(config_of(crawl, **fields), tmp_path / "out", f"too few {side}")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("questions.jsonl", b'{"question": "a"}\n{"question"', ["questions.jsonl, line 2", "contamination.sets"]),
        ("questions.jsonl", b'{"asked": "a b c"}', ["line 1", "no field 'question' (found: 'asked')"]),
        ("questions.jsonl", b'{"question": "only a few words"}', ["none of 13 words"]),
        ("questions.jsonl", b"", ["there is no example in it"]),
        ("questions.jsonl.gz", b"\x1f\x8b", ["questions.jsonl.gz", "correct the file or leave it out"]),
    ],
)
def test_an_evaluation_set_that_does_not_parse_is_refused_before_anything_is_done(
    tmp_path, monkeypatch, name, content, words
):
    monkeypatch.setattr(curate, "learn", lambda *args, **options: pytest.fail("the classifier was trained"))
    crawl = write_crawl(tmp_path)
    (crawl / name).write_bytes(content)
    sets = f"file:{crawl / name}"
    message = refused(config_of(crawl, trusted=("fine",), contamination__sets=sets), tmp_path / "out", *words)
    assert "on_error" not in message
    assert not (tmp_path / "out" / "work").exists()


FULL = OSError(errno.ENOSPC, "No space left on device", "somewhere")
FULL_FOR_ARRAY_RECORD = RuntimeError("Failed to write 8 bytes: No space left on device; writing part0")


@pytest.mark.parametrize("place, error", [("chunk", FULL), ("shard", FULL), ("shard", FULL_FOR_ARRAY_RECORD)])
def test_a_full_disk_is_one_message_and_the_next_start_goes_on(crawl, curated, tmp_path, monkeypatch, place, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr(local_runner, f"write_{place}", full)
    refused(config_of(crawl), tmp_path, "no space left on the disk", "start again to go on")
    monkeypatch.undo()
    curate.run(config_of(crawl), tmp_path)
    assert outputs(tmp_path) == outputs(curated)


def test_a_worker_that_is_killed_is_one_message(crawl, tmp_path):
    process = start(crawl, tmp_path / "out")
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("out/work/chunks/*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    for child in _children_of(process.pid):
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
            break
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 2 and "was ended from outside" in output and "Traceback" not in output, output


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"sources": None}, ["""--config.sources='{"web": """]),
        ({"sources": "{"}, ["is not JSON"]),
        ({"sources": '{"a/b": "books"}'}, ["'a/b' is no name for a folder"]),
        ({"sources": '{"web": "gopher:x"}'}, ["'gopher:x' is no known address"]),
        ({"sources": '{"web": "file:nowhere/*.jsonl"}'}, ["no such file"]),
        ({"sources": '{"web": "file:gs://b/*.jsonl"}'}, ["--config.runner=beam"]),
        ({"trusted": ("wbe",)}, ["no source 'wbe'. Did you mean 'web'?"]),
        ({"on_error": "ignore"}, ["on_error='ignore': expected one of stop, skip"]),
        ({"rules__off": ("min_word",)}, ["Did you mean 'min_words'?"]),
        ({"contamination__common": 0}, ["contamination.common=0 is out of range"]),
        ({"contamination__sets": "file:gs://b/questions.jsonl"}, ["evaluation sets are read on this machine"]),
        ({"duplicates__similarity": 1.5}, ["duplicates.similarity=1.5 is out of range"]),
        ({"output__format": "array_record", "sources": '{"My-web": "books"}'}, ["no name of a TFDS data set"]),
        ({"runner": "beam", "beam__options": "--runner=Nowhere"}, ["beam.options='--runner=Nowhere'", "Nowhere"]),
        ({"runner": "beam", "beam__options": "it's"}, ['beam.options="it\'s"', "No closing quotation"]),
        ({"runner": "beam", "beam__output": "ftp://b/out"}, ["beam.output='ftp://b/out': Beam refuses them"]),
        ({"runner": "beam", "sources": '{"web": "file:ftp://b/*.jsonl"}'}, ["ftp://b/*.jsonl: cannot be looked up"]),
        ({"classifier__path": "nowhere.npz"}, ["nowhere.npz"]),
        ({"tokenizer__path": "nowhere"}, ["There is no tokenizer at nowhere"]),
        ({"id_field": "text", "text_field": "body"}, ["no text in a field 'body'"]),
    ],
)
def test_a_wrong_field_is_refused(crawl, tmp_path, fields, words):
    refused(config_of(crawl, **fields), tmp_path / "out", *words)


def test_why_of_a_document_or_a_folder_that_is_not_there(curated, tmp_path):
    with pytest.raises(UserError, match="no document 'web:nobody'"):
        curate.why(curated, "web:nobody")
    with pytest.raises(UserError, match="no decisions of a curation"):
        curate.why(tmp_path, "web:good-1")
