"""What data-driven methods know of the inputs: statistics over examples."""
