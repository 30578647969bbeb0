"""Stage 3: what a fuser is told, and the fuser that works by rules."""
