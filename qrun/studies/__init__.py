"""Recipes: one run from config to record, readable from top to bottom."""
