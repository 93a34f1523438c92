"""Reading and writing: videos, photos, files, storage paths, weights, provenance."""
