"""The pure parts of training: losses, schedules, the order and augmentation of samples. Jobs put them together."""
