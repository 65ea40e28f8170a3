"""`regraft merge --search`: which merge to take."""
