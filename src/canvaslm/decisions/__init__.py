"""Typed decisions: questions about a state, and a probability for every answer that is allowed."""
