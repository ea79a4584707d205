"""The provider adapters, one folder each. A folder has no file for a capability that its provider lacks."""
