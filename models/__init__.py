"""Judgement on frames and text: each module answers one question and knows no database."""

import os

# Since 1.32 ONNX Runtime reports what it runs to its makers, and leaves a device id in the user's home for that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class ModelUnavailable(RuntimeError):
    """A model cannot be had here: its weights, its package or its settings are missing."""
