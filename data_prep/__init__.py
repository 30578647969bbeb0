"""Training data, one file-to-file step per module; every step can be stopped and run again."""
