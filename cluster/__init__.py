"""What each stage asks of a cluster, and the files that describe clusters."""
