"""SentencePiece models (`tokenizer.model`, and our own) as a tokenizer.json that gives the same ids.

Only BPE: SentencePiece sums the scores of a unigram model in float32, the `tokenizers` library in float64, so near ties
would come out differently.
"""

import re
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.extras import require
from gpt_jax.text.sentencepiece_proto import model_proto
from gpt_jax.text.tokenizer_json import added_token, merges_by_score, sentencepiece_bpe

# sentencepiece_model.proto, ModelProto.SentencePiece.Type and TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
_BPE = 2


def sentencepiece_document(model: bytes, where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tokenizer.json of a SentencePiece model, and the names of its symbols: {"eos_token": "</s>", ...}.

    Its ids are SentencePiece's for every text without U+2581 (which SentencePiece takes for a space, as this does; our
    own kind does not). UserError: `where` is no such model, or one that the `tokenizers` library cannot follow.
    """
    proto = _parsed(model, where)
    pieces = [piece.piece for piece in proto.pieces]
    of_type = {kind: [id for id, piece in enumerate(proto.pieces) if piece.type == kind] for kind in range(1, 7)}
    normal = {pieces[id]: proto.pieces[id].score for id in of_type[_NORMAL]}
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    user_defined = [pieces[id] for id in of_type[_USER_DEFINED]]
    document = sentencepiece_bpe(
        vocabulary,
        merges_by_score(normal, normal.keys()) + _merges_of_user_defined(user_defined, vocabulary, where),
        [added_token(id, pieces[id]) for id in sorted(of_type[_CONTROL] + of_type[_UNKNOWN])],
        unknown=pieces[proto.trainer_spec.unk_id],
        leading_space=proto.normalizer_spec.add_dummy_prefix,
        pre_tokenizer=_set_apart(user_defined),
    )
    spec = proto.trainer_spec
    ids = {"eos_token": spec.eos_id, "bos_token": spec.bos_id, "pad_token": spec.pad_id}
    return document, {name: pieces[id] for name, id in ids.items() if 0 <= id < len(pieces)}


def _parsed(model: bytes, where: str):
    require("google.protobuf", "huggingface")
    from google.protobuf.message import DecodeError

    proto = model_proto()()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise UserError(f"{where} is not a SentencePiece model ({error}). Is it cut short? Fetch it again.") from None
    if not proto.pieces:
        raise UserError(f"{where} is a SentencePiece model without pieces. Fetch it again.")
    spec, normalizer = proto.trainer_spec, proto.normalizer_spec
    obstacles = {
        "it is not BPE (a unigram model's near ties would come out differently)": spec.model_type != _BPE,
        "it normalises text (precompiled_charsmap)": bool(normalizer.precompiled_charsmap),
        "it removes spaces (remove_extra_whitespaces)": normalizer.remove_extra_whitespaces,
        "it keeps spaces as they are (escape_whitespaces is off)": not normalizer.escape_whitespaces,
        "it puts spaces behind words (treat_whitespace_as_suffix)": spec.treat_whitespace_as_suffix,
        "it has no byte fallback": not spec.byte_fallback,
    }
    if reasons := [reason for reason, holds in obstacles.items() if holds]:
        raise UserError(
            f"{where} is a SentencePiece model that no tokenizer.json with the same ids can be made of here: "
            f"{'; '.join(reasons)}."
        )
    return proto


def _merges_of_user_defined(pieces: list[str], vocabulary: dict[str, int], where: str) -> list[tuple[str, str]]:
    merges = [(piece[:-1], piece[-1]) for piece in pieces if len(piece) > 1]
    for left, right in merges:
        if left not in vocabulary or right not in vocabulary:
            raise UserError(
                f"{where} has the user-defined symbol {left + right!r} whose parts are no pieces of their own; open "
                "the model's tokenizer.json instead."
            )
    return merges


def _set_apart(user_defined: list[str]) -> dict[str, Any] | None:
    """Cuts out the user-defined symbols, the longest first, as SentencePiece does before it merges anything."""
    if not user_defined:
        return None
    pattern = "|".join(re.escape(piece) for piece in sorted(user_defined, key=len, reverse=True))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
