"""Which checkpoint will be best after adaptation: what is known of it, what its features say, what short runs show, in one."""
