"""One door opens every form in which tokenizers come, and says what it looked for."""

import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXT, small_byte_level, small_gpt2, small_llama, small_openai_gpt

from gpt_jax.errors import UserError
from gpt_jax.text.imported import open_tokenizer
from gpt_jax.text.sentencepiece import train

pytest.importorskip("tokenizers", reason="the extra 'huggingface' is not installed")
pytest.importorskip("spacy", reason="the extra 'gpt1' is not installed")

END = "<|endoftext|>"


def hugging_face(folder, first=(), end=END, document=None, **configs):
    """A Hugging Face folder; `configs` are its JSON files by their names without the suffix."""
    folder.mkdir(exist_ok=True)
    document = document or small_byte_level(first=first, end=end)[2]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    for name, content in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_our_own_folder_is_told_from_a_hugging_face_one(tmp_path):
    own = train([TEXT], vocab_size=300)
    own.save(tmp_path / "own")
    assert open_tokenizer(tmp_path / "own").fingerprint == own.fingerprint
    assert open_tokenizer(tmp_path / "own" / "tokenizer.json").fingerprint == own.fingerprint
    theirs = open_tokenizer(hugging_face(tmp_path / "theirs"))
    assert theirs.kind == "huggingface"
    assert open_tokenizer(str(tmp_path / "theirs" / "tokenizer.json")).fingerprint == theirs.fingerprint


def test_openais_files_and_hugging_faces_names_for_them_give_the_same(tmp_path):
    gpt1 = open_tokenizer(small_openai_gpt(tmp_path / "1"))
    gpt2 = open_tokenizer(small_gpt2(tmp_path / "2"))
    names = ("vocab.json", "merges.txt")
    assert (gpt1.kind, gpt2.kind) == ("openai-gpt", "huggingface")
    assert open_tokenizer(small_openai_gpt(tmp_path / "3", names)).fingerprint == gpt1.fingerprint
    assert open_tokenizer(small_gpt2(tmp_path / "4", names)).fingerprint == gpt2.fingerprint


def gpt1_as_tokenizer_json(folder):
    """What transformers writes for GPT-1: the same pieces and merges, another way of cutting text."""
    files = small_openai_gpt(folder)
    vocabulary = json.loads((files / "encoder_bpe_40000.json").read_text())
    merges = [line.split(" ") for line in (files / "vocab_40000.bpe").read_text().splitlines()[1:]]
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "unk_token": "<unk>", "end_of_word_suffix": "</w>"}
    decoder = {"type": "BPEDecoder", "suffix": "</w>"}
    return {"added_tokens": [], "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": decoder, "model": model}


def test_an_openai_gpt_folder_gets_openais_own_pipeline_whatever_else_is_there(tmp_path):
    document = gpt1_as_tokenizer_json(tmp_path / "openai")
    fingerprint = open_tokenizer(tmp_path / "openai").fingerprint
    names = ("vocab.json", "merges.txt")
    both = hugging_face(small_openai_gpt(tmp_path / "both", names), document=document)
    alone = hugging_face(tmp_path / "alone", document=document, config={"model_type": "openai-gpt"})
    by_class = hugging_face(
        tmp_path / "class", document=document, tokenizer_config={"tokenizer_class": "OpenAIGPTTokenizer"}
    )
    for folder in (both, alone, by_class):
        assert open_tokenizer(folder).fingerprint == fingerprint


@pytest.mark.parametrize(
    "configs, end",
    [
        ({"tokenizer_config": {"eos_token": "<eos>"}, "config": {"eos_token_id": 1}}, 0),
        ({"tokenizer_config": {"eos_token": {"content": "<eos>", "lstrip": False}}}, 0),
        ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 1}}, 1),
        ({"generation_config": {"eos_token_id": [1, 0]}}, 1),
        ({"special_tokens_map": {"eos_token": "<|im_end|>"}}, 1),
        ({}, 268),  # by its name alone
    ],
)
def test_the_end_of_text_comes_from_the_configuration_or_is_known_by_name(tmp_path, configs, end):
    tokenizer = open_tokenizer(hugging_face(tmp_path, first=["<eos>", "<|im_end|>"], end="</s>", **configs))
    assert tokenizer.specials.end_of_text == (end if end != 268 else tokenizer.vocab_size - 1)


