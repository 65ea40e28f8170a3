"""What is left on record beside a merged checkpoint, and checked again."""
