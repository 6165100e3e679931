"""Evals by name: tasks (`tasks`), points of a sweep (`points`), answers to them (`answers`), scores."""
