"""What a run writes down of itself, for people and scripts."""
