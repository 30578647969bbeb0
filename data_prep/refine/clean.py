"""Captions and tags of strangers as plain data: one line of text each, nothing that addresses a machine."""
