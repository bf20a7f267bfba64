"""What this package reads of a SentencePiece model, as a message of protobuf.

sentencepiece brings a module of its own for this, which was generated for the newest protobuf and refuses any other;
packages that hold protobuf back (apache-beam) would make `tokenizer.model` files unreadable. So the few fields that are
needed stand here, with the numbers and defaults of sentencepiece_model.proto (proto2; other fields are skipped).
"""

import functools

# message -> its fields: name, number, type of the wire, default
FIELDS = {
    "SentencePiece": (("piece", 1, "STRING", ""), ("score", 2, "FLOAT", "0"), ("type", 3, "INT32", "1")),
    "TrainerSpec": (
        ("model_type", 3, "INT32", "1"),
        ("treat_whitespace_as_suffix", 24, "BOOL", "false"),
        ("byte_fallback", 35, "BOOL", "false"),
        ("unk_id", 40, "INT32", "0"),
        ("bos_id", 41, "INT32", "1"),
        ("eos_id", 42, "INT32", "2"),
        ("pad_id", 43, "INT32", "-1"),
    ),
    "NormalizerSpec": (
        ("precompiled_charsmap", 2, "BYTES", ""),
        ("add_dummy_prefix", 3, "BOOL", "true"),
        ("remove_extra_whitespaces", 4, "BOOL", "true"),
        ("escape_whitespaces", 5, "BOOL", "true"),
    ),
}
PARTS = (("pieces", 1, "SentencePiece"), ("trainer_spec", 2, "TrainerSpec"), ("normalizer_spec", 3, "NormalizerSpec"))


@functools.cache
def model_proto() -> type:
    """The class of the message ModelProto: `pieces`, `trainer_spec` and `normalizer_spec`, with the fields above."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="gpt_jax/sentencepiece.proto", package="gpt_jax", syntax="proto2")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for own, number, kind, default in fields:
            message.field.add(
                name=own, number=number, type=getattr(field, f"TYPE_{kind}"), label=field.LABEL_OPTIONAL,
                default_value=default,
            )  # fmt: skip
    message = file.message_type.add(name="ModelProto")
    for own, number, kind in PARTS:
        label = field.LABEL_REPEATED if own == "pieces" else field.LABEL_OPTIONAL
        message.field.add(
            name=own, number=number, type=field.TYPE_MESSAGE, type_name=f".gpt_jax.{kind}", label=label
        )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gpt_jax.ModelProto"))
