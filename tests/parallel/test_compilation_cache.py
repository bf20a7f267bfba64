"""The store of compiled programs: what comes out is what was put in, whole, and it does not grow for ever."""

import os

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax._src import compilation_cache

from gpt_jax.parallel.compilation_cache import Programs, keep_compiled_programs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def switched_on(monkeypatch):
    """JAX's cache is on as long as the test lasts, with whatever the test makes of it."""
    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    names = ("enable_compilation_cache", "compilation_cache_dir", "persistent_cache_min_compile_time_secs")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@given(st.binary(max_size=300), st.data())
def test_a_damaged_program_is_not_believed_and_makes_room_for_a_whole_one(folder, program, data):
    programs = Programs(folder, max_bytes=1000)
    programs.put("step", program)
    assert programs.get("step") == program
    (entry,) = folder.iterdir()
    contents = entry.read_bytes()
    cut = data.draw(st.integers(0, len(contents) - 1))
    zeros = data.draw(st.booleans())  # as a power cut leaves what never reached the disk
    damaged = contents[:cut] + bytes(len(contents) - cut if zeros else 0)
    entry.write_bytes(damaged)
    assert programs.get("step") == (program if damaged == contents else None)
    programs.put("step", program)
    assert programs.get("step") == program


def test_what_is_not_there_is_not_found(tmp_path):
    assert Programs(tmp_path / "nowhere", max_bytes=1000).get("step") is None


def test_a_program_is_written_in_one_move(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    programs = Programs(tmp_path, max_bytes=1000)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        programs.put("step", b"program")
    assert programs.get("step") is None


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    programs = Programs(tmp_path, max_bytes=3 * 132)
    for age, name in enumerate(("newer", "read", "old")):
        programs.put(name, bytes(100))
        os.utime(tmp_path / f"{name}-program", (age, 1000 - 100 * age))
    (tmp_path / ".left-program.by-a-kill").write_bytes(bytes(50))
    os.utime(tmp_path / ".left-program.by-a-kill", (1, 1))
    (tmp_path / "jit_other-cache").write_bytes(bytes(5000))  # not ours, and not counted
    assert programs.get("old") == programs.get("read") == bytes(100)
    programs.put("new", bytes(100))
    assert {path.name for path in tmp_path.iterdir()} == {
        "old-program", "read-program", "new-program", "jit_other-cache",
    }  # fmt: skip


def test_a_program_that_is_compiled_again_is_read_from_the_folder(switched_on, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    keep_compiled_programs(tmp_path / "programs")
    events = []

    def listener(event, **details):
        events.append(event.rpartition("/")[2])

    jax.monitoring.register_event_listener(listener)
    try:
        numbers = []
        for _ in range(2):
            step = jax.jit(lambda x: (x * 0.3).sum() ** 2)
            numbers.append(step(jax.numpy.arange(7.0)).item())
            jax.clear_caches()
        assert events.count("cache_misses") >= 1
        assert events.count("cache_hits") == events.count("cache_misses")
        assert numbers[0] == numbers[1]
        assert len(list((tmp_path / "programs").glob("*-program"))) == events.count("cache_misses")
    finally:
        jax.monitoring.unregister_event_listener(listener)


def test_the_environments_folder_goes_before(switched_on, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))  # as JAX_COMPILATION_CACHE_DIR does
    keep_compiled_programs(tmp_path / "ours")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_written_is_done_without(switched_on, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    keep_compiled_programs(tmp_path / "file" / "programs")
    assert not jax.config.jax_compilation_cache_dir
    assert f"{tmp_path / 'file' / 'programs'} cannot be written" in capsys.readouterr().err


def test_switched_off_nothing_is_touched(tmp_path):
    assert not jax.config.jax_enable_compilation_cache  # tests/conftest.py: no test writes to the user's folder
    keep_compiled_programs(tmp_path / "programs")
    assert not (tmp_path / "programs").exists()
