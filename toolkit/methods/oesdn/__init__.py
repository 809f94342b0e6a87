"""AE + OE-SDN: an autoencoder, and a style network that learns to tell its reconstruction from outliers made of it."""
