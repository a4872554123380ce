"""The Hydra tree, installed as the package qrun.configs."""
