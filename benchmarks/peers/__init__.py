"""The systems that Regraft is compared with, each in a process of its own, as a competent user would run it."""
