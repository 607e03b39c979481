"""State dicts frozen for others: as payloads of named bytes, and as sketches."""
