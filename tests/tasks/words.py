"""A tokenizer for tests: a word an id, 100 upwards, in the order in which the words are first seen."""

import numpy as np

from gpt_jax.text.tokenizer import SpecialIds

START, DELIMITER, EXTRACT = 3, 4, 5
SPECIALS = SpecialIds(pad=0, end_of_text=1, start=START, delimiter=DELIMITER, extract=EXTRACT)


class Words:
    kind = "words"
    vocab_size = 10_000

    def __init__(self, specials=SPECIALS):
        self.specials = specials
        self.ids = {}

    def encode(self, text):
        return np.array([self.ids.setdefault(word, 100 + len(self.ids)) for word in text.split()], np.int32)

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]
