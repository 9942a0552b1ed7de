"""What a training draws: the order of the videos, and their noise."""
