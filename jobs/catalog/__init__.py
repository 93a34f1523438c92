"""Catalogue rendering: table, items, output, HTML page."""
