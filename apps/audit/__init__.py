"""The audit site: where each video and clip came from, what was decided about it and why, and where it went."""
