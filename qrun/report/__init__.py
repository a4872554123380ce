"""Figures, tables and progress on the screen."""
