"""Scores of whole collections of music, and what is made of them: statistics, labels, selections."""
