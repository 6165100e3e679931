"""Gemma 4's vision tower, which several families share: sizes, modules, names of weights."""
