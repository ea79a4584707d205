"""JSON Schemas: checked, written in the providers' dialects, and used to validate answers."""
