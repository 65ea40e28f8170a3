"""What is checked before a byte is written."""
