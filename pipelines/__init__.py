"""Inference: the diffusers pipeline and its command line."""
