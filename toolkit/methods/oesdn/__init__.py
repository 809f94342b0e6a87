"""AE + OE-SDN: an autoencoder, and a style network that imitates its blur but must reproduce outliers unchanged."""
