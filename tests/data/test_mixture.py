"""What a mixture says, GPT-3's among them."""

import subprocess
import sys

import pytest

from gpt_jax.data.mixture import GPT3, gpt3_table, implied_epochs, parse_mixture
from gpt_jax.errors import UserError


def test_weights_are_normalised_and_nothing_is_drawn_of_weight_zero():
    (phase,) = parse_mixture('{"books": 3, "file:a,b/*.txt": 1, "tfds:c": 0}').phases
    assert phase.step == 0 and phase.weights == {"books": 0.75, "file:a,b/*.txt": 0.25}


def test_weights_may_change_at_steps_in_any_order():
    mixture = parse_mixture('{"200": {"c": 1, "a": 1}, "0": {"a": 3, "b": 1}}')
    assert [(phase.step, dict(phase.weights)) for phase in mixture.phases] == [
        (0, {"a": 0.75, "b": 0.25}), (200, {"c": 0.5, "a": 0.5}),
    ]  # fmt: skip
    assert mixture.names == ["a", "b", "c"] and mixture.shares == {"a": 0.625, "b": 0.125, "c": 0.25}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("books=3", ["'books=3' is no JSON", '{"books": 3']),
        ("[1]", ["an address and a weight"]),
        ("{}", ["an address and a weight"]),
        ('{"a": -1, "b": 2}', ["the weight of 'a' is -1", "from 0 to"]),
        ('{"a": NaN}', ["the weight of 'a' is NaN"]),
        ('{"a": 1e308, "b": 1e308}', ["the weight of 'a' is 1e+308"]),
        ('{"a": Infinity}', ["Infinity"]),
        ('{"a": "3"}', ["the weight of 'a' is \"3\""]),
        ('{"a": true}', ["the weight of 'a' is true"]),
        ('{"a": 0, "b": 0}', ["all weights are 0"]),
        ('{"a": 1, "a": 2}', ["'a' stands there twice"]),
        ('{"5": {"a": 1}}', ["as step 0"]),
        ('{"0": {"a": 1}, "00": {"a": 2}}', ["each step once"]),
        ('{"0": {"a": 1}, "b": 2}', ["'b': 2", "weights alone"]),
        ('{"0": {"a": 1}, "-5": {"a": 2}}', ["'-5'"]),
        ('{"0": {"a": 1}, "7": {}}', ["all weights are 0"]),
    ],
)
def test_what_is_no_mixture_ends_in_one_message(text, words):
    with pytest.raises(UserError) as error:
        parse_mixture(text)
    assert all(word in str(error.value) for word in ["data.mixture", *words]), error.value


def test_gpt3s_epochs_follow_from_its_weights_and_sizes():
    weights, sizes = ({name: pair[i] for name, pair in GPT3.items()} for i in (0, 1))
    assert sum(weights.values()) == 101  # as printed
    epochs = implied_epochs(weights, sizes, 300e9)
    for name, (weight, size) in GPT3.items():
        assert epochs[name] == pytest.approx(weight / 101 * 300e9 / size)
        assert epochs[name] == pytest.approx(weight / 100 * 300e9 / size, rel=0.01)
    raw = {name: epochs[name] * 1.01 for name in epochs}
    assert [round(x, 2) for x in raw.values()] == [0.44, 3.47, 2.0, 0.44, 3.0]


def test_the_table_is_printed_without_data():
    assert "webtext2" in gpt3_table(300e9) and "3.44" in gpt3_table(300e9)
    command = [sys.executable, "-m", "gpt_jax.data.mixture", "30e9"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed == gpt3_table(30e9) + "\n"
