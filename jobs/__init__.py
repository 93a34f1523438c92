"""Jobs: what runs on a Ray cluster. Each is a thin wrapper over `dreampose`."""
