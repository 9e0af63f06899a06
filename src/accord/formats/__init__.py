"""Readers and writers of other people's formats. Nothing here imports torch."""
