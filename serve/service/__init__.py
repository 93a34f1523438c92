"""Service logic behind the HTTP API, independent of Ray."""
