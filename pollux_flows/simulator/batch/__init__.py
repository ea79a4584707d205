"""The parts of the providers' batch systems that are alike."""
