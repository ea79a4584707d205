"""The batch systems of the providers, as far as they are alike."""
