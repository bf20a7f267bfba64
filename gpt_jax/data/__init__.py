"""Text and examples to token windows to global batches."""
