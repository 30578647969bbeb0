"""WhisQ: predicts the overall quality of a piece of music and how well it follows its text prompt."""
