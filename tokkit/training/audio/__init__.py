"""What training an audio codec takes besides a network: losses, their balance, a discriminator, a quantizer that learns."""
