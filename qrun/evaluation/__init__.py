"""Perplexity under stated protocols, and intervals for differences."""
