"""Transfer of a photo to other poses through the body surface."""
