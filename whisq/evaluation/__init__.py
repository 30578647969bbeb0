"""How well predictions agree with ratings: figures, tables, pictures, and what has to be beaten."""
