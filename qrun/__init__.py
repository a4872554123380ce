"""qrun: reproduce, claim by claim, language models with quantum circuits inside (arXiv:2605.05914)."""
