"""Command-line options and parsers shared by commands and jobs."""
