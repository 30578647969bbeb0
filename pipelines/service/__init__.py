"""The HTTP service: a queue of generations with its state on disk, one worker, and the routes in front of it."""
