"""Using a model: sampling from it, scoring texts with it."""
