"""Listening tests: a page that asks people, and what their answers say."""

KINDS = ("mos", "mushra", "abx")
