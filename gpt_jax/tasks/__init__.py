"""Structured examples to token sequences, and predictions to scores."""
