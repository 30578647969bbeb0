"""Whether generated music is good, near real music, and as it was asked for."""
