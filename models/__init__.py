"""Judgement on frames and text: each module answers one question and knows no database."""


class ModelUnavailable(RuntimeError):
    """A model cannot be had here: its weights, its package or its settings are missing."""
