"""How a model learns; knows nothing of files of text, of tasks, or of what a token means."""
