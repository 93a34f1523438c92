"""Web page of the service."""
