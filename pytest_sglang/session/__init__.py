"""What composes the observers into one acceptance run: restart with cache diff, measured window, lock, journal, guard. Knows no pytest."""
