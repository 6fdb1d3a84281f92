"""Streams in, exact token times out."""
