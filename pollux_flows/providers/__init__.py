"""A folder a provider. What a provider cannot do has no file in its folder."""
