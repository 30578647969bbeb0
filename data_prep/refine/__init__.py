"""Caption refinement in three stages: generate candidates, align them with the audio, fuse the survivors into one."""
