"""Differences of checkpoints as LoRAs."""
