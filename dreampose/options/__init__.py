"""Command-line options shared by commands and jobs."""
