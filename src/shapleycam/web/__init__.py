"""The page: look, compare, and play the game in a browser."""
