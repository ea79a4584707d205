"""JSON Schemas: check them, write them in the providers' dialects, and validate answers."""
