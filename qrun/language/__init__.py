"""Frozen language models and the text they read. Knows nothing of circuits."""
