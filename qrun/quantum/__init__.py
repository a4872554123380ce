"""Block circuits: encoding, synthesis, noise, simulation, devices, chips. Knows nothing of language models."""
