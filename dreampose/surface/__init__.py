"""The photo carried over to other poses through the surface of the body."""
