"""Jobs on a Ray cluster, thin wrappers over `dreampose`."""
