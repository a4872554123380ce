"""Cayley blocks, the sites they are attached to, saving and loading."""