def test_beginning_padding_and_chat_template_are_kept(tmp_path):
    config = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": END, "chat_template": "{{ one }}"}
    tokenizer = open_tokenizer(hugging_face(tmp_path, first=["<pad>", "<s>"], tokenizer_config=config))
    assert (tokenizer.specials.pad, tokenizer.chat_template) == (0, "{{ one }}")
    assert tokenizer.symbol_names == {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": END}
    assert tokenizer.specials.beginning_of_text is None
    config |= {"add_bos_token": True, "chat_template": [{"name": "tools", "template": "t"}, {"name": "default"}]}
    config["chat_template"][1]["template"] = "{{ two }}"
    tokenizer = open_tokenizer(hugging_face(tmp_path, first=["<pad>", "<s>"], tokenizer_config=config))
    assert (tokenizer.specials.beginning_of_text, tokenizer.chat_template) == (1, "{{ two }}")


def test_a_chat_template_of_its_own_file_is_read(tmp_path):
    hugging_face(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}\n")
    assert open_tokenizer(tmp_path).chat_template == "{{ messages }}\n"


@pytest.fixture(scope="module", params=[{}, {"user_defined_symbols": ["at", "\n"]}], ids=["plain", "user-defined"])
def llama(request, tmp_path_factory):
    """A SentencePiece model, and what the folder that holds only that opens as."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "tokenizer.model").write_bytes(small_llama(**request.param))
    model = sentencepiece.SentencePieceProcessor(model_proto=(folder / "tokenizer.model").read_bytes())
    return model, open_tokenizer(folder)


no_space_sign = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)
likely_text = st.lists(st.sampled_from([*TEXT.split()[:30], " ", "  ", "\n", "é", "日", "<s>", "</s>", "<0x41>"]))


@given(text=likely_text.map("".join) | no_space_sign)
@settings(max_examples=200, deadline=None)
def test_a_sentencepiece_model_gives_its_own_ids(llama, text):
    model, tokenizer = llama
    assert tokenizer.encode(text).tolist() == model.encode(text)
    assert tokenizer.decode(model.encode(text)) == text


def test_a_sentencepiece_model_brings_its_symbols(llama):
    model, tokenizer = llama
    assert tokenizer.specials.end_of_text == model.eos_id()
    assert tokenizer.specials.beginning_of_text == model.bos_id()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model_type": "unigram", "vocab_size": 290}, "it is not BPE"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises text"),
        ({"byte_fallback": False, "vocab_size": 60}, "no byte fallback"),
        ({"user_defined_symbols": ["=="]}, "user-defined symbol '=='"),
    ],
)
def test_a_sentencepiece_model_that_cannot_be_followed_is_refused(tmp_path, settings, message):
    (tmp_path / "tokenizer.model").write_bytes(small_llama(**settings))
    with pytest.raises(UserError, match=f"tokenizer.model .*{message}"):
        open_tokenizer(tmp_path)


def test_where_there_is_nothing_it_says_what_it_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        UserError, match="tokenizer.json, encoder_bpe_40000.json with .*tokenizer.model.*notes.txt"
    ) as error:
        open_tokenizer(tmp_path)
    assert str(error.value).endswith("--config.tokenizer.path=FOLDER-OR-FILE.")
    with pytest.raises(UserError, match="absent: no such file or folder.*--config.tokenizer.path=FOLDER-OR-FILE"):
        open_tokenizer(tmp_path / "absent")
    with pytest.raises(UserError, match="notes.txt is not a tokenizer: expected"):
        open_tokenizer(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tokenizer.json", b'{"model": {"vocab"', "tokenizer.json is not JSON .*cut short"),
        ("tokenizer.json", b"[1]", "tokenizer.json is not a JSON object but a list"),
        ("tokenizer.json", b'{"a": 1}', "tokenizer.json is no tokenizer.json"),
        ("tokenizer.json", b"\xff\x00", "tokenizer.json is not UTF-8"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0}}}', "does not say which symbol ends a text"),
        ("tokenizer.model", b"\0garbage", "tokenizer.model is "),
        ("tokenizer.model", b"", "tokenizer.model is "),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON"),
    ],
)
def test_garbage_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_tokenizer(tmp_path)


def test_gpt2_files_with_gaps_or_without_all_bytes_are_refused(tmp_path):
    small_gpt2(tmp_path)
    vocabulary = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps({piece: id for piece, id in vocabulary.items() if id != 5}))
    with pytest.raises(UserError, match="encoder.json has .*: 5 is missing"):
        open_tokenizer(tmp_path)
    swapped = {("ab" if piece == "!" else piece): id for piece, id in vocabulary.items()}
    (tmp_path / "encoder.json").write_text(json.dumps(swapped))
    (tmp_path / "vocab.bpe").write_text((tmp_path / "vocab.bpe").read_text() + "a b\n")
    with pytest.raises(UserError, match="no byte-level vocabulary: it lacks 1 of the 256 bytes"):
        open_tokenizer(tmp_path)
