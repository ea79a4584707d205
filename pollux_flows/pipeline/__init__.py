"""The four phases, Request → Plan → Execute → Extract, as plain async Python."""
