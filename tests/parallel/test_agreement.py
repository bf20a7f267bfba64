"""Hosts that would not run the same are told apart before they hang."""

from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.parallel.agreement import disagreement, facts, who

FACTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2", ""]))


@given(st.lists(FACTS, min_size=1, max_size=5))
def test_exactly_the_facts_that_differ_are_named(hosts_facts):
    message = disagreement(hosts_facts, [f"host{i}" for i in range(len(hosts_facts))])
    names = {name for facts in hosts_facts for name in facts}
    differ = {name for name in names if len({facts.get(name) for facts in hosts_facts}) > 1}
    named = {line.strip().partition(":")[0] for line in (message or "").splitlines() if line.startswith("  ")}
    assert named == differ and (message is None) == (not differ)


def test_the_message_says_who_has_what():
    message = disagreement([{"config seed": "0"}, {"config seed": "1"}, {"config seed": "0"}], ["a", "b", "a"])
    assert "config seed: 0 on processes 0, 2 (host a); 1 on process 1 (host b)" in message


def test_of_many_hosts_a_few_are_named():
    assert who(list(range(100)), ["h"] * 100) == "processes 0, 1, 2, 3 and 96 more (host h)"


def test_the_config_the_code_the_versions_and_what_changes_programs_must_agree(monkeypatch):
    before = facts({"seed": 0, "data": {"cache_dir": "/a", "prefetch": 1, "source": "books"}})
    assert "code gpt_jax/parallel/agreement.py" in before and "version of jaxlib" in before
    assert before["config data.source"] == "'books'"
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/here")  # looking at a program does not change it
    free = facts({"seed": 0, "data": {"cache_dir": "/b", "prefetch": 2, "source": "books"}})
    assert disagreement([before | {"XLA_FLAGS": ""}, free], ["a", "b"]) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    other = facts({"seed": 1, "data": {"cache_dir": "/a", "prefetch": 1, "source": "books"}})
    message = disagreement([before, other], ["a", "b"])
    assert "config seed: 0" in message and "XLA_FLAGS" in message
