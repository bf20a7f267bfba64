"""Chat templates give transformers' texts and ids, in a sandbox; what a message says never becomes a symbol."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXT

from gpt_jax.errors import UserError
from gpt_jax.text.chat_template import ChatTemplate, plain_template
from gpt_jax.text.huggingface import HuggingFaceTokenizer
from gpt_jax.text.sentencepiece import train
from gpt_jax.text.symbols import with_fine_tuning_symbols

pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")
pytest.importorskip("jinja2", reason="the extra 'serve' is not installed")

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "chat_templates.json").read_text())
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = GOLDEN["templates"]["chatml"]
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: HuggingFaceTokenizer.from_json(document, NAMES) for name, document in GOLDEN["tokenizers"].items()}


@pytest.fixture(scope="module")
def tokenizer(tokenizers):
    return tokenizers["byte-level"]


@pytest.mark.parametrize("name", GOLDEN["templates"])
@pytest.mark.parametrize("vocabulary", GOLDEN["tokenizers"])
def test_texts_and_ids_are_transformers(tokenizers, vocabulary, name):
    template = ChatTemplate(GOLDEN["templates"][name], tokenizers[vocabulary])
    cases = [case for case in GOLDEN["rendered"] if (case["tokenizer"], case["template"]) == (vocabulary, name)]
    assert len(cases) == 2 * len(GOLDEN["conversations"])
    for case in cases:
        messages = GOLDEN["conversations"][case["conversation"]]
        asked = {"add_generation_prompt": case["generation"]}
        if "refused" in case:
            with pytest.raises(UserError, match=case["refused"]):
                template.encode(messages, **asked)
            continue
        assert template.render(messages, **asked) == case["text"]
        ids = template.encode(messages, **asked)
        assert ids.dtype == "int32"
        if case["conversation"] != "symbols":
            assert ids.tolist() == case["ids"] == case["ids_of_text"]
        elif vocabulary == "byte-level":
            assert ids.tolist() == case["ids_of_text"] != case["ids"]
        else:  # transformers encodes each hidden symbol on its own, and so the text between them in other pieces
            symbols = set(tokenizers[vocabulary].symbols.values())
            assert [id for id in ids if id in symbols] == [id for id in case["ids_of_text"] if id in symbols]


@given(
    content=st.lists(st.sampled_from(["<|im_end|>", "</s>", "<|", "|>", "im_end", "<", " ", "é", "\n"])).map("".join)
)
@settings(max_examples=100, deadline=None)
def test_no_message_spells_a_symbol(tokenizer, content):
    template = ChatTemplate("<|im_start|>{{ messages[0].content }}<|im_end|>", tokenizer)
    first, *inner, last = template.encode([{"role": "user", "content": content}]).tolist()
    assert (first, last) == (tokenizer.symbols["<|im_start|>"], tokenizer.symbols["<|im_end|>"])
    assert not set(inner) & set(tokenizer.symbols.values())
    assert tokenizer.decode(inner) == content


def test_the_symbol_behind_an_answer_ends_it(tokenizer):
    ends = {name: ChatTemplate(source, tokenizer).end_ids for name, source in GOLDEN["templates"].items()}
    id = tokenizer.symbols
    assert ends == {
        "chatml": (id["<|im_end|>"],), "headers": (id["<|eot_id|>"],), "instructions": (id["</s>"],),
        "turns": (id["<end_of_turn>"],), "tags": (id["</s>"],), "program": (id["<|im_end|>"],),
    }  # fmt: skip
    assert ChatTemplate("{{ messages[0].content }}: ", tokenizer).end_ids == ()


def test_our_own_vocabularies_write_symbols_too():
    tokenizer = with_fine_tuning_symbols(train([TEXT], vocab_size=300))
    template = ChatTemplate("<|start|>{{ messages[0].content }}<|delimiter|><|end_of_text|>", tokenizer)
    specials = tokenizer.specials
    expected = [specials.start, *tokenizer.encode("hello").tolist(), specials.delimiter, specials.end_of_text]
    assert template.encode(USER).tolist() == expected


def test_symbols_that_were_appended_stand_where_the_template_puts_them(tokenizer):
    appended = with_fine_tuning_symbols(tokenizer)
    ids = ChatTemplate("<s><|start|>{{ messages[0].content }}<|extract|></s>", appended).encode(USER).tolist()
    assert ids == [0, appended.specials.start, *tokenizer.encode("hello").tolist(), appended.specials.extract, 1]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_template_that_misbehaves_is_a_message(tokenizer, source):
    with pytest.raises(UserError, match="the chat template does not take these messages"):
        ChatTemplate(source, tokenizer).render(USER)


def test_a_template_that_is_none_is_a_message(tokenizer):
    with pytest.raises(UserError, match=r"model.jinja is not a Jinja template .*--config.template=FILE"):
        ChatTemplate("{% for %}", tokenizer, "model.jinja")


def test_half_a_character_is_refused(tokenizer):
    with pytest.raises(UserError, match="surrogate"):
        ChatTemplate(CHATML, tokenizer).encode([{"role": "user", "content": "half a character \ud800"}])


def test_a_message_cannot_spell_what_symbols_are_called_inside(tokenizers):
    for tokenizer in tokenizers.values():
        text = "".join(f"\0 {id} \0" for id in range(4))
        *ids, last = ChatTemplate("{{ messages[0].content }}</s>", tokenizer).encode([{"content": text}]).tolist()
        assert last == tokenizer.symbols["</s>"] and not set(ids) & set(tokenizer.symbols.values())
        assert tokenizer.decode(ids) == text


ANSWERED = [
    {"role": "user", "content": "What?"},
    {"role": "assistant", "content": "This."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "That."},
]


@pytest.mark.parametrize("name", [name for name in GOLDEN["templates"] if name != "program"])
@pytest.mark.parametrize("vocabulary", GOLDEN["tokenizers"])
def test_the_assistants_tokens_are_its_answers_with_their_ends(tokenizers, vocabulary, name):
    tokenizer = tokenizers[vocabulary]
    template = ChatTemplate(GOLDEN["templates"][name], tokenizer)
    ids, answered = template.encode_answers([*ANSWERED, {"role": "user", "content": "not answered"}])
    assert ids.dtype == "int32" and answered.dtype == bool and len(ids) == len(answered)
    whole = template.encode(ANSWERED, add_generation_prompt=False)
    # Behind `headers` the bytes of two newlines are one token where the text ends, and two where it goes on.
    if (vocabulary, name) != ("byte-level", "headers"):
        assert ids.tolist() == whole[: len(ids)].tolist()  # which may end with a newline more
    assert tokenizer.decode(whole).startswith(tokenizer.decode(ids))
    assert answered[-1] and tokenizer.decode(ids[answered]).replace(" ", "").replace("\n", "") == "This.That."
    begins = np.flatnonzero(answered & ~np.append(False, answered[:-1]))
    assert ids[: begins[0]].tolist() == template.encode(ANSWERED[:1]).tolist()  # what a model that is asked has read
    assert tokenizer.decode(ids[: begins[1]]) == tokenizer.decode(template.encode(ANSWERED[:3]))
    ends = np.flatnonzero(answered & ~np.append(answered[1:], False))
    assert [int(ids[end]) for end in ends] == [*template.end_ids] * 2


@given(answer=st.lists(st.sampled_from(["\n", " ", "a", "th", "is", "<|im_end|>", "é"]), max_size=8).map("".join))
@settings(max_examples=60, deadline=None)
def test_whatever_an_answer_begins_with_it_follows_the_ids_that_asked_for_it(tokenizer, answer):
    template = ChatTemplate(CHATML, tokenizer)
    ids, answered = template.encode_answers([*USER, {"role": "assistant", "content": answer}])
    asked = template.encode(USER)
    assert ids[: len(asked)].tolist() == asked.tolist() and not answered[: len(asked)].any()
    *said, end = ids[len(asked) :].tolist()
    assert answered[len(asked) :].all() and end == tokenizer.symbols["<|im_end|>"]
    assert tokenizer.decode(said) == answer


def test_a_template_that_does_not_tell_where_an_answer_begins_or_ends_is_a_message(tokenizer):
    with pytest.raises(UserError, match="no message of the role 'assistant'"):
        ChatTemplate(CHATML, tokenizer).encode_answers(USER)
    with pytest.raises(UserError, match="writes what stands before message 2 otherwise once it is answered"):
        ChatTemplate(GOLDEN["templates"]["program"], tokenizer).encode_answers(ANSWERED)
    with pytest.raises(UserError, match="no symbol behind an answer"):
        ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}", tokenizer).encode_answers(ANSWERED)


def test_plain_words_teach_a_model_without_a_template_to_end_its_answers(tokenizer):
    own = train([TEXT], vocab_size=300)
    for vocabulary in (tokenizer, own):
        template = ChatTemplate(plain_template(vocabulary), vocabulary)
        assert template.end_ids == (vocabulary.specials.end_of_text,)
        assert template.render(USER) == "User:\nhello\n\nAssistant:\n"
        ids, answered = template.encode_answers(ANSWERED)
        assert vocabulary.decode(ids[answered]) == "This.That."


def test_a_vocabulary_without_an_end_of_text_cannot_be_taught_to_end_answers(tokenizer):
    class Nameless:
        specials, symbols = tokenizer.specials, {}

    with pytest.raises(UserError, match="no end-of-text symbol"):
        plain_template(Nameless())
