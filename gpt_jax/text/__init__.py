"""Strings to ids and back: the Tokenizer protocol and its implementations."""
