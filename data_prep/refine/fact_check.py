"""Checks that a caption says nothing that its sources do not say."""
