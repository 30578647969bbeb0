"""Composes music by rule: styles, harmony, and the writers of every part."""
